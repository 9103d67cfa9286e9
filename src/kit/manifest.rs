//! OCI image manifests of kits (image-spec, "OCI Image Manifest Specification").
//!
//! As lenient as KitOps where real kits need it: no `mediaType`, no `artifactType`, `layers` null.
//! Strict where something is trusted: digests and sizes. What is no kit is told by its name.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::digest::Digest;
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
    struct Outline {
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
    struct MediaType {
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
        let config: Descriptor = part(outline.config.as_deref())?.ok_or(ManifestError::NoConfig)?;
        let layers: Vec<Descriptor> = part(outline.layers.as_deref())?.unwrap_or_default();
        // Sizes are signed for everybody else, and sums of them must not overflow soon.
        if let Some(huge) = layers.iter().chain([&config]).find(|blob| i64::try_from(blob.size).is_err()) {
            return Err(ManifestError::Size { digest: huge.digest, size: huge.size });
        }
        Ok(Self { artifact, config, layers, annotations: part(outline.annotations.as_deref())?.unwrap_or_default() })
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
    /// A blob would have more bytes than a signed 64-bit integer can count.
    #[error("malformed manifest: blob {digest} cannot have {size} bytes")]
    Size {
        /// The blob.
        digest: Digest,
        /// What is said of it.
        size: u64,
    },
    /// It says by its artifact type that it is a kit, and names no config.
    #[error("malformed manifest: it names no config")]
    NoConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const KIT: &str = "application/vnd.kitops.modelkit.config.v1+json";

    fn read(json: &str) -> Result<Manifest, String> {
        Manifest::from_verified(&Bytes::from(json.to_owned())).map_err(|error| error.to_string())
    }

    fn config(media_type: &str) -> String {
        format!(r#""config":{{"mediaType":"{media_type}","digest":"{DIGEST}","size":2}}"#)
    }

    #[test]
    fn manifests_of_every_age_are_read() {
        let kit = config(KIT);
        let layer =
            format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":0,"annotations":null,"urls":["http://x"]}}"#);
        for (json, layers) in [
            (format!(r#"{{"schemaVersion":2,{kit},"layers":null}}"#), 0),
            (format!("{{{kit}}}"), 0),
            (format!(r#"{{{kit},"layers":[{layer},{layer}],"annotations":{{"a":"b"}},"x":[[{{}}]]}}"#), 2),
            (format!(r#"{{{kit},"layers":[],"annotations":null,"subject":null,"layers":[{layer}]}}"#), 1),
            (format!(r#"{{{kit},"artifactType":"application/vnd.example"}}"#), 0),
        ] {
            let manifest = read(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!((manifest.artifact, manifest.layers.len()), (Artifact::ModelKit, layers), "{json}");
        }
        let pack = config("application/vnd.cnai.model.config.v1+json");
        assert_eq!(read(&format!("{{{pack}}}")).unwrap().artifact, Artifact::ModelPack);
    }

    #[test]
    fn what_is_no_kit_is_told_by_its_name() {
        let index = "application/vnd.oci.image.index.v1+json";
        for (json, name) in [
            (format!("{{{}}}", config("application/vnd.oci.image.config.v1+json")), "a container image"),
            (format!("{{{}}}", config("application/vnd.cncf.helm.config.v1+json")), "a Helm chart"),
            (
                format!("{{{}}}", config("application/vnd.x")),
                r#"an artifact with a config of type "application/vnd.x""#,
            ),
            (r#"{"artifactType":"application/vnd.y"}"#.into(), r#"an artifact of type "application/vnd.y""#),
            (format!(r#"{{"mediaType":"{index}"}}"#), "an index of several manifests"),
            (r#"{"manifests":[]}"#.into(), "an index of several manifests"),
            (
                r#"{"manifests":[],"artifactType":"application/vnd.kitops.modelkit.index.v1+json"}"#.into(),
                "an index of several ModelKits",
            ),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "a container image in Docker's first format"),
            ("{}".into(), "a manifest that names neither"),
        ] {
            let error = read(&json).unwrap_err();
            assert!(error.starts_with(&format!("not a ModelKit or ModelPack, but {name}")), "{json}: {error}");
        }
    }

    #[test]
    fn malformed_manifests_are_refused() {
        let kit = config(KIT);
        for (json, why) in [
            ("null".to_owned(), "expected an object"),
            ("[]".to_owned(), "expected an object"),
            (format!("{{{kit}}} x"), "trailing"),
            (format!("\u{feff}{{{kit}}}"), "expected value"),
            (format!(r#"{{"schemaVersion":1,{kit}}}"#), "schemaVersion"),
            (r#"{"artifactType":"application/vnd.kitops.modelkit.manifest.v1+json"}"#.to_owned(), "no config"),
            (kit.replace("sha256:", "md5:"), "not a digest"),
            (kit.replace("\"size\":2", "\"size\":-1"), "invalid value"),
            (kit.replace("\"size\":2", "\"size\":1.5"), "invalid type"),
            (kit.replace("\"size\":2", "\"size\":9223372036854775808"), "cannot have 9223372036854775808 bytes"),
            (kit.replace(",\"size\":2", ""), "missing field"),
            (format!(r#"{kit},"layers":[null]"#), "invalid type"),
            (format!(r#"{kit},"layers":{{}}"#), "invalid type"),
        ] {
            let json = if json.starts_with("\"config") { format!("{{{json}}}") } else { json };
            let error = read(&json).unwrap_err();
            assert!(error.starts_with("malformed manifest") && error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn nesting_overflows_no_stack() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(read(&format!(r#"{{{},"x":{deep}}}"#, config(KIT))).is_ok());
        assert!(read(&format!(r#"{{{},"layers":{deep}}}"#, config(KIT))).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Manifest::from_verified(&bytes.into());
        }

        #[test]
        fn no_damage_to_a_manifest_panics(at in 0usize..200, byte: u8) {
            let mut json = format!(r#"{{{},"layers":[{{"digest":"{DIGEST}","size":1}}]}}"#, config(KIT)).into_bytes();
            json[at] = byte;
            let _ = Manifest::from_verified(&json.into());
        }
    }
}
