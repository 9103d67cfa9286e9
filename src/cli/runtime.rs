//! The runtime of commands and workers: made so that a system without threads to spare is an error, and no panic.

use std::fs;
use std::io;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::runtime::Runtime;

/// How long threads that are not used stay, and how often one of them is used.
const THREAD_KEPT: Duration = Duration::from_secs(60);
const THREAD_USED: Duration = Duration::from_secs(5);

/// How long threads that have ended may be counted by the system as if they had not.
const LONGEST_END: Duration = Duration::from_millis(200);

/// Starts a runtime.
///
/// tokio queues what may block while there is no thread for it, but panics if it has none at all for such things; nor
/// does it look again until more is queued. So there is always one, which is used from time to time. What finds it busy
/// waits like for a source, in bounded time.
pub fn start() -> io::Result<Runtime> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = match try_threads(processors + 1) {
        Ok(()) => processors,
        Err(_) => try_threads(2).map(|()| 1)?,
    };
    let builder = &mut Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).thread_keep_alive(THREAD_KEPT).enable_all().build()?;
    let first = runtime.spawn_blocking(|| ());
    runtime.spawn(async move {
        let mut used = first;
        loop {
            let _ended = used.await;
            tokio::time::sleep(THREAD_USED).await;
            used = tokio::task::spawn_blocking(|| ());
        }
    });
    Ok(runtime)
}

/// Whether so many more threads can be had at once. tokio panics where its first ones cannot.
fn try_threads(number: usize) -> io::Result<()> {
    let before = threads();
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        (0..number).try_for_each(|_| thread::Builder::new().spawn_scoped(scope, wait).map(drop))
    })?;
    // They count until the system has put them away, which is a moment after they were waited for.
    let deadline = Instant::now() + LONGEST_END;
    while threads() > before && Instant::now() < deadline {
        thread::yield_now();
    }
    Ok(())
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
