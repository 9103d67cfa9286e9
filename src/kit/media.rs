//! Media types of kits and of their layers, in KitOps' namespace and in both of ModelPack's.
//!
//! `application/vnd.kitops.modelkit.BASE.v1.FORMAT[+COMPRESSION]` and
//! `application/vnd.{cncf,cnai}.model.BASE.v1.FORMAT[+COMPRESSION]` (model-spec, "Layer Media Type").
//! The whole string has to match: what stands behind it might say how to read the layer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The config of a ModelKit, which is its Kitfile as JSON.
pub const KIT_CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";

const KIT_ARTIFACT: &str = "application/vnd.kitops.modelkit.manifest.v1+json";
const PACK_ARTIFACTS: [&str; 2] =
    ["application/vnd.cncf.model.manifest.v1+json", "application/vnd.cnai.model.manifest.v1+json"];
const PACK_CONFIGS: [&str; 2] =
    ["application/vnd.cncf.model.config.v1+json", "application/vnd.cnai.model.config.v1+json"];

/// Which of the formats that kitfs mounts an artifact is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// A KitOps ModelKit.
    ModelKit,
    /// A CNCF ModelPack.
    ModelPack,
}

impl Artifact {
    /// Recognises an artifact. Either type is enough, as for KitOps: kits up to KitOps 1.7 have no
    /// artifact type, and an unknown artifact type does not make a ModelKit's config anything else.
    pub fn recognise(artifact_type: &str, config_type: &str) -> Option<Self> {
        if artifact_type == KIT_ARTIFACT || config_type == KIT_CONFIG {
            return Some(Self::ModelKit);
        }
        (PACK_ARTIFACTS.contains(&artifact_type) || PACK_CONFIGS.contains(&config_type)).then_some(Self::ModelPack)
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModelKit => "ModelKit",
            Self::ModelPack => "ModelPack",
        })
    }
}

/// What a layer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The model itself.
    Model,
    /// A part of the model: an adapter, a tokenizer, a further file of weights.
    ModelPart,
    /// Code.
    Code,
    /// A data set.
    Dataset,
    /// Documentation.
    Docs,
    /// A prompt. There is no media type for it: it is a code layer that an annotation marks.
    Prompt,
    /// An MCP server in its bundle.
    Mcp,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::ModelPart => "model part",
            Self::Code => "code",
            Self::Dataset => "dataset",
            Self::Docs => "docs",
            Self::Prompt => "prompt",
            Self::Mcp => "MCP server",
        })
    }
}

/// What the bytes of a layer are once they are decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// A tar archive.
    Tar,
    /// One file.
    Raw,
}

/// How the bytes of a layer are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compression {
    /// Not at all: ranges of the blob are ranges of the content.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// How a blob is read as a layer: two kits may name one blob, and read it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reading {
    /// What it holds.
    pub format: Format,
    /// How that is compressed.
    pub compression: Compression,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.format {
            Format::Tar => "tar",
            Format::Raw => "raw",
        })?;
        f.write_str(match self.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        })
    }
}

/// What the media type of a layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerType {
    /// What the layer is for; prompts appear as [`Role::Code`] here.
    pub role: Role,
    /// What it holds.
    pub format: Format,
    /// How that is compressed.
    pub compression: Compression,
}

impl LayerType {
    /// Reads the media type of a layer.
    pub fn parse(media_type: &str) -> Result<Self, UnknownLayerType> {
        let unknown = |why| UnknownLayerType { media_type: media_type.chars().take(200).collect(), why };
        let kit = media_type.strip_prefix("application/vnd.kitops.modelkit.");
        let pack = ["application/vnd.cncf.model.", "application/vnd.cnai.model."]
            .iter()
            .find_map(|prefix| media_type.strip_prefix(prefix));
        let rest = kit.or(pack).ok_or_else(|| unknown("it is no layer of a ModelKit or ModelPack"))?;
        let (base, encoding) = rest.split_once(".v1.").ok_or_else(|| unknown("it is not of version 1"))?;
        let role = match (base, kit.is_some()) {
            ("model", true) | ("weight", false) => Role::Model,
            ("modelpart", true) | ("weight.config", false) => Role::ModelPart,
            ("code", _) => Role::Code,
            ("dataset", _) => Role::Dataset,
            ("docs", true) | ("doc", false) => Role::Docs,
            ("mcpb", true) => Role::Mcp,
            _ => return Err(unknown("what it is for is unknown")),
        };
        let (format, compression) = match encoding.split_once('+') {
            Some((format, compression)) => (format, Some(compression)),
            None => (encoding, None),
        };
        let format = match format {
            "tar" => Format::Tar,
            "raw" => Format::Raw,
            _ => return Err(unknown("its format is neither tar nor raw")),
        };
        let compression = match compression {
            None => Compression::None,
            Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some(_) => return Err(unknown("its compression is neither gzip nor zstd")),
        };
        if pack.is_some() && format == Format::Raw && compression != Compression::None {
            return Err(unknown("raw layers of a ModelPack are not compressed"));
        }
        Ok(Self { role, format, compression })
    }
}

