//! A fetch on its way, and what has come of it so far.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::watch;

use crate::chunks::ChunkError;
use crate::chunks::lock;
use crate::chunks::warm::Key;
use crate::sync::{AbortHandle, Mutex};
use crate::verify::Verified;

/// What came of a part: its bytes, `None` where the disk has them, or why there are none.
pub(super) type Landed = Result<Option<Verified<Bytes>>, Arc<ChunkError>>;

/// What has come of a fetch so far. A part that is missing in the end was at hand when its turn came.
pub(super) type Landing = HashMap<Key, Landed>;

/// The fetches that are under way, by what they bring.
pub(super) type UnderWay = Mutex<HashMap<Key, Weak<Flight>>>;

/// A fetch on its way. Dropping the last one that holds it ends it.
#[derive(Debug)]
pub(super) struct Flight {
    keys: Vec<Key>,
    /// Closed when it is over.
    landing: watch::Receiver<Landing>,
    /// How many of the parts, from the first on, somebody waits for by now, whatever it was begun for.
    demanded: watch::Sender<usize>,
    task: AbortHandle,
    under_way: Arc<UnderWay>,
}

/// Where a fetch says what has come of it. Dropping it ends the flight.
#[derive(Debug)]
pub(super) struct Arrivals(watch::Sender<Landing>);

impl Arrivals {
    /// These have come.
    pub(super) fn land(&self, parts: impl IntoIterator<Item = (Key, Landed)>) {
        self.0.send_modify(|landing| landing.extend(parts));
    }

    /// Those of these that have not come will not.
    pub(super) fn fail(&self, keys: impl IntoIterator<Item = Key>, error: ChunkError) {
        let error = Arc::new(error);
        self.0.send_modify(|landing| {
            for key in keys {
                landing.entry(key).or_insert_with(|| Err(Arc::clone(&error)));
            }
        });
    }
}

impl Flight {
    /// Begins a fetch of these parts. `spawn` is given where to say what comes of it, and what is more than 0 once a
    /// reader waits.
    pub(super) fn begin(
        keys: Vec<Key>,
        is_demanded: bool,
        under_way: &Arc<UnderWay>,
        spawn: impl FnOnce(Arrivals, watch::Receiver<usize>) -> AbortHandle,
    ) -> Arc<Self> {
        let (arrivals, landing) = watch::channel(Landing::new());
        let (demanded, demand) = watch::channel(if is_demanded { keys.len() } else { 0 });
        let task = spawn(Arrivals(arrivals), demand);
        Arc::new(Self { keys, landing, demanded, task, under_way: Arc::clone(under_way) })
    }

    /// The parts that it was begun for.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// What came of these, waited for by a reader. Of those that it does not bring nothing is said.
    pub(super) async fn landed(&self, keys: &[Key]) -> Landing {
        let last = self.keys.iter().rposition(|key| keys.contains(key)).map_or(0, |last| last + 1);
        self.demanded.send_modify(|demanded| *demanded = last.max(*demanded));
        let wanted: Vec<_> = keys.iter().filter(|key| self.keys.contains(key)).collect();
        let mut landing = self.landing.clone();
        // It may be over before all have come.
        drop(landing.wait_for(|landing| wanted.iter().all(|key| landing.contains_key(key))).await);
        let landing = self.landing.borrow();
        wanted.into_iter().filter_map(|key| Some((*key, landing.get(key)?.clone()))).collect()
    }

    /// How many parts of the same file come before this one that nobody waits for.
    pub(super) fn before(&self, key: &Key) -> usize {
        let (landing, demanded) = (self.landing.borrow(), *self.demanded.borrow());
        let before = self.keys.iter().take_while(|other| *other != key).skip(demanded);
        before.filter(|other| other.0 == key.0 && !landing.contains_key(other)).count()
    }

    /// Waits until it is over, in no hurry.
    pub(super) async fn settled(&self) {
        let mut landing = self.landing.clone();
        drop(landing.wait_for(|_| false).await);
    }

    /// Whether it is still under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.landing.has_changed().is_ok()
    }

    /// Whether a part is still to come.
    pub(super) fn brings(&self, key: &Key) -> bool {
        self.is_under_way() && !self.landing.borrow().contains_key(key)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        let mut under_way = lock(&self.under_way);
        for key in &self.keys {
            if under_way.get(key).is_some_and(|flight| std::ptr::eq(flight.as_ptr(), self)) {
                under_way.remove(key);
            }
        }
    }
}
