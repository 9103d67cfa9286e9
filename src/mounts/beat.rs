//! A sign of life that outlives its process: whether a worker has answered the kernel at all.
//!
//! A page that holder and worker share. A worker that dies before its first answer probably died of the
//! request that its successor will be sent too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: usize = 4096;

/// A worker's sign of life. Clones are the same sign.
#[derive(Clone, Debug)]
pub struct Beat(Arc<Page>);

/// Points at `PAGE` bytes of shared memory, mapped until dropped.
#[derive(Debug)]
struct Page(NonNull<AtomicU32>);

// SAFETY: the page is only reached as an atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Beat {
    /// Says that a request was answered. Costs nothing after the first time.
    pub fn answered(&self) {
        let answered = self.0.get();
        if answered.load(Ordering::Relaxed) == 0 {
            answered.store(1, Ordering::Release);
        }
    }

    /// Whether any was.
    pub(super) fn has_answered(&self) -> bool {
        self.0.get().load(Ordering::Acquire) != 0
    }

    /// A new sign, and the descriptor that gives it to a worker.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let memory = rustix::fs::memfd_create("kitfs-beat", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, PAGE as u64)?;
        Ok((Self::from_descriptor(&memory)?, memory))
    }

    /// The sign that a descriptor leads to.
    pub(super) fn from_descriptor(memory: impl AsFd) -> io::Result<Self> {
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
        let page = NonNull::new(page.cast::<AtomicU32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Arc::new(Page(page))))
    }
}

impl Page {
    fn get(&self) -> &AtomicU32 {
        // SAFETY: mapped as long as `self`, page-aligned, and any bits are a number.
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
    fn an_answer_is_seen_through_another_mapping() {
        let (here, memory) = Beat::new().unwrap();
        let there = Beat::from_descriptor(&memory).unwrap();
        assert!(!here.has_answered());
        there.answered();
        drop(there);
        assert!(here.has_answered());
    }
}
