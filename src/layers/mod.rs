//! The layers of a kit: listed ahead of their proof where that is honest, proved whole once, and known
//! file by file from then on.
//!
//! A layer's digest is one flat hash over all of its bytes: no part of it is proved before the whole is.
//! So a layer that this store has no index for is fetched whole and split into a staging area; when the
//! digest matched, files and index are committed, and everybody who waited goes on. Who asks for one
//! layer at the same time waits for the same pass, in this process and across processes.

mod admission;
mod download;
mod failure;
mod keeping;
mod lister;
mod span;
mod splitter;
mod tally;

pub use failure::LayerError;
pub use span::Flow;
pub use splitter::SplitError;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::audit;
use crate::audit::Audit;
use crate::audit::Event;
use crate::buffers;
use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::kit::contents::KitLayer;
use crate::kit::descriptor::Descriptor;
use crate::kit::index::Index;
use crate::kit::listing::Certainty;
use crate::kit::listing::Entry;
use crate::kit::listing::EntryKind;
use crate::kit::listing::Listing;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::layers::admission::Admission;
use crate::layers::download::Piece;
use crate::layers::splitter::Split;
use crate::layers::splitter::Target;
use crate::layers::tally::Tally;
use crate::ledger::Ledger;
use crate::patience::Exhausted;
use crate::patience::Patience;
use crate::source::Meter;
use crate::source::Source;
use crate::source::SourceError;
use crate::store;
use crate::store::Lock;
use crate::store::Store;
use crate::store::StoreError;
use crate::verify::DigestMismatch;
use crate::verify::LayerCheck;
use crate::verify::LayerProof;
use crate::verify::Verified;

/// A source that delivers less than this many bytes in each second of the read timeout counts as one
/// that does not answer.
const SLOWEST_SOURCE: u64 = 16 * 1024;

/// How often a process looks whether another one has finished proving a layer.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How often one who waits for a proof only if it is soon looks how far it has come.
const LOOK: Duration = Duration::from_millis(50);

/// A source that has said nothing for so long may say nothing for longer.
const SILENCE: Duration = Duration::from_millis(200);

/// After so long it can be told how fast a source may be: so many times as fast as it was, for connections are added
/// until it has settled.
const RAMP: Duration = Duration::from_millis(400);
const SETTLED: Duration = Duration::from_millis(1200);
const SPEEDUP: f64 = 2.0;

/// How much longer than promised a blob may be and still be read, to tell what it is.
const SURPLUS: u64 = 64 * 1024 * 1024;

/// Pieces that may wait for the splitter, and for the check of a compressed layer.
const QUEUE: usize = 8;

/// What all layers of a mount or a command share.
#[derive(Debug)]
pub struct Workshop {
    /// Where proved layers go.
    pub store: Arc<Store>,
    /// Memory for reading.
    pub buffers: Buffers,
    /// Counters and the last error.
    pub ledger: Arc<Ledger>,
    /// Who is told what was verified and what was not.
    pub audit: Arc<Audit>,
    /// The longest that a read waits for a source that delivers nothing.
    pub read_timeout: Duration,
    /// Bytes of memory for data on its way.
    pub memory: u64,
    /// What is fetched before it is asked for.
    pub prefetch: Prefetch,
    /// One place for each buffer that layers on their way may fill.
    room: Arc<Semaphore>,
}

impl Workshop {
    /// Opens the store in `cache_dir`, with the key in `state_dir`. Of `memory` bytes three
    /// eighths are for layers on their way, and a quarter for parts of them; the rest is for names,
    /// indexes and replies.
    pub fn open(
        beginning: Beginning,
        cache_dir: &Path,
        state_dir: &Path,
        memory: u64,
        read_timeout: Duration,
        prefetch: Prefetch,
        audit: audit::Settings,
    ) -> Result<Arc<Self>, StoreError> {
        let key = || store::local_key(&state_dir.join("key"));
        let places = buffers::count_in(memory / 8 * 3).min(Semaphore::MAX_PERMITS);
        Ok(Arc::new(Self {
            store: Arc::new(match beginning {
                Beginning::New => Store::open(cache_dir, key()?)?,
                Beginning::Again => Store::open_again(cache_dir, key()?),
            }),
            buffers: Buffers::new(places),
            ledger: Arc::new(Ledger::default()),
            audit: Audit::new(audit, state_dir, key()?),
            read_timeout,
            memory,
            prefetch,
            room: Arc::new(Semaphore::new(places)),
        }))
    }
}

