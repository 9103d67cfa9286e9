//! From a reference to a kit: what a mount, or any command, starts from.
//!
//! A tag is asked once. From then on everything is by digest: the manifest, its config, its layers, and
//! those of its parents, each of which is pinned when it is first looked up. The policies see that digest
//! and what lies beside it, and no link of the chain is more than a manifest before they let it through. What is small and proved is
//! kept in the store, so that a kit that was seen once needs no network.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::config::KITFILE_ANNOTATION;
use crate::kit::contents;
use crate::kit::contents::Contents;
use crate::kit::contents::KitError;
use crate::kit::descriptor::Descriptor;
use crate::kit::filter::Filter;
use crate::kit::manifest::Manifest;
use crate::kit::manifest::ManifestError;
use crate::kit::media::Artifact;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::policy;
use crate::policy::Admitted;
use crate::policy::Decision;
use crate::policy::Named;
use crate::policy::Policies;
use crate::policy::Request;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::source;
use crate::source::Source;
use crate::source::SourceError;
use crate::store::SeenTag;
use crate::trust::Limits;
use crate::trust::Material;
use crate::trust::TrustError;
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

/// What is asked for, and who decides whether it may be had.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The kit.
    pub reference: &'a Reference,
    /// The names under which policies know it: [`policy::names`] of what somebody typed.
    pub names: &'a [String],
    /// Which parts of it.
    pub filters: &'a [Filter],
    /// Whether its source is asked.
    pub freshness: Freshness,
    /// How its source is reached.
    pub source: &'a source::Options,
    /// Who decides.
    pub policies: &'a Policies,
    /// How much of what lies beside it is looked at.
    pub limits: &'a Limits,
    /// Whether anybody looks for signatures that no policy needs.
    pub signatures: Signatures,
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
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unresolved {
    /// Why.
    #[source]
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
}

/// A link before the policies were asked.
struct Candidate {
    reference: String,
    digest: Digest,
    source: Arc<Source>,
    manifest_bytes: Verified<Bytes>,
    manifest: Verified<Manifest>,
    config: Verified<Bytes>,
    contents: Contents,
}

/// How a link was named.
struct Name<'a> {
    reference: String,
    names: &'a [String],
    version: &'a Version,
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
}

impl Kit {
    /// Looks a kit up, and the parents it refers to, and asks the policies about each.
    pub async fn resolve(workshop: &Workshop, query: &Query<'_>) -> Result<Self, Unresolved> {
        let mut chain = Chain { workshop, query, links: Vec::new(), seen: Vec::new(), decisions: Vec::new(), warnings: Vec::new() };
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
        let mut kit = Self { links: Vec::new(), resolved: pinned.resolved, decisions: Vec::new(), warnings: Vec::new() };
        let of_parent = Filter::for_parent(filters).unwrap_or_default();
        for PinnedLink { reference, at, manifest, config, admitted } in &pinned.links {
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
            let candidate = Candidate::new(reference.clone(), digest, Arc::new(source), manifest, config, filters)?;
            kit.links.push(candidate.admit(admitted.clone()));
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
        };
        Pinned { links: self.links.iter().map(pin).collect(), resolved: self.resolved }
    }

    /// The digest of the kit that was asked for.
    pub fn digest(&self) -> Option<Digest> {
        self.first().map(|link| link.digest)
    }

    /// What the manifests say.
    pub fn seen(&self) -> Vec<Seen> {
        self.links.iter().enumerate().map(|(number, link)| Seen::new(number, &link.reference, link.digest, &link.manifest, &link.contents)).collect()
    }

    /// The kit that was asked for.
    pub fn first(&self) -> Option<&Link> {
        self.links.first()
    }

    /// All layers, in the order in which `kit unpack` would write them: a kit's own, then its parent's.
    pub fn layers(&self, workshop: &Arc<Workshop>) -> Vec<Arc<Layer>> {
        let of_link = |link: &Link| {
            let (digest, source) = (link.digest, Arc::clone(&link.source));
            let layers = link.contents.layers.clone();
            layers.into_iter().map(move |layer| Layer::new(layer, digest, Arc::clone(&source), Arc::clone(workshop)))
        };
        self.links.iter().flat_map(of_link).collect()
    }

    /// The Kitfile, unless the filters leave it out.
    pub fn kitfile(&self) -> Option<Verified<Bytes>> {
        self.first()?.contents.kitfile.clone()
    }
}

