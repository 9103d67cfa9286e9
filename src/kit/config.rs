//! What the config of a kit says: a Kitfile as JSON in a ModelKit, model-spec's `Model` in a ModelPack.
//!
//! The fields are those of KitOps 1.17, in the order of its struct. A ModelPack has its Kitfile in an
//! annotation of the manifest if KitOps made it; for others the least one is made that names every
//! layer, as KitOps does to unpack them.

use bytes::Bytes;

use crate::digest::Digest;
use crate::kit::json::List;
use crate::kit::json::Text;
use crate::kit::json::object;
use crate::kit::manifest::Manifest;
use crate::kit::media::KIT_CONFIG;
use crate::kit::media::LayerType;
use crate::kit::media::Role;
use crate::kit::media::UnknownLayerType;
use crate::kit::parameter::Parameter;
use crate::verify::FromVerified;

/// The annotation of a ModelPack's manifest in which KitOps keeps the Kitfile.
pub const KITFILE_ANNOTATION: &str = "ml.kitops.modelkit.kitfile";

/// Annotations of a layer that say where it belongs, in both namespaces.
pub const FILEPATH_ANNOTATIONS: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];

object! {
    /// A Kitfile.
    pub struct Kitfile {
        /// Version of the Kitfile's format.
        manifest_version: Text = "manifestVersion",
        /// What the kit is.
        package: Package = "package",
        /// The model.
        model: Option<Model> = "model",
        /// Code.
        code: List<Code> = "code",
        /// Data sets.
        datasets: List<Dataset> = "datasets",
        /// Documentation.
        docs: List<Docs> = "docs",
        /// Prompts.
        prompts: List<Named> = "prompts",
        /// MCP servers.
        mcp_servers: List<Named> = "mcpServers",
    }
}

object! {
    /// What a kit is.
    pub struct Package {
        /// Its name.
        name: Text = "name",
        /// Its version.
        version: Text = "version",
        /// What it is for.
        description: Text = "description",
        /// Its licence.
        license: Text = "license",
        /// Who made it.
        authors: List<Text> = "authors",
    }
}

object! {
    /// The model of a kit.
    pub struct Model {
        /// Its name.
        name: Text = "name",
        /// Where it is in the kit, or the reference of the kit that has it.
        path: Text = "path",
        /// Its licence.
        license: Text = "license",
        /// What it was made with.
        framework: Text = "framework",
        /// Its format.
        format: Text = "format",
        /// Its version.
        version: Text = "version",
        /// What it is for.
        description: Text = "description",
        /// What belongs to it.
        parts: List<Part> = "parts",
        /// Whatever its maker wanted to say.
        parameters: Option<Parameter> = "parameters",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

object! {
    /// Part of a model.
    pub struct Part {
        /// Its name.
        name: Text = "name",
        /// Where it is in the kit.
        path: Text = "path",
        /// Its licence.
        license: Text = "license",
        /// What kind of part it is.
        kind: Text = "type",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

object! {
    /// Code in a kit.
    pub struct Code {
        /// Where it is in the kit.
        path: Text = "path",
        /// What it is for.
        description: Text = "description",
        /// Its licence.
        license: Text = "license",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

object! {
    /// A data set.
    pub struct Dataset {
        /// Its name.
        name: Text = "name",
        /// Where it is in the kit.
        path: Text = "path",
        /// Where it is instead, if it is no layer of the kit.
        remote_path: Text = "remotePath",
        /// The hash of what is there.
        remote_hash: Text = "remoteHash",
        /// What it is for.
        description: Text = "description",
        /// Its licence.
        license: Text = "license",
        /// Whatever its maker wanted to say.
        parameters: Option<Parameter> = "parameters",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

object! {
    /// Documentation in a kit.
    pub struct Docs {
        /// Where it is in the kit.
        path: Text = "path",
        /// What it is about.
        description: Text = "description",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

object! {
    /// A prompt or an MCP server.
    pub struct Named {
        /// Its name.
        name: Text = "name",
        /// Where it is in the kit.
        path: Text = "path",
        /// What it is for.
        description: Text = "description",
        /// Digest of the layer.
        digest: Text = "digest",
        /// Digest of the layer's content before compression.
        diff_id: Text = "diffId",
    }
}

/// What every entry of a Kitfile says about its layer.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What the layer is for.
    pub role: Role,
    /// The entry's name, where entries of its kind have one.
    pub name: Option<&'a str>,
    /// Where it is in the kit.
    pub path: &'a str,
    /// Where it is instead, if it is not in the kit; empty for most.
    pub remote_path: &'a str,
    /// Digest of the layer, or empty: kits before KitOps 0.5 have none.
    pub digest: &'a str,
    /// Digest of the layer's content before compression, or empty.
    pub diff_id: &'a str,
}

impl Kitfile {
    /// Every entry that may have a layer, in the order of the Kitfile.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        macro_rules! entry {
            ($role:ident, $name:expr, $remote_path:expr, $from:ident) => {
                Entry {
                    role: Role::$role,
                    name: $name,
                    path: &$from.path,
                    remote_path: $remote_path,
                    digest: &$from.digest,
                    diff_id: &$from.diff_id,
                }
            };
        }
        let model = self.model.iter().map(|model| entry!(Model, Some(&*model.name), "", model));
        let parts = self.model.iter().flat_map(|model| model.parts.iter());
        let parts = parts.map(|part| entry!(ModelPart, Some(&*part.name), "", part));
        let code = self.code.iter().map(|code| entry!(Code, None, "", code));
        let datasets = self.datasets.iter();
        let datasets = datasets.map(|set| entry!(Dataset, Some(&*set.name), &set.remote_path, set));
        let docs = self.docs.iter().map(|docs| entry!(Docs, None, "", docs));
        let prompts = self.prompts.iter().map(|prompt| entry!(Prompt, Some(&*prompt.name), "", prompt));
        let servers = self.mcp_servers.iter().map(|server| entry!(Mcp, Some(&*server.name), "", server));
        model.chain(parts).chain(code).chain(datasets).chain(docs).chain(prompts).chain(servers)
    }
}

impl FromVerified<Bytes> for Kitfile {
    type Error = ConfigError;

