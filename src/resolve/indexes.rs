//! The published indexes of a kit: which there are, and which of them may be used.
//!
//! Whoever believes an index reads what it says, so one counts only where a chain leads to it: the kit's
//! manifest names it, or somebody signed it whom the policies let sign indexes. It is a help and nothing
//! more: where it cannot be had, the layers are proved whole.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::audit;
use crate::audit::Event;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::artifact;
use crate::kit::artifact::IndexManifest;
use crate::kit::contents::Contents;
use crate::kit::descriptor::Descriptor;
use crate::kit::index::INDEX_LIMIT;
use crate::kit::index::Index;
use crate::kit::index::LayerBlob;
use crate::kit::index::Published;
use crate::kit::manifest::Manifest;
use crate::layers::Workshop;
use crate::ledger::chain;
use crate::policy::AuditDemand;
use crate::policy::IndexAdmitted;
use crate::reference::Reference;
use crate::resolve::Freshness;
use crate::resolve::Query;
use crate::resolve::ResolveError;
use crate::resolve::Signatures;
use crate::source::Source;
use crate::source::SourceError;
use crate::store::Store;
use crate::trust::Material;
use crate::trust::TrustError;
use crate::verify::Unverified;
use crate::verify::Verified;

/// Indexes beside one kit that are looked at.
const CANDIDATES: usize = 16;

/// An index that may be used for the layers of a kit.
#[derive(Clone, Debug)]
pub struct UsableIndex {
    digest: Digest,
    voucher: Voucher,
    content: Verified<Published>,
}

/// What makes an index count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Voucher {
    /// The kit's manifest names it.
    Manifest,
    /// These signed it, and the policies let them.
    Signers(Vec<String>),
}

/// An index that was found for a kit, whether it counts or not.
#[derive(Clone, Debug)]
pub struct IndexSeen {
    /// Its digest; of one that cannot even be named, none.
    pub digest: Option<Digest>,
    /// What makes it count.
    pub voucher: Option<Voucher>,
    /// Why it is not used.
    pub error: Option<String>,
}

/// What another process needs to use the same index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PinnedIndex {
    digest: Digest,
    voucher: Voucher,
}

impl UsableIndex {
    /// The digest of the index.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What makes it count.
    pub fn voucher(&self) -> &Voucher {
        &self.voucher
    }

    /// The index of a layer, if it is about it.
    pub fn layer(&self, layer: &LayerBlob) -> Option<Verified<Index>> {
        self.content.part(|content| content.layer(layer))
    }

    pub(super) fn pin(&self) -> PinnedIndex {
        PinnedIndex { digest: self.digest, voucher: self.voucher.clone() }
    }

    /// The index that another process has admitted; `None` if the store has lost it meanwhile.
    pub(super) fn reopen(store: &Store, pinned: &PinnedIndex) -> Option<Self> {
        let PinnedIndex { digest, voucher } = pinned.clone();
        let content = store.blob(&digest)?.verify(&digest).ok()?.parse::<Published>().ok()?;
        Some(Self { digest, voucher, content })
    }
}

/// A manifest beside a kit that carries an index, and what lies beside that in turn.
#[derive(Serialize, Deserialize)]
struct Candidate {
    manifest: Vec<u8>,
    material: Material,
}

/// The search for indexes of one kit.
pub(super) struct Search<'a> {
    pub(super) workshop: &'a Workshop,
    pub(super) query: &'a Query<'a>,
    pub(super) source: &'a Source,
    pub(super) kit: audit::Kit,
    /// The names under which policies know the kit.
    pub(super) names: &'a [String],
    pub(super) manifest: &'a Manifest,
    pub(super) contents: &'a Contents,
    pub(super) audit: AuditDemand,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) usable: Vec<UsableIndex>,
    pub(super) seen: Vec<IndexSeen>,
    pub(super) warnings: Vec<String>,
}

