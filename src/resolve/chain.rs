//! Following a chain of kits: ask what a reference names, prove its manifest, ask the policies, go on.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::audit;
use crate::audit::Audit;
use crate::audit::Event;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::config::KITFILE_ANNOTATION;
use crate::kit::contents;
use crate::kit::contents::Contents;
use crate::kit::filter::Filter;
use crate::kit::manifest::Manifest;
use crate::kit::media::Artifact;
use crate::layers::Workshop;
use crate::policy;
use crate::policy::Admitted;
use crate::policy::AuditDemand;
use crate::policy::Decision;
use crate::policy::ModelDemand;
use crate::policy::Named;
use crate::policy::Request;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::resolve::Documents;
use crate::resolve::Freshness;
use crate::resolve::IndexSeen;
use crate::resolve::Link;
use crate::resolve::Query;
use crate::resolve::ResolveError;
use crate::resolve::Resolved;
use crate::resolve::Seen;
use crate::resolve::Signatures;
use crate::resolve::UsableIndex;
use crate::resolve::access;
use crate::resolve::indexes::Found;
use crate::resolve::indexes::Search;
use crate::source::Source;
use crate::source::SourceError;
use crate::store::SeenTag;
use crate::trust::Material;
use crate::verify::DigestMismatch;
use crate::verify::Unverified;
use crate::verify::Verified;

/// A chain of kits, each of which refers to the next, is followed this far (KitOps' `MaxModelRefChain`).
pub(super) const MAX_LINKS: usize = 10;

