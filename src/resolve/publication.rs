//! Publishing the index of a kit: beside it as a referrer, or named by a manifest that is otherwise the
//! same. `docs/index-format.md` says what is pushed.

use bytes::Bytes;
use serde::Deserialize;

use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::artifact;
use crate::kit::artifact::Artifact;
use crate::kit::artifact::ArtifactError;
use crate::kit::descriptor::Descriptor;
use crate::kit::index::Published;
use crate::resolve::Link;
use crate::source::Publisher;
use crate::source::SourceError;
use crate::trust::BUNDLE_MEDIA_TYPE;
use crate::trust::SIGNATURE_PREDICATE;
use crate::trust::SigningError;
use crate::trust::SigningKey;

/// What is published, where, and who signs it.
#[derive(Debug)]
pub struct Publication<'a> {
    publisher: Publisher,
    link: &'a Link,
    index: &'a Published,
    bytes: Bytes,
    key: Option<&'a SigningKey>,
}

/// As much of a manifest as says under which type it is pushed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
}

impl<'a> Publication<'a> {
    /// Prepares to publish an index of a kit where that kit is; only registries take it.
    pub async fn new(link: &'a Link, index: &'a Published, key: Option<&'a SigningKey>) -> Result<Self, PublishError> {
        let publisher = link.source.publisher().await?.ok_or(PublishError::NoRegistry)?;
        Ok(Self { publisher, link, index, bytes: index.encode().into(), key })
    }

    /// Pushes the index as a referrer of the kit. Returns the digest of the manifest that carries it.
    pub async fn attach(&self) -> Result<Digest, PublishError> {
        self.carry(manifest_descriptor(&self.link.manifest_bytes)).await
    }

    /// Pushes the kit's manifest once more under a tag, with annotations that name the index. Returns its digest.
    ///
    /// A registry keeps what manifests name as blobs, and an annotation is no such name: so the index is
    /// a referrer of that manifest too.
    pub async fn embed(&self, tag: &str) -> Result<Digest, PublishError> {
        let index = artifact::descriptor(artifact::INDEX, &self.bytes);
        let is_indexed = |layer: &Digest| self.index.layers().iter().any(|index| index.layer() == layer);
        let manifest = artifact::name_index(&self.link.manifest_bytes, &index, is_indexed)?;
        let named = manifest_descriptor(&manifest);
        self.carry(named.clone()).await?;
        self.sign(&named).await?;
        self.publisher.push_manifest(Some(tag), &named.media_type, manifest).await?;
        Ok(named.digest)
    }

    /// Pushes the index and a manifest that carries it, about `subject`. It is signed before anybody can find it.
    async fn carry(&self, subject: Descriptor) -> Result<Digest, PublishError> {
        let about = subject.digest;
        let (manifest, named) = self.push(Artifact::new(artifact::INDEX, &self.bytes, subject), &self.bytes).await?;
        self.sign(&named).await?;
        self.publisher.push_manifest(None, artifact::MANIFEST, manifest).await?;
        self.publisher.list_referrer(&about, &named, artifact::INDEX).await?;
        Ok(named.digest)
    }

    /// Signs a manifest, if there is a key.
    async fn sign(&self, subject: &Descriptor) -> Result<(), PublishError> {
        let Some(key) = self.key else { return Ok(()) };
        let bundle = Bytes::from(key.endorse(&subject.digest)?);
        let artifact = Artifact::new(BUNDLE_MEDIA_TYPE, &bundle, subject.clone()).annotated(&[
            ("dev.sigstore.bundle.content", "dsse-envelope"),
            ("dev.sigstore.bundle.predicateType", SIGNATURE_PREDICATE),
        ]);
        let (manifest, named) = self.push(artifact, &bundle).await?;
        self.publisher.push_manifest(None, artifact::MANIFEST, manifest).await?;
        Ok(self.publisher.list_referrer(&subject.digest, &named, BUNDLE_MEDIA_TYPE).await?)
    }

    /// Pushes the blobs that an artifact names.
    async fn push(&self, artifact: Artifact, blob: &Bytes) -> Result<(Bytes, Descriptor), PublishError> {
        let config = Bytes::from_static(artifact::EMPTY_CONFIG);
        self.publisher.push_blob(&Digest::of(&config), config).await?;
        self.publisher.push_blob(&Digest::of(blob), blob.clone()).await?;
        Ok(artifact.encode())
    }
}

/// What names the manifest of a kit. Those of old kits do not say what they are.
fn manifest_descriptor(manifest: &[u8]) -> Descriptor {
    let kind = serde_json::from_slice(manifest).ok().and_then(|Kind { media_type }| media_type);
    artifact::descriptor(kind.as_deref().unwrap_or(artifact::MANIFEST), manifest)
}

/// Why an index was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The kit is in no registry.
    #[error("an index is pushed to a registry, and the kit is in none")]
    NoRegistry,
    /// The registry did not take it.
    #[error("cannot push the index")]
    Source(#[from] SourceError),
    /// The manifest cannot name it.
    #[error("the manifest of the kit cannot name an index")]
    Manifest(#[from] ArtifactError),
    /// It cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

impl PublishError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoRegistry => Fault::Usage,
            Self::Source(error) => error.fault(),
            Self::Manifest(_) => Fault::Other,
            Self::Signing(error) => error.fault(),
        }
    }
}
