//! Writes ModelKits in the exact shape of the real `kit`, of every age, and ModelPacks, as OCI image layouts.
//!
//! What `kit pack` does: one layer for each Kitfile entry; tar names relative to the root of the kit, parents
//! included, directories without a trailing slash, owner 1000:0, mtime 0; the config is the Kitfile as JSON with the
//! digests of the layers. What is written can be spoilt before it is stored, to make hostile kits.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tree::{Tree, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const KIT_MANIFEST: &str = "application/vnd.kitops.modelkit.manifest.v1+json";
const KIT_CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";

/// What a Kitfile entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    Model,
    Part,
    Code,
    Dataset,
    Docs,
}

/// How the bytes of a layer are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// How a layer holds its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// A tar of one or more files.
    Tar(Compression),
    /// The bytes of one file.
    Raw(Compression),
}

/// Which `kit` would have written this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// Before 0.5: no digests in the config, names relative to the directory that holds the entry.
    Oldest,
    /// Up to 1.7: no `mediaType`, no `artifactType`, no annotations on layers.
    Old,
    /// 1.17.
    New,
}

/// A file of a kit, or one of its directories.
#[derive(Clone)]
pub struct File {
    path: String,
    /// `None` for a directory.
    bytes: Option<Vec<u8>>,
    mode: u32,
}

/// A file with mode 0644.
pub fn file(path: &str, bytes: impl Into<Vec<u8>>) -> File {
    File { path: path.into(), bytes: Some(bytes.into()), mode: 0o644 }
}

/// A directory with mode 0755, where it is empty or its mode matters; others come with their files.
pub fn directory(path: &str) -> File {
    File { path: path.into(), bytes: None, mode: 0o755 }
}

impl File {
    /// The same with other permissions.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
}

/// `len` bytes that no compression shrinks, the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A kit that has not been packed yet.
pub struct Kit {
    name: String,
    age: Age,
    packing: Packing,
    parent: Option<String>,
    entries: Vec<(Base, String, Vec<File>)>,
}

impl Kit {
    /// A kit without entries, as kit 1.17 packs it: plain tars.
    pub fn named(name: &str) -> Self {
        let packing = Packing::Tar(Compression::None);
        Self { name: name.into(), age: Age::New, packing, parent: None, entries: Vec::new() }
    }

    /// The kit that most tests use: weights over several units of proof, small files, an executable, an empty file.
    pub fn usual(name: &str) -> Self {
        Self::named(name)
            .with(
                Base::Model,
                "model",
                [file("model/config.json", *b"{\"hidden\": 8}"), file("model/weights.bin", noise(7, 1_300_007))],
            )
            .with(
                Base::Code,
                "src",
                [file("src/lib/util.py", *b"x = 1\n"), file("src/run.sh", *b"#!/bin/sh\n").mode(0o755)],
            )
            .with(Base::Dataset, "data", [file("data/empty", []), file("data/rows.csv", noise(8, 70_000))])
            .with(Base::Docs, "README.md", [file("README.md", *b"# usual\n")])
    }

    /// Packs it as another `kit` would.
    pub fn age(mut self, age: Age) -> Self {
        self.age = age;
        self
    }

    /// Packs its layers in another way.
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// Makes another kit, by its reference, the model of this one.
    pub fn parent(mut self, reference: &str) -> Self {
        self.parent = Some(reference.into());
        self
    }

    /// Adds a Kitfile entry; the paths of its files are relative to the root of the kit.
    pub fn with(mut self, base: Base, path: &str, files: impl Into<Vec<File>>) -> Self {
        self.entries.push((base, path.into(), files.into()));
        self
    }

