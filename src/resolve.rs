//! From a reference to a kit: what a mount, or any command, starts from.
//!
//! A tag is asked once. From then on everything is by digest: the manifest, its config, its layers, and
//! those of its parents, each of which is pinned when it is first looked up. What is small and proved is
//! kept in the store, so that a kit that was seen once needs no network.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::audit::Event;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::contents;
use crate::kit::contents::Contents;
use crate::kit::contents::KitError;
use crate::kit::filter::Filter;
use crate::kit::manifest::Manifest;
use crate::kit::manifest::ManifestError;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::source;
use crate::source::Source;
use crate::source::SourceError;
use crate::store::SeenTag;
use crate::verify::DigestMismatch;
use crate::verify::Unverified;
use crate::verify::Verified;

/// A chain of kits, each of which refers to the next, is followed this far (KitOps' `MaxModelRefChain`).
const MAX_LINKS: usize = 10;

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

/// A kit, and the parents it refers to, each at the digest it had when it was looked up.
#[derive(Debug)]
pub struct Kit {
    /// The kit that was asked for, then its parent, then that one's parent.
    pub links: Vec<Link>,
    /// How the digest of the first became known.
    pub resolved: Resolved,
    /// What somebody should know who uses the kit.
    pub warnings: Vec<String>,
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
}

impl Kit {
    /// Looks a kit up, and the parents it refers to.
    pub async fn resolve(
        workshop: &Workshop,
        reference: &Reference,
        filters: &[Filter],
        freshness: Freshness,
        options: &source::Options,
    ) -> Result<Self, ResolveError> {
        let source = Source::open(reference, options, &workshop.buffers).await?;
        let (digest, resolved) = ask(workshop, &source, reference, freshness).await?;
        tell_resolved(workshop, &reference.to_string(), digest, resolved, &source, None);
        let mut kit = Self { links: Vec::new(), resolved, warnings: Vec::new() };
        if resolved == Resolved::Cache {
            kit.warnings.push(format!("{reference} was not asked for: using {digest}, which it named last"));
        }
        kit.add_link(workshop, reference.to_string(), digest, Arc::new(source), filters).await?;
        let Some(filters) = Filter::for_parent(filters) else { return Ok(kit) };
        while let Some(parent) = kit.links.last().and_then(|link| link.contents.parent.clone()) {
            if kit.links.len() > MAX_LINKS {
                return Err(ResolveError::TooManyParents { reference: reference.to_string() });
            }
            let (source, digest, resolved) = kit.find_parent(workshop, &parent, freshness).await?;
            tell_resolved(workshop, &parent.to_string(), digest, resolved, &source, kit.links.last());
            if kit.links.iter().any(|link| link.digest == digest) {
                return Err(ResolveError::Loop { parent: parent.to_string(), digest });
            }
            kit.add_link(workshop, parent.to_string(), digest, Arc::new(source), &filters).await?;
        }
        Ok(kit)
    }

    /// Opens a kit again at the digests it was pinned to.
    pub async fn reopen(
        workshop: &Workshop,
        pinned: &Pinned,
        filters: &[Filter],
        options: &source::Options,
    ) -> Result<Self, ResolveError> {
        let mut kit = Self { links: Vec::new(), resolved: pinned.resolved, warnings: Vec::new() };
        let of_parent = Filter::for_parent(filters).unwrap_or_default();
        for PinnedLink { reference, at, manifest, config } in &pinned.links {
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
            let config_digest = manifest.parse::<Manifest>().map_err(|_| ResolveError::BadPin { at: at.to_string() })?;
            let config = config.verify(&config_digest.config.digest).map_err(mismatch)?;
            kit.links.push(Link::new(reference.clone(), digest, Arc::new(source), manifest, config, filters)?);
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
        };
        Pinned { links: self.links.iter().map(pin).collect(), resolved: self.resolved }
    }

    /// The digest of the kit that was asked for.
    pub fn digest(&self) -> Option<Digest> {
        self.first().map(|link| link.digest)
    }

    /// The kit that was asked for.
    pub fn first(&self) -> Option<&Link> {
        self.links.first()
    }

    /// All layers, in the order in which `kit unpack` would write them: a kit's own, then its parent's.
    pub fn layers(&self, workshop: &Arc<Workshop>) -> Vec<Arc<Layer>> {
        let of_link = |link: &Link| {
            let kit = audit::Kit { reference: link.reference.clone(), digest: link.digest };
            let source = Arc::clone(&link.source);
            let layers = link.contents.layers.clone();
            layers.into_iter().map(move |layer| {
                Layer::new(layer, kit.clone(), Arc::clone(&source), Arc::clone(workshop))
            })
        };
        self.links.iter().flat_map(of_link).collect()
    }

