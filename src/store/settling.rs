//! What becomes of new files once whoever waited for them has had them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::store::Store;

/// How long new files stay in memory alone. Whoever waited for them reads them now, perhaps through a descriptor
/// that is open for writing, and the disk would be in the way. Until they are on it, all they have to fear is a
/// power cut, which costs another proof.
const SETTLING: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce(&Store) -> io::Result<()> + Send>;

/// What is to be done to new files, by one thread for all of them, which is there while there is something.
#[derive(Default)]
pub(super) struct Settling(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// In the order in which it is due.
    waiting: VecDeque<(Instant, Work)>,
    is_served: bool,
}

impl Store {
    /// Does `work` to new files a while from now, in another thread. Where none can be had it is left: it brings to the
    /// disk what is kept there anyway.
    pub fn when_settled(self: &Arc<Self>, work: impl FnOnce(&Self) -> io::Result<()> + Send + 'static) {
        self.after(SETTLING, work);
    }

    fn after(self: &Arc<Self>, time: Duration, work: impl FnOnce(&Self) -> io::Result<()> + Send + 'static) {
        let mut queue = self.settling.lock();
        queue.waiting.push_back((Instant::now() + time, Box::new(work)));
        if queue.is_served {
            return;
        }
        let store = Arc::clone(self);
        match thread::Builder::new().name("kitfs-settle".to_owned()).spawn(move || store.serve_settling()) {
            Ok(_) => queue.is_served = true,
            Err(error) => {
                queue.waiting.clear();
                tracing::debug!(%error, "new files are not brought to the disk");
            }
        }
    }

    fn serve_settling(&self) {
        while let Some((due, work)) = self.settling.next() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if let Err(error) = work(self) {
                tracing::debug!(%error, "new files are not known to be on the disk");
            }
        }
    }
}

impl Settling {
    /// What is due next. Where there is nothing, nobody serves any more.
    fn next(&self) -> Option<(Instant, Work)> {
        let mut queue = self.lock();
        let next = queue.waiting.pop_front();
        queue.is_served = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settling").field("waiting", &self.lock().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::verify::LocalKey;

    #[test]
    fn one_thread_settles_all_in_turn_and_another_what_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path(), LocalKey::new([1; 32])).unwrap());
        for round in 0..2 {
            let (done, finished) = mpsc::channel();
            for number in 0..50 {
                let done = done.clone();
                store.after(Duration::from_millis(50), move |_| {
                    done.send((number, thread::current().id())).unwrap();
                    Err(io::ErrorKind::StorageFull.into())
                });
            }
            drop(done);
            let (numbers, threads): (Vec<_>, Vec<_>) = finished.iter().unzip();
            assert_eq!(numbers, (0..50).collect::<Vec<_>>());
            assert!(threads.iter().all(|thread| *thread == threads[0]), "in round {round}: {threads:?}");
            while store.settling.lock().is_served {
                thread::yield_now();
            }
        }
    }
}
