//! Locks between processes: flock(2) on files, which the kernel gives up when a process dies.
//!
//! - `layer <digest>`, exclusive: whoever holds it proves that layer; the others wait and find it done. Eight bytes in
//!   it say how far that is, in bytes of the layer. Nothing relies on them but the patience of who waits.
//! - `sweep`, shared by whoever adds objects, exclusive for whoever removes those that no index names.
//! - `fetch <digest>`, ranges of it exclusive (fcntl(2), "Open file description locks"): whoever holds a
//!   range fetches those bytes of the uncompressed layer; the others wait and find them done.
//! - `pin <digest>`, shared by every mount that uses the layer; eviction takes it exclusively first.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::digest::Digest;
use crate::store::Store;
use crate::store::file_name;

/// A lock that is held until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The descriptor that holds the lock: whoever keeps a copy of it keeps the lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Tells who waits for a layer how many bytes of it have come.
    pub fn tell(&self, bytes: u64) {
        let _told_again_soon = self.file.write_all_at(&bytes.to_ne_bytes(), 0);
    }
}

/// Which bytes of a layer are being fetched, for all processes of this host.
#[derive(Clone, Debug)]
pub struct Fetching(Arc<File>);

/// The right to fetch a range, held until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct RangeLock {
    file: Arc<File>,
    range: Range<u64>,
}

impl Fetching {
    /// The right to fetch `range`, which nobody else in this process holds a part of; `None` while
    /// another process holds a part of it.
    pub fn try_lock(&self, range: Range<u64>) -> io::Result<Option<RangeLock>> {
        match lock_range(&self.0, libc::F_WRLCK, &range) {
            Ok(()) => Ok(Some(RangeLock { file: Arc::clone(&self.0), range })),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        let _given_up_with_the_file = lock_range(&self.file, libc::F_UNLCK, &self.range);
    }
}

fn lock_range(file: &File, kind: i32, range: &Range<u64>) -> io::Result<()> {
    let beyond = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: `flock` is plain numbers, for which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = range.start.try_into().map_err(beyond)?;
    lock.l_len = (range.end - range.start).try_into().map_err(beyond)?;
    // SAFETY: the descriptor is open, and the kernel reads one `flock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Store {
    /// Where processes tell each other which bytes of a layer they fetch.
    pub fn fetching(&self, layer: &Digest) -> io::Result<Fetching> {
        Ok(Fetching(Arc::new(self.lock_file(&format!("fetch-{}", file_name(layer)))?)))
    }

    /// The right to prove a layer; `None` while somebody else has it.
    pub fn try_lock_layer(&self, layer: &Digest) -> io::Result<Option<Lock>> {
        self.try_lock(&format!("layer-{}", file_name(layer)), FlockOperation::NonBlockingLockExclusive)
    }

    /// How many bytes of a layer have come to whoever has the right to prove it.
    pub fn told(&self, layer: &Digest) -> u64 {
        let mut bytes = [0; 8];
        let file = File::open(self.root.join("locks").join(format!("layer-{}", file_name(layer))));
        match file.and_then(|file| file.read_exact_at(&mut bytes, 0)) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    /// Keeps a layer from being evicted.
    pub fn pin(&self, layer: &Digest) -> io::Result<Lock> {
        self.lock(&format!("pin-{}", file_name(layer)), FlockOperation::LockShared)
    }

    /// The right to evict a layer; `None` while it is pinned.
    pub(super) fn try_lock_unpinned(&self, layer: &Digest) -> io::Result<Option<Lock>> {
        self.try_lock(&format!("pin-{}", file_name(layer)), FlockOperation::NonBlockingLockExclusive)
    }

    pub(super) fn lock_adding(&self) -> io::Result<Lock> {
        self.lock("sweep", FlockOperation::LockShared)
    }

    pub(super) fn lock_sweeping(&self) -> io::Result<Lock> {
        self.lock("sweep", FlockOperation::LockExclusive)
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> io::Result<Lock> {
        let file = self.lock_file(name)?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Lock { file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn try_lock(&self, name: &str, operation: FlockOperation) -> io::Result<Option<Lock>> {
        let file = self.lock_file(name)?;
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let path = self.root.join("locks").join(name);
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
    }
}
