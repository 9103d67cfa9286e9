//! `kitfs status`: what the mounts say about themselves.
//!
//! Asks holders, never a mounted file system. Every answer comes in bounded time.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ledger::TroubleKind;
use crate::mounts::control;
use crate::mounts::message::{Answer, Identity, Query};
use crate::mounts::mountinfo;
use crate::mounts::privileges::Privileges;
use crate::mounts::process;
use crate::mounts::record;
use crate::mounts::request::{Decision, LastError, State};

/// The longest that a holder may take: it waits for a takeover for 5 s itself, and for the new worker's word.
const PATIENCE: Duration = Duration::from_secs(8);

/// The longest that it may take to say who it is, which it does by itself.
const IDENTITY_PATIENCE: Duration = Duration::from_secs(3);

/// One mount, as in `status --output json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is mounted. Bytes that are not UTF-8 are replaced.
    pub directory: String,
    /// What was asked for.
    pub reference: String,
    /// What it was.
    pub digest: Digest,
    /// The process that answers the kernel.
    pub pid: u32,
    /// The process that keeps the connection.
    pub holder_pid: u32,
    /// How well it serves.
    pub state: State,
    /// Who signed it.
    pub signers: Vec<String>,
    /// What policy said.
    pub policy: Decision,
    /// Whether files are handed to the kernel.
    pub passthrough: bool,
    /// Bytes of all layer blobs.
    pub bytes_total: u64,
    /// Those that are proved and here.
    pub bytes_verified: u64,
    /// Those that came from the source since the mount.
    pub bytes_fetched: u64,
    /// Reads that were answered from the cache.
    pub cache_hits: u64,
    /// What the process that answers the kernel may do, if it is known.
    pub privileges: Option<Privileges>,
    /// Workers that took over from a dead one.
    pub takeovers: u64,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// RFC 3339.
    pub mounted_at: String,
}

/// The mounts of a state directory, by directory. Records that dead holders left are removed.
pub fn status_of_all(state_dir: &Path) -> Result<Vec<Status>, StatusError> {
    let records =
        record::living(state_dir).map_err(|source| StatusError::Records { folder: state_dir.to_owned(), source })?;
    let statuses = records.into_iter().map(|record| {
        match control::ask(&record.socket, &Query::Status, PATIENCE) {
            Ok(Answer::Status(status)) => *status,
            // The lock says that there is a holder, so there is a mount, however it is.
            Ok(_) | Err(_) => silent(&record),
        }
    });
    Ok(statuses.collect())
}

/// The mount at a directory, wherever its records are.
pub fn status(directory: &Path) -> Result<Status, StatusError> {
    let (real, entry) = find(directory)?;
    let (_, arguments, _) = holder(&real, entry.device).ok_or_else(|| StatusError::NoHolder(real.clone()))?;
    match control::ask(&arguments.socket, &Query::Status, PATIENCE) {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(_) => Err(StatusError::NoHolder(real)),
        Err(source) => Err(StatusError::Holder { directory: real, source }),
    }
}

/// The mount of ours at a directory.
pub(super) fn find(directory: &Path) -> Result<(PathBuf, mountinfo::Entry), StatusError> {
    match mountinfo::at(directory) {
        Ok((real, Some(entry))) if entry.fstype == mountinfo::FSTYPE => Ok((real, entry)),
        Ok(_) => Err(StatusError::NotMounted { directory: directory.to_owned(), source: None }),
        Err(source) => Err(StatusError::NotMounted { directory: directory.to_owned(), source: Some(source) }),
    }
}

/// The holder of a mount: its pid, its arguments, and who it says it is.
pub(super) fn holder(directory: &Path, device: (u32, u32)) -> Option<(u32, process::HolderArguments, Box<Identity>)> {
    let here = process::holders().into_iter().filter(|(_, arguments)| arguments.directory == directory);
    here.filter_map(|(pid, arguments)| match control::ask(&arguments.socket, &Query::Identity, IDENTITY_PATIENCE) {
        Ok(Answer::Identity(identity)) if identity.device == device => Some((pid, arguments, identity)),
        _ => None,
    })
    .next()
}

/// What is known of a mount whose holder does not answer.
fn silent(record: &record::Record) -> Status {
    let message = "the process that holds the mount does not answer".to_owned();
    Status {
        directory: record.directory.to_string_lossy().into_owned(),
        reference: record.reference.clone(),
        digest: record.summary.digest,
        pid: 0,
        holder_pid: record.holder_pid,
        state: State::Degraded,
        signers: record.summary.signers.clone(),
        policy: record.summary.policy,
        passthrough: false,
        bytes_total: record.summary.bytes_total,
        bytes_verified: 0,
        bytes_fetched: 0,
        cache_hits: 0,
        privileges: None,
        takeovers: 0,
        last_error: Some(LastError::other(message)),
        mounted_at: record.mounted_at.clone(),
    }
}

impl LastError {
    /// Something that no other kind fits, now.
    pub(super) fn other(message: String) -> Self {
        Self {
            time: jiff::Timestamp::now().to_string(),
            kind: TroubleKind::Other,
            path: None,
            layer: None,
            expected: None,
            actual: None,
            source: None,
            message,
        }
    }
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// There is no mount of ours.
    #[error("{directory} is not a kitfs mount{}", because(.source), directory = .directory.display())]
    NotMounted {
        /// What was asked about.
        directory: PathBuf,
        /// Why the path could not be followed, if that was it.
        source: Option<io::Error>,
    },
    /// The mount is there, and nobody holds it.
    #[error("no process of this user holds the mount {0}: it is dead or another user's (`kitfs umount` removes it)")]
    NoHolder(PathBuf),
    /// The holder is there and does not answer.
    #[error("the process that holds {directory} does not answer: {source}", directory = .directory.display())]
    Holder {
        /// The mount.
        directory: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The records cannot be read.
    #[error("the mount records in {folder} cannot be read: {source}", folder = .folder.display())]
    Records {
        /// The state directory.
        folder: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl StatusError {
    /// As in the table of exit codes.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotMounted { .. } => 3,
            Self::NoHolder(_) | Self::Holder { .. } | Self::Records { .. } => 1,
        }
    }
}

fn because(source: &Option<io::Error>) -> String {
    source.as_ref().map(|source| format!(": {source}")).unwrap_or_default()
}
