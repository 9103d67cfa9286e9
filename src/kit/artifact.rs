//! Manifests that are about another one: those that carry an index, and the signatures on them. And the
//! annotations by which a kit's own manifest names its index.
//!
//! `docs/index-format.md` specifies the ones of indexes; those of signatures are as cosign writes them
//! (cosign, "BUNDLE_SPEC").

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::digest::Digest;
use crate::kit::descriptor::Descriptor;
use crate::kit::descriptor::null_is_empty;
use crate::kit::manifest::Manifest;
use crate::verify::FromVerified;

/// The media type of an image manifest (image-spec, "Media Types").
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The type of a manifest that carries an index, and of the index in it.
pub const INDEX: &str = "application/vnd.kitfs.index.v1";

/// The config of manifests that have none (image-spec, "Guidance for an Empty Descriptor").
pub const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_CONFIG_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// The annotations of a layer that name the index.
const DIGEST_ANNOTATION: &str = "dev.kitfs.index.digest";
const SIZE_ANNOTATION: &str = "dev.kitfs.index.size";

/// A manifest with one blob, which says something about another manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    schema_version: u32,
    media_type: &'static str,
    /// What kind of thing it says.
    pub artifact_type: String,
    config: Descriptor,
    layers: [Descriptor; 1],
    /// What it is about.
    pub subject: Descriptor,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// A manifest that carries a blob of its own kind, about `subject`.
    pub fn new(kind: &str, blob: &[u8], subject: Descriptor) -> Self {
        Self {
            schema_version: 2,
            media_type: MANIFEST,
            artifact_type: kind.into(),
            config: descriptor(EMPTY_CONFIG_TYPE, EMPTY_CONFIG),
            layers: [descriptor(kind, blob)],
            subject,
            annotations: BTreeMap::new(),
        }
    }

    /// The same with annotations.
    #[must_use]
    pub fn annotated(mut self, annotations: &[(&str, &str)]) -> Self {
        self.annotations.extend(annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        self
    }

    /// The bytes of the manifest, and what names them.
    pub fn encode(&self) -> (Bytes, Descriptor) {
        // It has nothing but text and numbers.
        let bytes = serde_json::to_vec(self).expect("a manifest is JSON");
        let descriptor = descriptor(MANIFEST, &bytes);
        (bytes.into(), descriptor)
    }
}

/// What names some bytes.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    }
}

/// A manifest that carries an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexManifest {
    /// The kit that it is about.
    pub subject: Digest,
    /// The index.
    pub index: Descriptor,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default, deserialize_with = "null_is_empty")]
    artifact_type: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<Descriptor>,
    subject: Option<Descriptor>,
}

impl FromVerified<Bytes> for IndexManifest {
    type Error = ArtifactError;

    fn from_verified(bytes: &Bytes) -> Result<Self, ArtifactError> {
        let outline: Outline = serde_json::from_slice(bytes)?;
        if outline.artifact_type != INDEX {
            return Err(ArtifactError::Kind(outline.artifact_type.chars().take(200).collect()));
        }
        let subject = outline.subject.ok_or(ArtifactError::NoSubject)?.digest;
        let [index] = <[Descriptor; 1]>::try_from(outline.layers).map_err(|_| ArtifactError::Layers)?;
        Ok(Self { subject, index })
    }
}

/// The index that the layers of a kit name, if they name one.
pub fn named_index(manifest: &Manifest) -> Result<Option<Descriptor>, ArtifactError> {
    let mut named = None;
    for layer in &manifest.layers {
        let Some(digest) = layer.annotations.get(DIGEST_ANNOTATION) else { continue };
        let digest = digest.parse().map_err(|_| ArtifactError::Annotation(DIGEST_ANNOTATION))?;
        let size = layer.annotations.get(SIZE_ANNOTATION).and_then(|size| size.parse().ok());
        let size = size.ok_or(ArtifactError::Annotation(SIZE_ANNOTATION))?;
        let index = Descriptor { media_type: INDEX.into(), digest, size, annotations: BTreeMap::new() };
        if named.replace(index.clone()).is_some_and(|other| other != index) {
            return Err(ArtifactError::Several);
        }
    }
    Ok(named)
}

/// The manifest of a kit with annotations that name the index of those of its layers for which
/// `is_indexed`. Nothing else of it is another.
pub fn name_index(
    manifest: &[u8],
    index: &Descriptor,
    is_indexed: impl Fn(&Digest) -> bool,
) -> Result<Bytes, ArtifactError> {
    let mut manifest: Value = serde_json::from_slice(manifest)?;
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        let digest = layer["digest"].as_str().and_then(|digest| digest.parse().ok());
        if !digest.is_some_and(|digest| is_indexed(&digest)) {
            continue;
        }
        let annotations = &mut layer["annotations"];
        if annotations.is_null() {
            *annotations = json!({});
        }
        annotations[DIGEST_ANNOTATION] = index.digest.to_string().into();
        annotations[SIZE_ANNOTATION] = index.size.to_string().into();
    }
    Ok(serde_json::to_vec(&manifest)?.into())
}

