//! What says what a kit is and where: manifests, configs, indexes, references and layouts.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use kitfs::buffers::Buffers;
use kitfs::digest::Digest;
use kitfs::kit::artifact::{IndexManifest, named_index};
use kitfs::kit::config::Kitfile;
use kitfs::kit::contents;
use kitfs::kit::filter::Filter;
use kitfs::kit::index::Published;
use kitfs::kit::kitfile::Yaml;
use kitfs::kit::manifest::Manifest;
use kitfs::kit::name::KitPath;
use kitfs::kit::tree::{LayerNumber, Tree};
use kitfs::reference::Reference;
use kitfs::source::{Options, Source};
use kitfs::verify::{Unverified, Verified};
use tokio::runtime::Runtime;

/// A kit of which the one document is fuzzed and the other is as it should be.
const MANIFEST: &[u8] = include_bytes!("../seeds/manifest/kit.json");
const CONFIG: &[u8] = include_bytes!("../seeds/config/kit.json");

fn verified(bytes: &[u8]) -> Verified<bytes::Bytes> {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    let digest = Digest::of(&bytes);
    Unverified::new(bytes).verify(&digest).expect("it has its digest")
}

/// Reads what a kit consists of: every layer is one of the manifest.
fn check_contents(manifest: &Verified<Manifest>, config: &[u8]) {
    for filters in [Vec::new(), vec!["model,docs:a".parse::<Filter>().expect("it is a filter")]] {
        let Ok(contents) = contents::read(manifest, &verified(config), &filters) else { continue };
        for layer in &contents.layers {
            assert!(manifest.layers.iter().any(|named| named.digest == layer.descriptor.digest));
        }
    }
}

/// A manifest, and all that manifests are read for.
pub fn manifest(data: &[u8]) {
    let document = verified(data);
    let _ = document.parse::<IndexManifest>();
    let Ok(manifest) = document.parse::<Manifest>() else { return };
    assert!(manifest.layers.iter().all(|layer| i64::try_from(layer.size).is_ok()));
    let _ = named_index(&manifest);
    check_contents(&manifest, CONFIG);
}

/// A config, and the Kitfile that is written from it.
pub fn config(data: &[u8]) {
    check_contents(&verified(MANIFEST).parse::<Manifest>().expect("it is a manifest"), data);
    let Ok(kitfile) = verified(data).parse::<Kitfile>() else { return };
    if let Ok(yaml) = kitfile.parse::<Yaml>() {
        assert!(std::str::from_utf8(yaml.bytes()).is_ok(), "YAML is text");
    }
}

/// A published index: what is written down of it is read as the same. (A number may be longer than it has to.)
pub fn index(data: &[u8]) {
    let Ok(published) = verified(data).parse::<Published>() else { return };
    let again = verified(&published.encode()).parse::<Published>().expect("it was just written");
    assert_eq!(*again, *published);
    for layer in published.layers() {
        let listing = layer.listing();
        assert_eq!(listing.entries().len(), layer.entries().len());
        if let Ok(tree) = Tree::build([(LayerNumber(0), &listing)], Some(1)) {
            assert!(tree.inodes().all(|inode| tree.node(inode).is_some() && tree.path(inode).is_some()));
        }
        let (point, end) = layer.seek().around(&(0..layer.content_size()));
        assert!(point.is_none() && end.is_none(), "a layer is whole without its points");
    }
}

/// A reference, and the names in it: what is printed is read as the same.
pub fn reference(data: &[u8]) {
    if let Ok(path) = KitPath::parse(data) {
        assert!(path.is_root() || KitPath::parse(path.as_bytes()).as_ref() == Ok(&path), "{path}");
        assert!(path.components().all(|name| name.as_bytes() != b".."));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference), "{reference}");
    }
    if let Ok(parent) = Reference::parse_parent(text) {
        assert_eq!(Reference::parse_parent(&parent.to_string()).as_ref(), Ok(&parent), "{parent}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    let _ = text.parse::<Filter>();
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// Opens a layout and asks it for all that it may have: a kit, its parent, what lies beside it.
fn look_into(path: &Path) {
    let options =
        Options { plain_http: false, ca_cert: Vec::new(), registry_config: None, timeout: Duration::from_secs(60) };
    let parent = Reference::parse_parent("base:v1").expect("it is a parent");
    RUNTIME.block_on(async {
        for version in ["", ":v1"] {
            let reference: Reference = format!("oci:{}{version}", path.display()).parse().expect("our own path");
            let Ok(source) = Source::open(&reference, &options, &Buffers::new(1)).await else { return };
            let _ = source.parent(&parent).await;
            let Ok(digest) = source.resolve().await else { continue };
            assert_eq!(source.resolve().await.ok(), Some(digest));
            let _ = source.manifest(&digest).await;
            let _ = source.companions(&digest, 4).await;
        }
    });
}

/// The index of an OCI layout, which is also the only blob in it.
pub fn layout(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let blobs = folder.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("our own directory");
    std::fs::write(blobs.join(Digest::of(data).hex()), data).expect("our own directory");
    std::fs::write(folder.path().join("index.json"), data).expect("our own directory");
    look_into(folder.path());
}

/// A tar of an OCI layout.
pub fn tarball(data: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), data).expect("our own file");
    look_into(file.path());
}
