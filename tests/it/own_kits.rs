//! Kits that the tests pack themselves, good and bad: what the fixtures show with real kits holds in a clone that has
//! none of them.

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::support::host;
use crate::support::kit::{
    Age, Base, Blob, Compression, Kit, Layout, Packed, Packing, append, compress, directory, file, model_pack, noise,
};
use crate::support::kitfs::{Kitfs, Output};
use crate::support::registry::{Access, Registry};
use crate::support::tree::Tree;

const PACKINGS: [Packing; 3] =
    [Packing::Tar(Compression::None), Packing::Tar(Compression::Gzip), Packing::Tar(Compression::Zstd)];

/// Verifies, exports and mounts a kit, and compares with what was packed.
#[track_caller]
fn check(what: &str, kit: &Packed) {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), kit);
    let reference = layout.reference("v1");
    let document = kitfs.run(&["verify", &reference, "--output", "json"]).expect(0).json();
    assert_eq!(document["ok"], true, "{what}: {document}");
    assert_eq!(document["digest"], kit.digest(), "{what}: {document}");
    let folder = kitfs.next_directory();
    kitfs.run(&["export", &reference, folder.to_str().expect("a plain name")]).expect(0);
    let exported = Tree::read(&folder);
    assert!(exported.0.contains_key(b"Kitfile".as_slice()), "{what}: there is always a Kitfile");
    exported.without("Kitfile").assert_is(&kit.tree, &format!("{what}, exported"));
    if host::can_mount() {
        // Another cache, so that the mount is cold.
        let kitfs = Kitfs::new();
        for time in ["cold", "warm"] {
            let mount = kitfs.mount(&reference);
            Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, &format!("{what}, mounted {time}"));
            mount.unmount();
        }
    }
}

#[test]
fn kits_of_every_age_and_compression() {
    for age in [Age::Oldest, Age::Old, Age::New] {
        for packing in PACKINGS {
            check(&format!("{age:?} {packing:?}"), &Kit::usual("usual").age(age).packing(packing).pack());
        }
    }
}

#[test]
fn raw_layers_plain_and_compressed() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let kit = Kit::named("raw")
            .packing(Packing::Raw(compression))
            .with(Base::Model, "deep/er/w.bin", [file("deep/er/w.bin", noise(3, 600_000))])
            .with(Base::Part, "deep/tokenizer.json", [file("deep/tokenizer.json", *b"{}").mode(0o600)])
            .with(Base::Docs, "empty", [file("empty", [])]);
        check(&format!("raw {compression:?}"), &kit.pack());
    }
}

#[test]
fn model_packs_of_both_namespaces() {
    for namespace in ["cncf", "cnai"] {
        let files = [file("config.json", *b"{}"), file("sub/model.safetensors", noise(4, 530_000))];
        check(namespace, &model_pack(namespace, &files));
    }
}

#[test]
fn a_kit_without_layers_is_its_kitfile() {
    for age in [Age::Old, Age::New] {
        check("nothing", &Kit::named("nothing").age(age).pack());
    }
}

#[test]
fn sizes_around_blocks_and_units_of_proof() {
    let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 524_287, 524_288, 524_289, 1_048_576];
    let files: Vec<_> = sizes.iter().map(|size| file(&format!("m/{size}"), noise(*size as u64, *size))).collect();
    check("sizes", &Kit::named("sizes").with(Base::Model, "m", files).pack());
}

#[test]
fn names_that_programs_get_wrong() {
    let long = format!("m/{}/{}.bin", "x".repeat(120), "y".repeat(120));
    let names = ["m/naïve – 模型", "m/with space", "m/-dash", "m/$dollar'\"", "m/back\\slash", "m/new\nline", &long];
    let mut files: Vec<_> = names.iter().map(|name| file(name, *b"x")).collect();
    files.push(directory("m/empty").mode(0o700));
    check("names", &Kit::named("names").with(Base::Model, "m", files).pack());
}

