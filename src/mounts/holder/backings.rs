//! The files that the kernel reads by itself: registered for workers, kept under read leases.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::fuse::backing;
use crate::mounts::connection::Connection;
use crate::mounts::holder::Holder;
use crate::mounts::message::{FromKeeper, ToKeeper, ToWorker};

/// Backing files by number.
#[derive(Debug, Default)]
pub(super) struct Backings {
    kept: HashMap<u32, Kept>,
}

#[derive(Debug)]
struct Kept {
    leased: OwnedFd,
    /// Somebody wanted to write to it.
    touched: bool,
}

impl Backings {
    fn register(&mut self, connection: &Connection, file: OwnedFd) -> io::Result<u32> {
        let leased = backing::take_lease(file.as_fd())?;
        let id = backing::register(connection.device(), &file)?;
        self.kept.insert(id, Kept { leased, touched: false });
        Ok(id)
    }

    fn adopt(&mut self, id: u32, file: OwnedFd) -> io::Result<u32> {
        let leased = backing::take_lease(file.as_fd())?;
        self.kept.insert(id, Kept { leased, touched: false });
        Ok(id)
    }

    fn release(&mut self, connection: &Connection, id: u32) {
        if let Err(error) = backing::unregister(connection.device(), id) {
            tracing::debug!(%error, id, "a backing file stays registered");
        }
        self.kept.remove(&id);
    }

    /// Lets go of the files that are not in use, and tells which ones in use it has not.
    fn retain(&mut self, connection: &Connection, used: &HashSet<u32>) -> Vec<u32> {
        let unused = self.kept.keys().filter(|id| !used.contains(id)).copied().collect::<Vec<_>>();
        unused.into_iter().for_each(|id| self.release(connection, id));
        used.iter().filter(|id| !self.kept.contains_key(id)).copied().collect()
    }

    /// Looks for files that somebody wants to write to, and gives them free: whoever wants to, waits for that.
    fn look(&mut self) {
        for (id, kept) in self.kept.iter_mut().filter(|(_, kept)| !kept.touched) {
            if backing::has_lease(kept.leased.as_fd()) {
                continue;
            }
            kept.touched = true;
            tracing::error!(id, "a cached file that is in use is being opened for writing");
            if let Err(error) = backing::end_lease(kept.leased.as_fd()) {
                tracing::warn!(%error, "whoever writes to the cache waits for a lease");
            }
        }
    }

    fn touched(&self) -> Vec<u32> {
        self.kept.iter().filter(|(_, kept)| kept.touched).map(|(id, _)| *id).collect()
    }
}

impl Holder {
    /// Whether this host lets the kernel read files by itself: asked by registering one.
    pub(super) fn probe_passthrough(&self) -> io::Result<()> {
        let (Some(connection), Some((_, tree))) = (&self.connection, &self.prepared) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let id = backing::register(connection.device(), tree)?;
        backing::unregister(connection.device(), id)
    }

    pub(super) fn hear_keeper(&mut self) {
        loop {
            let (Some(worker), Some(connection)) = (&self.worker, &self.connection) else { return };
            // An end is that of the worker, and told by its death.
            let Ok(Some((question, mut files))) = worker.keeper.receive::<ToKeeper>() else { return };
            let errno = |result: io::Result<u32>| result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
            let file = files.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF));
            let answer = match question {
                ToKeeper::Register => {
                    FromKeeper::Registered(errno(file.and_then(|file| self.backings.register(connection, file))))
                }
                ToKeeper::Adopt(id) => {
                    FromKeeper::Registered(errno(file.and_then(|file| self.backings.adopt(id, file))))
                }
                ToKeeper::Retain(used) => FromKeeper::Unknown(self.backings.retain(connection, &used)),
                ToKeeper::Release(id) => {
                    self.backings.release(connection, id);
                    continue;
                }
            };
            // A worker that does not listen is dead, or does without.
            let _ = worker.keeper.send(&answer, &[]);
        }
    }

    /// A lease was asked back: finds out which.
    pub(super) fn look_at_leases(&mut self) {
        self.backings.look();
        self.tell_touched();
    }

    /// Tells the worker which files were touched: each new worker again, for the one before may not have
    /// written it down.
    pub(super) fn tell_touched(&self) {
        let touched = self.backings.touched();
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_serving()) else { return };
        if !touched.is_empty() {
            // A worker that is dead by now has a successor, which is told.
            let _ = worker.channel.send(&ToWorker::Touched(touched), &[]);
        }
    }
}
