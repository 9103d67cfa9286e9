//! OCI image manifests of kits (image-spec, "OCI Image Manifest Specification").
//!
//! As lenient as KitOps where real kits need it: no `mediaType`, no `artifactType`, `layers` null.
//! Strict where something is trusted: digests and sizes. What is no kit is told by its name.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::kit::descriptor::Descriptor;
use crate::kit::json::Text;
use crate::kit::json::object;
use crate::kit::media::Artifact;
use crate::verify::FromVerified;

/// The manifest of a kit.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What kind of kit it is.
    pub artifact: Artifact,
    /// Names the config.
    pub config: Descriptor,
    /// Names the layers, in the order in which KitOps unpacks them.
    pub layers: Vec<Descriptor>,
    /// Annotations of the whole kit.
    pub annotations: BTreeMap<String, String>,
}

object! {
    /// A manifest before anybody knows what it is the manifest of.
    pub struct Outline {
        media_type: Text = "mediaType",
        artifact_type: Text = "artifactType",
        schema_version: Option<Box<RawValue>> = "schemaVersion",
        config: Option<Box<RawValue>> = "config",
        layers: Option<Box<RawValue>> = "layers",
        annotations: Option<Box<RawValue>> = "annotations",
        manifests: Option<Box<RawValue>> = "manifests",
        fs_layers: Option<Box<RawValue>> = "fsLayers",
    }
}

object! {
    /// As much of a descriptor as tells what it describes.
    pub struct MediaType {
        media_type: Text = "mediaType",
    }
}

impl FromVerified<Bytes> for Manifest {
    type Error = ManifestError;

    fn from_verified(content: &Bytes) -> Result<Self, ManifestError> {
        let outline: Outline = serde_json::from_slice(content)?;
        let config_type: MediaType = part(outline.config.as_deref())?.unwrap_or_default();
        let artifact = Artifact::recognise(&outline.artifact_type, &config_type.media_type)
            .ok_or_else(|| ManifestError::NotAKit(outline.describe(&config_type.media_type)))?;
        if outline.manifests.is_some() {
            return Err(ManifestError::NotAKit(outline.describe(&config_type.media_type)));
        }
        let version: Option<u64> = part(outline.schema_version.as_deref())?;
        if version.is_some_and(|version| version != 2) {
            return Err(ManifestError::SchemaVersion);
        }
        Ok(Self {
            artifact,
            config: part(outline.config.as_deref())?.ok_or(ManifestError::NoConfig)?,
            layers: part(outline.layers.as_deref())?.unwrap_or_default(),
            annotations: part(outline.annotations.as_deref())?.unwrap_or_default(),
        })
    }
}

/// Reads a member; absent and null are the same.
fn part<'a, T: Deserialize<'a>>(member: Option<&'a RawValue>) -> Result<Option<T>, serde_json::Error> {
    member.map_or(Ok(None), |member| serde_json::from_str(member.get()))
}

impl Outline {
    /// Says what this is, if it is no kit.
    fn describe(&self, config_type: &str) -> String {
        let short = |text: &str| text.chars().take(200).collect::<String>();
        let index =
            ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
        if &*self.artifact_type == "application/vnd.kitops.modelkit.index.v1+json" {
            return "an index of several ModelKits; name one of them by its digest".into();
        }
        if self.manifests.is_some() || index.contains(&&*self.media_type) {
            return "an index of several manifests".into();
        }
        if self.fs_layers.is_some() || self.media_type.starts_with("application/vnd.docker.distribution.manifest.v1") {
            return "a container image in Docker's first format".into();
        }
        match config_type {
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
                "a container image".into()
            }
            "application/vnd.cncf.helm.config.v1+json" => "a Helm chart".into(),
            _ if !self.artifact_type.is_empty() => format!("an artifact of type {:?}", short(&self.artifact_type)),
            "" => "a manifest that names neither an artifact type nor a config".into(),
            _ => format!("an artifact with a config of type {:?}", short(config_type)),
        }
    }
}

/// Why content with the right digest is not the manifest of a kit.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is something else; the text says what.
    #[error("not a ModelKit or ModelPack, but {0}")]
    NotAKit(String),
    /// It is no manifest at all, or a member of it is not what the specification says.
    #[error("malformed manifest: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It says that it is in another format.
    #[error("malformed manifest: its schemaVersion is not 2")]
    SchemaVersion,
    /// It says by its artifact type that it is a kit, and names no config.
    #[error("malformed manifest: it names no config")]
    NoConfig,
}
