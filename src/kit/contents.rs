//! What a kit consists of: which layers, where each belongs, and what is expected of it.
//!
//! KitOps from 0.5 on says in the config which layer an entry of the Kitfile is, by digest; earlier ones
//! leave it to the order. Everything that the two documents say of a layer is held together here, and what
//! does not fit is refused, also in layers that a filter leaves out. Nothing is looked up elsewhere:
//! remote data sets stay away, and the parent is only named.

use std::collections::HashMap;
use std::collections::VecDeque;

use bytes::Bytes;

use crate::digest::Digest;
use crate::digest::InvalidDigest;
use crate::kit::config::ConfigError;
use crate::kit::config::Entry;
use crate::kit::config::FILEPATH_ANNOTATIONS;
use crate::kit::config::Kitfile;
use crate::kit::config::PackConfig;
use crate::kit::descriptor::Descriptor;
use crate::kit::filter::Filter;
use crate::kit::kitfile::KitfileTooLarge;
use crate::kit::kitfile::Yaml;
use crate::kit::manifest::Manifest;
use crate::kit::media::Artifact;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::media::LayerType;
use crate::kit::media::Role;
use crate::kit::media::UnknownLayerType;
use crate::kit::name::InvalidPath;
use crate::kit::name::KitPath;
use crate::reference::InvalidReference;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::verify::Verified;

/// Annotations with the attributes of the file that a raw layer is, in both namespaces.
const METADATA_ANNOTATIONS: [&str; 2] = ["org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"];

/// The annotation that makes a code layer a prompt.
const SUBTYPE_ANNOTATION: &str = "ml.kitops.modelkit.layer-subtype";

/// What a kit consists of, after the filters.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The file `Kitfile` in the root; `None` if the filters leave it out.
    pub kitfile: Option<Verified<Bytes>>,
    /// The layers, in the order in which KitOps unpacks them.
    pub layers: Vec<KitLayer>,
    /// The kit that has the model, if this one refers to it. What of it is wanted is
    /// [`Filter::for_parent`]; this is set also where that is nothing.
    pub parent: Option<RegistryReference>,
    /// What is left out, one sentence each.
    pub warnings: Vec<String>,
}

/// One layer of a kit.
#[derive(Clone, Debug)]
pub struct KitLayer {
    /// Names the blob.
    pub descriptor: Descriptor,
    /// What the layer is for.
    pub role: Role,
    /// The path in the Kitfile, as it is written there. It decides nothing but what a filter matches.
    pub path: String,
    /// What the layer holds.
    pub format: Format,
    /// How the blob is compressed.
    pub compression: Compression,
    /// The only file of a raw layer; `None` for a tar.
    pub raw: Option<RawFile>,
    /// The directory that the names in the tar are relative to, where that is not the root: kits before
    /// KitOps 0.5. It exists also if the archive does not have it.
    pub base: Option<KitPath>,
    /// What the decompressed content must hash to, where the config says so and the layer's own digest
    /// does not prove it already.
    pub diff_id: Option<Digest>,
}

/// The file that a raw layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFile {
    /// Where it belongs. Never the root.
    pub path: KitPath,
    /// Permission bits, at most 0777.
    pub mode: u16,
    /// Bytes in it once it is decompressed, if the annotations say so. Without compression it has been
    /// compared with the descriptor already.
    pub size: Option<u64>,
    /// Seconds since 1970, if the annotations say so.
    pub mtime: Option<i64>,
}

/// Reads what a kit consists of. Looks at nothing but its arguments.
pub fn read(manifest: &Verified<Manifest>, config: &Verified<Bytes>, filters: &[Filter]) -> Result<Contents, KitError> {
    let (kitfile, diff_ids) = match manifest.artifact {
        Artifact::ModelKit => (config.parse::<Kitfile>()?, Vec::new()),
        Artifact::ModelPack => (manifest.parse::<Kitfile>()?, pack_diff_ids(config, manifest.layers.len())?),
    };
    let mut contents = Contents { kitfile: None, layers: Vec::new(), parent: parent(&kitfile)?, warnings: Vec::new() };
    if Filter::let_kitfile_through(filters) {
        let yaml = kitfile.parse::<Yaml>()?;
        contents.kitfile = yaml.part(|yaml| Some(yaml.bytes()));
    }
    let mut claims = Claims::new(manifest);
    for entry in kitfile.entries() {
        if entry.role == Role::Model && contents.parent.is_some() {
            continue;
        }
        if !entry.remote_path.is_empty() {
            contents.warnings.push(format!(
                "the dataset {:?} is left out: it is not in the kit, but at {:?}",
                entry.path, entry.remote_path
            ));
            continue;
        }
        claims.claim(entry, filters)?;
    }
    for (number, (descriptor, claim)) in manifest.layers.iter().zip(claims.by_layer).enumerate() {
        let Some(claim) = claim else {
            let (digest, media_type) = (descriptor.digest, &descriptor.media_type);
            contents.warnings.push(format!("layer {digest} ({media_type}) is left out: the Kitfile does not name it"));
            continue;
        };
        let wanted = claim.wanted;
        let layer = claim.layer(descriptor, manifest.artifact, diff_ids.get(number))?;
        contents.layers.extend(wanted.then_some(layer));
    }
    Ok(contents)
}