#[test]
fn the_kitfile_is_yaml_of_the_config() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack());
    let written = kitfs.run(&["cat", &layout.reference("v1"), "Kitfile"]).expect(0);
    let expected = "manifestVersion: 1.0.0\npackage:\n  name: usual\nmodel:\n  name: usual\n  path: model\n\
                    code:\n  - path: src\ndatasets:\n  - name: Dataset-0\n    path: data\ndocs:\n  - path: README.md\n";
    assert_eq!(written.text(), expected);
}

#[test]
fn a_layout_in_a_tar_is_like_the_directory() {
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    let file = kitfs.path("layout.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&file).expect("our own directory"));
    tar.append_dir_all(".", layout.path()).expect("our own directory");
    tar.into_inner().expect("our own directory");
    let reference = format!("oci:{}:v1", file.display());
    let document = kitfs.run(&["verify", &reference, "--output", "json"]).expect(0).json();
    assert_eq!(document["digest"], kit.digest());
    let folder = kitfs.next_directory();
    kitfs.run(&["export", &reference, folder.to_str().expect("a plain name")]).expect(0);
    Tree::read(&folder).without("Kitfile").assert_is(&kit.tree, "a layout in a tar");
}

#[test]
fn filters_choose_as_in_kit_unpack() {
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual")
        .with(Base::Part, "tokenizer.json", [file("tokenizer.json", *b"{}")])
        .with(Base::Dataset, "more", [file("more/rows", *b"1")])
        .pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let in_model = |path: &str| path.starts_with("model") || path == "tokenizer.json";
    let cases: [(&[&str], &dyn Fn(&str) -> bool); 7] = [
        (&["model"], &in_model),
        (&["kitfile,docs"], &|path| matches!(path, "Kitfile" | "README.md")),
        (&["code", "docs"], &|path| path.starts_with("src") || path == "README.md"),
        (&["datasets:Dataset-1"], &|path| path.starts_with("more")),
        (&["datasets:data"], &|path| path.starts_with("data")),
        (&["datasets:data,more"], &|path| path.starts_with("data") || path.starts_with("more")),
        (&["model:tokenizer.json"], &|path| path == "tokenizer.json"),
    ];
    for (filters, keep) in cases {
        let folder = kitfs.next_directory();
        let mut words = vec!["export", &reference, folder.to_str().expect("a plain name")];
        words.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
        kitfs.run(&words).expect(0);
        let found = Tree::read(&folder);
        assert_eq!(found.0.contains_key(b"Kitfile".as_slice()), keep("Kitfile"), "{filters:?}");
        found.without("Kitfile").assert_is(&kit.tree.clone().only(keep), &format!("{filters:?}"));
    }
    kitfs.run(&["ls", &reference, "--filter", "modle"]).expect(2).says("modle");
}

#[test]
fn ls_and_inspect_say_what_is_in_a_kit() {
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let listed = kitfs.run(&["ls", &reference]).expect(0);
    let names: Vec<_> = listed.text().lines().map(|line| line.trim_end_matches('/')).collect();
    assert_eq!(names, ["Kitfile", "README.md", "data", "model", "src"]);
    let below = kitfs.run(&["ls", &reference, "src", "--output", "json"]).expect(0).json();
    let paths: Vec<_> = below["entries"].as_array().expect("entries").iter().map(|entry| &entry["path"]).collect();
    assert_eq!(paths, ["src/lib", "src/run.sh"]);
    let script = &below["entries"][1];
    assert_eq!((&script["type"], &script["mode"], &script["size"]), (&json!("file"), &json!("0755"), &json!(10)));
    assert_eq!(script["layer"], kit.layer("code").digest.as_str());
    let long = kitfs.run(&["ls", "-l", "-R", &reference]).expect(0);
    assert!(long.text().contains("1300007"), "a long listing has sizes\n{long}");
    let document = kitfs.run(&["inspect", &reference, "--output", "json"]).expect(0).json();
    assert_eq!(document["digest"], kit.digest());
    assert_eq!(document["manifest"]["artifactType"], kit.manifest["artifactType"]);
    assert_eq!(document["kitfile"]["package"]["name"], "usual");
    assert_eq!(document["layers"].as_array().expect("layers").len(), 4);
    kitfs.run(&["inspect", &reference]).expect(0);
    kitfs.run(&["ls", &reference, "nowhere"]).expect(3).says("nowhere");
    kitfs.run(&["cat", &reference, "src"]).expect(1);
    kitfs.run(&["cat", &reference, "src/nothing"]).expect(3).says("src/nothing");
}

/// A layout whose layer of `kind` has one bit flipped.
fn spoilt(kitfs: &Kitfs, kit: &Packed, kind: &str) -> Layout {
    let layout = Layout::of(kitfs.path("spoilt"), kit);
    layout.flip(&kit.layer(kind).digest);
    layout
}

/// Fails unless standard error names two digests, of which one is `expected`.
#[track_caller]
fn names_both_digests(output: &Output, expected: &str) {
    assert!(output.stderr.contains(expected), "the expected digest is missing\n{output}");
    let named: std::collections::BTreeSet<_> =
        output.stderr.split("sha256:").skip(1).map(|rest| rest.chars().take(64).collect::<String>()).collect();
    assert!(named.len() >= 2, "only one digest is named\n{output}");
}

#[test]
fn a_flipped_bit_is_5_and_no_byte_comes_out() {
    for packing in PACKINGS {
        let kit = Kit::usual("usual").packing(packing).pack();
        let kitfs = Kitfs::new();
        let reference = spoilt(&kitfs, &kit, "model.v1").reference("v1");
        let bad = &kit.layer("model.v1").digest;

        let output = kitfs.run(&["verify", &reference, "--output", "json"]).expect(5);
        names_both_digests(&output, bad);
        let document = output.json();
        assert_eq!((&document["ok"], document["error"].is_string()), (&json!(false), true), "{document}");
        for layer in document["layers"].as_array().expect("layers") {
            let wanted = if layer["digest"] == bad.as_str() { "mismatch" } else { "verified" };
            assert_eq!(layer["status"], wanted, "{packing:?}: {document}");
        }

        let output = kitfs.run(&["cat", &reference, "model/weights.bin"]).expect(5);
        names_both_digests(&output, bad);
        assert!(output.stdout.is_empty(), "{packing:?}: unproved bytes were written\n{output}");

        let folder = kitfs.next_directory();
        kitfs.run(&["export", &reference, folder.to_str().expect("a plain name")]).expect(5);
        let is_empty = std::fs::read_dir(&folder).map_or(true, |mut left| left.next().is_none());
        assert!(is_empty, "{packing:?}: a failed export left something behind");

        kitfs.run(&["pull", &reference]).expect(5);
    }
}

#[test]
fn a_changed_manifest_or_config_is_5() {
    for part in ["manifest", "config"] {
        let kitfs = Kitfs::new();
        let kit = Kit::usual("usual").pack();
        let layout = Layout::of(kitfs.path("layout"), &kit);
        let digest = if part == "manifest" { kit.digest() } else { kit.config.digest.clone() };
        layout.flip(&digest);
        for command in ["verify", "ls", "inspect", "pull"] {
            let output = kitfs.run(&[command, &layout.reference("v1")]).expect(5);
            names_both_digests(&output, &digest);
        }
    }
}

#[test]
fn a_layer_that_is_longer_or_shorter_than_its_descriptor_is_refused() {
    for change in [-1_i64, 1] {
        let kitfs = Kitfs::new();
        let mut kit = Kit::usual("usual").pack();
        kit.layers[0].size = kit.layers[0].size.checked_add_signed(change).expect("a size");
        let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
        let code = kitfs.run(&["verify", &reference]).code;
        assert!(matches!(code, 1 | 5), "{change}: {code}");
        let output = kitfs.run(&["cat", &reference, "model/weights.bin"]);
        assert!(matches!(output.code, 1 | 5) && output.stdout.is_empty(), "{change}\n{output}");
    }
}

#[test]
fn a_manifest_of_another_size_than_the_index_says_is_refused() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack());
    let reference = layout.reference("v1");
    let file = layout.path().join("index.json");
    let index: Value = serde_json::from_slice(&std::fs::read(&file).expect("we wrote it")).expect("we wrote it");
    let size = index["manifests"][0]["size"].as_u64().expect("we wrote it");
    for (told, code) in [(json!(size - 1), 1), (json!(size + 1), 1), (json!("many"), 1), (json!(size), 0)] {
        let mut index = index.clone();
        index["manifests"][0]["size"] = told.clone();
        std::fs::write(&file, index.to_string()).expect("our own directory");
        let output = kitfs.run(&["verify", &reference]);
        assert_eq!(output.code, code, "{told}\n{output}");
    }
    // A manifest that was changed is told by its digest, whatever its size.
    let manifest = index["manifests"][0]["digest"].as_str().expect("we wrote it");
    layout.put(manifest, b"{}");
    names_both_digests(&kitfs.run(&["verify", &reference]).expect(5), manifest);
}

