//! Registering backing files through the holder, from the side of a worker.
//!
//! The holder has the privilege that it takes, and it keeps each file under its lease when the worker is dead.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fuse::backing;
use crate::mounts::message::{FromKeeper, ToKeeper};
use crate::mounts::wire::Channel;

/// How long the holder may take. It waits for nothing, so one that does not answer is stopped or dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// The holder, as the one who registers files.
#[derive(Debug)]
pub(super) struct Keeper(Mutex<Channel>);

impl Keeper {
    /// Asks on a channel of its own, on which nothing else is said.
    pub(super) fn new(channel: Channel) -> Self {
        Self(Mutex::new(channel))
    }

    fn ask(&self, question: &ToKeeper, file: &[BorrowedFd<'_>]) -> io::Result<FromKeeper> {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(question, file)?;
        match channel.wait(Some(Instant::now() + PATIENCE))? {
            Some((answer, _)) => Ok(answer),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Names the files that are open. Others are let go; those that the holder does not know are returned: it
    /// is a new one.
    pub(super) fn retain(&self, ids: HashSet<u32>) -> io::Result<Vec<u32>> {
        match self.ask(&ToKeeper::Retain(ids), &[])? {
            FromKeeper::Unknown(ids) => Ok(ids),
            FromKeeper::Registered(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Gives the holder a file that was registered before its time.
    pub(super) fn adopt(&self, id: u32, file: BorrowedFd<'_>) -> io::Result<()> {
        registered(self.ask(&ToKeeper::Adopt(id), &[file])?).map(drop)
    }
}

fn registered(answer: FromKeeper) -> io::Result<u32> {
    match answer {
        FromKeeper::Registered(result) => result.map_err(io::Error::from_raw_os_error),
        FromKeeper::Unknown(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl backing::Keeper for Arc<Keeper> {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        registered(self.ask(&ToKeeper::Register, &[file.as_fd()])?)
    }

    fn release(&self, id: u32) {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What a holder does not hear of, the next worker does not name.
        let _ = channel.send(&ToKeeper::Release(id), &[]);
    }
}
