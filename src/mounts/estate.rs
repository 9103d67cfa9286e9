//! What a holder leaves to the next one: all that is known of a mount, and the descriptors that keep it.
//!
//! A holder whose binary is replaced hands it over itself. One that died cannot: its worker does it then, for it has
//! the connection as well, and leaves. Either way the new holder starts a worker of its own, as after any death.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::mounts::launch;
use crate::mounts::message::{FromCaller, ToCaller};
use crate::mounts::process::{self, Session, Started};
use crate::mounts::request::{MountRequest, Snapshot, Summary};
use crate::mounts::wire::Channel;

/// How long a new holder may take to hold.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a mount that is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Estate {
    /// What it was made from.
    pub request: MountRequest,
    /// What it shows.
    pub summary: Summary,
    /// The holder that has it, by its id.
    pub id: String,
    /// The worker that serves it, which the new holder sees off.
    pub worker: u32,
    /// The number of the file system.
    pub device: (u32, u32),
    /// The kernel's INIT request.
    pub init_request: Vec<u8>,
    /// The answer that it got.
    pub init_reply: Vec<u8>,
    /// RFC 3339.
    pub mounted_at: String,
    /// Workers that took over from a dead one.
    pub takeovers: u64,
    /// How the worker was when last heard of.
    pub snapshot: Option<Snapshot>,
    /// What the out-of-memory killer is to think of workers.
    pub oom_score: Option<i32>,
}

/// The descriptors that keep a mount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a> {
    /// The connection.
    pub device: BorrowedFd<'a>,
    /// The tree that is shown.
    pub tree: BorrowedFd<'a>,
    /// What is open.
    pub opens: BorrowedFd<'a>,
}

/// Starts a holder from a program, and gives it the mount. When this returns it waits for the worker's end.
pub(super) fn hand_over(program: &File, estate: &Estate, keys: Keys<'_>) -> io::Result<()> {
    let id = launch::random_id()?;
    let socket = estate.request.runtime_dir.join(format!("{id}.sock"));
    let directory = estate.request.directory.as_os_str();
    let arguments = [OsStr::new(process::HOLD), OsStr::new(&id), directory, socket.as_os_str()];
    let (channel, theirs) = Channel::pair()?;
    let kept = estate.request.audit.descriptors();
    let holder = Started::new(process::start(program, &arguments, theirs, Stdio::null(), Session::Own, kept)?)?;
    let deadline = Some(Instant::now() + PATIENCE);
    let given = channel
        .send_patiently(&FromCaller::Adopt(Box::new(estate.clone())), &[keys.device, keys.tree, keys.opens], deadline)
        .and_then(|()| channel.wait::<ToCaller>(deadline));
    match given {
        Ok(Some((ToCaller::Ready(_), _))) => Ok(()),
        result => {
            // Two must not hold it.
            holder.kill();
            Err(result.err().unwrap_or_else(|| io::Error::other("the new holder does not hold")))
        }
    }
}
