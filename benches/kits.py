#!/usr/bin/env python3
"""Writes two kits in the shape of kit 1.7 and pushes them: kits.py MEBIBYTES FILES http://HOST/v2/REPOSITORY

Below the repository, `kit` has one layer with one large file and one with 200 small ones, a twentieth of it; `files`
has many small files. Random bytes: nothing compresses, nothing is sparse.
"""
import hashlib, http.client, io, json, os, sys, tarfile, urllib.parse
mib, files, registry = int(sys.argv[1]), int(sys.argv[2]), urllib.parse.urlparse(sys.argv[3])

def tar(path, entries):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
        for name, size in entries:
            info = tarfile.TarInfo(name)
            info.uid, info.mode = 1000, 0o755 if size is None else 0o644
            if size is None:
                info.type = tarfile.DIRTYPE
                out.addfile(info)
                continue
            info.size = size
            out.addfile(info, open("/dev/urandom", "rb"))

def digest(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

def request(method, path, body=None, **headers):
    connection = http.client.HTTPConnection(registry.netloc, timeout=300)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    assert answer.status in (201, 202), (method, path, answer.status)
    return answer

def push(name, path):
    place = urllib.parse.urlparse(request("POST", f"{registry.path}/{name}/blobs/uploads/").getheader("Location"))
    query = (place.query + "&" if place.query else "") + "digest=" + digest(path)
    with open(path, "rb") as file:
        request("PUT", place.path + "?" + query, file, **{"Content-Length": str(os.path.getsize(path))})
    return {"digest": digest(path), "size": os.path.getsize(path)}

def kit(name, model, data):
    tar("model.tar", model)
    tar("data.tar", data)
    kinds = {"model": "model.tar", "dataset": "data.tar"}
    layers = [{"mediaType": f"application/vnd.kitops.modelkit.{kind}.v1.tar", **push(name, file)} for kind, file in kinds.items()]
    for file in kinds.values():
        os.remove(file)
    same = [{"digest": layer["digest"], "diffId": layer["digest"]} for layer in layers]
    config = {"manifestVersion": "1.0.0", "package": {"name": name}, "model": {"name": name, "path": "model", **same[0]},
              "datasets": [{"name": "data", "path": "data", **same[1]}]}
    open("config.json", "w").write(json.dumps(config, separators=(",", ":")))
    manifest = {"schemaVersion": 2, "config": {"mediaType": "application/vnd.kitops.modelkit.config.v1+json", **push(name, "config.json")},
                "layers": layers, "annotations": {"ml.kitops.modelkit.cli-version": "1.7.0"}}
    body = json.dumps(manifest, separators=(",", ":")).encode()
    request("PUT", f"{registry.path}/{name}/manifests/v1", body, **{"Content-Type": "application/vnd.oci.image.manifest.v1+json"})
    open(f"{name}.json", "wb").write(body)

whole = mib << 20
kit("kit", [("model", None), ("model/weights.safetensors", whole * 95 // 100)],
    [("data", None)] + [(f"data/{n:03}.bin", whole // 20 // 200) for n in range(200)])
folders = [(f"data/{n:03}", None) for n in range((files + 99) // 100)]
kit("files", [("model", None), ("model/x", 1)],
    [("data", None)] + folders + [(f"data/{n // 100:03}/{n:06}", 500 + n % 3000) for n in range(files)])
