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
use crate::kit::index::LayerBlob;
use crate::kit::json::Text;
use crate::kit::json::object;
use crate::kit::kitfile::KitfileTooLarge;
use crate::kit::kitfile::Yaml;
use crate::kit::manifest::Manifest;
use crate::kit::media::Artifact;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::media::LayerType;
use crate::kit::media::Reading;
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

impl KitLayer {
    /// How the blob is read.
    pub fn reading(&self) -> Reading {
        Reading { format: self.format, compression: self.compression }
    }

    /// The blob, as an index names it.
    pub fn blob(&self) -> LayerBlob {
        LayerBlob { digest: self.descriptor.digest, size: self.descriptor.size, reading: self.reading() }
    }

    /// Whether an index that says that the blob decompresses to `content` says what the config says.
    ///
    /// What is not compressed is known by its own digest: a digest of another algorithm adds no proof to that, and
    /// is compared when the layer is read whole.
    pub fn may_hold(&self, content: &Digest) -> bool {
        self.compression == Compression::None || self.diff_id.is_none_or(|diff_id| diff_id == *content)
    }
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

/// How many warnings a kit gets: a config has room for a hundred thousand datasets that are elsewhere.
const WARNINGS: usize = 10;

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
                short(entry.path),
                short(entry.remote_path)
            ));
            continue;
        }
        claims.claim(entry, filters)?;
    }
    for (number, (descriptor, claim)) in manifest.layers.iter().zip(claims.by_layer).enumerate() {
        let Some(claim) = claim else {
            let (digest, media_type) = (descriptor.digest, short(&descriptor.media_type));
            contents.warnings.push(format!("layer {digest} ({media_type}) is left out: the Kitfile does not name it"));
            continue;
        };
        let wanted = claim.wanted;
        let layer = claim.layer(descriptor, manifest.artifact, diff_ids.get(number))?;
        contents.layers.extend(wanted.then_some(layer));
    }
    if let Some(more) = contents.warnings.len().checked_sub(WARNINGS).filter(|more| *more > 0) {
        contents.warnings.truncate(WARNINGS);
        contents.warnings.push(format!("{more} more datasets or layers are left out"));
    }
    Ok(contents)
}

/// As much of a text as a warning quotes.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
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
                Some(expected) if expected != *id => {
                    return Err(DiffIdMismatch { digest, expected, diff_id: *id }.into());
                }
                Some(_) => {}
                None => (expected, to_check) = (Some(*id), Some(*id)),
            }
        }
        Ok(to_check)
    }
}

