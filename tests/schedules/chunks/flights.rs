//! Readers that share a fetch, and some that leave it.

use std::sync::{Arc, Mutex, Weak};

use kitfs::verity::VerityDigest;
use shuttle::future::{block_on, spawn, yield_now};

use super::flight::{Flight, UnderWay};
use super::lock;
use super::warm::Key;

const KEYS: [Key; 2] = [(VerityDigest([1; 32]), 0), (VerityDigest([1; 32]), 1)];

/// Fetches that are under way, and all that were begun.
#[derive(Default)]
struct Sky {
    under_way: Arc<UnderWay>,
    begun: Mutex<Vec<Weak<Flight>>>,
}

impl Sky {
    /// The fetch that brings a key: one that is under way, or a new one, for all that none brings. As readers do it,
    /// under the lock, and what is not needed is let go of behind it.
    fn find(&self, wanted: &Key) -> Arc<Flight> {
        let mut spent = Vec::new();
        let mut under_way = lock(&self.under_way);
        let mut run = Vec::new();
        for key in KEYS {
            match under_way.get(&key).and_then(Weak::upgrade) {
                Some(flight) if flight.brings(&key) && key == *wanted => return flight,
                Some(flight) if flight.brings(&key) => spent.push(flight),
                found => {
                    spent.extend(found);
                    run.push(key);
                }
            }
        }
        let mut begun = self.begun.lock().expect("no task panics");
        spent.extend(begun.iter().filter_map(Weak::upgrade));
        let is_brought = |key| spent.iter().any(|flight| flight.keys().contains(key) && flight.brings(key));
        assert!(!run.iter().any(is_brought), "it is fetched twice at once");
        let flight = Flight::begin(run.clone(), false, &self.under_way, |arrivals, mut demand| {
            spawn(async move {
                // What is fetched ahead may wait until somebody wants it.
                if demand.wait_for(|demanded| *demanded > 0).await.is_err() {
                    return;
                }
                for key in run {
                    yield_now().await;
                    arrivals.land([(key, Ok(None))]);
                }
            })
            .abort_handle()
        });
        begun.push(Arc::downgrade(&flight));
        drop(begun);
        under_way.extend(flight.keys().iter().map(|key| (*key, Arc::downgrade(&flight))));
        flight
    }
}

pub fn who_waits_has_what_comes() {
    block_on(async {
        let sky = Arc::new(Sky::default());
        let readers = [0, 1, 2, 3, 4].map(|number| {
            let sky = Arc::clone(&sky);
            spawn(async move {
                let key = KEYS[number % 2];
                let flight = sky.find(&key);
                if number == 0 {
                    // Somebody who looked ahead, and does not care any more.
                    return yield_now().await;
                }
                let landing = flight.landed(&[key]).await;
                assert!(matches!(landing.get(&key), Some(Ok(None))), "{landing:?}");
                yield_now().await;
            })
        });
        for reader in readers {
            reader.await.expect("it does not panic");
        }
        assert!(lock(&sky.under_way).is_empty(), "a fetch that nobody holds is under way");
    });
}
