//! Fetches on their way: each unit once, whoever asks, in this process and across processes.
//!
//! A fetch is one request for parts that lie side by side in a layer: units of one file, or many small
//! files. It lives as long as somebody holds it: a reader that waits, or a window that reads ahead.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::buffers::BUFFER;
use crate::chunks::ChunkError;
use crate::chunks::flight::Arrivals;
use crate::chunks::flight::Flight;
use crate::chunks::flight::Landed;
use crate::chunks::flight::UnderWay;
use crate::chunks::lanes::Lane;
use crate::chunks::lanes::Lanes;
use crate::chunks::lanes::Purpose;
use crate::chunks::lanes::Turn;
use crate::chunks::lock;
use crate::chunks::shelf::Shelf;
use crate::chunks::shelf::mismatch_event;
use crate::chunks::warm::Key;
use crate::chunks::warm::Place;
use crate::digest::Digest;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::patience::Patience;
use crate::store::Fetching;
use crate::store::RangeLock;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verity::FileTree;
use crate::verity::UNIT;

/// How often a process looks whether another one has fetched what both want.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Bytes in one request that reads ahead, at least; and at most where all of them have to be in memory at once.
pub(super) const SEGMENT: u64 = 2 * BUFFER as u64;

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

/// Fetches for one mount.
#[derive(Debug)]
pub(super) struct Fetches {
    pub(super) shelf: Shelf,
    pub(super) lanes: Arc<Lanes>,
    pub(super) runtime: Handle,
    under_way: Arc<UnderWay>,
    /// Where other processes are told what is fetched; `None` where that cannot be.
    fetching: Mutex<HashMap<Digest, Option<Fetching>>>,
}