    fn from_verified(config: &Bytes) -> Result<Self, ConfigError> {
        Ok(serde_json::from_slice(config)?)
    }
}

impl FromVerified<Manifest> for Kitfile {
    type Error = ConfigError;

    fn from_verified(manifest: &Manifest) -> Result<Self, ConfigError> {
        match manifest.annotations.get(KITFILE_ANNOTATION).filter(|kitfile| !kitfile.is_empty()) {
            Some(kitfile) => serde_json::from_str(kitfile).map_err(ConfigError::Annotation),
            None => least_kitfile(manifest),
        }
    }
}

/// The least Kitfile that names every layer: the first weights are the model, further ones are parts.
fn least_kitfile(manifest: &Manifest) -> Result<Kitfile, ConfigError> {
    let (mut model, mut parts) = (None, Vec::new());
    let (mut code, mut datasets, mut docs) = (Vec::new(), Vec::new(), Vec::new());
    // A Kitfile among the layers of a ModelPack is none of them; KitOps skips it as well.
    for layer in manifest.layers.iter().filter(|layer| layer.media_type != KIT_CONFIG) {
        let filepath = FILEPATH_ANNOTATIONS.iter().find_map(|name| layer.annotations.get(*name));
        let filepath = filepath.filter(|path| !path.is_empty()).ok_or(ConfigError::NoFilepath(layer.digest))?;
        let (path, digest) = (Text::from(&**filepath), Text::from(&*layer.digest.to_string()));
        match LayerType::parse(&layer.media_type)?.role {
            Role::Model if model.is_none() => model = Some(Model { path, digest, ..Model::default() }),
            Role::Model | Role::ModelPart => parts.push(Part { path, digest, ..Part::default() }),
            Role::Code | Role::Prompt => code.push(Code { path, digest, ..Code::default() }),
            Role::Dataset => datasets.push(Dataset { path, digest, ..Dataset::default() }),
            Role::Docs | Role::Mcp => docs.push(Docs { path, digest, ..Docs::default() }),
        }
    }
    if !parts.is_empty() {
        model.get_or_insert_default().parts = parts.into_iter().collect();
    }
    Ok(Kitfile {
        manifest_version: "1.0.0".into(),
        model,
        code: code.into_iter().collect(),
        datasets: datasets.into_iter().collect(),
        docs: docs.into_iter().collect(),
        ..Kitfile::default()
    })
}

object! {
    /// As much of a ModelPack's config as says something about its layers (model-spec, "Model Artifact
    /// Configuration").
    pub struct PackConfig {
        /// About the layers.
        layers: PackLayers = "modelfs",
    }
}

object! {
    /// What a ModelPack's config says about the layers, in their order.
    pub struct PackLayers {
        /// Digests before compression, as model-spec calls them from 0.0.7 on.
        diff_ids: List<Text> = "diffIds",
        /// As it called them before.
        old_diff_ids: List<Text> = "diff_ids",
    }
}

impl FromVerified<Bytes> for PackConfig {
    type Error = ConfigError;

    fn from_verified(config: &Bytes) -> Result<Self, ConfigError> {
        Ok(serde_json::from_slice(config)?)
    }
}

/// Why content with the right digest is not the config of a kit.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The config is not JSON, or not what its type says.
    #[error("malformed config: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The Kitfile in the manifest is not JSON, or not what a Kitfile is.
    #[error("malformed Kitfile in the manifest's annotation {KITFILE_ANNOTATION}: {0}")]
    Annotation(#[source] serde_json::Error),
    /// A layer of a ModelPack does not say where it belongs.
    #[error("layer {0} has no annotation org.cncf.model.filepath, so that its place is unknown")]
    NoFilepath(Digest),
    /// A layer of a ModelPack is something that no kit has.
    #[error(transparent)]
    LayerType(#[from] UnknownLayerType),
}
