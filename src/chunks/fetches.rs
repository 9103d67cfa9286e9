//! Fetches on their way: each unit once, whoever asks, in this process and across processes.
//!
//! A fetch is one request for parts that lie side by side in a layer: units of one file, or many small
//! files. It lives as long as somebody holds it: a reader that waits, or a window that reads ahead.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::buffers::BUFFER;
use crate::chunks::ChunkError;
use crate::chunks::lanes::Lanes;
use crate::chunks::lanes::Purpose;
use crate::chunks::lock;
use crate::chunks::shelf::Shelf;
use crate::chunks::shelf::mismatch_event;
use crate::chunks::warm::Key;
use crate::digest::Digest;
use crate::layers::Layer;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::store::Fetching;
use crate::store::RangeLock;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verity::FileTree;

/// How often a process looks whether another one has fetched what both want.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Bytes between two parts that are fetched with them rather than apart: headers and padding.
const GAP: u64 = 16 * 1024;

/// A unit of a file, and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) tree: Verified<FileTree>,
    pub(super) unit: u64,
    /// Its bytes in the uncompressed layer.
    pub(super) content: Range<u64>,
}

impl Part {
    pub(super) fn key(&self) -> Key {
        (self.tree.verity, self.unit)
    }
}

/// What came of a fetch, for each of its parts. A part that is missing was at hand when its turn came.
pub(super) type Landing = HashMap<Key, Result<Verified<Bytes>, Arc<ChunkError>>>;

/// A fetch on its way. Dropping the last one that holds it ends it.
#[derive(Debug)]
pub(super) struct Flight {
    number: u64,
    keys: Vec<Key>,
    landing: watch::Receiver<Option<Arc<Landing>>>,
    /// Whether a reader waits for it by now, whatever it was begun for.
    demanded: watch::Sender<bool>,
    task: AbortHandle,
    under_way: Arc<UnderWay>,
}

/// The fetches that are under way, by what they bring.
type UnderWay = Mutex<HashMap<Key, (u64, Weak<Flight>)>>;

/// Fetches for one mount.
#[derive(Debug)]
pub(super) struct Fetches {
    pub(super) shelf: Shelf,
    pub(super) lanes: Lanes,
    pub(super) runtime: Handle,
    under_way: Arc<UnderWay>,
    numbers: AtomicU64,
    /// Where other processes are told what is fetched; `None` where that cannot be.
    fetching: Mutex<HashMap<Digest, Option<Fetching>>>,
}

