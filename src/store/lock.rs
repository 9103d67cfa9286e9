//! Locks between processes: flock(2) on empty files, which the kernel gives up when a process dies.
//!
//! - `layer <digest>`, exclusive: whoever holds it proves that layer; the others wait and find it done.
//! - `sweep`, shared by whoever adds objects, exclusive for whoever removes those that no index names.
//! - `pin <digest>`, shared by every mount that uses the layer; eviction takes it exclusively first.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

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
}

impl Store {
    /// The right to prove a layer; `None` while somebody else has it.
    pub fn try_lock_layer(&self, layer: &Digest) -> io::Result<Option<Lock>> {
        self.try_lock(&format!("layer-{}", file_name(layer)), FlockOperation::NonBlockingLockExclusive)
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
