//! `kitfs umount`: takes a mount out of the tree and sees its processes off, in bounded time.
//!
//! Works on the mount table and on processes; neither the mounted file system nor its source is asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mounts::connection;
use crate::mounts::connection::Busy;
use crate::mounts::process;
use crate::mounts::status;
use crate::mounts::status::StatusError;
use crate::mounts::users;
use crate::mounts::users::Hold;
use crate::mounts::wire;

/// How long the processes of a mount may take to end after it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a mount that is detached is waited for: its users may keep it for ever.
const LAZY_PATIENCE: Duration = Duration::from_millis(500);

/// How long others are looked for that use a mount.
const SEARCH: Duration = Duration::from_secs(2);

/// A reader that just closed may need a moment to be gone.
const BUSY_RETRIES: u32 = 4;

/// What is left of a mount that is out of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmounted {
    /// Processes that still use it: in a mount namespace of their own, or of one that was detached.
    pub used_by: Vec<u32>,
}

/// Unmounts the topmost mount at a directory. One that is in use is left, unless it is to be detached.
pub fn umount(directory: &Path, busy: Busy) -> Result<Unmounted, UmountError> {
    let (real, entry) = status::find(directory).map_err(UmountError::NotMounted)?;
    // Found first: it is gone soon after the mount.
    let holder = status::holder(&real, entry.device).and_then(|(pid, _, _)| process::watch(pid));
    let mut attempt = 0;
    loop {
        match connection::unmount(&real, busy) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < BUSY_RETRIES => {
                attempt += 1;
                std::thread::sleep(Duration::from_millis(25) * attempt);
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(UmountError::Busy { directory: real, pids: users::of(&entry, Hold::Use, SEARCH) });
            }
            Err(source) => return Err(UmountError::Failed { directory: real, source }),
        }
    }
    let Some(holder) = holder else { return Ok(Unmounted { used_by: Vec::new() }) };
    let patience = match busy {
        Busy::Keep => PATIENCE,
        Busy::Detach => LAZY_PATIENCE,
    };
    let gone = wire::readable(&holder, Some(Instant::now() + patience)).unwrap_or(true);
    Ok(Unmounted { used_by: if gone { Vec::new() } else { users::of(&entry, Hold::UseOrNamespace, SEARCH) } })
}

/// Why a mount is still there.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// There is no mount of ours.
    #[error(transparent)]
    NotMounted(StatusError),
    /// It is in use.
    #[error("{directory} is in use{}", by(.pids), directory = .directory.display())]
    Busy {
        /// The mount.
        directory: PathBuf,
        /// The processes that use it, as far as they can be seen.
        pids: Vec<u32>,
    },
    /// The kernel or fusermount3 refuses.
    #[error("{directory} cannot be unmounted: {source}", directory = .directory.display())]
    Failed {
        /// The mount.
        directory: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl UmountError {
    /// As in the table of exit codes.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotMounted(error) => error.exit_code(),
            Self::Busy { .. } | Self::Failed { .. } => 1,
        }
    }
}

fn by(pids: &[u32]) -> String {
    if pids.is_empty() {
        return ", though no process that uses it can be seen (`--lazy` detaches it)".to_owned();
    }
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    format!(" by {pids} (`--lazy` detaches it)")
}