#[test]
fn a_missing_blob_is_3() {
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    std::fs::remove_file(layout.blob(&kit.layer("code").digest)).expect("our own directory");
    let output = kitfs.run(&["verify", &layout.reference("v1"), "--output", "json"]).expect(3);
    let document = output.json();
    let status = |kind: &str| {
        let layers = document["layers"].as_array().expect("layers");
        let layer = layers.iter().find(|layer| layer["digest"] == kit.layer(kind).digest.as_str());
        layer.expect("every layer is told of")["status"].clone()
    };
    assert_eq!((status("code"), status("model.v1")), (json!("missing"), json!("verified")), "{document}");
}

/// A kit with one model layer made of these bytes, which its config describes truthfully unless `diff` is another.
fn of_layer(media_type: &str, blob: Vec<u8>, diff: &[u8]) -> Packed {
    let layer = Blob::new(media_type, blob);
    let diff = format!("sha256:{}", crate::support::tree::sha256(diff));
    let config = json!({
        "manifestVersion": "1.0.0", "package": {"name": "made"},
        "model": {"name": "made", "path": "m", "digest": layer.digest, "diffId": diff}
    });
    let config = Blob::new("application/vnd.kitops.modelkit.config.v1+json", config.to_string().into_bytes());
    Packed::new(Age::New, config, vec![layer], Tree::default())
}