    /// The Kitfile, unless the filters leave it out.
    pub fn kitfile(&self) -> Option<Verified<Bytes>> {
        self.first()?.contents.kitfile.clone()
    }

    async fn add_link(
        &mut self,
        workshop: &Workshop,
        reference: String,
        digest: Digest,
        source: Arc<Source>,
        filters: &[Filter],
    ) -> Result<(), ResolveError> {
        let kit = audit::Kit { reference: reference.clone(), digest };
        let fetch = async || source.manifest(&digest).await;
        let manifest = small(workshop, &kit, &digest, &source, fetch).await.map_err(|error| error.of(&reference))?;
        let no_kit = |source| ResolveError::NoKit { reference: reference.clone(), digest, source };
        let config = manifest.parse::<Manifest>().map_err(no_kit)?.config.clone();
        let fetch = async || source.blob(&config).await;
        let config = small(workshop, &kit, &config.digest, &source, fetch).await.map_err(|error| error.of(&reference))?;
        let link = Link::new(reference, digest, source, manifest, config, filters)?;
        self.warnings.extend(link.contents.warnings.iter().cloned());
        self.links.push(link);
        Ok(())
    }

    async fn find_parent(
        &self,
        workshop: &Workshop,
        parent: &RegistryReference,
        freshness: Freshness,
    ) -> Result<(Source, Digest, Resolved), ResolveError> {
        let Some(child) = self.links.last() else { return Err(ResolveError::BadPin { at: parent.to_string() }) };
        let named = parent.to_string();
        let seen = || workshop.store.tag(&named);
        if freshness != Freshness::Offline {
            match child.source.parent(parent).await {
                Ok((source, digest)) => {
                    remember(workshop, &named, digest);
                    return Ok((source, digest, Resolved::Registry));
                }
                Err(SourceError::Unreachable { .. }) if freshness == Freshness::Prefer && seen().is_some() => {}
                Err(error) => return Err(ResolveError::Parent { parent: named, source: error }),
            }
        }
        let seen = seen().ok_or_else(|| ResolveError::NeverSeen { reference: named.clone() })?;
        let digest = seen.digest;
        Ok((child.source.parent_at(parent, &digest).await?, digest, Resolved::Cache))
    }
}

impl Link {
    fn new(
        reference: String,
        digest: Digest,
        source: Arc<Source>,
        manifest_bytes: Verified<Bytes>,
        config: Verified<Bytes>,
        filters: &[Filter],
    ) -> Result<Self, ResolveError> {
        let no_kit = |source| ResolveError::NoKit { reference: reference.clone(), digest, source };
        let manifest = manifest_bytes.parse::<Manifest>().map_err(no_kit)?;
        if config.len() as u64 != manifest.config.size {
            let (digest, said, actual) = (manifest.config.digest, manifest.config.size, config.len() as u64);
            return Err(ResolveError::ConfigSize { reference, digest, said, actual });
        }
        let malformed = |source| ResolveError::Malformed { reference: reference.clone(), digest, source };
        let contents = contents::read(&manifest, &config, filters).map_err(malformed)?;
        Ok(Self { reference, digest, source, manifest_bytes, manifest, config, contents })
    }
}