    /// Writes manifest, config and layers.
    pub fn pack(&self) -> Packed {
        let mut tree = Tree::default();
        let mut layers = Vec::new();
        let mut config = json!({"manifestVersion": "1.0.0", "package": {"name": self.name}});
        if let Some(parent) = &self.parent {
            config["model"] = json!({"name": self.name, "path": parent});
        }
        for base in [Base::Model, Base::Part, Base::Code, Base::Dataset, Base::Docs] {
            for (number, (_, path, files)) in self.entries.iter().filter(|(of, ..)| *of == base).enumerate() {
                let (plain, blob) = self.pack_layer(base, path, files, &mut tree);
                let mut entry = match base {
                    Base::Model => json!({"name": self.name, "path": path}),
                    Base::Part | Base::Dataset => json!({"name": format!("{base:?}-{number}"), "path": path}),
                    Base::Code | Base::Docs => json!({"path": path}),
                };
                if self.age != Age::Oldest {
                    entry["digest"] = blob.digest.clone().into();
                    entry["diffId"] = digest_of(&plain).into();
                }
                put_entry(&mut config, base, entry);
                layers.push(blob);
            }
        }
        let config = Blob::new(KIT_CONFIG, config.to_string().into_bytes());
        Packed::new(self.age, config, layers, tree)
    }

    /// The bytes of a layer before and after compression; its files and directories go into `tree`.
    fn pack_layer(&self, base: Base, path: &str, files: &[File], tree: &mut Tree) -> (Vec<u8>, Blob) {
        for file in files {
            match &file.bytes {
                Some(bytes) => tree.put(&file.path, bytes, file.mode),
                None => tree.put_directory(&file.path, file.mode),
            }
        }
        let (plain, format, compression) = match self.packing {
            Packing::Tar(compression) => {
                let skipped = match self.age {
                    Age::Oldest => path.rfind('/').map_or(0, |slash| slash + 1),
                    Age::Old | Age::New => 0,
                };
                (tar_of(files, skipped), "tar", compression)
            }
            Packing::Raw(compression) => {
                let [File { bytes: Some(bytes), .. }] = files else { panic!("a raw layer is one file") };
                (bytes.clone(), "raw", compression)
            }
        };
        let (bytes, suffix) = compress(&plain, compression);
        let kind = match base {
            Base::Model => "model",
            Base::Part => "modelpart",
            Base::Code => "code",
            Base::Dataset => "dataset",
            Base::Docs => "docs",
        };
        let mut blob = Blob::new(&format!("application/vnd.kitops.modelkit.{kind}.v1.{format}{suffix}"), bytes);
        if self.age == Age::New {
            blob.annotations.insert("org.cncf.model.filepath".into(), path.into());
            if let (Packing::Raw(_), [file]) = (self.packing, files) {
                blob.annotations.insert("org.cncf.model.file.metadata+json".into(), metadata(file));
            }
        }
        (plain, blob)
    }
}

/// Packs a CNCF ModelPack as modctl does: one raw layer for each file. `namespace` is `cncf`, or `cnai` for the old.
pub fn model_pack(namespace: &str, files: &[File]) -> Packed {
    let mut tree = Tree::default();
    let mut layers = Vec::new();
    for file in files {
        let bytes = file.bytes.clone().expect("a ModelPack of raw layers has only files");
        tree.put(&file.path, &bytes, file.mode);
        let kind = if file.path.ends_with(".json") { "weight.config" } else { "weight" };
        let mut blob = Blob::new(&format!("application/vnd.{namespace}.model.{kind}.v1.raw"), bytes);
        blob.annotations.insert(format!("org.{namespace}.model.filepath"), file.path.clone().into());
        blob.annotations.insert(format!("org.{namespace}.model.file.metadata+json"), metadata(file));
        layers.push(blob);
    }
    let ids: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
    let config = json!({
        "descriptor": {"name": "pack"}, "modelfs": {"type": "layers", "diffIds": ids}, "config": {"format": "raw"}
    });
    let config =
        Blob::new(&format!("application/vnd.{namespace}.model.config.v1+json"), config.to_string().into_bytes());
    let mut packed = Packed::new(Age::New, config, layers, tree);
    packed.manifest["artifactType"] = format!("application/vnd.{namespace}.model.manifest.v1+json").into();
    packed
}