fn tar_with(entries: &[(&str, tar::EntryType, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, mode, bytes) in entries {
        append(&mut tar, name, *kind, *mode, bytes);
    }
    tar.into_inner().expect("a vector takes everything")
}

const TAR: &str = "application/vnd.kitops.modelkit.model.v1.tar";

/// Fails unless nothing of a kit can be had: `verify` gives one of `codes`, `cat` no byte, `mount` no tree.
#[track_caller]
fn is_refused(what: &str, kit: &Packed, codes: &[i32]) {
    let kitfs = Kitfs::new();
    let reference = Layout::of(kitfs.path("layout"), kit).reference("v1");
    let output = kitfs.command(&["verify", &reference, "--output", "json"]).within(20).run();
    assert!(codes.contains(&output.code), "{what}: verify\n{output}");
    assert_eq!(output.json()["ok"], output.code == 0, "{what}\n{output}");
    assert!(output.peak_kib < 300 * 1024, "{what}: {} MiB\n{output}", output.peak_kib / 1024);
    if host::can_mount() {
        // Another cache, so that nothing is known of it yet.
        let kitfs = Kitfs::new();
        let (mount, output) = kitfs.try_mount(&reference, &["--metadata", "verified"], &kitfs.path("home"));
        assert!(mount.is_none(), "{what}: it was mounted\n{output}");
        assert!(codes.contains(&output.code), "{what}: mount\n{output}");
        assert!(!output.stderr.trim().is_empty(), "{what}: no word of why\n{output}");
    }
}

#[test]
fn names_that_leave_the_root_are_refused() {
    use tar::EntryType::{Directory, Regular};
    for name in ["../m", "/m", "m/../../x", "m/..", ".."] {
        let tar = tar_with(&[("m", Directory, 0o755, b""), (name, Regular, 0o644, b"out")]);
        is_refused(name, &of_layer(TAR, tar.clone(), &tar), &[1]);
    }
}

#[test]
fn links_and_devices_are_refused() {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    for kind in [Block, Char, Fifo, Link, Symlink] {
        let tar = tar_with(&[("m", Directory, 0o755, b""), ("m/x", kind, 0o644, b"")]);
        is_refused(&format!("{kind:?}"), &of_layer(TAR, tar.clone(), &tar), &[1]);
    }
}

#[test]
fn set_id_and_sticky_bits_are_not_shown() {
    use tar::EntryType::{Directory, Regular};
    let tar = tar_with(&[("m", Directory, 0o1777, b""), ("m/x", Regular, 0o6755, b"x")]);
    let mut kit = of_layer(TAR, tar.clone(), &tar);
    kit.tree.put("m/x", b"x", 0o755);
    kit.tree.put_directory("m", 0o777);
    check("set-id", &kit);
}

#[test]
fn malformed_layers_are_1() {
    use tar::EntryType::{Directory, Regular};
    let good = tar_with(&[("m", Directory, 0o755, b""), ("m/x", Regular, 0o644, &noise(1, 3000))]);
    let mut bad_checksum = good.clone();
    bad_checksum[512 + 150] ^= 1;
    let cut = good[..1200].to_vec();
    for (what, tar) in [("noise", noise(9, 2048)), ("a wrong checksum", bad_checksum), ("cut off", cut)] {
        is_refused(what, &of_layer(TAR, tar.clone(), &tar), &[1]);
    }
    let (gzip, _) = compress(&good, Compression::Gzip);
    let (zstd, _) = compress(&good, Compression::Zstd);
    for (what, suffix, bytes) in [
        ("gzip cut off", "+gzip", gzip[..gzip.len() / 2].to_vec()),
        ("gzip that is none", "+gzip", good.clone()),
        ("zstd cut off", "+zstd", zstd[..zstd.len() / 2].to_vec()),
        ("zstd that is gzip", "+zstd", gzip),
    ] {
        is_refused(what, &of_layer(&format!("{TAR}{suffix}"), bytes, &good), &[1]);
    }
}

#[test]
fn a_wrong_diff_id_is_refused() {
    use tar::EntryType::{Directory, Regular};
    let tar = tar_with(&[("m", Directory, 0o755, b""), ("m/x", Regular, 0o644, b"x")]);
    is_refused("plain", &of_layer(TAR, tar.clone(), b"something else"), &[1, 5]);
    let (gzip, suffix) = compress(&tar, Compression::Gzip);
    is_refused("gzip", &of_layer(&format!("{TAR}{suffix}"), gzip, b"something else"), &[1, 5]);
}

/// A kit with one uncompressed file, whose layer and its `diffId` are named by digests of these algorithms.
fn of_algorithms(packing: Packing, layer: &str, diff_id: &str, diff_of: Option<&[u8]>) -> Packed {
    let named = |algorithm: &str, bytes: &[u8]| match algorithm {
        "sha512" => format!("sha512:{}", hex::encode(sha2::Sha512::digest(bytes))),
        _ => format!("sha256:{}", crate::support::tree::sha256(bytes)),
    };
    let kit = Kit::named("two").packing(packing).with(Base::Model, "m/w.bin", [file("m/w.bin", noise(9, 700_000))]);
    let mut kit = kit.pack();
    let blob = &mut kit.layers[0];
    let mut config: Value = serde_json::from_slice(&kit.config.bytes).expect("we wrote it");
    blob.digest = named(layer, &blob.bytes);
    config["model"]["digest"] = blob.digest.clone().into();
    config["model"]["diffId"] = named(diff_id, diff_of.unwrap_or(&blob.bytes)).into();
    kit.config = Blob::new(&kit.config.media_type, config.to_string().into_bytes());
    kit
}

#[test]
fn a_layer_and_its_diff_id_may_be_of_two_algorithms() {
    for packing in [Packing::Tar(Compression::None), Packing::Raw(Compression::None)] {
        for (layer, diff_id) in [("sha512", "sha256"), ("sha256", "sha512"), ("sha512", "sha512")] {
            let what = format!("{packing:?} by {layer}, content by {diff_id}");
            check(&what, &of_algorithms(packing, layer, diff_id, None));
        }
    }
    let tar = Packing::Tar(Compression::None);
    for (layer, diff_id) in [("sha512", "sha256"), ("sha256", "sha512")] {
        let what = format!("{layer}, content by another {diff_id}");
        is_refused(&what, &of_algorithms(tar, layer, diff_id, Some(b"something else")), &[1]);
    }
}

#[test]
fn a_small_gzip_that_opens_to_gigabytes_does_not_take_the_machine() {
    use std::io::Write as _;
    // A tar header that promises 4 GiB, then zeroes.
    let len: u64 = 4 << 30;
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.as_ustar_mut().expect("ustar").name[..1].copy_from_slice(b"m");
    header.set_mode(0o644);
    header.set_size(len);
    header.set_cksum();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(header.as_bytes()).expect("a vector takes everything");
    let zeroes = vec![0; 1 << 20];
    // 300 MiB of them: far beyond what it may hold in memory, and short enough for a test.
    for _ in 0..300 {
        gzip.write_all(&zeroes).expect("a vector takes everything");
    }
    let bytes = gzip.finish().expect("a vector takes everything");
    is_refused("a bomb", &of_layer(&format!("{TAR}+gzip"), bytes, b""), &[1, 5]);
}

#[test]
fn the_same_file_in_two_layers_is_refused_and_both_are_named() {
    let kit = Kit::named("twice")
        .with(Base::Model, "m", [file("m/x", *b"first")])
        .with(Base::Code, "m", [file("m/x", *b"second"), file("m/y", *b"y")])
        .pack();
    is_refused("twice", &kit, &[1]);
    let kitfs = Kitfs::new();
    let output = kitfs.run(&["verify", &Layout::of(kitfs.path("layout"), &kit).reference("v1")]).expect(1);
    for layer in &kit.layers {
        assert!(output.stderr.contains(&layer.digest), "{} is not named\n{output}", layer.digest);
    }
    output.says("m/x");
}

#[test]
fn what_is_no_kit_is_refused_and_named() {
    let kitfs = Kitfs::new();
    let layout = Layout::create(kitfs.path("layout"));
    let config = Blob::new("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
    layout.put(&config.digest, &config.bytes);
    let image = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size}, "layers": []
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []
    });
    layout.add("application/vnd.oci.image.manifest.v1+json", image.to_string().as_bytes(), Some("image"));
    layout.add("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes(), Some("index"));
    layout.add("application/vnd.oci.image.manifest.v1+json", b"not JSON", Some("noise"));
    for (name, word) in [("image", "odel"), ("index", "index"), ("noise", "manifest")] {
        for command in ["verify", "ls"] {
            kitfs.run(&[command, &layout.reference(name)]).expect(1).says(word);
        }
    }
    let mut kit = Kit::usual("usual").pack();
    kit.layers[1].media_type = "application/vnd.kitops.modelkit.prophecy.v1.tar".into();
    let odd = Layout::of(kitfs.path("odd"), &kit);
    kitfs.run(&["verify", &odd.reference("v1")]).expect(1).says("prophecy");
}