/// Asks what a reference names, by the rules of `freshness`.
async fn ask(
    workshop: &Workshop,
    source: &Source,
    reference: &Reference,
    freshness: Freshness,
) -> Result<(Digest, Resolved), ResolveError> {
    if let Some(digest) = reference.version().digest {
        return Ok((digest, Resolved::Digest));
    }
    let named = reference.to_string();
    let is_local = !matches!(reference, Reference::Registry(_));
    if freshness != Freshness::Offline || is_local {
        match source.resolve().await {
            Ok(digest) => {
                remember(workshop, &named, digest);
                return Ok((digest, Resolved::Registry));
            }
            Err(error @ SourceError::Unreachable { .. }) if freshness == Freshness::Prefer => {
                let Some(seen) = workshop.store.tag(&named) else { return Err(error.into()) };
                return Ok((seen.digest, Resolved::Cache));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let seen = workshop.store.tag(&named).ok_or(ResolveError::NeverSeen { reference: named })?;
    Ok((seen.digest, Resolved::Cache))
}

fn remember(workshop: &Workshop, reference: &str, digest: Digest) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seen = SeenTag { reference: reference.into(), digest, seen_at: now.as_secs() as i64 };
    // Without it the registry has to be there the next time, as it was this time.
    if let Err(error) = workshop.store.keep_tag(seen) {
        tracing::warn!(%reference, %error, "cannot remember what the tag names");
    }
}

fn tell_resolved(
    workshop: &Workshop,
    reference: &str,
    digest: Digest,
    resolved: Resolved,
    source: &Source,
    child: Option<&Link>,
) {
    let by = match resolved {
        Resolved::Registry => "registry",
        Resolved::Cache => "cache",
        Resolved::Digest => "digest",
    };
    workshop.audit.record_soon(Event::Resolved {
        kit: audit::Kit { reference: reference.into(), digest },
        by: by.into(),
        source: source.name(),
        needed_by: child.map(|child| child.digest),
    });
}

fn tell_mismatch(workshop: &Workshop, kit: &audit::Kit, mismatch: &DigestMismatch, source: String) {
    workshop.audit.record_soon(Event::Mismatch {
        reference: kit.reference.clone(),
        digest: Some(kit.digest),
        layer: None,
        expected: mismatch.expected.to_string(),
        actual: mismatch.actual.to_string(),
        source,
        repeated: 0,
    });
}

/// A manifest or a config of a kit: from the store if it is whole there, else from the source.
async fn small(
    workshop: &Workshop,
    kit: &audit::Kit,
    digest: &Digest,
    source: &Source,
    fetch: impl AsyncFnOnce() -> Result<Unverified, SourceError>,
) -> Result<Verified<Bytes>, SmallError> {
    match workshop.store.blob(digest).map(|kept| kept.verify(digest)) {
        Some(Ok(kept)) => return Ok(kept),
        Some(Err(mismatch)) => tell_mismatch(workshop, kit, &mismatch, "cache".into()),
        None => {}
    }
    let fetched = fetch().await?.verify(digest).inspect_err(|mismatch| {
        tell_mismatch(workshop, kit, mismatch, source.name());
    })?;
    if let Err(error) = workshop.store.keep_blob(digest, &fetched) {
        tracing::warn!(%digest, %error, "cannot keep a manifest or config");
    }
    Ok(fetched)
}

/// Why a manifest or config could not be had.
enum SmallError {
    Source(SourceError),
    Mismatch(DigestMismatch),
}

impl From<SourceError> for SmallError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<DigestMismatch> for SmallError {
    fn from(error: DigestMismatch) -> Self {
        Self::Mismatch(error)
    }
}

impl SmallError {
    fn of(self, reference: &str) -> ResolveError {
        match self {
            Self::Source(source) => ResolveError::Source(source),
            Self::Mismatch(source) => ResolveError::Mismatch { reference: reference.into(), source },
        }
    }
}

/// Why a reference did not become a kit.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Its source did not give it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The manifest or config is not what its digest says.
    #[error("manifest or config of {reference}")]
    Mismatch {
        /// The kit.
        reference: String,
        /// Both digests.
        source: DigestMismatch,
    },
    /// The config is not as long as the manifest says.
    #[error("config {digest} of {reference} has {actual} bytes, but the manifest says {said}")]
    ConfigSize {
        /// The kit.
        reference: String,
        /// The config.
        digest: Digest,
        /// What the manifest says.
        said: u64,
        /// What there is.
        actual: u64,
    },
    /// Its digest is right, and it is no kit.
    #[error("{reference} ({digest}) cannot be mounted")]
    NoKit {
        /// What was named.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// What it is.
        source: ManifestError,
    },
    /// Its digest is right, and it is a malformed kit.
    #[error("{reference} ({digest}) cannot be mounted")]
    Malformed {
        /// The kit.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        source: KitError,
    },
    /// A parent could not be had.
    #[error("cannot find the parent {parent}")]
    Parent {
        /// The parent.
        parent: String,
        /// Why.
        source: SourceError,
    },
    /// A chain of parents that is too long.
    #[error("{reference} has more than {MAX_LINKS} parents behind it")]
    TooManyParents {
        /// The kit.
        reference: String,
    },
    /// A chain of parents that comes back to itself.
    #[error("the parent {parent} ({digest}) refers back to a kit that refers to it")]
    Loop {
        /// The parent.
        parent: String,
        /// Its digest.
        digest: Digest,
    },
    /// Nobody may be asked, and nobody was asked before.
    #[error("{reference} was never seen by this cache: mount or pull it once without --offline")]
    NeverSeen {
        /// The reference.
        reference: String,
    },
    /// The pins of a mount are damaged.
    #[error("{at:?} pins no kit")]
    BadPin {
        /// What was pinned.
        at: String,
    },
}

impl ResolveError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            // A parent is the kit's business: its author named it, nobody typed it.
            Self::Parent { source: SourceError::Ambiguous { .. }, .. } => Fault::Other,
            Self::Source(error) | Self::Parent { source: error, .. } => error.fault(),
            Self::Mismatch { .. } => Fault::Mismatch,
            Self::NeverSeen { .. } => Fault::Unreachable,
            Self::ConfigSize { .. }
            | Self::NoKit { .. }
            | Self::Malformed { .. }
            | Self::TooManyParents { .. }
            | Self::Loop { .. }
            | Self::BadPin { .. } => Fault::Other,
        }
    }
}