fn metadata(file: &File) -> Value {
    let text = json!({
        "name": file.path, "mode": file.mode, "uid": 0, "gid": 0, "size": file.bytes.as_ref().map(Vec::len),
        "mtime": "1970-01-01T00:00:00Z", "typeflag": 0
    });
    text.to_string().into()
}

fn put_entry(config: &mut Value, base: Base, entry: Value) {
    let list = match base {
        Base::Model => return config["model"] = entry,
        Base::Part => {
            if config["model"].is_null() {
                config["model"] = json!({});
            }
            &mut config["model"]["parts"]
        }
        Base::Code => &mut config["code"],
        Base::Dataset => &mut config["datasets"],
        Base::Docs => &mut config["docs"],
    };
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("a list of entries").push(entry);
}

/// A tar as kit's walk of the directory writes it. `skipped` bytes of each path are left out, as kit before 0.5 did.
fn tar_of(files: &[File], skipped: usize) -> Vec<u8> {
    let mut walk = BTreeMap::new();
    for file in files {
        for (slash, _) in file.path.match_indices('/').filter(|(slash, _)| *slash >= skipped) {
            // A walk sorts by component, so a slash sorts before every other byte.
            walk.entry(file.path[..slash].replace('/', "\0")).or_insert(None);
        }
        walk.insert(file.path.replace('/', "\0"), Some(file));
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in walk {
        let path = path.replace('\0', "/");
        let name = &path[skipped.min(path.len())..];
        let (kind, mode, bytes) = match file {
            Some(File { bytes: Some(bytes), mode, .. }) => (tar::EntryType::Regular, *mode, bytes.as_slice()),
            Some(File { mode, .. }) => (tar::EntryType::Directory, *mode, &[][..]),
            None => (tar::EntryType::Directory, 0o755, &[][..]),
        };
        append(&mut tar, name, kind, mode, bytes);
    }
    tar.into_inner().expect("a vector takes everything")
}

/// Appends one entry in kit's shape: USTAR, or PAX where the name does not fit.
pub fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(1000);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    let field = &mut header.as_ustar_mut().expect("a ustar header").name;
    if name.len() <= field.len() && name.is_ascii() {
        field[..name.len()].copy_from_slice(name.as_bytes());
    } else {
        tar.append_pax_extensions([("path", name.as_bytes())]).expect("a vector takes everything");
        let short: String = name.chars().filter(char::is_ascii).take(field.len()).collect();
        field[..short.len()].copy_from_slice(short.as_bytes());
    }
    header.set_cksum();
    tar.append(&header, bytes).expect("a vector takes everything");
}

/// Compresses the bytes of a layer; the suffix of its media type with it.
pub fn compress(plain: &[u8], compression: Compression) -> (Vec<u8>, &'static str) {
    match compression {
        Compression::None => (plain.to_vec(), ""),
        Compression::Gzip => {
            // Level 1 would be one deflate block, where Go's encoder makes many.
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(2));
            gzip.write_all(plain).expect("a vector takes everything");
            (gzip.finish().expect("a vector takes everything"), "+gzip")
        }
        Compression::Zstd => (zstd::encode_all(plain, 3).expect("a vector takes everything"), "+zstd"),
    }
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// A blob and what its descriptor says.
#[derive(Clone)]
pub struct Blob {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub bytes: Vec<u8>,
    pub annotations: serde_json::Map<String, Value>,
}

impl Blob {
    /// A blob with a true descriptor.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
        Self { media_type: media_type.into(), digest, size, bytes, annotations: serde_json::Map::new() }
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size});
        if !self.annotations.is_empty() {
            descriptor["annotations"] = Value::Object(self.annotations.clone());
        }
        descriptor
    }
}

/// A packed kit: its parts in memory, and the tree that they unpack to.
pub struct Packed {
    /// The manifest without `config` and `layers`, which are written from the blobs.
    pub manifest: Value,
    pub config: Blob,
    pub layers: Vec<Blob>,
    /// All that a mount shows, but for the Kitfile.
    pub tree: Tree,
}