#[test]
fn a_manifest_of_many_megabytes_is_refused_unparsed() {
    let kitfs = Kitfs::new();
    let mut kit = Kit::usual("usual").pack();
    kit.manifest["annotations"]["padding"] = Value::String("x".repeat(9 << 20));
    let output = kitfs.run(&["verify", &Layout::of(kitfs.path("layout"), &kit).reference("v1")]).expect(1);
    assert!(output.peak_kib < 150 * 1024, "{} MiB\n{output}", output.peak_kib / 1024);
}

#[test]
fn a_registry_serves_what_a_layout_serves() {
    if !host::can_mount() {
        return;
    }
    let Some(registry) = Registry::start(Access::Plain) else { return };
    for (name, kit) in [
        ("usual", Kit::usual("usual").pack()),
        ("old-gzip", Kit::usual("usual").age(Age::Old).packing(Packing::Tar(Compression::Gzip)).pack()),
        ("pack", model_pack("cncf", &[file("model.gguf", noise(5, 700_000))])),
        ("nothing", Kit::named("nothing").pack()),
    ] {
        let kitfs = Kitfs::new();
        let reference = registry.push(Layout::of(kitfs.path("layout"), &kit).path(), &format!("own/{name}"), "v1");
        let mount = kitfs.mount(&reference);
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, &format!("{name}, cold"));
        mount.unmount();
        let before = registry.requests().len();
        let mount = kitfs.mount(&reference);
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, &format!("{name}, warm"));
        mount.unmount();
        let again = registry.requests().split_off(before);
        assert!(!again.iter().any(|line| line.contains("/blobs/")), "{name} was fetched again: {again:#?}");
    }
}

