//! Hand-made concurrency under shuttle: the files themselves, with its locks and tasks in place of the real ones, run
//! in thousands of schedules, of which some find what a stress test meets once a month. Where somebody waits for ever
//! shuttle says so.
//!
//! What these files use of tokio wakes tasks and never blocks them, so it is the same here. Without the harness, which
//! would bring the files' own tests along.

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

mod sync;

mod source {
    pub(crate) use kitfs::source::FAST;
}

mod verify {
    pub(crate) use kitfs::verify::Verified;
}

mod chunks {
    pub(crate) use kitfs::chunks::ChunkError;

    use crate::sync::{Mutex, MutexGuard, PoisonError};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) mod warm {
        pub(crate) type Key = (kitfs::verity::VerityDigest, u64);
    }

    #[path = "../../../src/chunks/flight.rs"]
    #[expect(dead_code, reason = "a part of it is about other code")]
    mod flight;
    #[path = "../../../src/chunks/lanes.rs"]
    #[expect(
        dead_code,
        unused_imports,
        reason = "a part of it is about other code, and its own tests are not run here"
    )]
    mod lanes;

    pub(crate) mod flights;
    pub(crate) mod turns;
}

/// Schedules at random, and as many with few changes of task at the worst moments.
const SCHEDULES: usize = 4000;

/// The same in each run.
const SEED: u64 = 6;

/// Changes of task that have to come together.
const DEPTH: usize = 3;

fn main() {
    let scenarios: [(&str, fn()); 4] = [
        ("who gives up waiting for a lane holds nobody up", chunks::turns::who_gives_up_holds_nobody_up),
        ("all get a lane, and never too many at once", chunks::turns::all_get_a_lane),
        ("all get a lane, where a fast link wants few", chunks::turns::all_get_a_lane_of_a_fast_link),
        ("whoever waits for a fetch has what it brings", chunks::flights::who_waits_has_what_comes),
    ];
    for (name, scenario) in scenarios {
        let at_random = RandomScheduler::new_from_seed(SEED, SCHEDULES);
        Runner::new(at_random, Config::default()).run(scenario);
        let few_changes = PctScheduler::new_from_seed(SEED, DEPTH, SCHEDULES);
        Runner::new(few_changes, Config::default()).run(scenario);
        println!("{name} ... ok, in {} schedules", 2 * SCHEDULES);
    }
}