object! {
    /// The attributes of a file (model-spec, "Layer Annotations"). Name, owner and type are ignored, as
    /// KitOps does: the path is in another annotation, and only regular files are layers.
    struct FileMetadata {
        mode: Option<u32> = "mode",
        size: Option<u64> = "size",
        mtime: Option<Text> = "mtime",
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
        /// What the entry is for.
        role: Role,
        /// Its path in the Kitfile.
        path: String,
        /// What is wrong with it.
        #[source]
        error: InvalidDigest,
    },
    /// A digest before compression is none.
    #[error("malformed diffId of {path:?} in the config: {error}")]
    InvalidDiffId {
        /// Its path in the Kitfile.
        path: String,
        /// What is wrong with it.
        #[source]
        error: InvalidDigest,
    },
    /// A ModelPack has another number of them than of layers.
    #[error("the config has {ids} diffIds for {layers} layers")]
    DiffIdCount {
        /// How many the config has.
        ids: usize,
        /// How many layers the manifest has.
        layers: usize,
    },
    /// The Kitfile names a layer that the manifest does not have.
    #[error("the {role} {path:?} is layer {digest} in the config, which is not in the manifest")]
    NotInManifest {
        /// What the entry is for.
        role: Role,
        /// Its path in the Kitfile.
        path: String,
        /// The layer.
        digest: Digest,
    },
    /// The Kitfile names a layer that is for something else.
    #[error("the {role} {path:?} is layer {digest} in the config, which in the manifest is a {media_type}")]
    WrongRole {
        /// What the entry is for.
        role: Role,
        /// Its path in the Kitfile.
        path: String,
        /// The layer.
        digest: Digest,
        /// Its media type in the manifest.
        media_type: String,
    },
    /// The Kitfile has more entries than the manifest has layers for.
    #[error("the manifest has no layer for the {role} {path:?}")]
    NoLayer {
        /// What the entry is for.
        role: Role,
        /// Its path in the Kitfile.
        path: String,
    },
    /// The Kitfile names a layer of a type that is unknown.
    #[error("layer {digest}: {error}")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        error: UnknownLayerType,
    },
    /// What is said of the content before compression contradicts the digest, or itself.
    #[error(transparent)]
    DiffId(Box<DiffIdMismatch>),
    /// A path leaves the kit, or is none.
    #[error("layer {digest}: {error}")]
    InvalidPath {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        error: InvalidPath,
    },
    /// A raw layer would be the root of the kit.
    #[error("layer {0} is a file with the path of the kit's root")]
    RootIsFile(Digest),
    /// The attributes of a raw layer's file are malformed.
    #[error("layer {digest}: malformed file metadata in its annotations: {why}")]
    Metadata {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// A raw layer is not as long as its attributes say.
    #[error("layer {digest} has {actual} bytes, but {expected} by the file metadata in its annotations")]
    RawSize {
        /// The layer.
        digest: Digest,
        /// Bytes by the metadata.
        expected: u64,
        /// Bytes in the layer.
        actual: u64,
    },
}

/// A digest before compression that contradicts what else is said of the layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {digest}: the config says diffId {diff_id}, but uncompressed it is {expected}")]
pub struct DiffIdMismatch {
    digest: Digest,
    expected: Digest,
    diff_id: Digest,
}

