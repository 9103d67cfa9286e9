//! From a reference to a kit: what a mount, or any command, starts from.
//!
//! A tag is asked once. From then on everything is by digest: the manifest, its config, its layers, and
//! those of its parents, each of which is pinned when it is first looked up. The policies see that digest
//! and what lies beside it, and no link of the chain is more than a manifest and a config before they let
//! it through. What is small and proved is kept in the store, so that a kit that was seen once needs no
//! network.

mod access;
mod chain;
mod failure;
mod indexes;
mod publication;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::digest::Digest;
use crate::kit::contents::Contents;
use crate::kit::contents::KitLayer;
use crate::kit::descriptor::Descriptor;
use crate::kit::filter::Filter;
use crate::kit::manifest::Manifest;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::ledger;
use crate::policy::Admitted;
use crate::policy::Decision;
use crate::policy::ModelDemand;
use crate::policy::Policies;
use crate::reference::Reference;
use crate::resolve::chain::Candidate;
use crate::resolve::chain::Chain;
use crate::resolve::chain::kitfile;
use crate::resolve::indexes::PinnedIndex;
use crate::source;
use crate::source::Source;
use crate::trust::Limits;
use crate::verify::Unverified;
use crate::verify::Verified;

pub use failure::ResolveError;
pub use indexes::IndexSeen;
pub use indexes::UsableIndex;
pub use indexes::Voucher;
pub use indexes::bundle_beside;
pub use publication::Publication;
pub use publication::PublishError;

/// Who is asked what a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// The source; where it cannot be reached, what it said last.
    #[default]
    Prefer,
    /// The source, or nobody.
    Require,
    /// Nobody: what the source said last.
    Offline,
}

/// How the digest of a kit became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolved {
    /// Its source was asked.
    Registry,
    /// Its source said so earlier.
    Cache,
    /// The reference named it.
    Digest,
}

/// What is asked for, and who decides whether it may be had.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The kit.
    pub reference: &'a Reference,
    /// The names under which policies know it: [`names`](crate::policy::names) of what somebody typed.
    pub names: &'a [String],
    /// Which parts of it.
    pub filters: &'a [Filter],
    /// Whether its source is asked.
    pub freshness: Freshness,
    /// How its source is reached.
    pub source: &'a source::Options,
    /// How long its source's leave to have it stands while it cannot be asked again.
    pub access_ttl: Duration,
    /// Who decides.
    pub policies: &'a Policies,
    /// How much of what lies beside it is looked at.
    pub limits: &'a Limits,
    /// Whether anybody looks for signatures that no policy needs.
    pub signatures: Signatures,
    /// Where manifests and configs come from that the store has.
    pub documents: Documents,
    /// Files with indexes to use, if they count.
    pub indexes: &'a [PathBuf],
}

/// Where manifests and configs come from that were seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documents {
    /// From the store.
    Kept,
    /// From the source, which may have spoiled them since; from the store where it cannot be reached.
    Asked,
}

/// Whether signatures are looked for that no policy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signatures {
    /// No.
    Needed,
    /// Yes, to show or to keep them. Where that fails, a warning says so.
    All,
}

/// A kit, and the parents it refers to, each at the digest it had when it was looked up.
#[derive(Debug)]
pub struct Kit {
    /// The kit that was asked for, then its parent, then that one's parent.
    pub links: Vec<Link>,
    /// How the digest of the first became known.
    pub resolved: Resolved,
    /// What the policies said of each link; nothing where a mount goes on that was let through before.
    pub decisions: Vec<Decision>,
    /// What somebody should know who uses the kit.
    pub warnings: Vec<String>,
}

/// A kit that could not be had, or may not, and what was seen of it before that was clear.
#[derive(Debug)]
pub struct Unresolved {
    /// Why.
    pub error: ResolveError,
    /// The links whose manifest and config were proved.
    pub seen: Vec<Seen>,
    /// How the digest of the first became known.
    pub resolved: Option<Resolved>,
    /// What the policies said of those that were decided about.
    pub decisions: Vec<Decision>,
}

/// What the manifest of a kit says, whoever lets it through.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How it was named.
    pub reference: String,
    /// Its digest.
    pub digest: Digest,
    /// All layers of the kit that was asked for; of a parent those that are taken from it.
    pub layers: Vec<Descriptor>,
}

/// One kit of a chain.
#[derive(Debug)]
pub struct Link {
    /// How it was named.
    pub reference: String,
    /// Its digest.
    pub digest: Digest,
    /// Where it comes from.
    pub source: Arc<Source>,
    /// Its manifest, as it is stored.
    pub manifest_bytes: Verified<Bytes>,
    /// Its manifest, read.
    pub manifest: Verified<Manifest>,
    /// Its config.
    pub config: Verified<Bytes>,
    /// What it consists of, after the filters.
    pub contents: Contents,
    /// Says that the policies let it through.
    pub admitted: Admitted,
    /// What they still demand of its files; nothing where a mount goes on that was let through before.
    pub models: Vec<ModelDemand>,
    /// The indexes that may be used for its layers.
    pub indexes: Vec<UsableIndex>,
    /// Every index that was found for it.
    pub indexes_seen: Vec<IndexSeen>,
}

/// What another process needs to open the same kit again without asking a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    links: Vec<PinnedLink>,
    resolved: Resolved,
}