/// Whether anybody relies on what is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Not yet: a disk that cannot be used is an error.
    New,
    /// Somebody did when another process died: a disk that cannot be used keeps nothing.
    Again,
}

/// What is fetched of files before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// What readers will want next, by what they have opened and read.
    #[default]
    Auto,
    /// That, and everything else when nobody wants anything.
    All,
}

/// How the files of an unproved layer are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metadata {
    /// From the headers in the layer, ahead of its proof, where its size is known.
    #[default]
    Provisional,
    /// Only after the layer is proved.
    Verified,
}

/// One layer of a kit, and what is known of it.
#[derive(Debug)]
pub struct Layer {
    /// What the kit says of it.
    pub spec: KitLayer,
    /// The kit that it belongs to.
    pub kit: audit::Kit,
    /// Where its bytes come from.
    pub source: Arc<Source>,
    workshop: Arc<Workshop>,
    /// The listing that a mount's tree was made of. Whatever is proved later has to agree with it.
    listed: OnceLock<Listing>,
    admission: Admission,
    /// Counts what comes from `source`.
    meter: Meter,
    /// Whether another process proves it.
    is_elsewhere: AtomicBool,
    /// Whether the source has ignored a range.
    is_without_ranges: AtomicBool,
    /// Since when, and why, the store does not keep it.
    unkept: Mutex<Option<(Instant, Arc<io::Error>)>>,
    tally: Tally,
    phase: watch::Sender<Phase>,
    pin: OnceLock<Lock>,
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    Running,
    Proved(Arc<Verified<Index>>),
    Failed(Arc<LayerError>, Instant),
}

impl Layer {
    /// A layer of a kit. If this store has proved it before, it is known at once.
    pub fn new(spec: KitLayer, kit: audit::Kit, source: Arc<Source>, workshop: Arc<Workshop>) -> Arc<Self> {
        let phase = match kept_index(&workshop.store, &spec) {
            Some(index) => {
                workshop.store.touch(&spec.descriptor.digest, spec.reading());
                Phase::Proved(Arc::new(index))
            }
            None => Phase::Idle,
        };
        let (phase, _) = watch::channel(phase);
        let meter = Meter::default();
        let source = Arc::new(source.metered(meter.clone()));
        Arc::new(Self {
            spec,
            kit,
            source,
            workshop,
            listed: OnceLock::new(),
            admission: Admission::default(),
            meter,
            is_elsewhere: AtomicBool::new(false),
            is_without_ranges: AtomicBool::new(false),
            unkept: Mutex::default(),
            tally: Tally::default(),
            phase,
            pin: OnceLock::new(),
        })
    }

    /// The digest of the layer.
    pub fn digest(&self) -> &Digest {
        &self.spec.descriptor.digest
    }

    /// Keeps what the store has of the layer for as long as this value lives, and counts it.
    pub fn pin(self: &Arc<Self>) {
        if let Ok(lock) = self.workshop.store.pin(self.digest()) {
            let _pinned_before = self.pin.set(lock);
        }
        self.keep_names();
        self.count_here();
    }

    /// What is known of the layer, file by file: by its own proof, else by an index that was admitted.
    pub fn index(&self) -> Option<Arc<Verified<Index>>> {
        self.proved().or_else(|| self.admission.index())
    }

    /// The layer's index, if the layer was proved whole.
    pub fn proved(&self) -> Option<Arc<Verified<Index>>> {
        match &*self.phase.borrow() {
            Phase::Proved(index) => Some(Arc::clone(index)),
            _ => None,
        }
    }