/// The reference that a Kitfile has in place of the model's path, told from a path as KitOps does it: it
/// has a `:` or an `@`, and parses.
fn parent(kitfile: &Kitfile) -> Result<Option<RegistryReference>, KitError> {
    let path = kitfile.model.as_ref().map_or("", |model| &*model.path);
    if !path.contains([':', '@']) {
        return Ok(None);
    }
    // A digest alone names a manifest in KitOps' store, whatever repository it is in.
    if let Ok(digest) = path.parse() {
        let version = Version { tag: None, digest: Some(digest) };
        return Ok(Some(RegistryReference { host: "localhost".into(), repository: "_".into(), version }));
    }
    // Further tags behind commas are for `kit pack`.
    let first = path.split(',').next().unwrap_or(path);
    match Reference::parse_parent(first) {
        Ok(reference) => Ok(Some(reference)),
        Err(error) if first.starts_with("oci:") || first.starts_with("kit:") => Err(KitError::Parent(error)),
        Err(_) => Ok(None),
    }
}

/// The digests before compression in a ModelPack's config, one a layer, or none at all.
fn pack_diff_ids(config: &Verified<Bytes>, layers: usize) -> Result<Vec<Digest>, KitError> {
    let config = config.parse::<PackConfig>()?;
    let ids = if config.layers.diff_ids.is_empty() { &config.layers.old_diff_ids } else { &config.layers.diff_ids };
    if !ids.is_empty() && ids.len() != layers {
        return Err(KitError::DiffIdCount { ids: ids.len(), layers });
    }
    ids.iter().map(|id| id.parse().map_err(|error| KitError::InvalidDiffId { path: "modelfs".into(), error })).collect()
}

/// Which entry of the Kitfile each layer of the manifest is.
struct Claims<'a> {
    by_layer: Vec<Option<Claim<'a>>>,
    by_digest: HashMap<Digest, VecDeque<usize>>,
    /// Layers that no entry has claimed yet, in order.
    free: HashMap<(Digest, Role), VecDeque<usize>>,
    free_by_role: HashMap<Role, VecDeque<usize>>,
    layers: &'a [Descriptor],
    artifact: Artifact,
}

/// An entry of the Kitfile that a layer belongs to.
struct Claim<'a> {
    entry: Entry<'a>,
    wanted: bool,
}