impl Fetches {
    /// Fetches through the shelf, on this runtime.
    pub(super) fn new(shelf: Shelf, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { shelf, lanes: Lanes::new(), runtime, under_way: Arc::default(), fetching: Mutex::default() })
    }

    /// The fetches that bring these parts, which are in the layer's order: those that are under way, and
    /// new ones of at most `most` bytes for the rest. What a reader waits for is fetched apart where a fetch that is
    /// under way brings much else before it.
    pub(super) fn of(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        parts: impl IntoIterator<Item = Part>,
        purpose: Purpose,
        most: u64,
    ) -> Vec<Arc<Flight>> {
        // Dropped behind the lock: the last one that holds a flight takes it.
        let mut spent = Vec::new();
        let mut under_way = lock(&self.under_way);
        let mut flights: Vec<Arc<Flight>> = Vec::new();
        let mut run: Vec<Part> = Vec::new();
        for part in parts {
            let mut found = under_way.get(&part.key()).and_then(Weak::upgrade);
            spent.extend(found.take_if(|flight| !flight.brings(&part.key())));
            if purpose == Purpose::Demand && layer.flows() {
                spent.extend(found.take_if(|flight| flight.before(&part.key()) as u64 * UNIT > SEGMENT));
            }
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
                Some(flight) if flights.iter().any(|known| Arc::ptr_eq(known, &flight)) => {}
                Some(flight) => flights.push(flight),
                None => run.push(part),
            }
        }
        flights.extend(self.begin(layer, run, purpose, &mut under_way));
        flights
    }

    /// Whether a fetch of this part is under way.
    pub(super) fn brings(&self, key: &Key) -> bool {
        // Bound before it is asked: the last one that holds a flight takes the lock.
        let flight = lock(&self.under_way).get(key).and_then(Weak::upgrade);
        flight.is_some_and(|flight| flight.brings(key))
    }

    fn begin(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        parts: Vec<Part>,
        purpose: Purpose,
        under_way: &mut HashMap<Key, Weak<Flight>>,
    ) -> Option<Arc<Flight>> {
        if parts.is_empty() {
            return None;
        }
        let keys: Vec<_> = parts.iter().map(Part::key).collect();
        let (fetches, layer) = (Arc::clone(self), Arc::clone(layer));
        let turn = self.lanes.queue(purpose);
        let flight = Flight::begin(keys, purpose == Purpose::Demand, &self.under_way, |arrivals, demand| {
            let fly = async move { fetches.fly(layer, parts, turn, demand, &arrivals).await };
            self.runtime.spawn(fly).abort_handle()
        });
        under_way.extend(flight.keys().iter().map(|key| (*key, Arc::downgrade(&flight))));
        Some(flight)
    }

    async fn fly(
        self: &Arc<Self>,
        layer: Arc<Layer>,
        parts: Vec<Part>,
        turn: Turn,
        mut demand: watch::Receiver<usize>,
        arrivals: &Arrivals,
    ) {
        let purpose = turn.purpose();
        let mut lane = tokio::select! {
            biased;
            lane = turn.lane() => lane,
            () = async { drop(demand.wait_for(|demanded| *demanded > 0).await) } => self.lanes.take(Purpose::Demand).await,
        };
        let Some(span) = span(&parts) else { return };
        let lock = self.lock_range(&layer, span).await.map(Arc::new);
        // Whoever had the range before may have fetched it.
        let parts: Vec<_> = parts.into_iter().filter(|part| !self.shelf.has(&part.tree, part.unit)).collect();
        let is_one_file = parts.windows(2).all(|two| two[0].tree.verity == two[1].tree.verity);
        for run in parts.chunk_by(|one, next| !is_one_file || one.content.end == next.content.start) {
            let Some(span) = self::span(run) else { return };
            let keys: Vec<_> = run.iter().map(Part::key).collect();
            if layer.flows() && self.shelf.disk_rests() && purpose != Purpose::Demand && span.end - span.start > SEGMENT
            {
                // It was begun to be kept as it comes. Who waits for some of it asks for that.
                return;
            }
            let run = Run { layer: Arc::clone(&layer), parts: run.to_vec(), _lock: lock.clone() };
            let fetched = if is_one_file && layer.flows() && !self.shelf.disk_rests() {
                self.fetch_in_turn(run, span.clone(), &lane, arrivals).await
            } else {
                self.fetch_at_once(run, span.clone(), arrivals).await
            };
            if let Err(error) = fetched {
                arrivals.fail(keys, ChunkError::Layer(Arc::new(error)));
                return;
            }
            lane.carried(span.end - span.start);
        }
    }

    /// Fetches units that follow each other in a file, and keeps each while the next is on its way.
    async fn fetch_in_turn(
        self: &Arc<Self>,
        run: Run,
        span: Range<u64>,
        lane: &Lane,
        arrivals: &Arrivals,
    ) -> Result<(), LayerError> {
        let mut parts = run.parts.iter().cloned().peekable();
        let (start, mut at) = (span.start, span.start);
        let is_long = span.end - span.start > SEGMENT;
        let mut flow = run.layer.flow(span);
        let mut keeping: Option<JoinHandle<Vec<_>>> = None;
        while parts.peek().is_some() {
            let next = async {
                let places = self.shelf.warm.places_for(1).await;
                let asked = Instant::now();
                (places, flow.next().await, asked.elapsed())
            };
            // Nobody waits for a piece that has come until the next one has.
            let land = async {
                let Some(keeping) = keeping.take() else { return true };
                let landed = keeping.await.unwrap_or_default();
                let is_kept = landed.iter().all(|(_, landed)| !matches!(landed, Ok(Some(_))));
                arrivals.land(landed);
                is_kept
            };
            let ((places, piece, waited), is_kept) = tokio::join!(next, land);
            if !is_kept && is_long {
                // The disk takes no more, and memory has no room for all of it.
                return Ok(());
            }
            let Some(piece) = piece.transpose()? else { break };
            let here = at..at + piece.len() as u64;
            at = here.end;
            if here.start > start {
                lane.flowed(piece.len() as u64, waited);
            }
            let complete = std::iter::from_fn(|| parts.next_if(|part| part.content.end <= at)).collect();
            let run = Run { layer: Arc::clone(&run.layer), parts: complete, _lock: run._lock.clone() };
            keeping = Some(self.keep(run, here.start, vec![piece], places));
        }
        if let Some(keeping) = keeping {
            arrivals.land(keeping.await.unwrap_or_default());
        }
        // A connection that was read to the end can be used again. Nobody waits for that.
        let _end = flow.next().await;
        Ok(())
    }

    /// Fetches parts that lie side by side by one request, with all that lies between them.
    async fn fetch_at_once(
        self: &Arc<Self>,
        run: Run,
        span: Range<u64>,
        arrivals: &Arrivals,
    ) -> Result<(), LayerError> {
        let buffers = (span.end - span.start).div_ceil(BUFFER as u64);
        let places = self.shelf.warm.places_for(u32::try_from(buffers).unwrap_or(u32::MAX)).await;
        let pieces = run.layer.span(span.clone()).await?;
        arrivals.land(self.keep(run, span.start, pieces, places).await.unwrap_or_default());
        Ok(())
    }

    /// Proves and keeps the parts of a run. Their bytes are in these pieces, which begin at `start` of the layer.
    fn keep(
        self: &Arc<Self>,
        run: Run,
        start: u64,
        pieces: Vec<Unverified>,
        places: Vec<Place>,
    ) -> JoinHandle<Vec<(Key, Landed)>> {
        let fetches = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let keep = |part: &Part| {
                if fetches.shelf.has(&part.tree, part.unit) {
                    // Somebody could not wait, and has fetched it apart.
                    return Some(Ok(None));
                }
                let (begin, end) = (part.content.start.checked_sub(start)?, part.content.end - start);
                let place = places.get((begin / BUFFER as u64) as usize).or(places.last())?;
                let bytes = Unverified::cut(&pieces, &(begin..end))?;
                let kept = fetches.shelf.keep(&run.layer, &part.tree, part.unit, bytes, Arc::clone(place));
                let landed = kept.map(|kept| (!kept.is_on_disk).then_some(kept.bytes));
                Some(landed.map_err(|mismatch| Arc::new(fetches.tell(&run.layer, mismatch))))
            };
            let short = || Err(Arc::new(ChunkError::Lost { layer: *run.layer.digest() }));
            run.parts.iter().map(|part| (part.key(), keep(part).unwrap_or_else(short))).collect()
        })
    }

    /// The right to fetch a range of a layer, once no other process has it. `None` where processes cannot
    /// tell each other, or one holds it for too long: then both may fetch it, and that is all.
    async fn lock_range(&self, layer: &Layer, range: Range<u64>) -> Option<RangeLock> {
        let fetching = {
            let mut fetching = lock(&self.fetching);
            let open = || self.shelf.workshop.store.fetching(layer.digest()).ok();
            fetching.entry(*layer.digest()).or_insert_with(open).clone()?
        };
        // The other one may be stopped, or hang at its disk. A read has the rest of its time for its own fetch.
        let mut patience = Patience::new(self.shelf.workshop.read_timeout / 2);
        loop {
            match fetching.try_lock(range.clone()) {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if patience.pause(LOCK_POLL).await => {}
                Ok(None) | Err(_) => return None,
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
}

/// Parts that are fetched by one request.
struct Run {
    layer: Arc<Layer>,
    parts: Vec<Part>,
    /// Held until they are kept.
    _lock: Option<Arc<RangeLock>>,
}

/// The bytes of the layer from the first part to the last.
fn span(parts: &[Part]) -> Option<Range<u64>> {
    Some(parts.first()?.content.start..parts.last()?.content.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verity::VerityDigest;

    const LARGE: VerityDigest = VerityDigest([1; 32]);

    /// A fetch that goes on for ever, of eight units of a file, and where to say what has come.
    fn flight(is_demanded: bool) -> (Arc<Flight>, Arrivals) {
        let (mut given, keys) = (None, (0..8).map(|unit| (LARGE, unit)).collect());
        let flight = Flight::begin(keys, is_demanded, &Arc::default(), |arrivals, _| {
            given = Some(arrivals);
            tokio::spawn(std::future::pending::<()>()).abort_handle()
        });
        (flight, given.unwrap())
    }

    #[tokio::test]
    async fn what_has_come_and_what_is_waited_for_holds_nobody_up() {
        let (flight, arrivals) = flight(false);
        let before = |unit| flight.before(&(LARGE, unit));
        assert_eq!([0, 1, 7].map(before), [0, 1, 7]);
        arrivals.land([0, 1].map(|unit| ((LARGE, unit), Ok(None))));
        assert_eq!([2, 7].map(before), [0, 5]);
        let waits = flight.landed(&[(LARGE, 4)]);
        assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err());
        assert_eq!([3, 5, 7].map(before), [0, 0, 2]);
    }

    #[tokio::test]
    async fn what_a_reader_asked_for_is_all_waited_for() {
        assert_eq!(flight(true).0.before(&(LARGE, 7)), 0);
    }
}