/// A chain of kits while it is followed.
struct Chain<'a> {
    workshop: &'a Workshop,
    query: &'a Query<'a>,
    links: Vec<Link>,
    seen: Vec<Seen>,
    decisions: Vec<Decision>,
    warnings: Vec<String>,
}

impl Chain<'_> {
    async fn follow(&mut self, resolved: &mut Option<Resolved>) -> Result<Resolved, ResolveError> {
        let Query { reference, filters, freshness, .. } = *self.query;
        let source = Source::open(reference, self.query.source, &self.workshop.buffers).await?;
        let (digest, how) = ask(self.workshop, &source, reference, freshness).await?;
        *resolved = Some(how);
        if how == Resolved::Cache {
            self.warnings.push(format!("{reference} was not asked for: using {digest}, which it named last"));
        }
        let name = Name { reference: reference.to_string(), names: self.query.names, version: reference.version() };
        self.add_link(name, digest, Arc::new(source), filters).await?;
        let Some(filters) = Filter::for_parent(filters) else { return Ok(how) };
        while let Some(parent) = self.links.last().and_then(|link| link.contents.parent.clone()) {
            if self.links.len() > MAX_LINKS {
                return Err(ResolveError::TooManyParents { reference: reference.to_string() });
            }
            let (source, digest) = self.find_parent(&parent).await?;
            if self.links.iter().any(|link| link.digest == digest) {
                return Err(ResolveError::Loop { parent: parent.to_string(), digest });
            }
            let names = policy::names_of_parent(&parent);
            let name = Name { reference: parent.to_string(), names: &names, version: &parent.version };
            self.add_link(name, digest, Arc::new(source), &filters).await?;
        }
        Ok(how)
    }

    async fn add_link(
        &mut self,
        name: Name<'_>,
        digest: Digest,
        source: Arc<Source>,
        filters: &[Filter],
    ) -> Result<(), ResolveError> {
        let reference = &name.reference;
        let fetch = async || source.manifest(&digest).await;
        let manifest = small(self.workshop, &digest, fetch).await.map_err(|error| error.of(reference))?;
        let no_kit = |source| ResolveError::NoKit { reference: reference.clone(), digest, source };
        let config = manifest.parse::<Manifest>().map_err(no_kit)?.config.clone();
        let fetch = async || source.blob(&config).await;
        let config = small(self.workshop, &config.digest, fetch).await.map_err(|error| error.of(reference))?;
        let candidate = Candidate::new(reference.clone(), digest, source, manifest, config, filters)?;
        let Candidate { manifest, contents, .. } = &candidate;
        self.seen.push(Seen::new(self.links.len(), reference, digest, manifest, contents));
        let admitted = self.decide(&candidate, &name).await?;
        self.warnings.extend(candidate.contents.warnings.iter().cloned());
        self.links.push(candidate.admit(admitted));
        Ok(())
    }

    /// Asks the policies about a link. Until they have answered, nothing but its manifest and config is known.
    async fn decide(&mut self, candidate: &Candidate, name: &Name<'_>) -> Result<Admitted, ResolveError> {
        let Query { policies, limits, signatures, .. } = *self.query;
        let material = match (policies.need_material(name.names), signatures) {
            (true, _) => self.material(candidate).await?,
            (false, Signatures::Needed) => Material::default(),
            (false, Signatures::All) => match self.material(candidate).await {
                Ok(material) => material,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    self.warnings.push(format!("whether {} is signed is not known: {error}{cause}", name.reference));
                    Material::default()
                }
            },
        };
        let request = Request {
            reference: &name.reference,
            names: name.names.to_vec(),
            tag: name.version.tag.as_deref(),
            named: Named::by(name.version),
            digest: candidate.digest,
            manifest: &candidate.manifest_bytes,
            kitfile: kitfile(&candidate.manifest, &candidate.config),
            parent: candidate.contents.parent.as_ref().map(policy::names_of_parent),
            child: self.links.last().map(|link| link.reference.as_str()),
        };
        let decision = policies.decide(&request, &material, limits);
        let (reference, digest) = (name.reference.clone(), candidate.digest);
        let refused = || ResolveError::Refused { reference, digest, reasons: decision.reasons().to_vec() };
        let admitted = decision.admit().ok_or_else(refused);
        if decision.verdict() == policy::Verdict::Warn {
            self.warnings.extend(decision.reasons().iter().map(|reason| format!("policy: {}: {reason}", name.reference)));
        }
        self.decisions.push(decision);
        admitted
    }

    /// What lies beside a manifest, by its source; where that cannot be reached, what it said last.
    async fn material(&self, candidate: &Candidate) -> Result<Material, ResolveError> {
        let Query { freshness, limits, .. } = *self.query;
        let (digest, store) = (candidate.digest, &self.workshop.store);
        let is_local = !matches!(candidate.source.pinned(&digest), Reference::Registry(_));
        let kept = || store.material(&digest).and_then(|bytes| Material::of_bytes(&bytes).ok());
        if freshness == Freshness::Offline && !is_local {
            return kept().ok_or_else(|| ResolveError::NeverAsked { reference: candidate.reference.clone() });
        }
        match Material::collect(&candidate.source, &digest, limits).await {
            Ok(material) => {
                let stored = material.encode().map_err(std::io::Error::other);
                if let Err(error) = stored.and_then(|bytes| store.keep_material(&digest, &bytes)) {
                    tracing::warn!(%digest, %error, "cannot keep signatures");
                }
                Ok(material)
            }
            Err(error) if error.fault() == Fault::Unreachable && freshness == Freshness::Prefer => {
                let Some(kept) = kept() else { return Err(error.into()) };
                tracing::warn!(%digest, %error, "signatures are those that were seen last");
                Ok(kept)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn find_parent(&self, parent: &RegistryReference) -> Result<(Source, Digest), ResolveError> {
        let (workshop, freshness) = (self.workshop, self.query.freshness);
        let Some(child) = self.links.last() else { return Err(ResolveError::BadPin { at: parent.to_string() }) };
        let named = parent.to_string();
        let seen = || workshop.store.tag(&named);
        if freshness != Freshness::Offline {
            match child.source.parent(parent).await {
                Ok((source, digest)) => {
                    remember(workshop, &named, digest);
                    return Ok((source, digest));
                }
                Err(SourceError::Unreachable { .. }) if freshness == Freshness::Prefer && seen().is_some() => {}
                Err(error) => return Err(ResolveError::Parent { parent: named, source: error }),
            }
        }
        let seen = seen().ok_or_else(|| ResolveError::NeverSeen { reference: named.clone() })?;
        let digest = seen.digest;
        Ok((child.source.parent_at(parent, &digest).await?, digest))
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

/// The Kitfile of a kit, as JSON.
fn kitfile<'a>(manifest: &'a Manifest, config: &'a [u8]) -> Option<&'a [u8]> {
    match manifest.artifact {
        Artifact::ModelKit => Some(config),
        Artifact::ModelPack => manifest.annotations.get(KITFILE_ANNOTATION).map(|json| json.as_bytes()),
    }
}

impl Candidate {
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

    fn admit(self, admitted: Admitted) -> Link {
        let Self { reference, digest, source, manifest_bytes, manifest, config, contents } = self;
        Link { reference, digest, source, manifest_bytes, manifest, config, contents, admitted }
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

/// A manifest or a config: from the store if it is whole there, else from the source.
async fn small(
    workshop: &Workshop,
    digest: &Digest,
    fetch: impl AsyncFnOnce() -> Result<Unverified, SourceError>,
) -> Result<Verified<Bytes>, SmallError> {
    if let Some(Ok(kept)) = workshop.store.blob(digest).map(|kept| kept.verify(digest)) {
        return Ok(kept);
    }
    let fetched = fetch().await?.verify(digest)?;
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
    /// What lies beside a kit could not be had.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nobody may be asked for signatures, and nobody was asked before.
    #[error("signatures of {reference} were never seen by this cache: mount or pull it once without --offline")]
    NeverAsked {
        /// The reference.
        reference: String,
    },
    /// A policy says no.
    #[error("{reference} ({digest}) is refused by policy: {}", reasons.join("; "))]
    Refused {
        /// The kit.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        reasons: Vec<String>,
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
            Self::Trust(error) => error.fault(),
            Self::Refused { .. } => Fault::Refused,
            Self::NeverSeen { .. } | Self::NeverAsked { .. } => Fault::Unreachable,
            Self::ConfigSize { .. }
            | Self::NoKit { .. }
            | Self::Malformed { .. }
            | Self::TooManyParents { .. }
            | Self::Loop { .. }
            | Self::BadPin { .. } => Fault::Other,
        }
    }
}