impl<'a> Claims<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        let mut claims = Self {
            by_layer: manifest.layers.iter().map(|_| None).collect(),
            by_digest: HashMap::new(),
            free: HashMap::new(),
            free_by_role: HashMap::new(),
            layers: &manifest.layers,
            artifact: manifest.artifact,
        };
        for (number, layer) in manifest.layers.iter().enumerate() {
            claims.by_digest.entry(layer.digest).or_default().push_back(number);
            if let Ok(layer_type) = LayerType::parse(&layer.media_type) {
                let prompt = layer.annotations.get(SUBTYPE_ANNOTATION).is_some_and(|subtype| subtype == "prompt");
                let role = if prompt && layer_type.role == Role::Code { Role::Prompt } else { layer_type.role };
                claims.free.entry((layer.digest, role)).or_default().push_back(number);
                claims.free_by_role.entry(role).or_default().push_back(number);
            }
        }
        claims
    }

    /// Finds the layer of an entry.
    fn claim(&mut self, entry: Entry<'a>, filters: &[Filter]) -> Result<(), KitError> {
        let names: &[&str] = &[entry.path, entry.name.unwrap_or(entry.path)];
        let wanted = Filter::let_through(filters, entry.role, names);
        let number = match entry.digest {
            // Nothing was packed for it.
            "" if entry.diff_id.is_empty() && entry.path.is_empty() => return Ok(()),
            "" if entry.diff_id.is_empty() => self.next_of_role(entry)?,
            _ => self.next_of_digest(entry)?,
        };
        match self.by_layer.get_mut(number) {
            // Two entries for one layer: it is there once, and for either of them.
            Some(Some(claim)) => claim.wanted |= wanted,
            Some(free) => *free = Some(Claim { entry, wanted }),
            None => {}
        }
        Ok(())
    }

    fn next_of_digest(&mut self, entry: Entry<'a>) -> Result<usize, KitError> {
        let path = || entry.path.to_owned();
        let digest =
            entry.digest.parse().map_err(|error| KitError::InvalidDigest { role: entry.role, path: path(), error })?;
        let all = self.by_digest.get(&digest).ok_or_else(|| KitError::NotInManifest {
            role: entry.role,
            path: path(),
            digest,
        })?;
        let fitting = self.roles_that_fit(entry.role).iter().find_map(|role| {
            let free = self.free.get_mut(&(digest, *role))?;
            // The last one stays, for entries that share it.
            if free.len() > 1 { free.pop_front() } else { free.front().copied() }
        });
        let first = all.front().and_then(|number| self.layers.get(*number));
        let media_type = first.map(|layer| layer.media_type.clone()).unwrap_or_default();
        fitting.ok_or_else(|| match LayerType::parse(&media_type) {
            Ok(_) => KitError::WrongRole { role: entry.role, path: path(), digest, media_type },
            Err(error) => KitError::LayerType { digest, error },
        })
    }

    fn next_of_role(&mut self, entry: Entry<'a>) -> Result<usize, KitError> {
        for role in self.roles_that_fit(entry.role) {
            let Some(free) = self.free_by_role.get_mut(role) else { continue };
            while let Some(number) = free.pop_front() {
                if matches!(self.by_layer.get(number), Some(None)) {
                    return Ok(number);
                }
            }
        }
        Err(KitError::NoLayer { role: entry.role, path: entry.path.to_owned() })
    }

    /// What a layer for an entry of this role may say of itself, the best first.
    fn roles_that_fit(&self, role: Role) -> &'static [Role] {
        match role {
            Role::Model => &[Role::Model],
            // In a ModelPack every file of weights is a layer of its own, and only one is the model.
            Role::ModelPart if self.artifact == Artifact::ModelPack => &[Role::ModelPart, Role::Model],
            Role::ModelPart => &[Role::ModelPart],
            Role::Code => &[Role::Code, Role::Prompt],
            Role::Dataset => &[Role::Dataset],
            Role::Docs => &[Role::Docs],
            Role::Prompt => &[Role::Prompt, Role::Code],
            Role::Mcp => &[Role::Mcp],
        }
    }
}

impl Claim<'_> {
    /// Holds together everything that is said of the layer.
    fn layer(
        self,
        descriptor: &Descriptor,
        artifact: Artifact,
        pack_diff_id: Option<&Digest>,
    ) -> Result<KitLayer, KitError> {
        let digest = descriptor.digest;
        let LayerType { format, compression, .. } =
            LayerType::parse(&descriptor.media_type).map_err(|error| KitError::LayerType { digest, error })?;
        let raw = match format {
            Format::Raw => Some(raw_file(descriptor, compression)?),
            Format::Tar => None,
        };
        let base = match format {
            // `legacy.go`: before 0.5 the names in the archive began at the directory of the entry.
            Format::Tar if self.entry.digest.is_empty() && artifact == Artifact::ModelKit => {
                let path = KitPath::parse(self.entry.path.as_bytes());
                let path = path.map_err(|error| KitError::InvalidPath { digest, error })?;
                path.parent().filter(|parent| !parent.is_root())
            }
            _ => None,
        };
        Ok(KitLayer {
            diff_id: self.diff_id(digest, compression, pack_diff_id)?,
            descriptor: descriptor.clone(),
            role: self.entry.role,
            path: self.entry.path.to_owned(),
            format,
            compression,
            raw,
            base,
        })
    }

    fn diff_id(
        &self,
        digest: Digest,
        compression: Compression,
        pack_diff_id: Option<&Digest>,
    ) -> Result<Option<Digest>, KitError> {
        let own = match self.entry.diff_id {
            "" => None,
            text => {
                Some(text.parse().map_err(|error| KitError::InvalidDiffId { path: self.entry.path.into(), error })?)
            }
        };
        let mut expected = (compression == Compression::None).then_some(digest);
        let mut to_check = None;
        for id in own.iter().chain(pack_diff_id) {
            match expected {
                // Of two algorithms nobody can tell without the content.
                Some(expected) if expected.algorithm() != id.algorithm() => to_check = Some(*id),
                Some(expected) if expected != *id => return Err(KitError::DiffId { digest, expected, diff_id: *id }),
                Some(_) => {}
                None => (expected, to_check) = (Some(*id), Some(*id)),
            }
        }
        Ok(to_check)
    }
}

