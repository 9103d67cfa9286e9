//! Proved units that are still in memory, and the room for those on their way.
//!
//! A fetch takes its room before it begins, so memory is bounded however many readers wait: who waits
//! has a place in a queue and no buffer. What has arrived keeps its room for as long as nobody else
//! needs it: the kernel reads a unit in several pieces, and where the disk does not take it this is
//! where it is read from.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::verify::Verified;
use crate::verity::VerityDigest;

/// A unit of a file.
pub(super) type Key = (VerityDigest, u64);

/// Room for one buffer, given back when the last one drops it.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// More units than fit any budget that makes sense: small files are many to a buffer.
const MOST: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("is not zero");

/// The units in memory.
#[derive(Debug)]
pub(super) struct Warm {
    room: Arc<Semaphore>,
    places: u32,
    waiting: AtomicUsize,
    units: Mutex<LruCache<Key, (Verified<Bytes>, Place)>>,
}

impl Warm {
    /// Room for so many buffers.
    pub(super) fn new(places: u32) -> Self {
        let room = Arc::new(Semaphore::new(places as usize));
        Self { room, places, waiting: AtomicUsize::new(0), units: Mutex::new(LruCache::new(MOST)) }
    }

    /// How many buffers there is room for.
    pub(super) fn places(&self) -> u32 {
        self.places
    }

    /// A unit, if it is here.
    pub(super) fn unit(&self, key: &Key) -> Option<Verified<Bytes>> {
        self.lock().get(key).map(|(bytes, _)| bytes.clone())
    }

    /// Keeps a unit for as long as its room is not needed.
    pub(super) fn keep(&self, key: Key, bytes: Verified<Bytes>, place: Place) {
        let mut units = self.lock();
        units.put(key, (bytes, place));
        if self.waiting.load(Ordering::SeqCst) > 0 {
            units.clear();
        }
    }

    /// Room for `buffers` at once, one place each: what is kept makes room, then the wait is for others' fetches.
    pub(super) async fn places_for(&self, buffers: u32) -> Vec<Place> {
        let buffers = buffers.min(self.places);
        let room = || Arc::clone(&self.room);
        let mut permit = loop {
            if let Ok(permit) = room().try_acquire_many_owned(buffers) {
                break permit;
            }
            if self.lock().pop_lru().is_none() {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let _counted = Waiting(&self.waiting);
                // Whatever was put here before the wait was counted.
                self.lock().clear();
                // Nobody closes the semaphore: it lives as long as this value.
                break room().acquire_many_owned(buffers).await.expect("the room is never closed");
            }
        };
        let mut places: Vec<_> = (1..buffers).filter_map(|_| permit.split(1)).map(Arc::new).collect();
        places.push(Arc::new(permit));
        places
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Key, (Verified<Bytes>, Place)>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_kept_makes_room_for_what_comes() {
        let warm = Warm::new(2);
        let key = |unit| (VerityDigest([0; 32]), unit);
        for unit in 0..5 {
            let place = warm.places_for(1).await.remove(0);
            warm.keep(key(unit), Verified::nothing(), place);
        }
        let kept: Vec<_> = (0..5).filter(|&unit| warm.unit(&key(unit)).is_some()).collect();
        assert_eq!(kept, [3, 4]);
        let all = warm.places_for(100).await;
        assert_eq!(all.len(), 2);
        let waits = warm.places_for(1);
        let freed = async { drop(all) };
        assert_eq!(tokio::join!(waits, freed).0.len(), 1);
    }
}
