//! Fetches that wait for their turn.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::select;
use shuttle::future::{block_on, spawn, yield_now};
use tokio::sync::oneshot;

use super::lanes::{Lanes, Purpose};

/// Lanes at the start, and on a fast link.
const LANES: usize = 8;
const FEW: usize = 2;

/// As many lanes are free as there should be, and nobody counts as waiting: else the background had to.
fn assert_free(lanes: &Arc<Lanes>, count: usize) {
    let held: Vec<_> = std::iter::from_fn(|| lanes.take(Purpose::Background).now_or_never()).take(LANES + 1).collect();
    assert_eq!(held.len(), count);
}

pub fn who_gives_up_holds_nobody_up() {
    block_on(async {
        let lanes = Lanes::new();
        let mut held = Vec::new();
        for _ in 0..LANES {
            held.push(lanes.take(Purpose::Demand).await);
        }
        let (give_up, given_up) = oneshot::channel::<()>();
        let waiting = [
            spawn({
                let lanes = Arc::clone(&lanes);
                async move { drop(select(given_up, pin!(lanes.take(Purpose::Ahead))).await) }
            }),
            spawn({
                let lanes = Arc::clone(&lanes);
                async move { drop(lanes.take(Purpose::Background).await) }
            }),
        ];
        let giving_up = spawn(async move { drop(give_up) });
        drop(held);
        giving_up.await.expect("it does not panic");
        for task in waiting {
            task.await.expect("it does not panic");
        }
        assert_free(&lanes, LANES);
    });
}

/// Counts a fetch among those under way.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(under_way: &'a AtomicUsize) -> Self {
        let before = under_way.fetch_add(1, Ordering::Relaxed);
        assert!(before < LANES, "{before} are under way, and one more");
        Self(under_way)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check_all_get_a_lane(is_fast: bool) {
    block_on(async move {
        let lanes = Lanes::new();
        let under_way = Arc::new(AtomicUsize::new(0));
        let purposes = [
            Purpose::Ahead,
            Purpose::Background,
            Purpose::Ahead,
            Purpose::Demand,
            Purpose::Ahead,
            Purpose::Ahead,
            Purpose::Background,
        ];
        // More than there are lanes for.
        let fetches = purposes.into_iter().cycle().take(LANES + 4).map(|purpose| {
            let (lanes, under_way) = (Arc::clone(&lanes), Arc::clone(&under_way));
            spawn(async move {
                let lane = lanes.take(purpose).await;
                // A reader does not wait for lanes.
                let _counted = (purpose != Purpose::Demand).then(|| Counted::new(&under_way));
                yield_now().await;
                if is_fast {
                    lane.flowed(1 << 30, Duration::from_millis(1));
                }
            })
        });
        let fetches: Vec<_> = fetches.collect();
        // One of them goes away, whether it waits, has a lane, or is done.
        fetches[2].abort();
        for (number, fetch) in fetches.into_iter().enumerate() {
            assert!(fetch.await.is_ok() || number == 2);
        }
        assert_free(&lanes, if is_fast { FEW } else { LANES });
    });
}

pub fn all_get_a_lane() {
    check_all_get_a_lane(false);
}

pub fn all_get_a_lane_of_a_fast_link() {
    check_all_get_a_lane(true);
}