impl Fetches {
    /// Fetches through the shelf, on this runtime.
    pub(super) fn new(shelf: Shelf, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            shelf,
            lanes: Lanes::new(),
            runtime,
            under_way: Arc::default(),
            numbers: AtomicU64::new(0),
            fetching: Mutex::default(),
        })
    }

    /// The fetches that bring these parts, which are in the layer's order: those that are under way, and
    /// new ones of at most `most` bytes for the rest.
    pub(super) fn of(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        parts: impl IntoIterator<Item = Part>,
        purpose: Purpose,
        most: u64,
    ) -> Vec<Arc<Flight>> {
        let mut under_way = lock(&self.under_way);
        let mut flights: Vec<Arc<Flight>> = Vec::new();
        let mut run: Vec<Part> = Vec::new();
        for part in parts {
            let found = under_way.get(&part.key()).and_then(|(_, flight)| flight.upgrade());
            let found = found.filter(|flight| flight.landing.borrow().is_none());
            let follows = match (run.first(), run.last()) {
                (Some(first), Some(last)) => {
                    let near = last.content.end..=last.content.end + GAP;
                    near.contains(&part.content.start) && part.content.end - first.content.start <= most
                }
                _ => true,
            };
            if found.is_some() || !follows {
                flights.extend(self.begin(layer, std::mem::take(&mut run), purpose, &mut under_way));
            }
            match found {
                Some(flight) if flights.iter().any(|known| known.number == flight.number) => {}
                Some(flight) => flights.push(flight),
                None => run.push(part),
            }
        }
        flights.extend(self.begin(layer, run, purpose, &mut under_way));
        flights
    }

    fn begin(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        parts: Vec<Part>,
        purpose: Purpose,
        under_way: &mut HashMap<Key, (u64, Weak<Flight>)>,
    ) -> Option<Arc<Flight>> {
        if parts.is_empty() {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let keys: Vec<_> = parts.iter().map(Part::key).collect();
        let (landed, landing) = watch::channel(None);
        let (demanded, demand) = watch::channel(purpose == Purpose::Demand);
        let (fetches, layer) = (Arc::clone(self), Arc::clone(layer));
        let task = self.runtime.spawn(async move {
            let landing = fetches.fly(&layer, parts, purpose, demand).await;
            landed.send_replace(Some(Arc::new(landing)));
        });
        let (task, own) = (task.abort_handle(), Arc::clone(&self.under_way));
        let flight = Arc::new(Flight { number, keys, landing, demanded, task, under_way: own });
        under_way.extend(flight.keys.iter().map(|key| (*key, (number, Arc::downgrade(&flight)))));
        Some(flight)
    }

    async fn fly(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        parts: Vec<Part>,
        purpose: Purpose,
        mut demand: watch::Receiver<bool>,
    ) -> Landing {
        let mut lane = tokio::select! {
            biased;
            lane = self.lanes.take(purpose) => lane,
            () = async { drop(demand.wait_for(|demanded| *demanded).await) } => self.lanes.take(Purpose::Demand).await,
        };
        let Some(span) = span(&parts) else { return Landing::new() };
        let lock = self.lock_range(layer, span).await;
        // Whoever had the range before may have fetched it.
        let parts: Vec<_> = parts.into_iter().filter(|part| !self.shelf.has(&part.tree, part.unit)).collect();
        let Some(span) = self::span(&parts) else { return Landing::new() };
        let buffers = (span.end - span.start).div_ceil(BUFFER as u64);
        let places = self.shelf.warm.places_for(u32::try_from(buffers).unwrap_or(u32::MAX)).await;
        let pieces = match layer.span(span.clone()).await {
            Ok(pieces) => pieces,
            Err(error) => {
                let error = Arc::new(ChunkError::Layer(Arc::new(error)));
                return parts.iter().map(|part| (part.key(), Err(Arc::clone(&error)))).collect();
            }
        };
        lane.carried(span.end - span.start);
        drop(lane);
        let (fetches, layer) = (Arc::clone(self), Arc::clone(layer));
        let keeping = tokio::task::spawn_blocking(move || {
            let _held_until_it_is_kept = lock;
            let keep = |part: &Part| {
                let start = part.content.start - span.start;
                let place = places.get((start / BUFFER as u64) as usize).or(places.last());
                let bytes = Unverified::cut(&pieces, &(start..part.content.end - span.start));
                let (Some(bytes), Some(place)) = (bytes, place) else { return Err(fetches.too_short(&layer)) };
                let kept = fetches.shelf.keep(&layer, &part.tree, part.unit, bytes, Arc::clone(place));
                kept.map_err(|mismatch| fetches.tell(&layer, mismatch))
            };
            parts.iter().map(|part| (part.key(), keep(part).map_err(Arc::new))).collect()
        });
        keeping.await.unwrap_or_default()
    }

    /// The right to fetch a range of a layer, once no other process has it. `None` where processes cannot
    /// tell each other: then both may fetch it, and that is all.
    async fn lock_range(&self, layer: &Layer, range: Range<u64>) -> Option<RangeLock> {
        let fetching = {
            let mut fetching = lock(&self.fetching);
            let open = || self.shelf.workshop.store.fetching(layer.digest()).ok();
            fetching.entry(*layer.digest()).or_insert_with(open).clone()?
        };
        loop {
            match fetching.try_lock(range.clone()) {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) => tokio::time::sleep(LOCK_POLL).await,
                Err(_) => return None,
            }
        }
    }

    /// The source has given a unit that is not what its file's tree says.
    fn tell(&self, layer: &Layer, mismatch: crate::verify::UnitMismatch) -> ChunkError {
        let workshop = &self.shelf.workshop;
        workshop.audit.record_soon(mismatch_event(layer, &mismatch, layer.source.name()));
        let (expected, actual) = (mismatch.expected.clone(), mismatch.actual.clone());
        let error = ChunkError::Mismatch { layer: *layer.digest(), from: layer.source.name(), source: mismatch };
        let mut trouble = Trouble::new(TroubleKind::Mismatch, &error);
        (trouble.expected, trouble.actual) = (Some(expected), Some(actual));
        trouble.layer = Some(layer.digest().to_string());
        trouble.source = Some(layer.source.name());
        workshop.ledger.report(trouble);
        error
    }

    fn too_short(&self, layer: &Layer) -> ChunkError {
        ChunkError::Lost { layer: *layer.digest() }
    }
}

impl Flight {
    /// What came of it, waited for by a reader.
    pub(super) async fn landed(&self) -> Arc<Landing> {
        self.demanded.send_replace(true);
        self.settled().await
    }

    /// The same, waited for by nobody who is in a hurry.
    pub(super) async fn settled(&self) -> Arc<Landing> {
        let mut landing = self.landing.clone();
        let landed = landing.wait_for(Option::is_some).await;
        landed.ok().and_then(|landing| landing.clone()).unwrap_or_default()
    }

    /// Whether it is still under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.landing.borrow().is_none()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        let mut under_way = lock(&self.under_way);
        for key in &self.keys {
            if under_way.get(key).is_some_and(|(number, _)| *number == self.number) {
                under_way.remove(key);
            }
        }
    }
}

/// The bytes of the layer from the first part to the last.
fn span(parts: &[Part]) -> Option<Range<u64>> {
    Some(parts.first()?.content.start..parts.last()?.content.end)
}
