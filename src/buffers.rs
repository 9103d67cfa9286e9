//! Page-aligned memory for file and reply data, kept warm in a pool.
//!
//! Alignment: on current x86 CPUs a copy out of the page cache into memory that is not 64-byte aligned
//! runs at a fifth of its speed, and a large `Vec` from glibc never is aligned. Warmth: a reply that is
//! copied out of memory not yet touched can be cut short when the process is killed in its middle, so
//! a buffer's pages are faulted in once, when it is made, and the buffer is reused.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes in every buffer: the largest request that the kernel sends, and two units of proof.
pub const BUFFER: usize = 1024 * 1024;

/// Bytes to write to a file at once. The kernel takes the pages for a write in pieces as large as it is, and the
/// large pieces are those that a virtual machine has never had from its host, or has given back to it: getting one
/// costs more than everything else (Linux 6.18 in Firecracker, with free page reporting). What is written in pieces
/// of 32 KiB took 0.31 to 0.38 s a GiB whatever the memory had gone through, in pieces of 256 KiB 0.24 to 1.7 s, of
/// 1 MiB 0.7 to 2.6 s. Smaller ones are slower everywhere.
pub const WRITE: usize = 32 * 1024;

/// The fewest buffers for anything, whatever the memory budget says: one layer on its way needs that many.
const LEAST: usize = 8;

/// How many buffers a share of the memory budget is, in bytes.
pub fn count_in(share: u64) -> usize {
    usize::try_from(share / BUFFER as u64).unwrap_or(usize::MAX).max(LEAST)
}

/// A pool of buffers of [`BUFFER`] bytes. Clones share it.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: Mutex<Vec<Pages>>,
    keep: usize,
}

impl Buffers {
    /// A pool that keeps at most `keep` unused buffers.
    pub fn new(keep: usize) -> Self {
        Self(Arc::new(Pool { free: Mutex::default(), keep }))
    }

    /// A buffer whose content is arbitrary: whatever its last user left.
    pub fn take(&self) -> std::io::Result<Buffer> {
        let pages = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pages = match pages {
            Some(pages) => pages,
            None => Pages::map()?,
        };
        Ok(Buffer { pages: Some(pages), len: BUFFER, pool: Arc::clone(&self.0) })
    }
}

/// One buffer, exclusively owned. It goes back to its pool when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// `None` only while it is being dropped.
    pages: Option<Pages>,
    len: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// Cuts the buffer to its first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Turns the buffer into shared, immutable bytes; the memory goes back when the last one is gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages.as_slice()[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.pages.as_mut().map_or(&mut [], |pages| &mut pages.as_mut_slice()[..len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.pool.keep {
            free.extend(self.pages.take());
        }
    }
}

/// An anonymous private mapping of [`BUFFER`] bytes, owned by this value alone.
#[derive(Debug)]
struct Pages(NonNull<u8>);

impl Pages {
    fn map() -> std::io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                BUFFER,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )?
        };
        NonNull::new(address.cast()).map(Self).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is BUFFER bytes long, initialised by the kernel, and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), BUFFER) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access to it.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), BUFFER) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, exactly this long, and no slice of it outlives self.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), BUFFER) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: the mapping is plain memory that belongs to no thread; shared access reads only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let buffers = Buffers::new(1);
        let first = buffers.take().unwrap();
        let address = first.as_ptr();
        assert_eq!(address.align_offset(4096), 0);
        drop(first.freeze().slice(10..20));
        assert_eq!(buffers.take().unwrap().as_ptr(), address);
    }
}
