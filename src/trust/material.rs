//! Signature material: what lies beside a manifest and may say who stands behind it.
//!
//! It is collected from a source once, as it is, and can be stored beside the kit. Nothing in it is
//! believed: every proof starts over from these bytes. What cannot be used counts as absent, and is kept
//! with the reason; a source that does not answer is an error, for that is not the same as having nothing.

use std::collections::BTreeMap;
use std::collections::HashMap;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::descriptor::Descriptor;
use crate::kit::descriptor::null_is_empty;
use crate::source::Companion;
use crate::source::METADATA_LIMIT;
use crate::source::Source;
use crate::source::SourceError;
use crate::trust::Limits;
use crate::verify::Unverified;
use crate::verify::Verified;

/// Which form of the bytes in [`Material::encode`] this is.
const FORMAT: u8 = 1;

/// Manifests and blobs that are asked for at the same time.
const AT_ONCE: usize = 8;

/// All that is read beside one manifest, in attestations of the largest size: it is held in memory and parsed.
const LARGEST: u64 = 4;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// What lies beside one manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    pub(super) items: Vec<Item>,
    pub(super) unusable: Vec<Unusable>,
}

/// One thing that may be a signature or an attestation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    /// How it was found.
    pub(super) found: String,
    pub(super) form: Form,
    /// What stands about it in the manifest that names it.
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) content: Vec<u8>,
}

/// In which form it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Form {
    /// Cosign's payload; the signature is an annotation.
    SimpleSigning,
    /// A DSSE envelope; certificate and log entry are annotations.
    Envelope,
    /// A Sigstore bundle.
    Bundle,
}

/// Something that looked like a signature and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unusable {
    pub(super) found: String,
    pub(super) why: String,
}

/// As much of a companion's manifest as says where its content is.
#[derive(Debug, Deserialize)]
struct Manifest {
    /// Each is read by itself: one that is malformed takes no other with it.
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<Value>,
}

impl Material {
    /// Everything beside a manifest that may be a signature or an attestation, within the limits.
    pub async fn collect(source: &Source, manifest: &Digest, limits: &Limits) -> Result<Self, TrustError> {
        let failed = |source| TrustError::Source { manifest: *manifest, source };
        let mut companions = source.companions(manifest, limits.signatures).await.map_err(failed)?;
        // A list of referrers may call a bundle anything, so all are looked at; those that are called what they should be first.
        companions.sort_by_key(|companion| !is_promising(companion));
        let mut material = Self::default();
        if let Some(first) = companions.get(limits.signatures) {
            let why =
                format!("at most {} manifests are looked at, and there are {}", limits.signatures, companions.len());
            material.unusable.push(Unusable { found: first.found.clone(), why });
            companions.truncate(limits.signatures);
        }
        let manifests = stream::iter(companions.into_iter().map(|companion| async move {
            let found = read_manifest(source, &companion.digest).await?;
            Ok::<_, SourceError>((companion, found))
        }));
        let manifests: Vec<_> = manifests.buffered(AT_ONCE).try_collect().await.map_err(failed)?;
        let mut named = Vec::new();
        for (companion, manifest) in manifests {
            match manifest {
                Ok(manifest) => {
                    let mut malformed = None;
                    for layer in manifest.layers {
                        match serde_json::from_value(layer) {
                            Ok(layer) => named.extend(Named::new(&companion, layer)),
                            Err(error) => malformed = Some(error),
                        }
                    }
                    if let Some(error) = malformed {
                        let why = format!("a layer of its manifest is malformed: {error}");
                        material.unusable.push(Unusable { found: companion.found, why });
                    }
                }
                Err(why) => material.unusable.push(Unusable { found: companion.found, why }),
            }
        }
        if let Some(first) = named.get(limits.signatures) {
            let why = format!("at most {} signatures are looked at, and there are {}", limits.signatures, named.len());
            material.unusable.push(Unusable { found: first.found.clone(), why });
            named.truncate(limits.signatures);
        }
        let most = limits.attestation.saturating_mul(LARGEST);
        let mut total = 0_u64;
        named.retain(|Named { found, form, layer }| {
            if layer.size > form.limit(limits) {
                return true;
            }
            total = total.saturating_add(layer.size);
            if total > most {
                let why = format!("at most {most} bytes of signatures and attestations are read");
                material.unusable.push(Unusable { found: found.clone(), why });
            }
            total <= most
        });
        let contents = contents(source, &named, limits).await.map_err(failed)?;
        for Named { found, form, layer } in named {
            match contents.get(&layer.digest) {
                Some(Ok(content)) if content.len() as u64 == layer.size => {
                    let (annotations, content) = (layer.annotations, content.to_vec());
                    material.items.push(Item { found, form, annotations, content });
                }
                Some(Ok(content)) => {
                    let why = format!("it has {} bytes, and {} are promised", content.len(), layer.size);
                    material.unusable.push(Unusable { found, why });
                }
                Some(Err(why)) => material.unusable.push(Unusable { found, why: why.clone() }),
                None => material.unusable.push(Unusable { found, why: form.too_large(&layer, limits) }),
            }
        }
        Ok(material)
    }

    /// One bundle, from wherever somebody had it.
    pub fn of_bundle(content: impl Into<Vec<u8>>, found: impl Into<String>) -> Self {
        let item =
            Item { found: found.into(), form: Form::Bundle, annotations: BTreeMap::new(), content: content.into() };
        Self { items: vec![item], unusable: Vec::new() }
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.unusable.is_empty()
    }