impl Packed {
    /// Joins parts into a kit whose manifest is of some age.
    pub fn new(age: Age, config: Blob, layers: Vec<Blob>, tree: Tree) -> Self {
        let manifest = match age {
            Age::Oldest | Age::Old => json!({
                "schemaVersion": 2, "config": null, "layers": null,
                "annotations": {"ml.kitops.modelkit.cli-version": "1.7.0"}
            }),
            Age::New => json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": KIT_MANIFEST, "config": null,
                "layers": null, "annotations": {
                    "ml.kitops.modelkit.cli-version": "1.17.0",
                    "org.opencontainers.image.created": "2026-01-01T00:00:00Z"
                }
            }),
        };
        Self { manifest, config, layers, tree }
    }

    /// The bytes of the manifest. A kit without layers has `null`, as the real kit writes.
    pub fn manifest_bytes(&self) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        manifest["config"] = self.config.descriptor();
        if !self.layers.is_empty() {
            manifest["layers"] = self.layers.iter().map(Blob::descriptor).collect();
        }
        manifest.to_string().into_bytes()
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> String {
        digest_of(&self.manifest_bytes())
    }

    /// The layer whose media type has `kind` in it.
    pub fn layer(&self, kind: &str) -> &Blob {
        self.layers.iter().find(|layer| layer.media_type.contains(kind)).expect("a layer of this kind")
    }

    /// Puts it into a layout, under a name if one is given.
    pub fn write(&self, layout: &Layout, name: Option<&str>) {
        for blob in self.layers.iter().chain([&self.config]) {
            layout.put(&blob.digest, &blob.bytes);
        }
        layout.add(MANIFEST, &self.manifest_bytes(), name);
    }
}

/// An OCI image layout on disk.
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// Makes an empty one.
    pub fn create(folder: PathBuf) -> Self {
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("our own directory");
        std::fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").expect("our own directory");
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []
        });
        std::fs::write(folder.join("index.json"), index.to_string()).expect("our own directory");
        Self { folder }
    }

    /// Makes one that holds a kit as `v1`.
    pub fn of(folder: PathBuf, kit: &Packed) -> Self {
        let layout = Self::create(folder);
        kit.write(&layout, Some("v1"));
        layout
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// A reference to a name in it.
    pub fn reference(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.folder.display())
    }

    /// Where a blob is.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replace(':', "/"))
    }

    /// Puts bytes where a digest says, true or not.
    pub fn put(&self, digest: &str, bytes: &[u8]) {
        let blob = self.blob(digest);
        std::fs::create_dir_all(blob.parent().expect("it has a name")).expect("our own directory");
        std::fs::write(blob, bytes).expect("our own directory");
    }

    /// Adds a manifest to the index, in place of the one that has its name.
    pub fn add(&self, media_type: &str, manifest: &[u8], name: Option<&str>) {
        const NAME: &str = "org.opencontainers.image.ref.name";
        self.put(&digest_of(manifest), manifest);
        let mut descriptor = json!({"mediaType": media_type, "digest": digest_of(manifest), "size": manifest.len()});
        let file = self.folder.join("index.json");
        let text = std::fs::read(&file).expect("our own directory");
        let mut index: Value = serde_json::from_slice(&text).expect("we wrote it");
        let manifests = index["manifests"].as_array_mut().expect("we wrote it");
        if let Some(name) = name {
            descriptor["annotations"] = json!({NAME: name});
            manifests.retain(|other| other["annotations"][NAME] != name);
        }
        manifests.push(descriptor);
        std::fs::write(&file, index.to_string()).expect("our own directory");
    }

    /// Changes one bit in the middle of a blob.
    pub fn flip(&self, digest: &str) {
        flip(&self.blob(digest));
    }
}

/// Changes one bit in the middle of a file.
pub fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).expect("a file to spoil");
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x10;
    }
    std::fs::remove_file(file).expect("a file to spoil");
    std::fs::write(file, bytes).expect("our own directory");
}