/// One kit of a chain, pinned. Manifest and config come along because the store may have lost them by
/// then; they are checked against their digests again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PinnedLink {
    /// How it was named.
    reference: String,
    /// A reference with its digest, which opens its source.
    at: String,
    manifest: Vec<u8>,
    config: Vec<u8>,
    admitted: Admitted,
    indexes: Vec<PinnedIndex>,
}

impl Kit {
    /// Looks a kit up, and the parents it refers to, and asks the policies about each.
    pub async fn resolve(workshop: &Workshop, query: &Query<'_>) -> Result<Self, Unresolved> {
        let mut chain = Chain::new(workshop, query);
        let mut resolved = None;
        match chain.follow(&mut resolved).await {
            Ok(resolved) => {
                let Chain { links, decisions, warnings, .. } = chain;
                Ok(Self { links, resolved, decisions, warnings })
            }
            Err(error) => Err(Unresolved { error, seen: chain.seen, resolved, decisions: chain.decisions }),
        }
    }

    /// Opens a kit again at the digests it was pinned to.
    pub async fn reopen(
        workshop: &Workshop,
        pinned: &Pinned,
        filters: &[Filter],
        options: &source::Options,
    ) -> Result<Self, ResolveError> {
        let mut kit =
            Self { links: Vec::new(), resolved: pinned.resolved, decisions: Vec::new(), warnings: Vec::new() };
        let of_parent = Filter::for_parent(filters).unwrap_or_default();
        for PinnedLink { reference, at, manifest, config, admitted, indexes } in &pinned.links {
            let filters = if kit.links.is_empty() { filters } else { &of_parent };
            let at: Reference = at.parse().map_err(|_| ResolveError::BadPin { at: at.clone() })?;
            let digest = at.version().digest.ok_or_else(|| ResolveError::BadPin { at: at.to_string() })?;
            // A source that is gone is no reason to stop showing what is here.
            let source = match Source::open(&at, options, &workshop.buffers).await {
                Ok(source) => source,
                Err(error) => Source::lost(&at, error, options, &workshop.buffers),
            };
            let [manifest, config] = [manifest, config].map(|bytes| Unverified::new(bytes.clone()));
            let mismatch = |source| ResolveError::Mismatch { reference: reference.clone(), source };
            let manifest = manifest.verify(&digest).map_err(mismatch)?;
            let config_digest =
                manifest.parse::<Manifest>().map_err(|_| ResolveError::BadPin { at: at.to_string() })?;
            let config = config.verify(&config_digest.config.digest).map_err(mismatch)?;
            let candidate = Candidate::new(reference.clone(), digest, Arc::new(source), manifest, config, filters)?;
            let usable = indexes.iter().filter_map(|index| UsableIndex::reopen(&workshop.store, index));
            kit.links.push(candidate.admit(admitted.clone(), Vec::new(), usable.collect(), Vec::new()));
        }
        Ok(kit)
    }

    /// What another process needs to open this kit.
    pub fn pinned(&self) -> Pinned {
        let pin = |link: &Link| PinnedLink {
            reference: link.reference.clone(),
            at: link.source.pinned(&link.digest).to_string(),
            manifest: link.manifest_bytes.to_vec(),
            config: link.config.to_vec(),
            admitted: link.admitted.clone(),
            indexes: link.indexes.iter().map(UsableIndex::pin).collect(),
        };
        Pinned { links: self.links.iter().map(pin).collect(), resolved: self.resolved }
    }

    /// The digest of the kit that was asked for.
    pub fn digest(&self) -> Option<Digest> {
        self.first().map(|link| link.digest)
    }

    /// What the manifests say.
    pub fn seen(&self) -> Vec<Seen> {
        let seen = |(number, link): (usize, &Link)| {
            Seen::new(number, &link.reference, link.digest, &link.manifest, &link.contents)
        };
        self.links.iter().enumerate().map(seen).collect()
    }

    /// The kit that was asked for.
    pub fn first(&self) -> Option<&Link> {
        self.links.first()
    }

    /// All layers, in the order in which `kit unpack` would write them: a kit's own, then its parent's.
    pub fn layers(&self, workshop: &Arc<Workshop>) -> Vec<Arc<Layer>> {
        let of_link = |(link, spec): (&Link, &KitLayer)| {
            let kit = audit::Kit { reference: link.reference.clone(), digest: link.digest };
            let layer = Layer::new(spec.clone(), kit, Arc::clone(&link.source), Arc::clone(workshop));
            let index = link.indexes.iter().find_map(|index| Some((index.layer(&spec.blob())?, index.digest())));
            if let Some((index, published)) = index
                && let Err(error) = layer.admit(index, published)
            {
                tracing::warn!("{}", ledger::chain(&error));
            }
            layer
        };
        let layers = self.links.iter().flat_map(|link| link.contents.layers.iter().map(move |spec| (link, spec)));
        layers.map(of_link).collect()
    }

    /// The Kitfile, unless the filters leave it out.
    pub fn kitfile(&self) -> Option<Verified<Bytes>> {
        self.first()?.contents.kitfile.clone()
    }
}

impl Seen {
    fn new(number: usize, reference: &str, digest: Digest, manifest: &Manifest, contents: &Contents) -> Self {
        let layers = match number {
            0 => manifest.layers.clone(),
            _ => contents.layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        };
        Self { reference: reference.into(), digest, layers }
    }
}

impl Link {
    /// The Kitfile, as JSON.
    pub fn kitfile_json(&self) -> Option<&[u8]> {
        kitfile(&self.manifest, &self.config)
    }
}