    /// Whether the layer could not be had when it was last asked for.
    pub fn has_failed(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Failed(..))
    }

    /// The listing that the layer is mounted with.
    pub fn listing(&self) -> Option<&Listing> {
        self.listed.get()
    }

    /// Bytes of the layer that came from its source in the pass that is under way or was the last.
    pub fn received(&self) -> u64 {
        self.meter.bytes()
    }

    /// Lists the layer's files: from its index, from the manifest, from the headers inside the layer
    /// where `metadata` allows that, or after proving it.
    pub async fn list(self: &Arc<Self>, metadata: Metadata) -> Result<&Listing, Arc<LayerError>> {
        if let Some(listing) = self.listed.get() {
            return Ok(listing);
        }
        let listing = match self.index() {
            Some(index) => self.shown(&index).map_err(Arc::new)?,
            None => match self.list_ahead(metadata).await {
                Some(listing) => listing,
                None => {
                    let index = self.prove().await?;
                    self.shown(&index).map_err(Arc::new)?
                }
            },
        };
        Ok(self.listed.get_or_init(|| listing))
    }

    /// Takes the listing that an earlier process of the same mount was made of.
    pub fn adopt_listing(&self, listing: Listing) {
        let _listed_before = self.listed.set(listing);
    }

    /// What can be said of the layer's files before it is proved; `None` if that is nothing.
    async fn list_ahead(&self, metadata: Metadata) -> Option<Listing> {
        match (self.spec.format, self.spec.compression, metadata) {
            (Format::Raw, Compression::None, _) => {
                let file = self.spec.raw.as_ref()?;
                let size = self.spec.descriptor.size;
                let agrees = file.size.is_none_or(|said| said == size);
                let (path, mode, mtime) = (file.path.clone(), file.mode, file.mtime.unwrap_or_default());
                let entry = Entry { path, mode, mtime, kind: EntryKind::File { size } };
                // The manifest says it, and the manifest is proved.
                if agrees { Listing::new(vec![entry], Certainty::Verified).ok() } else { None }
            }
            (Format::Tar, Compression::None, Metadata::Provisional) => lister::list(&self.source, &self.spec).await,
            _ => None,
        }
    }

    /// The entries of a proved or drafted index, as they lie in the kit.
    ///
    /// Where a raw layer lies is not in its bytes: one blob can be several files, in one kit or in two.
    pub fn shown(&self, index: &Index) -> Result<Listing, LayerError> {
        let listing = match (&self.spec.raw, index.listing().entries()) {
            (Some(file), [Entry { kind, .. }]) => {
                let (path, mode, mtime) = (file.path.clone(), file.mode, file.mtime.unwrap_or_default());
                Listing::new(vec![Entry { path, mode, mtime, kind: *kind }], Certainty::Verified)
            }
            _ => Ok(index.listing()),
        };
        let listing = listing.and_then(|listing| match &self.spec.base {
            Some(base) => listing.under(base),
            None => Ok(listing),
        });
        listing.map_err(|error| self.malformed(error.into()))
    }

    fn malformed(&self, error: SplitError) -> LayerError {
        LayerError::Malformed { layer: *self.digest(), source: error }
    }

    /// Proves the layer, or waits for whoever is at it. Ends in the index, or in an error before the
    /// source has been silent for the read timeout.
    pub async fn prove(self: &Arc<Self>) -> Result<Arc<Verified<Index>>, Arc<LayerError>> {
        let mut phase = self.phase.subscribe();
        self.start(|phase| match phase {
            Phase::Idle => true,
            Phase::Failed(error, when) => when.elapsed() >= error.pause(),
            Phase::Running | Phase::Proved(_) => false,
        });
        self.wait(&mut phase).await
    }

    /// Proves the layer as [`Layer::prove`] does, but waits no longer than `most`, and only while it looks as if
    /// that were enough: not for a source that is silent or too slow. Proving goes on when the wait is over.
    pub async fn prove_within(self: &Arc<Self>, most: Duration) {
        let began = Instant::now();
        let (mut since, mut at_first) = (began, self.progress());
        let (mut heard, mut before) = (began, at_first);
        let mut proof = std::pin::pin!(self.prove());
        while tokio::time::timeout(LOOK, proof.as_mut()).await.is_err() {
            let (now, here) = (Instant::now(), self.progress());
            if here < before {
                // A pass has begun.
                (since, at_first) = (now, here);
            }
            if here != before {
                (heard, before) = (now, here);
            }
            let missing = self.spec.descriptor.size.saturating_sub(here);
            let (flowed, left) = (now - since, most.saturating_sub(now - began));
            let speedup = if flowed < SETTLED { SPEEDUP } else { 1.0 };
            let rate = here.saturating_sub(at_first) as f64 / flowed.as_secs_f64() * speedup;
            let is_slow = flowed >= RAMP && missing as f64 > rate * left.as_secs_f64();
            let is_silent = missing > 0 && now - heard >= SILENCE;
            if left.is_zero() || is_slow || is_silent {
                return;
            }
        }
    }

    /// Proves the layer again although it has an index: the store has lost some of its files.
    pub async fn prove_again(self: &Arc<Self>) -> Result<Arc<Verified<Index>>, Arc<LayerError>> {
        let mut phase = self.phase.subscribe();
        self.start(|phase| !matches!(phase, Phase::Running));
        self.wait(&mut phase).await
    }

    fn start(self: &Arc<Self>, due: impl FnOnce(&Phase) -> bool) {
        let mut again = false;
        let started = self.phase.send_if_modified(|phase| {
            let due = due(phase);
            if due {
                again = matches!(phase, Phase::Proved(_));
                *phase = Phase::Running;
            }
            due
        });
        if !started {
            return;
        }
        let layer = Arc::clone(self);
        tokio::spawn(async move {
            let result = if again { layer.fetch_and_keep().await } else { layer.prove_once().await };
            let next = match result {
                Ok(index) => {
                    layer.note_whole();
                    Phase::Proved(Arc::new(index))
                }
                Err(error) => {
                    layer.workshop.ledger.report(error.trouble(&layer));
                    Phase::Failed(Arc::new(error), Instant::now())
                }
            };
            layer.phase.send_replace(next);
        });
    }

    async fn wait(&self, phase: &mut watch::Receiver<Phase>) -> Result<Arc<Verified<Index>>, Arc<LayerError>> {
        let window = self.workshop.read_timeout;
        let floor = (SLOWEST_SOURCE as f64 * window.as_secs_f64()) as u64;
        let mut before = self.progress();
        loop {
            let settled = phase.wait_for(|phase| !matches!(phase, Phase::Running | Phase::Idle));
            match Patience::new(window).wait_for(settled).await {
                Ok(Ok(phase)) => match &*phase {
                    Phase::Proved(index) => return Ok(Arc::clone(index)),
                    Phase::Failed(error, _) => return Err(Arc::clone(error)),
                    Phase::Idle | Phase::Running => {}
                },
                Ok(Err(_)) => return Err(Arc::new(LayerError::Stopped { layer: *self.digest() })),
                Err(Exhausted) => {
                    let now = self.progress();
                    // Fewer than before: a pass has begun.
                    if (before..before.saturating_add(floor)).contains(&now) {
                        let (layer, from) = (*self.digest(), self.source.name());
                        return Err(Arc::new(LayerError::Silent { layer, from, waited: window }));
                    }
                    before = now;
                }
            }
        }
    }

    /// Bytes of the layer that have come in the pass that is under way, here or in another process.
    fn progress(&self) -> u64 {
        match self.is_elsewhere.load(Ordering::Relaxed) {
            true => self.workshop.store.told(self.digest()),
            false => self.received(),
        }
    }

    /// One attempt, alone on this host: whoever gets the lock second finds the index.
    async fn prove_once(&self) -> Result<Verified<Index>, LayerError> {
        let store = &self.workshop.store;
        let lock = loop {
            let lock = store.try_lock_layer(self.digest());
            self.is_elsewhere.store(matches!(lock, Ok(None)), Ordering::Relaxed);
            match lock {
                Ok(Some(lock)) => break Some(lock),
                Ok(None) => tokio::time::sleep(LOCK_POLL).await,
                // No locks on this file system: the same layer may be fetched twice, and that is all.
                Err(_) => break None,
            }
        };
        if let Some(index) = kept_index(store, &self.spec) {
            return self.agree(index);
        }
        let tell = async {
            let Some(lock) = &lock else { return std::future::pending().await };
            loop {
                lock.tell(self.received());
                tokio::time::sleep(LOCK_POLL).await;
            }
        };
        tokio::select! {
            index = self.fetch_and_keep() => index,
            never = tell => never,
        }
    }

    /// Fetches every byte of the layer and proves it, keeping nothing.
    pub async fn check(&self) -> Result<Verified<Index>, LayerError> {
        let (proof, index, _) = self.pass(Target::Nowhere).await?;
        self.shown(&index)?;
        self.agree(proof.covers(index))
    }

    /// One pass over the bytes of the layer: fetched in parallel, hashed and split while they come.
    async fn pass(&self, target: Target) -> Result<(LayerProof, Index, Target), LayerError> {
        let layer = *self.digest();
        let (to_split, split) = mpsc::channel::<Piece>(QUEUE);
        let spec = self.spec.clone();
        let splitting = tokio::task::spawn_blocking(move || splitter::split(&spec, split, target));
        self.meter.reset();
        let mut pieces = std::pin::pin!(download::pieces(&self.source, &self.spec.descriptor, &self.workshop.room));
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Err(self.tell_apart(error).await),
            };
            let len = piece.bytes.len() as u64;
            self.workshop.ledger.add_fetched(len);
            to_split.send(piece).await.map_err(|_| LayerError::Stopped { layer })?;
        }
        drop(to_split);
        let Split { proof, files } = splitting.await.map_err(|_| LayerError::Stopped { layer })?;
        let source = || self.source.name();
        let proof = proof.map_err(|mismatch| {
            self.tell_mismatch(&mismatch);
            LayerError::Mismatch { layer, from: source(), source: mismatch }
        })?;
        let (kit, size) = (self.kit.clone(), self.spec.descriptor.size);
        self.workshop.audit.record_soon(Event::LayerProved { kit, layer, size, source: source(), repeated: 0 });
        match files {
            Ok((index, target)) => Ok((proof, index, target)),
            Err(SplitError::Store(source)) => Err(LayerError::Store { layer, source }),
            Err(error) => Err(self.malformed(error)),
        }
    }

    fn tell_mismatch(&self, mismatch: &DigestMismatch) {
        let DigestMismatch { expected, actual } = mismatch;
        let event = Event::mismatch(&self.kit, Some(self.digest()), expected, actual, self.source.name());
        self.workshop.audit.record_soon(event);
    }

    /// A blob of another size than its descriptor says is usually another blob: then both digests are
    /// told, as for every content that is not what it should be.
    async fn tell_apart(&self, error: SourceError) -> LayerError {
        let layer = *self.digest();
        if let SourceError::WrongSize { actual, .. } = &error
            && let Ok(size) = actual.parse()
        {
            let blob = Descriptor { size, ..self.spec.descriptor.clone() };
            let mut check = LayerCheck::new(layer);
            let mut stream = self.source.stream(&blob, 0);
            let limit = self.spec.descriptor.size.saturating_add(SURPLUS);
            while let Some(Ok(piece)) = stream.next().await.filter(|_| size <= limit) {
                check.update(&piece);
            }
            if let Some(Err(source)) = (size <= limit).then(|| check.finish()) {
                self.tell_mismatch(&source);
                return LayerError::Mismatch { layer, from: self.source.name(), source };
            }
        }
        LayerError::Source { layer, source: error }
    }

    /// Holds the proved layer against what was said of it before: by an admitted index, by a listing.
    fn agree(&self, index: Verified<Index>) -> Result<Verified<Index>, LayerError> {
        // Who learns of a false index first gets the error; the layer goes on without it.
        if !self.admission.is_refused() {
            self.agree_with_index(&index)?;
        }
        let Some(listed) = self.listed.get() else { return Ok(index) };
        if self.shown(&index)?.shows_the_same(listed) {
            Ok(index)
        } else {
            Err(LayerError::OtherStory { layer: *self.digest() })
        }
    }
}

/// The index of a layer that was proved before. One whose uncompressed content is not what this kit's
/// config says does not count: the layer is proved again, and refused if the config is wrong.
fn kept_index(store: &Store, spec: &KitLayer) -> Option<Verified<Index>> {
    let index = store.index(&spec.descriptor.digest, spec.reading())?;
    spec.may_hold(index.content()).then_some(index)
}