impl Search<'_> {
    /// Looks for indexes that count: first those that need no asking. An index that was given as a file and
    /// does not count is an error; every other one is passed over, with a warning.
    pub(super) async fn run(&self) -> Result<Found, ResolveError> {
        let mut found = Found::default();
        let shown = self.query.signatures == Signatures::All;
        let store = &self.workshop.store;
        let is_proved = |layer: LayerBlob| store.has_index(&layer.digest, layer.reading);
        if !shown && self.layers().all(is_proved) {
            return Ok(found);
        }
        match artifact::named_index(self.manifest) {
            Ok(Some(named)) => self.consider(&named, Voucher::Manifest, &mut found).await?,
            Ok(None) => {}
            Err(error) => found.pass_over(None, None, chain(&error)),
        }
        for file in self.query.indexes {
            self.consider_file(file, &mut found).await?;
        }
        let somebody_may = self.query.policies.may_admit_index(self.names);
        if !self.is_covered(&found) && (somebody_may || shown) {
            match self.candidates(&mut found).await {
                Ok(candidates) => self.consider_candidates(candidates, somebody_may, &mut found).await?,
                Err(error) => found.pass_over(None, None, format!("cannot look for indexes: {}", chain(&error))),
            }
        }
        let at = &self.kit.reference;
        found.warnings.iter_mut().for_each(|warning| *warning = format!("{at}: {warning}"));
        Ok(found)
    }

    fn layers(&self) -> impl Iterator<Item = LayerBlob> {
        self.contents.layers.iter().map(crate::kit::contents::KitLayer::blob)
    }

    fn is_covered(&self, found: &Found) -> bool {
        self.layers().all(|layer| found.usable.iter().any(|index| index.content.layer(&layer).is_some()))
    }

    async fn consider_candidates(
        &self,
        candidates: Vec<Candidate>,
        somebody_may: bool,
        found: &mut Found,
    ) -> Result<(), ResolveError> {
        for Candidate { manifest, material } in candidates {
            let digest = Digest::of(&manifest);
            let Ok(manifest) = Unverified::new(manifest).verify(&digest) else { continue };
            let manifest = match manifest.parse::<IndexManifest>() {
                Ok(manifest) if manifest.subject == self.kit.digest => manifest,
                Ok(manifest) => {
                    let why = format!("the index {digest} is about {}, and not about this kit", manifest.subject);
                    found.pass_over(Some(manifest.index.digest), None, why);
                    continue;
                }
                Err(error) => {
                    found.pass_over(None, None, format!("the index {digest} is none: {}", chain(&error)));
                    continue;
                }
            };
            let admitted = self.query.policies.admit_index(self.names, &digest, &material, self.query.limits);
            match admitted {
                Ok(admitted) => self.consider(&manifest.index, Voucher::of(&admitted), found).await?,
                // Where nobody may sign one, it is shown to those who look, and nobody is warned.
                Err(refused) if !somebody_may => found.show(Some(manifest.index.digest), None, refused.to_string()),
                Err(refused) => found.pass_over(Some(manifest.index.digest), None, refused.to_string()),
            }
            if self.is_covered(found) {
                break;
            }
        }
        Ok(())
    }

    /// Takes an index that counts, if it can be had and says something about the kit.
    async fn consider(&self, named: &Descriptor, voucher: Voucher, found: &mut Found) -> Result<(), ResolveError> {
        let digest = named.digest;
        if self.workshop.store.is_condemned(&digest) {
            let why = format!("the index {digest} is not used: it was found to be false on this host");
            found.pass_over(Some(digest), Some(voucher), why);
            return Ok(());
        }
        match self.content(named).await {
            Ok(content) => self.take(digest, &content, voucher, found).await,
            Err(why) => {
                found.pass_over(Some(digest), Some(voucher), format!("the index {digest} cannot be used: {why}"));
                Ok(())
            }
        }
    }

    async fn take(
        &self,
        digest: Digest,
        content: &Verified<Bytes>,
        voucher: Voucher,
        found: &mut Found,
    ) -> Result<(), ResolveError> {
        let content = match content.parse::<Published>() {
            Ok(content) => content,
            Err(error) => {
                found.pass_over(
                    Some(digest),
                    Some(voucher),
                    format!("the index {digest} cannot be used: {}", chain(&error)),
                );
                return Ok(());
            }
        };
        if !self.layers().any(|layer| content.layer(&layer).is_some()) {
            let why = format!("the index {digest} is not used: it is about no layer of the kit");
            found.pass_over(Some(digest), Some(voucher), why);
            return Ok(());
        }
        let (by, identities) = match &voucher {
            Voucher::Manifest => ("manifest", Vec::new()),
            Voucher::Signers(signers) => ("signature", signers.clone()),
        };
        let event = Event::IndexChosen { kit: self.kit.clone(), index: digest, by: by.into(), identities };
        super::chain::tell(&self.workshop.audit, self.audit, vec![event]).await?;
        found.seen.push(IndexSeen { digest: Some(digest), voucher: Some(voucher.clone()), error: None });
        found.usable.push(UsableIndex { digest, voucher, content });
        Ok(())
    }

    /// The bytes of an index: from the store if they are whole there, else from the source.
    async fn content(&self, named: &Descriptor) -> Result<Verified<Bytes>, String> {
        let store = &self.workshop.store;
        if let Some(Ok(kept)) = store.blob(&named.digest).map(|kept| kept.verify(&named.digest)) {
            return Ok(kept);
        }
        if self.query.freshness == Freshness::Offline && !self.is_local() {
            return Err("it is not in the cache".into());
        }
        let fetched = self.source.whole(named, INDEX_LIMIT).await.map_err(|error| chain(&error))?;
        let fetched = fetched.verify(&named.digest).map_err(|mismatch| {
            super::chain::tell_mismatch(self.workshop, &self.kit, &mismatch, self.source.name());
            mismatch.to_string()
        })?;
        self.keep(&named.digest, &fetched);
        Ok(fetched)
    }

    fn keep(&self, digest: &Digest, content: &Verified<Bytes>) {
        if let Err(error) = self.workshop.store.keep_blob(digest, content) {
            tracing::warn!(%digest, %error, "cannot keep an index");
        }
    }

    /// An index that somebody gave as a file, with the bundle beside it that signs it.
    async fn consider_file(&self, path: &Path, found: &mut Found) -> Result<(), ResolveError> {
        let unusable = |why: String| ResolveError::IndexFile { path: path.into(), why };
        let content = read(path, INDEX_LIMIT).map_err(|error| unusable(error.to_string()))?;
        let digest = Digest::of(&content);
        let content = Unverified::new(content).verify(&digest).map_err(|mismatch| unusable(mismatch.to_string()))?;
        let index = content.parse::<Published>().map_err(|error| unusable(chain(&error)))?;
        // In a chain of kits it may be about another one.
        let is_ours = self.layers().any(|layer| index.layer(&layer).is_some());
        let is_named = found.seen.iter().any(|seen| seen.digest == Some(digest));
        if !is_ours || is_named && found.usable.iter().any(|usable| usable.digest == digest) {
            return Ok(());
        }
        if self.workshop.store.is_condemned(&digest) {
            return Err(unusable("it was found to be false on this host".into()));
        }
        let voucher = match is_named {
            // The manifest names it, and its source does not have it.
            true => Voucher::Manifest,
            false => {
                let bundle = bundle_beside(path);
                let material = match read(&bundle, self.query.limits.attestation) {
                    Ok(content) => Material::of_bundle(content, bundle.to_string_lossy()),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Material::default(),
                    Err(error) => return Err(unusable(format!("{}: {error}", bundle.display()))),
                };
                let admitted = self.query.policies.admit_index(self.names, &digest, &material, self.query.limits);
                Voucher::of(
                    &admitted.map_err(|refused| ResolveError::IndexRefused { path: path.into(), source: refused })?,
                )
            }
        };
        self.keep(&digest, &content);
        self.take(digest, &content, voucher, found).await
    }

    /// What lies beside the kit and carries an index, by its source; where that cannot be reached, what it
    /// said last.
    async fn candidates(&self, found: &mut Found) -> Result<Vec<Candidate>, TrustError> {
        let store = &self.workshop.store;
        let place = format!("{} indexes", self.source.pinned(&self.kit.digest));
        let kept = || postcard::from_bytes::<Vec<Candidate>>(&store.material(&place)?).ok();
        if self.query.freshness == Freshness::Offline && !self.is_local() {
            return Ok(kept().unwrap_or_default());
        }
        match self.collect().await {
            Ok(candidates) => {
                let encoded = postcard::to_stdvec(&candidates).map_err(std::io::Error::other);
                if let Err(error) = encoded.and_then(|encoded| store.keep_material(&place, &encoded)) {
                    tracing::warn!(kit = %self.kit.digest, %error, "cannot keep what carries indexes");
                }
                Ok(candidates)
            }
            Err(error) if error.fault() == Fault::Unreachable && self.query.freshness == Freshness::Prefer => {
                let Some(kept) = kept() else { return Err(error) };
                found.warnings.push("indexes are those that were seen last".into());
                Ok(kept)
            }
            Err(error) => Err(error),
        }
    }

    async fn collect(&self) -> Result<Vec<Candidate>, TrustError> {
        let failed = |source| TrustError::Source { manifest: self.kit.digest, source };
        let companions =
            self.source.companions(&self.kit.digest, self.query.limits.signatures).await.map_err(failed)?;
        let carriers = companions.into_iter().filter(|companion| companion.artifact_type == artifact::INDEX);
        let mut candidates = Vec::new();
        for companion in carriers.take(CANDIDATES) {
            let manifest = match self.source.manifest(&companion.digest).await {
                Ok(manifest) => manifest.verify(&companion.digest),
                Err(SourceError::NotFound(_) | SourceError::Malformed { .. }) => continue,
                Err(error) => return Err(failed(error)),
            };
            // One that is not what its name says is none.
            let Ok(manifest) = manifest else { continue };
            let material = Material::collect(self.source, &companion.digest, self.query.limits).await?;
            candidates.push(Candidate { manifest: manifest.to_vec(), material });
        }
        Ok(candidates)
    }

    fn is_local(&self) -> bool {
        !matches!(self.source.pinned(&self.kit.digest), Reference::Registry(_))
    }
}

impl Voucher {
    fn of(admitted: &IndexAdmitted) -> Self {
        Self::Signers(admitted.signers().to_vec())
    }
}

impl Found {
    fn show(&mut self, digest: Option<Digest>, voucher: Option<Voucher>, why: String) {
        self.seen.push(IndexSeen { digest, voucher, error: Some(why) });
    }

    fn pass_over(&mut self, digest: Option<Digest>, voucher: Option<Voucher>, why: String) {
        self.warnings.push(why.clone());
        self.show(digest, voucher, why);
    }
}

/// Where the signature lies on an index in a file.
pub fn bundle_beside(index: &Path) -> PathBuf {
    let mut bundle = index.as_os_str().to_owned();
    bundle.push(".sigstore.json");
    bundle.into()
}

/// A file of at most `limit` bytes whole.
fn read(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}