#[test]
fn what_two_kits_share_is_fetched_once() {
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let first = Kit::usual("first").pack();
    let second = Kit::usual("second").with(Base::Docs, "MORE.md", [file("MORE.md", *b"more")]).pack();
    let one = registry.push(Layout::of(kitfs.path("one"), &first).path(), "one", "v1");
    let two = registry.push(Layout::of(kitfs.path("two"), &second).path(), "two", "v1");
    kitfs.run(&["pull", &one]).expect(0);
    let before = registry.requests().len();
    kitfs.run(&["pull", &two]).expect(0);
    let asked = registry.requests().split_off(before);
    let weights = &first.layer("model.v1").digest;
    assert!(!asked.iter().any(|line| line.contains(weights.as_str())), "the weights were fetched twice: {asked:#?}");
}

#[test]
fn a_blob_that_rots_in_the_registry_is_5() {
    for packing in PACKINGS {
        let Some(registry) = Registry::start(Access::Plain) else { return };
        let kitfs = Kitfs::new();
        let kit = Kit::usual("usual").packing(packing).pack();
        let reference = registry.push(Layout::of(kitfs.path("layout"), &kit).path(), "usual", "v1");
        let bad = &kit.layer("model.v1").digest;
        crate::support::kit::flip(&registry.blob(bad));
        let output = kitfs.run(&["verify", &reference]).expect(5);
        names_both_digests(&output, bad);
        let output = kitfs.run(&["cat", &reference, "model/config.json"]).expect(5);
        assert!(output.stdout.is_empty(), "{packing:?}: unproved bytes were written\n{output}");
    }
}

