//! Signs of life that outlive their process: that it lives, that it has answered, and what it was doing.
//!
//! A page that holder and worker share. A worker that dies before its first answer probably died of the
//! request that its successor will be sent too; which one that was stands in the notes.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fuser::RequestId;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::fuse::opens::RESENT;

const PAGE: usize = 4096;

/// Numbers in a page: the first two are signs, the others notes, one for each thread.
const WORDS: usize = PAGE / size_of::<AtomicU64>();

const ANSWERED: usize = 0;
const BEATS: usize = 1;
const NOTES: usize = 2;

/// A worker's signs of life. Clones are the same.
#[derive(Clone, Debug)]
pub struct Beat(Arc<Page>);

/// Points at `PAGE` bytes of shared memory, mapped until dropped.
#[derive(Debug)]
struct Page(NonNull<[AtomicU64; WORDS]>);

// SAFETY: the page is only reached as atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

/// Says that a request is being worked on, for as long as it lives.
#[derive(Debug)]
pub struct Note<'a> {
    place: Option<&'a AtomicU64>,
    /// What the thread worked on before.
    before: u64,
}

impl Beat {
    /// Says that a request was answered. Costs nothing after the first time.
    pub fn answered(&self) {
        let answered = &self.0.get()[ANSWERED];
        if answered.load(Ordering::Relaxed) == 0 {
            answered.store(1, Ordering::Release);
        }
    }

    /// Whether any was.
    pub fn has_answered(&self) -> bool {
        self.0.get()[ANSWERED].load(Ordering::Acquire) != 0
    }

    /// Says that the process lives.
    pub fn beat(&self) {
        self.0.get()[BEATS].fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was said.
    pub fn beats(&self) -> u64 {
        self.0.get()[BEATS].load(Ordering::Relaxed)
    }

    /// Notes that this thread works on a request, until the note is dropped.
    pub fn note(&self, request: RequestId) -> Note<'_> {
        let place = self.0.get().get(NOTES + thread_number());
        let before = place.map_or(0, |place| place.swap(request.0 & !RESENT, Ordering::Relaxed));
        Note { place, before }
    }

    /// Does the work of a request that may wait in between: it is noted while a thread is at it, for a request
    /// that waits kills nobody.
    pub async fn noted<T>(&self, request: RequestId, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            let _note = self.note(request);
            work.as_mut().poll(context)
        })
        .await
    }

    /// The requests that are being worked on, or were when the process died. Numbers are without the mark of
    /// those that are sent again.
    pub fn noted_requests(&self) -> Vec<u64> {
        let notes = self.0.get()[NOTES..].iter().map(|note| note.load(Ordering::Acquire));
        notes.filter(|request| *request != 0).collect()
    }

    /// New signs, and the descriptor that gives them to a worker.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let memory = rustix::fs::memfd_create("kitfs-beat", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, PAGE as u64)?;
        Ok((Self::from_descriptor(&memory)?, memory))
    }

    /// The signs that a descriptor leads to.
    pub fn from_descriptor(memory: impl AsFd) -> io::Result<Self> {
        if rustix::fs::fstat(&memory)?.st_size < PAGE as i64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping, placed by the kernel.
        let page = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        let page = NonNull::new(page.cast::<[AtomicU64; WORDS]>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Arc::new(Page(page))))
    }
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.store(self.before, Ordering::Relaxed);
        }
    }
}

/// A number that no other thread has. There are more threads than notes only where something else is wrong.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<Option<usize>> = const { Cell::new(None) });
    NUMBER.with(|number| match number.get() {
        Some(number) => number,
        None => {
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            number.set(Some(next));
            next
        }
    })
}

impl Page {
    fn get(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: mapped as long as `self`, page-aligned, and any bits are numbers.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more. Failure leaves a page mapped.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_seen_through_another_mapping() {
        let (here, memory) = Beat::new().unwrap();
        let there = Beat::from_descriptor(&memory).unwrap();
        assert!(!here.has_answered());
        there.answered();
        there.beat();
        let note = there.note(RequestId(7 | RESENT));
        assert_eq!((here.has_answered(), here.beats(), here.noted_requests()), (true, 1, vec![7]));
        drop(note);
        assert!(here.noted_requests().is_empty());
        drop(there);
        assert!(here.has_answered());
    }

    #[tokio::test]
    async fn work_is_noted_while_a_thread_is_at_it() {
        let (beat, _memory) = Beat::new().unwrap();
        let mut work = pin!(beat.noted(RequestId(7), async {
            assert_eq!(beat.noted_requests(), [7]);
            tokio::task::yield_now().await;
            assert_eq!(beat.noted_requests(), [7]);
        }));
        assert!(futures_util::poll!(work.as_mut()).is_pending());
        assert!(beat.noted_requests().is_empty(), "it waits");
        work.await;
        assert!(beat.noted_requests().is_empty());
    }
}