/// Why a manifest carries or names no index.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It is no manifest.
    #[error("malformed manifest")]
    Json(#[from] serde_json::Error),
    /// It carries something else.
    #[error("it carries {0:?}, and no index")]
    Kind(String),
    /// It says nothing about a kit.
    #[error("it has no subject")]
    NoSubject,
    /// It carries nothing, or several things.
    #[error("it does not carry one index")]
    Layers,
    /// An annotation of a layer that cannot be read.
    #[error("the annotation {0} of a layer is missing or malformed")]
    Annotation(&'static str),
    /// Layers that name several indexes.
    #[error("its layers name several indexes")]
    Several,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Unverified;

    const KIT: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.kitops.modelkit.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[LAYERS],"annotations":{"z":"1","a":"2"},"x":1.50}"#;

    fn parse<T: FromVerified<Bytes> + Clone>(bytes: Bytes) -> Result<T, T::Error> {
        let digest = Digest::of(&bytes);
        Unverified::new(bytes).verify(&digest).unwrap().parse::<T>().map(|parsed| (*parsed).clone())
    }

    fn layer(content: &[u8], annotations: &str) -> String {
        format!(r#"{{"mediaType":"m","digest":"{}","size":1{annotations}}}"#, Digest::of(content))
    }

    #[test]
    fn an_index_is_carried_about_a_kit() {
        let (kit, index) = (descriptor(MANIFEST, b"a kit"), descriptor(INDEX, b"an index"));
        let (bytes, named) = Artifact::new(INDEX, b"an index", kit.clone()).encode();
        assert_eq!(named.digest, Digest::of(&bytes));
        let read = parse::<IndexManifest>(bytes.clone()).unwrap();
        assert_eq!(read, IndexManifest { subject: kit.digest, index });
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        for (change, to) in [(INDEX, "application/x"), ("\"subject\"", "\"object\""), ("\"layers\"", "\"others\"")] {
            assert!(parse::<IndexManifest>(text.replace(change, to).into()).is_err(), "{change}");
        }
    }

    #[test]
    fn a_manifest_that_names_an_index_is_otherwise_the_same() {
        let index = descriptor(INDEX, b"an index");
        let layers =
            [layer(b"a", ""), layer(b"b", r#","annotations":{"k":"v"}"#), layer(b"c", r#","annotations":null"#)];
        let kit = KIT.replace("LAYERS", &layers.join(","));
        assert_eq!(named_index(&parse(kit.clone().into()).unwrap()).unwrap(), None);
        let named = name_index(kit.as_bytes(), &index, |layer| *layer != Digest::of(b"c")).unwrap();
        assert_eq!(named_index(&parse(named.clone()).unwrap()).unwrap(), Some(index.clone()));
        let annotations = format!(r#""dev.kitfs.index.digest":"{}","dev.kitfs.index.size":"8"}}"#, index.digest);
        let expected = [
            layer(b"a", &format!(r#","annotations":{{{annotations}"#)),
            layer(b"b", &format!(r#","annotations":{{"k":"v",{annotations}"#)),
            layers[2].clone(),
        ];
        assert_eq!(String::from_utf8(named.to_vec()).unwrap(), KIT.replace("LAYERS", &expected.join(",")));
        let again = name_index(&named, &index, |layer| *layer != Digest::of(b"c")).unwrap();
        assert_eq!(again, named);
    }

    #[test]
    fn layers_name_one_index_or_none() {
        let names = |digest: &str, size: &str| {
            format!(r#","annotations":{{"dev.kitfs.index.digest":"{digest}","dev.kitfs.index.size":"{size}"}}"#)
        };
        let (one, two) = (Digest::of(b"1").to_string(), Digest::of(b"2").to_string());
        for annotations in [
            vec![names(&one, "1"), names(&two, "1")],
            vec![names(&one, "1"), names(&one, "2")],
            vec![names("x", "1")],
            vec![names(&one, "-1")],
        ] {
            let layers: Vec<_> = annotations.iter().map(|annotations| layer(b"a", annotations)).collect();
            let kit: Manifest = parse(KIT.replace("LAYERS", &layers.join(",")).into()).unwrap();
            assert!(named_index(&kit).is_err(), "{annotations:?}");
        }
    }
}