/// A media type that is not one of a layer that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown layer type {media_type:?}: {why}")]
pub struct UnknownLayerType {
    media_type: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_of_all_three_namespaces_are_read() {
        for (text, role, format, compression) in [
            ("application/vnd.kitops.modelkit.model.v1.tar", Role::Model, Format::Tar, Compression::None),
            ("application/vnd.kitops.modelkit.modelpart.v1.tar+gzip", Role::ModelPart, Format::Tar, Compression::Gzip),
            ("application/vnd.kitops.modelkit.dataset.v1.tar+zstd", Role::Dataset, Format::Tar, Compression::Zstd),
            ("application/vnd.kitops.modelkit.docs.v1.raw+gzip", Role::Docs, Format::Raw, Compression::Gzip),
            ("application/vnd.kitops.modelkit.mcpb.v1.raw", Role::Mcp, Format::Raw, Compression::None),
            ("application/vnd.cncf.model.weight.v1.raw", Role::Model, Format::Raw, Compression::None),
            ("application/vnd.cnai.model.weight.config.v1.tar", Role::ModelPart, Format::Tar, Compression::None),
            ("application/vnd.cncf.model.doc.v1.tar+zstd", Role::Docs, Format::Tar, Compression::Zstd),
            ("application/vnd.cnai.model.code.v1.tar", Role::Code, Format::Tar, Compression::None),
        ] {
            assert_eq!(LayerType::parse(text), Ok(LayerType { role, format, compression }), "{text}");
        }
    }

    #[test]
    fn other_types_are_refused_with_a_reason() {
        for (text, why) in [
            ("", "no layer of a ModelKit"),
            ("application/vnd.oci.image.layer.v1.tar+gzip", "no layer of a ModelKit"),
            ("application/vnd.kitops.modelkit.model.v1.tar; charset=utf-8", "neither tar nor raw"),
            ("application/vnd.kitops.modelkit.model.v1.tar+xz", "neither gzip nor zstd"),
            ("application/vnd.kitops.modelkit.model.v1.tar+gzip+gzip", "neither gzip nor zstd"),
            ("application/vnd.kitops.modelkit.model.v1.zip", "neither tar nor raw"),
            ("application/vnd.kitops.modelkit.model.v2.tar", "not of version 1"),
            ("application/vnd.kitops.modelkit.weight.v1.tar", "unknown"),
            ("application/vnd.cncf.model.model.v1.tar", "unknown"),
            ("application/vnd.cncf.model.weight.v1.raw+gzip", "not compressed"),
        ] {
            let error = LayerType::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn either_type_is_enough_to_know_an_artifact() {
        assert_eq!(Artifact::recognise("", KIT_CONFIG), Some(Artifact::ModelKit));
        assert_eq!(Artifact::recognise("application/vnd.example+json", KIT_CONFIG), Some(Artifact::ModelKit));
        assert_eq!(Artifact::recognise(KIT_ARTIFACT, ""), Some(Artifact::ModelKit));
        for (artifact, config) in PACK_ARTIFACTS.into_iter().zip(PACK_CONFIGS) {
            assert_eq!(Artifact::recognise(artifact, ""), Some(Artifact::ModelPack));
            assert_eq!(Artifact::recognise("", config), Some(Artifact::ModelPack));
        }
        assert_eq!(Artifact::recognise("", "application/vnd.oci.image.config.v1+json"), None);
    }
}