#[test]
fn one_blob_under_two_names_is_two_files() {
    let raw = |path: &str| (Base::Dataset, path.to_owned(), [file(path, noise(6, 5000))]);
    let mut twice = Kit::named("twice").packing(Packing::Raw(Compression::None));
    for (base, path, files) in [raw("data/one"), raw("data/two"), raw("three")] {
        twice = twice.with(base, &path, files);
    }
    check("one raw blob three times in a kit", &twice.pack());

    // What is known of a blob from one kit says nothing about its name in another.
    let of_name = |path: &str| {
        Kit::named("raw").packing(Packing::Raw(Compression::None)).with(
            Base::Model,
            path,
            [file(path, noise(6, 5000)).mode(if path == "a" { 0o600 } else { 0o644 })],
        )
    };
    let of_folder = |folder: &str| {
        Kit::named("old").age(Age::Oldest).with(
            Base::Model,
            &format!("{folder}/m"),
            [file(&format!("{folder}/m/w.bin"), noise(6, 5000))],
        )
    };
    let pack = |path: &str| model_pack("cncf", &[file(path, noise(6, 5000))]);
    let kits = [of_name("a").pack(), of_name("deep/b").pack(), of_folder("c").pack(), of_folder("d").pack(), pack("e")];
    let kitfs = Kitfs::new();
    for (number, kit) in kits.iter().enumerate() {
        let reference = Layout::of(kitfs.path(&format!("layout-{number}")), kit).reference("v1");
        kitfs.run(&["pull", &reference]).expect(0);
    }
    for number in [4, 3, 2, 1, 0] {
        let reference = format!("oci:{}:v1", kitfs.path(&format!("layout-{number}")).display());
        let folder = kitfs.next_directory();
        kitfs.run(&["export", &reference, folder.to_str().expect("a plain name")]).expect(0);
        let what = format!("kit {number}, after others with the same blob");
        Tree::read(&folder).without("Kitfile").assert_is(&kits[number].tree, &what);
    }
}