/// A chain of kits while it is followed.
pub(super) struct Chain<'a> {
    workshop: &'a Workshop,
    query: &'a Query<'a>,
    pub(super) links: Vec<Link>,
    pub(super) seen: Vec<Seen>,
    pub(super) decisions: Vec<Decision>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Chain<'a> {
    pub(super) fn new(workshop: &'a Workshop, query: &'a Query<'a>) -> Self {
        let (links, seen, decisions, warnings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { workshop, query, links, seen, decisions, warnings }
    }

    /// Follows it to its end. `resolved` is how the digest of the first kit became known, once that is so.
    pub(super) async fn follow(&mut self, resolved: &mut Option<Resolved>) -> Result<Resolved, ResolveError> {
        let Query { reference, filters, freshness, .. } = *self.query;
        let source = Source::open(reference, self.query.source, &self.workshop.buffers).await?;
        let (digest, how) = ask(self.workshop, &source, reference, freshness).await?;
        tell_resolved(self.workshop, &reference.to_string(), digest, how, &source, None);
        *resolved = Some(how);
        if how == Resolved::Cache {
            self.warnings.push(format!("{reference} was not asked for: using {digest}, which it named last"));
        }
        let name = Name { reference: reference.to_string(), names: self.query.names, version: reference.version() };
        self.add_link(name, digest, how, Arc::new(source), filters).await?;
        let Some(filters) = Filter::for_parent(filters) else { return Ok(how) };
        while let Some(parent) = self.links.last().and_then(|link| link.contents.parent.clone()) {
            if self.links.len() > MAX_LINKS {
                return Err(ResolveError::TooManyParents { reference: reference.to_string() });
            }
            let (source, digest, how) = self.find_parent(&parent).await?;
            tell_resolved(self.workshop, &parent.to_string(), digest, how, &source, self.links.last());
            if self.links.iter().any(|link| link.digest == digest) {
                return Err(ResolveError::Loop { parent: parent.to_string(), digest });
            }
            let names = policy::names_of_parent(&parent);
            let name = Name { reference: parent.to_string(), names: &names, version: &parent.version };
            self.add_link(name, digest, how, Arc::new(source), &filters).await?;
        }
        Ok(how)
    }

    async fn add_link(
        &mut self,
        name: Name<'_>,
        digest: Digest,
        how: Resolved,
        source: Arc<Source>,
        filters: &[Filter],
    ) -> Result<(), ResolveError> {
        let reference = &name.reference;
        let was_named_now = how == Resolved::Registry && name.version.digest.is_none();
        let is_asked = was_named_now || self.workshop.store.blob(&digest).is_none();
        if !is_asked {
            access::check(self.workshop, self.query, reference, &source, &digest).await?;
        }
        let kit = audit::Kit { reference: reference.clone(), digest };
        let fetch = async || source.manifest(&digest).await;
        let manifest = small(self.workshop, self.query.documents, &kit, &digest, &source, fetch)
            .await
            .map_err(|error| error.of(reference))?;
        if is_asked {
            access::remember(self.workshop, &source, &digest);
        }
        let no_kit = |source| ResolveError::NoKit { reference: reference.clone(), digest, source };
        let config = manifest.parse::<Manifest>().map_err(no_kit)?.config.clone();
        let fetch = async || source.blob(&config).await;
        let config = small(self.workshop, self.query.documents, &kit, &config.digest, &source, fetch)
            .await
            .map_err(|error| error.of(reference))?;
        let candidate = Candidate::new(reference.clone(), digest, source, manifest, config, filters)?;
        let Candidate { manifest, contents, .. } = &candidate;
        self.seen.push(Seen::new(self.links.len(), reference, digest, manifest, contents));
        let admitted = self.decide(&candidate, &name).await?;
        self.warnings.extend(candidate.contents.warnings.iter().cloned());
        let models = self.decisions.last().map(|decision| decision.models().to_vec()).unwrap_or_default();
        let search = Search {
            workshop: self.workshop,
            query: self.query,
            source: &candidate.source,
            kit,
            names: name.names,
            manifest: &candidate.manifest,
            contents: &candidate.contents,
            audit: admitted.audit(),
        };
        let Found { usable, seen, warnings } = search.run().await?;
        self.warnings.extend(warnings);
        self.links.push(candidate.admit(admitted, models, usable, seen));
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
            self.warnings
                .extend(decision.reasons().iter().map(|reason| format!("policy: {}: {reason}", name.reference)));
        }
        let told = self.tell_decided(name, &decision).await;
        self.decisions.push(decision);
        told.and(admitted)
    }

    async fn tell_decided(&self, name: &Name<'_>, decision: &Decision) -> Result<(), ResolveError> {
        // Where nobody was asked nothing was decided.
        if decision.verdict() == policy::Verdict::None {
            return Ok(());
        }
        let event = Event::Decision {
            kit: audit::Kit { reference: name.reference.clone(), digest: *decision.digest() },
            verdict: decision.verdict().name().into(),
            rules: decision.rules().to_vec(),
            identities: decision.signers().to_vec(),
            reasons: decision.reasons().to_vec(),
        };
        let danger = (!decision.overruled().is_empty()).then(|| Event::DangerUsed {
            kit: audit::Kit { reference: name.reference.clone(), digest: *decision.digest() },
            option: format!("--{}", policy::ALLOW_REFUSED),
            detail: decision.overruled().join("; "),
        });
        let events = [Some(event), danger].into_iter().flatten().collect();
        tell(&self.workshop.audit, decision.audit(), events).await
    }

    /// What lies beside a manifest, by its source; where that cannot be reached, what it said last.
    async fn material(&mut self, candidate: &Candidate) -> Result<Material, ResolveError> {
        let Query { freshness, limits, .. } = *self.query;
        let (digest, store) = (candidate.digest, &self.workshop.store);
        let at = candidate.source.pinned(&digest);
        let (place, is_local) = (at.to_string(), !matches!(at, Reference::Registry(_)));
        let kept = || store.material(&place).and_then(|bytes| Material::of_bytes(&bytes).ok());
        if freshness == Freshness::Offline && !is_local {
            return kept().ok_or_else(|| ResolveError::NeverAsked { reference: candidate.reference.clone() });
        }
        match Material::collect(&candidate.source, &digest, limits).await {
            Ok(material) => {
                let stored = material.encode().map_err(std::io::Error::other);
                if let Err(error) = stored.and_then(|bytes| store.keep_material(&place, &bytes)) {
                    tracing::warn!(%digest, %error, "cannot keep signatures");
                }
                Ok(material)
            }
            Err(error) if error.fault() == Fault::Unreachable && freshness == Freshness::Prefer => {
                let Some(kept) = kept() else { return Err(error.into()) };
                self.warnings.push(format!("signatures of {} are those that were seen last", candidate.reference));
                Ok(kept)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn find_parent(&self, parent: &RegistryReference) -> Result<(Source, Digest, Resolved), ResolveError> {
        let (workshop, freshness) = (self.workshop, self.query.freshness);
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

/// A link before the policies were asked.
pub(super) struct Candidate {
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

impl Candidate {
    pub(super) fn new(
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

    pub(super) fn admit(
        self,
        admitted: Admitted,
        models: Vec<ModelDemand>,
        indexes: Vec<UsableIndex>,
        indexes_seen: Vec<IndexSeen>,
    ) -> Link {
        let Self { reference, digest, source, manifest_bytes, manifest, config, contents } = self;
        Link {
            reference,
            digest,
            source,
            manifest_bytes,
            manifest,
            config,
            contents,
            admitted,
            models,
            indexes,
            indexes_seen,
        }
    }
}

/// The Kitfile of a kit, as JSON.
pub(super) fn kitfile<'a>(manifest: &'a Manifest, config: &'a [u8]) -> Option<&'a [u8]> {
    match manifest.artifact {
        Artifact::ModelKit => Some(config),
        Artifact::ModelPack => manifest.annotations.get(KITFILE_ANNOTATION).map(|json| json.as_bytes()),
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

/// Writes events down. Where a policy demands a log of what happens, nothing goes on that is not in it.
pub(super) async fn tell(audit: &Arc<Audit>, demand: AuditDemand, events: Vec<Event>) -> Result<(), ResolveError> {
    let audit = Arc::clone(audit);
    match demand {
        AuditDemand::BestEffort => events.into_iter().for_each(|event| audit.record_soon(event)),
        AuditDemand::Required => {
            let record = move || {
                audit.require()?;
                events.into_iter().try_for_each(|event| audit.record(event))
            };
            tokio::task::spawn_blocking(record).await.map_err(|_| ResolveError::Stopped)??;
        }
    }
    Ok(())
}

pub(super) fn tell_mismatch(workshop: &Workshop, kit: &audit::Kit, mismatch: &DigestMismatch, source: String) {
    workshop.audit.record_soon(Event::mismatch(kit, None, mismatch.expected, mismatch.actual, source));
}

/// A manifest or a config of a kit, from the store or from the source.
async fn small(
    workshop: &Workshop,
    documents: Documents,
    kit: &audit::Kit,
    digest: &Digest,
    source: &Source,
    fetch: impl AsyncFnOnce() -> Result<Unverified, SourceError>,
) -> Result<Verified<Bytes>, SmallError> {
    let kept = match workshop.store.blob(digest).map(|kept| kept.verify(digest)) {
        Some(Ok(kept)) => Some(kept),
        Some(Err(mismatch)) => {
            tell_mismatch(workshop, kit, &mismatch, "cache".into());
            None
        }
        None => None,
    };
    let fetched = match (kept, documents) {
        (Some(kept), Documents::Kept) => return Ok(kept),
        (kept, _) => match (fetch().await, kept) {
            (Err(SourceError::Unreachable { .. }), Some(kept)) => return Ok(kept),
            (fetched, _) => fetched?,
        },
    };
    let fetched = fetched.verify(digest).inspect_err(|mismatch| {
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