crate::kit::json::object! {
    /// The attributes of a file (model-spec, "Layer Annotations"). Name, owner and type are ignored, as
    /// KitOps does: the path is in another annotation, and only regular files are layers.
    pub struct FileMetadata {
        mode: Option<u32> = "mode",
        size: Option<u64> = "size",
        mtime: Option<crate::kit::json::Text> = "mtime",
    }
}

fn raw_file(descriptor: &Descriptor, compression: Compression) -> Result<RawFile, KitError> {
    let digest = descriptor.digest;
    let annotation = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| descriptor.annotations.get(*name));
        found.filter(|value| !value.is_empty())
    };
    let path = annotation(FILEPATH_ANNOTATIONS).ok_or(ConfigError::NoFilepath(digest))?;
    let path = KitPath::parse(path.as_bytes()).map_err(|error| KitError::InvalidPath { digest, error })?;
    if path.is_root() {
        return Err(KitError::RootIsFile(digest));
    }
    let metadata = match annotation(METADATA_ANNOTATIONS) {
        Some(json) => {
            serde_json::from_str(json).map_err(|error| KitError::Metadata { digest, why: error.to_string() })?
        }
        None => FileMetadata::default(),
    };
    if compression == Compression::None
        && let Some(size) = metadata.size
        && size != descriptor.size
    {
        return Err(KitError::RawSize { digest, expected: size, actual: descriptor.size });
    }
    let mtime = metadata.mtime.map(|mtime| mtime.parse::<jiff::Timestamp>()).transpose();
    let mtime = mtime.map_err(|error| KitError::Metadata { digest, why: error.to_string() })?;
    Ok(RawFile {
        path,
        mode: (metadata.mode.unwrap_or(0o644) & 0o777) as u16,
        size: metadata.size,
        mtime: mtime.map(jiff::Timestamp::as_second),
    })
}

/// Why a kit whose manifest and config are proved cannot be shown: it contradicts itself, or has what
/// kitfs does not know. Each is malformed content.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The config is not what its type says.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The Kitfile grows too large when it is written out.
    #[error(transparent)]
    Kitfile(#[from] KitfileTooLarge),
    /// The parent is on this machine, which only the one who mounts may say.
    #[error("the model refers to a kit that no kit may refer to: {0}")]
    Parent(#[source] InvalidReference),
    /// A digest in the Kitfile is none.
    #[error("malformed digest of the {role} {path:?} in the config: {error}")]
    InvalidDigest {
        role: Role,
        path: String,
        #[source]
        error: InvalidDigest,
    },
    /// A digest before compression is none.
    #[error("malformed diffId of {path:?} in the config: {error}")]
    InvalidDiffId {
        path: String,
        #[source]
        error: InvalidDigest,
    },
    /// A ModelPack has another number of them than of layers.
    #[error("the config has {ids} diffIds for {layers} layers")]
    DiffIdCount { ids: usize, layers: usize },
    /// The Kitfile names a layer that the manifest does not have.
    #[error("the {role} {path:?} is layer {digest} in the config, which is not in the manifest")]
    NotInManifest { role: Role, path: String, digest: Digest },
    /// The Kitfile names a layer that is for something else.
    #[error("the {role} {path:?} is layer {digest} in the config, which in the manifest is a {media_type}")]
    WrongRole { role: Role, path: String, digest: Digest, media_type: String },
    /// The Kitfile has more entries than the manifest has layers for.
    #[error("the manifest has no layer for the {role} {path:?}")]
    NoLayer { role: Role, path: String },
    /// The Kitfile names a layer of a type that is unknown.
    #[error("layer {digest}: {error}")]
    LayerType {
        digest: Digest,
        #[source]
        error: UnknownLayerType,
    },
    /// What is said of the content before compression contradicts the digest, or itself.
    #[error("layer {digest}: the config says diffId {diff_id}, but uncompressed it is {expected}")]
    DiffId { digest: Digest, expected: Digest, diff_id: Digest },
    /// A path leaves the kit, or is none.
    #[error("layer {digest}: {error}")]
    InvalidPath {
        digest: Digest,
        #[source]
        error: InvalidPath,
    },
    /// A raw layer would be the root of the kit.
    #[error("layer {0} is a file with the path of the kit's root")]
    RootIsFile(Digest),
    /// The attributes of a raw layer's file are malformed.
    #[error("layer {digest}: malformed file metadata in its annotations: {why}")]
    Metadata { digest: Digest, why: String },
    /// A raw layer is not as long as its attributes say.
    #[error("layer {digest} has {actual} bytes, but {expected} by the file metadata in its annotations")]
    RawSize { digest: Digest, expected: u64, actual: u64 },
}