    /// The bytes to store.
    pub fn encode(&self) -> Result<Vec<u8>, TrustError> {
        let encoded = postcard::to_extend(self, vec![FORMAT]);
        encoded.map_err(|error| TrustError::Stored(error.to_string()))
    }

    /// Reads what [`Material::encode`] wrote.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, TrustError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|error| TrustError::Stored(error.to_string())),
            _ => Err(TrustError::Stored("it is of another version".into())),
        }
    }
}

impl Form {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            SIMPLE_SIGNING => Some(Self::SimpleSigning),
            ENVELOPE => Some(Self::Envelope),
            _ if media_type.starts_with(BUNDLE) => Some(Self::Bundle),
            _ => None,
        }
    }

    /// Bytes that content of this form may have. Bundles and envelopes hold their payload in base64.
    pub(super) fn limit(self, limits: &Limits) -> u64 {
        match self {
            Self::SimpleSigning => limits.signature,
            Self::Envelope | Self::Bundle => limits.attestation,
        }
    }

    fn too_large(self, layer: &Descriptor, limits: &Limits) -> String {
        format!("it has {} bytes, and at most {} are read", layer.size, self.limit(limits))
    }
}

/// A layer of a companion that may be a signature.
struct Named {
    found: String,
    form: Form,
    layer: Descriptor,
}

impl Named {
    fn new(companion: &Companion, layer: Descriptor) -> Option<Self> {
        let form = Form::of(&layer.media_type)?;
        Some(Self { found: companion.found.clone(), form, layer })
    }
}

fn is_promising(companion: &Companion) -> bool {
    let kind = &companion.artifact_type;
    companion.found.starts_with("tag ") && kind.is_empty()
        || ["vnd.dev.sigstore", "vnd.dev.cosign", "vnd.in-toto"].iter().any(|word| kind.contains(word))
}

/// What a companion's manifest says; the inner error says why it cannot be used.
async fn read_manifest(source: &Source, digest: &Digest) -> Result<Result<Manifest, String>, SourceError> {
    let bytes = match proved(source.manifest(digest).await, digest)? {
        Ok(bytes) => bytes,
        Err(why) => return Ok(Err(why)),
    };
    Ok(serde_json::from_slice(&bytes).map_err(|error| format!("its manifest {digest} is malformed: {error}")))
}

type Contents = HashMap<Digest, Result<Verified<Bytes>, String>>;

/// The content of each layer that is not too large, each once.
async fn contents(source: &Source, named: &[Named], limits: &Limits) -> Result<Contents, SourceError> {
    let mut wanted: HashMap<Digest, &Descriptor> = HashMap::new();
    for Named { form, layer, .. } in named {
        if layer.size <= form.limit(limits) {
            wanted.insert(layer.digest, layer);
        }
    }
    let fetching = wanted.into_iter().map(|(digest, layer)| async move {
        let fetched =
            if layer.size <= METADATA_LIMIT { source.blob(layer).await } else { stream_whole(source, layer).await };
        Ok((digest, proved(fetched, &digest)?))
    });
    stream::iter(fetching).buffer_unordered(AT_ONCE).try_collect().await
}

async fn stream_whole(source: &Source, layer: &Descriptor) -> Result<Unverified, SourceError> {
    let mut stream = source.stream(layer, 0);
    let mut pieces = Vec::new();
    while let Some(piece) = stream.next().await {
        pieces.push(piece?);
    }
    Ok(Unverified::join(pieces))
}

/// Content that its digest proves. That it is not there or not right makes it absent; that nobody can say is an error.
fn proved(
    fetched: Result<Unverified, SourceError>,
    digest: &Digest,
) -> Result<Result<Verified<Bytes>, String>, SourceError> {
    match fetched {
        Ok(bytes) => Ok(bytes.verify(digest).map_err(|mismatch| mismatch.to_string())),
        Err(
            error @ (SourceError::NotFound(_)
            | SourceError::Malformed { .. }
            | SourceError::WrongSize { .. }
            | SourceError::NoRanges(_)),
        ) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Why there is no material.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The source did not say what lies beside the manifest.
    #[error("cannot look for signatures of {manifest}")]
    Source {
        /// The manifest.
        manifest: Digest,
        /// What the source said.
        source: SourceError,
    },
    /// What was stored cannot be read.
    #[error("stored signatures cannot be used: {0}")]
    Stored(String),
}

impl TrustError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            // Whoever fails to say what signatures there are has not said that there are none.
            Self::Source { source: SourceError::NotFound(_), .. } => Fault::Unreachable,
            Self::Source { source, .. } => source.fault(),
            Self::Stored(_) => Fault::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_material_is_the_same_again() {
        let mut material = Material::of_bundle(*b"{}", "here");
        material.unusable.push(Unusable { found: "there".into(), why: "it is cut short".into() });
        let mut bytes = material.encode().unwrap();
        assert_eq!(Material::of_bytes(&bytes).unwrap(), material);
        for end in 0..bytes.len() {
            assert!(Material::of_bytes(&bytes[..end]).is_err(), "{end}");
        }
        bytes[0] = 2;
        assert!(Material::of_bytes(&bytes).is_err());
    }
}