impl From<DiffIdMismatch> for KitError {
    fn from(mismatch: DiffIdMismatch) -> Self {
        Self::DiffId(Box::new(mismatch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Unverified;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

    fn proved(text: &str) -> Verified<Bytes> {
        let bytes = text.to_owned().into_bytes();
        let digest = Digest::of(&bytes);
        Unverified::new(bytes).verify(&digest).unwrap()
    }

    /// A layer of the manifest: its type behind the namespace, its digest, and its annotations as JSON.
    type Layer<'a> = (&'a str, &'a str, &'a str);

    fn read_as(
        namespace: &str,
        layers: &[Layer<'_>],
        config: &str,
        annotations: &str,
        filters: &[&str],
    ) -> Result<Contents, String> {
        let config = proved(config);
        let layer = |(kind, digest, annotations): &Layer<'_>| {
            format!(
                r#"{{"mediaType":"{namespace}.{kind}","digest":"{digest}","size":5,"annotations":{{{annotations}}}}}"#
            )
        };
        let layers: Vec<_> = layers.iter().map(layer).collect();
        let manifest = format!(
            r#"{{"config":{{"mediaType":"{namespace}.config.v1+json","digest":"{}","size":{}}},"layers":[{}],"annotations":{{{annotations}}}}}"#,
            Digest::of(&config),
            config.len(),
            layers.join(",")
        );
        let filters: Vec<Filter> = filters.iter().map(|filter| filter.parse().unwrap()).collect();
        read(&proved(&manifest).parse().unwrap(), &config, &filters).map_err(|error| error.to_string())
    }

    fn read_kit(layers: &[Layer<'_>], config: &str, filters: &[&str]) -> Result<Contents, String> {
        read_as("application/vnd.kitops.modelkit", layers, config, "", filters)
    }

    fn read_pack(layers: &[Layer<'_>], config: &str, annotations: &str) -> Result<Contents, String> {
        read_as("application/vnd.cncf.model", layers, config, annotations, &[])
    }

    /// Role, path and digest of every layer.
    fn summary(contents: &Contents) -> Vec<String> {
        let layer = |layer: &KitLayer| format!("{} {} {}", layer.role, layer.path, &layer.descriptor.digest.hex()[..1]);
        contents.layers.iter().map(layer).collect()
    }

    #[test]
    fn layers_are_found_by_digest_and_keep_the_order_of_the_manifest() {
        let config = format!(
            r#"{{"model":{{"name":"m","path":"w","digest":"{A}","diffId":"{A}","parts":[{{"path":"p","digest":"{B}"}}]}},
                "datasets":[{{"name":"d","path":"set","digest":"{C}"}}],"code":[{{"path":"src","digest":"{A}"}}],
                "prompts":[{{"path":"ask.md","digest":"{B}"}}],"mcpServers":[{{"name":"s","path":"s.mcpb","digest":"{C}"}}]}}"#
        );
        let layers = [
            ("model.v1.tar", A, ""),
            ("modelpart.v1.tar+gzip", B, ""),
            ("code.v1.tar", A, ""),
            ("dataset.v1.tar+zstd", C, ""),
            ("code.v1.tar", B, r#""ml.kitops.modelkit.layer-subtype":"prompt""#),
            ("mcpb.v1.raw", C, r#""org.cncf.model.filepath":"s.mcpb""#),
        ];
        let all =
            ["model w a", "model part p b", "code src a", "dataset set c", "prompt ask.md b", "MCP server s.mcpb c"];
        for (filters, kitfile, expected) in [
            (&[][..], true, &all[..]),
            (&["model"], false, &all[..2]),
            (&["model:m"], false, &all[..1]),
            (&["kitfile,model:p"], true, &all[1..2]),
            (&["prompts", "datasets:d"], false, &all[3..5]),
            (&["docs"], false, &[]),
        ] {
            let contents = read_kit(&layers, &config, filters).unwrap();
            assert_eq!(summary(&contents), expected, "{filters:?}");
            assert_eq!(contents.kitfile.is_some(), kitfile, "{filters:?}");
            assert!(contents.warnings.is_empty() && contents.layers.iter().all(|layer| layer.base.is_none()));
        }
    }

    #[test]
    fn one_digest_may_be_several_layers_or_several_entries() {
        let config = format!(
            r#"{{"code":[{{"path":"a/x","digest":"{A}"}},{{"path":"b/x","digest":"{A}"}},{{"path":"c/x","digest":"{A}"}}]}}"#
        );
        let at = |path: &str| format!(r#""org.cncf.model.filepath":"{path}""#);
        let (one, two) = (at("a/x"), at("b/x"));
        let layers = [("code.v1.raw", A, &*one), ("code.v1.raw", A, &*two)];
        let contents = read_kit(&layers, &config, &[]).unwrap();
        assert_eq!(summary(&contents), ["code a/x a", "code b/x a"]);
        let raw: Vec<_> = contents.layers.iter().map(|layer| layer.raw.as_ref().unwrap().path.to_string()).collect();
        assert_eq!(raw, ["a/x", "b/x"]);
        assert_eq!(summary(&read_kit(&layers, &config, &["code:c/x"]).unwrap()), ["code b/x a"]);
    }

    #[test]
    fn kits_before_0_5_go_by_order_and_begin_at_the_directory_of_the_entry() {
        let config =
            r#"{"model":{"path":"./deep/er/w.bin"},"code":[{"path":"src"},{"path":"lib/x"}],"docs":[{"path":"."}]}"#;
        let layers =
            [("model.v1.tar", A, ""), ("code.v1.tar", B, ""), ("code.v1.tar+gzip", C, ""), ("docs.v1.tar", A, "")];
        let contents = read_kit(&layers, config, &[]).unwrap();
        assert_eq!(summary(&contents), ["model ./deep/er/w.bin a", "code src b", "code lib/x c", "docs . a"]);
        let bases: Vec<_> = contents.layers.iter().map(|layer| layer.base.as_ref().map(KitPath::to_string)).collect();
        assert_eq!(bases, [Some("deep/er".into()), None, Some("lib".into()), None]);
        let error = read_kit(&layers[..2], config, &[]).unwrap_err();
        assert_eq!(error, r#"the manifest has no layer for the code "lib/x""#);
        for path in ["/etc/x", "../x", ""] {
            let config = format!(r#"{{"model":{{"path":"{path}"}}}}"#);
            let contents = read_kit(&layers[..1], &config, &[]);
            assert_eq!(contents.is_ok_and(|contents| contents.layers.is_empty()), path.is_empty(), "{path}");
        }
    }

    #[test]
    fn a_reference_in_place_of_the_path_is_the_parent() {
        let parent = |path: &str| {
            let config = format!(r#"{{"model":{{"path":"{path}"}}}}"#);
            read_kit(&[], &config, &[]).map(|contents| contents.parent.unwrap().to_string())
        };
        for (path, expected) in [
            ("base:v1", "localhost/base:v1"),
            ("acme/base:v1,v2", "localhost/acme/base:v1"),
            ("ghcr.io/acme/base:v1", "ghcr.io/acme/base:v1"),
            ("localhost:5000/base", "localhost:5000/base"),
            (A, &format!("localhost/_@{A}")),
            (&format!("base@{A}"), &format!("localhost/base@{A}")),
        ] {
            assert_eq!(parent(path).as_deref(), Ok(expected));
        }
        for path in ["oci:../layout:v1", "kit:base:v1"] {
            assert!(parent(path).unwrap_err().contains("no kit may refer to"), "{path}");
        }
        // Not a reference, so a path.
        let config = format!(r#"{{"model":{{"path":"Base:v1","digest":"{A}"}}}}"#);
        let contents = read_kit(&[("model.v1.tar", A, "")], &config, &[]).unwrap();
        assert!(contents.parent.is_none() && contents.layers.len() == 1);
        let parts = format!(r#"{{"model":{{"path":"base:v1","parts":[{{"path":"p","digest":"{A}"}}]}}}}"#);
        let contents = read_kit(&[("modelpart.v1.tar", A, "")], &parts, &["model"]).unwrap();
        assert!(contents.parent.is_some() && contents.layers.len() == 1);
    }

    #[test]
    fn what_is_left_out_is_told() {
        let config =
            format!(r#"{{"datasets":[{{"path":"far","remotePath":"s3://b/k"}},{{"path":"d","digest":"{A}"}}]}}"#);
        let layers = [("dataset.v1.tar", A, ""), ("docs.v1.tar", B, ""), ("unheard-of", C, "")];
        let contents = read_kit(&layers, &config, &[]).unwrap();
        assert_eq!(summary(&contents), ["dataset d a"]);
        assert_eq!(contents.warnings.len(), 3, "{:?}", contents.warnings);
        assert!(contents.warnings[0].contains("s3://b/k") && contents.warnings[1].contains(B));
        let far = format!(r#"{{"path":"far","remotePath":"s3://{}"}}"#, "k".repeat(100_000));
        let config = format!(r#"{{"datasets":[{}]}}"#, vec![far; 300].join(","));
        let contents = read_kit(&[], &config, &[]).unwrap();
        assert!(contents.warnings.concat().len() < 4000);
        assert_eq!(contents.warnings.last().unwrap(), "290 more datasets or layers are left out");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (tar, gzip, raw) = ("model.v1.tar", "model.v1.tar+gzip", "model.v1.raw");
        let model = |members: &str| format!(r#"{{"model":{{"path":"m",{members}}}}}"#);
        let own = format!(r#""digest":"{A}""#);
        let at = |path: &str| format!(r#""org.cncf.model.filepath":"{path}""#);
        let with = |metadata: &str| format!(r#"{},"org.cncf.model.file.metadata+json":"{metadata}""#, at("f"));
        for (kind, annotations, config, why) in [
            (tar, "", "null".into(), "malformed config"),
            (tar, "", "[1]".into(), "malformed config"),
            (tar, "", model(r#""digest":"sha256:12""#), "malformed digest of the model \"m\""),
            (tar, "", model(&format!(r#""diffId":"{A}""#)), "malformed digest of the model"),
            (tar, "", model(&format!(r#""digest":"{B}""#)), "which is not in the manifest"),
            ("code.v1.tar", "", model(&own), "which in the manifest is a application/vnd.kitops.modelkit.code.v1.tar"),
            ("model.v1.tar+xz", "", model(&own), "neither gzip nor zstd"),
            ("thing.v1.tar", "", model(&own), "unknown layer type"),
            (tar, "", model(&format!(r#"{own},"diffId":"{B}""#)), "but uncompressed it is"),
            (gzip, "", model(&format!(r#"{own},"diffId":"x""#)), "malformed diffId of \"m\""),
            (raw, "", model(&own), "has no annotation org.cncf.model.filepath"),
            (raw, &at("../x"), model(&own), "it leaves its directory"),
            (raw, &at("/x"), model(&own), "it is absolute"),
            (raw, &at("./"), model(&own), "the path of the kit's root"),
            (raw, &with(r#"{\"size\":4}"#), model(&own), "has 5 bytes, but 4"),
            (raw, &with(r#"{\"size\":-1}"#), model(&own), "malformed file metadata"),
            (raw, &with(r#"{\"mtime\":\"yesterday\"}"#), model(&own), "malformed file metadata"),
            (raw, &with("x"), model(&own), "malformed file metadata"),
        ] {
            let error = read_kit(&[(kind, A, annotations)], &config, &["docs"]).unwrap_err();
            assert!(error.contains(why), "{kind} {annotations} {config}: {error}");
        }
    }

    #[test]
    fn what_is_left_to_check_of_the_content_is_its_digest_before_compression() {
        let long = format!("sha512:{}", "ab".repeat(64));
        for (kind, digest, diff_id, left) in [
            ("model.v1.tar", A, A, None),
            ("model.v1.tar", A, "", None),
            ("model.v1.tar", &*long, A, Some(A)),
            ("model.v1.tar+gzip", A, B, Some(B)),
            ("model.v1.tar+zstd", A, "", None),
        ] {
            let config = format!(r#"{{"model":{{"path":"m","digest":"{digest}","diffId":"{diff_id}"}}}}"#);
            let contents = read_kit(&[(kind, digest, "")], &config, &[]).unwrap();
            let found = contents.layers[0].diff_id.map(|id| id.to_string());
            assert_eq!(found.as_deref(), left, "{kind} {digest} {diff_id}");
        }
    }

    #[test]
    fn attributes_of_raw_layers_are_read_in_both_namespaces() {
        let config = format!(r#"{{"docs":[{{"path":"r","digest":"{A}"}}]}}"#);
        for (namespace, metadata, mode, size, mtime) in [
            ("org.cncf", "", 0o644, None, None),
            ("org.cncf", r#"{\"mode\":41471,\"size\":5,\"typeflag\":2,\"name\":\"../x\"}"#, 0o777, Some(5), None),
            ("org.cnai", r#"{\"mode\":384,\"mtime\":\"1970-01-01T00:01:00.5Z\"}"#, 0o600, None, Some(60)),
        ] {
            let annotations =
                format!(r#""{namespace}.model.filepath":"./a//r","{namespace}.model.file.metadata+json":"{metadata}""#);
            let contents = read_kit(&[("docs.v1.raw", A, &annotations)], &config, &[]).unwrap();
            let path = KitPath::parse(b"a/r").unwrap();
            assert_eq!(contents.layers[0].raw, Some(RawFile { path, mode, size, mtime }), "{metadata}");
        }
    }

    #[test]
    fn a_model_pack_without_a_kitfile_gets_the_least_one() {
        let path = |path: &str| format!(r#""org.cncf.model.filepath":"{path}""#);
        let (one, two, three, four) = (path("1.bin"), path("t.json"), path("2.bin"), path("README"));
        let layers = [
            ("weight.config.v1.raw", A, &*two),
            ("weight.v1.raw", B, &*one),
            ("weight.v1.raw", C, &*three),
            ("doc.v1.tar+gzip", A, &*four),
        ];
        let ids = |name: &str, ids: &[&str]| format!(r#"{{"modelfs":{{"{name}":{}}}}}"#, serde_json::json!(ids));
        for config in [ids("diffIds", &[A, B, C, B]), ids("diff_ids", &[A, B, C, B])] {
            let contents = read_pack(&layers, &config, "").unwrap();
            let expected = ["model part t.json a", "model 1.bin b", "model part 2.bin c", "docs README a"];
            assert_eq!(summary(&contents), expected);
            assert_eq!(contents.layers[3].diff_id.map(|id| id.to_string()).as_deref(), Some(B));
            let kitfile = "manifestVersion: 1.0.0\nmodel:\n  path: 1.bin\n  parts:\n    - path: t.json\n    - path: 2.bin\ndocs:\n  - path: README\n";
            assert_eq!(contents.kitfile.as_deref().map(|kitfile| &**kitfile), Some(kitfile.as_bytes()));
        }
        assert!(read_pack(&layers, "{}", "").unwrap().layers.iter().all(|layer| layer.diff_id.is_none()));
        for (config, why) in [
            (ids("diffIds", &[A, B, C]), "3 diffIds for 4 layers"),
            (ids("diffIds", &[A, A, C, B]), "but uncompressed it is"),
            (ids("diffIds", &[A, B, C, "x"]), "malformed diffId"),
            ("null".into(), "malformed config"),
        ] {
            let error = read_pack(&layers, &config, "").unwrap_err();
            assert!(error.contains(why), "{config}: {error}");
        }
        assert!(read_pack(&[("weight.v1.tar", A, "")], "{}", "").unwrap_err().contains("has no annotation"));
        assert!(read_pack(&[("thing.v1.tar", A, &one)], "{}", "").unwrap_err().contains("unknown layer type"));
    }

    #[test]
    fn a_model_pack_of_kitops_has_its_kitfile_in_the_manifest() {
        let annotation = |kitfile: &str| format!(r#""ml.kitops.modelkit.kitfile":{}"#, serde_json::json!(kitfile));
        let kitfile = format!(r#"{{"package":{{"name":"kit"}},"model":{{"name":"m","path":"../up","digest":"{A}"}}}}"#);
        let contents = read_pack(&[("weight.v1.tar", A, "")], "{}", &annotation(&kitfile)).unwrap();
        assert_eq!(summary(&contents), ["model ../up a"]);
        let yaml = contents.kitfile.unwrap();
        assert!(yaml.starts_with(b"manifestVersion: \"\"\npackage:\n  name: kit\n"), "{yaml:?}");
        let error = read_pack(&[], "{}", &annotation("{")).unwrap_err();
        assert!(error.contains("malformed Kitfile in the manifest's annotation"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_a_config_panics(at in 0usize..240, byte: u8) {
            let mut config = format!(
                r#"{{"model":{{"name":"m","path":"w","digest":"{A}","parameters":{{"a":[1,"x",null]}}}},"code":[{{"path":"b:v1","digest":"{B}"}}]}}"#
            ).into_bytes();
            if let Some(damaged) = config.get_mut(at) {
                *damaged = byte;
            }
            let digest = Digest::of(&config);
            let config = Unverified::new(config).verify(&digest).unwrap();
            let layers = format!(r#"{{"mediaType":"application/vnd.kitops.modelkit.model.v1.tar","digest":"{A}","size":1}}"#);
            let manifest = format!(
                r#"{{"config":{{"mediaType":"application/vnd.kitops.modelkit.config.v1+json","digest":"{A}","size":1}},"layers":[{layers}]}}"#
            );
            let _ = read(&proved(&manifest).parse().unwrap(), &config, &[]);
        }
    }
}
