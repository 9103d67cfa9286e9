//! The contract of a source, the same assertions for each: a layout as a directory and as a tar, KitOps'
//! store, a registry in this process, and Debian's docker-registry in all its forms.

use std::path::Path;

use kitfs::buffers::BUFFER;
use kitfs::digest::Digest;
use kitfs::reference::Reference;
use kitfs::source::{Source, SourceError};

use super::super::support::faults::{Content, Faults};
use super::super::support::kit::noise;
use super::super::support::registry::{Access, Registry};
use super::{SECONDS, check, descriptor, drain, open, options, rerun};

/// What every source is given: a manifest, tagged `v1`, its config, and a layer.
struct Sample {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

fn sample() -> Sample {
    let config = br#"{"manifestVersion":"1.0.0"}"#.to_vec();
    let layer = noise(7, 3 * BUFFER + 12_345);
    let part = |bytes: &[u8], kind: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.kitops.modelkit.{kind}","digest":"{}","size":{}}}"#,
            Digest::of(bytes),
            bytes.len()
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        part(&config, "config.v1+json"),
        part(&layer, "model.v1.tar"),
    );
    Sample { manifest: manifest.into_bytes(), config, layer }
}

impl Sample {
    fn blobs(&self) -> [&[u8]; 3] {
        [&self.manifest, &self.config, &self.layer]
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    fn descriptor(&self) -> String {
        let (digest, size) = (self.digest(), self.manifest.len());
        format!(r#""mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}"#)
    }

    /// Writes a layout in which the kit is `v1` and a parent is `example.com/acme/base:v2`.
    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        for blob in self.blobs() {
            std::fs::write(folder.join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
        }
        let entry = |name: &str| {
            format!(r#"{{{},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}"#, self.descriptor())
        };
        let index =
            format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, entry("v1"), entry("example.com/acme/base:v2"));
        std::fs::write(folder.join("index.json"), index).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// The contract. `without` is the reference without its version.
async fn keeps_the_contract(without: &str, options: &kitfs::source::Options, name: &str) {
    let sample = sample();
    let source = open(&format!("{without}:v1"), options).await.unwrap();
    assert_eq!(source.name(), name);

    assert_eq!(source.resolve().await.unwrap(), sample.digest());
    let by_digest = open(&format!("{without}:no-such-tag@{}", sample.digest()), options).await.unwrap();
    assert_eq!(by_digest.resolve().await.unwrap(), sample.digest());
    let missing = open(&format!("{without}:v2"), options).await.unwrap().resolve().await.unwrap_err();
    assert!(matches!(missing, SourceError::NotFound(_)) && missing.to_string().contains("v2"), "{missing}");

    check(source.manifest(&sample.digest()).await.unwrap(), &sample.manifest);
    check(source.blob(&descriptor(&sample.config)).await.unwrap(), &sample.config);

    let layer = descriptor(&sample.layer);
    let end = sample.layer.len();
    for range in [0..1, 0..BUFFER, BUFFER - 1..2 * BUFFER - 1, end - 1..end, end - 12_345..end, 7..7, 5..end, 0..end] {
        let bytes = source.range(&layer, range.start as u64..range.end as u64).await.unwrap();
        check(bytes, &sample.layer[range.clone()]);
        let stream = source.stream_range(&layer, range.start as u64..range.end as u64);
        drain(stream, &sample.layer[range]).await.unwrap();
    }
    let beyond = source.range(&layer, end as u64 - 1..end as u64 + 1).await.unwrap_err();
    assert!(matches!(beyond, SourceError::Malformed { .. }), "{beyond}");
    for from in [0, 1, BUFFER + 5, end - 1, end] {
        drain(source.stream(&layer, from as u64), &sample.layer[from..]).await.unwrap();
    }

    let nothing = descriptor(b"nobody has this");
    let expect_missing = |error: SourceError| {
        assert!(matches!(&error, SourceError::NotFound(what) if what.contains(&nothing.digest.to_string())), "{error}");
    };
    expect_missing(source.manifest(&nothing.digest).await.unwrap_err());
    expect_missing(source.blob(&nothing).await.unwrap_err());
    expect_missing(source.range(&nothing, 0..5).await.unwrap_err());
    expect_missing(source.stream(&nothing, 0).next().await.unwrap().unwrap_err());

    for size in [sample.config.len() - 1, sample.config.len() + 1] {
        let mut wrong = descriptor(&sample.config);
        wrong.size = size as u64;
        let error = source.blob(&wrong).await.unwrap_err();
        assert!(matches!(error, SourceError::WrongSize { .. }), "{error}");
        let error = source.range(&wrong, 0..5).await.unwrap_err();
        assert!(matches!(error, SourceError::WrongSize { .. }), "{error}");
        assert!(drain(source.stream(&wrong, 0), &sample.config).await.is_err());
    }
    let mut huge = descriptor(&sample.layer);
    huge.size = 1 << 50;
    assert!(matches!(source.blob(&huge).await, Err(SourceError::Malformed { .. })));
    assert!(matches!(source.range(&huge, 0..5).await, Err(SourceError::WrongSize { .. })));

    let Reference::Registry(local) = "localhost/elsewhere/base:v1".parse().unwrap() else { panic!("a registry") };
    let error = source.parent(&local).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound(_)), "{error}");
}

async fn finds_parents(source: &Source, name: &str) {
    let parent = Reference::parse_parent(name).unwrap();
    let (source, digest) = source.parent(&parent).await.unwrap();
    assert_eq!(digest, sample().digest());
    assert_eq!(source.resolve().await.unwrap(), digest);
    check(source.manifest(&digest).await.unwrap(), &sample().manifest);
}

#[tokio::test]
async fn a_directory_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    sample().write(folder.path());
    let name = format!("oci:{}", folder.path().display());
    keeps_the_contract(&name, &options(10 * SECONDS), &name).await;
    let source = open(&format!("{name}:v1"), &options(10 * SECONDS)).await.unwrap();
    finds_parents(&source, "example.com/acme/base:v2").await;
    finds_parents(&source, &format!("elsewhere@{}", sample().digest())).await;
}

#[tokio::test]
async fn a_tar_of_a_directory_keeps_it() {
    for prefix in [".", ""] {
        let folder = tempfile::tempdir().unwrap();
        sample().write(&folder.path().join("layout"));
        let tar = folder.path().join("layout.tar");
        let mut builder = tar::Builder::new(std::fs::File::create(&tar).unwrap());
        builder.append_dir_all(prefix, folder.path().join("layout")).unwrap();
        builder.finish().unwrap();
        std::fs::remove_dir_all(folder.path().join("layout")).unwrap();
        let name = format!("oci:{}", tar.display());
        keeps_the_contract(&name, &options(10 * SECONDS), &name).await;
        let source = open(&format!("{name}:v1"), &options(10 * SECONDS)).await.unwrap();
        finds_parents(&source, "example.com/acme/base:v2").await;
    }
}

#[test]
fn the_store_of_kitops_keeps_it() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    sample().write(&storage);
    // base64 of localhost/kit and of example.com/acme/base, as kit names its files.
    for name in ["bG9jYWxob3N0L2tpdA==", "ZXhhbXBsZS5jb20vYWNtZS9iYXNl"] {
        std::fs::write(storage.join(format!("{name}-tags.json")), format!(r#"{{"v1":{{{}}}}}"#, sample().descriptor()))
            .unwrap();
    }
    rerun("store", &[("KITOPS_HOME", home.path())]);
}

pub async fn in_store() {
    keeps_the_contract("kit:kit", &options(10 * SECONDS), "kit:").await;
    let source = open("kit:kit:v1", &options(10 * SECONDS)).await.unwrap();
    finds_parents(&source, "example.com/acme/base:v1").await;
    finds_parents(&source, "localhost/kit:v1").await;
}

#[tokio::test]
async fn a_registry_keeps_it() {
    let sample = sample();
    let mut content = Content::default();
    for blob in sample.blobs() {
        content.add(blob);
    }
    content.tag("v1", &sample.digest().to_string());
    let server = Faults::honest(content);
    keeps_the_contract(&format!("{}/kit", server.host()), &options(20 * SECONDS), &server.host()).await;
    let source = open(&format!("{}/other:v1", server.host()), &options(10 * SECONDS)).await.unwrap();
    finds_parents(&source, &format!("{}/kit:v1", server.host())).await;
}

/// Runs the contract against a real registry. The push has its own runtime, so this is no async test.
fn real(access: Access) {
    let Some(registry) = Registry::start(access) else { return };
    let folder = tempfile::tempdir().unwrap();
    let sample = sample();
    sample.write(folder.path());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{{}}}]}}"#, sample.descriptor());
    std::fs::write(folder.path().join("index.json"), index).unwrap();
    registry.push(folder.path(), "acme/kit", "v1");
    let mut options = options(20 * SECONDS);
    if access != Access::Plain {
        options.ca_cert = vec![registry.authority()];
    }
    if access == Access::Password {
        options.registry_config = Some(registry.credentials());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let without = format!("{}/acme/kit", registry.host());
        keeps_the_contract(&without, &options, &registry.host()).await;
        if access == Access::Tls {
            options.ca_cert = Vec::new();
            let error = open(&without, &options).await.unwrap().resolve().await.unwrap_err();
            assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
            assert!(error.to_string().contains("--ca-cert"), "{error}");
        }
        if access == Access::Password {
            options.registry_config = Some(super::no_credentials());
            let error = open(&without, &options).await.unwrap().resolve().await.unwrap_err();
            assert!(matches!(error, SourceError::Denied { .. }), "{error}");
        }
    });
}

#[test]
fn debians_registry_keeps_it() {
    real(Access::Plain);
}

#[test]
fn debians_registry_keeps_it_over_tls() {
    real(Access::Tls);
}

#[test]
fn debians_registry_keeps_it_with_a_password() {
    real(Access::Password);
}
