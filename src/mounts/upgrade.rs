//! `kitfs upgrade`: moves mounts to the program that runs here, one after the other.
//!
//! Asks each holder, and looks at /proc for what became of it. Every wait is bounded.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mounts::control;
use crate::mounts::message::{Answer, Query};
use crate::mounts::process;
use crate::mounts::record;
use crate::mounts::request::State;
use crate::mounts::status;
use crate::mounts::status::StatusError;

/// How long a mount may take to move.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a holder may take to begin.
const ANSWER: Duration = Duration::from_secs(5);

/// A mount, and whether it moved.
#[derive(Debug)]
pub struct Upgraded {
    /// Where it is mounted.
    pub directory: PathBuf,
    /// Why it did not.
    pub result: Result<(), UpgradeError>,
}

/// Moves the mounts of a state directory to the program that runs here.
pub fn upgrade(state_dir: &Path) -> Result<Vec<Upgraded>, UpgradeError> {
    upgrade_to(state_dir, &process::program()?)
}

/// Moves them to a program.
pub fn upgrade_to(state_dir: &Path, program: &File) -> Result<Vec<Upgraded>, UpgradeError> {
    let records =
        record::living(state_dir).map_err(|source| StatusError::Records { folder: state_dir.to_owned(), source });
    let records = records.map_err(UpgradeError::Status)?;
    let moved = records.into_iter().map(|record| Upgraded {
        result: move_one(program, &record.directory, &record.socket),
        directory: record.directory.to_path_buf(),
    });
    Ok(moved.collect())
}

fn move_one(program: &File, directory: &Path, socket: &Path) -> Result<(), UpgradeError> {
    let own = program.metadata().map(|program| (program.dev(), program.ino()))?;
    // None of a process that is gone: workers come and go while the mount moves.
    let runs = |pid: u32| {
        let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((program.dev(), program.ino()) == own)
    };
    let before = status::status(directory).map_err(UpgradeError::Status)?;
    match control::ask_with(socket, &Query::Upgrade, &[program.as_fd()], ANSWER)? {
        Answer::Upgrading => {}
        _ => return Err(UpgradeError::Busy),
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // Between two holders nobody answers.
        if let Ok(now) = status::status(directory) {
            // The holder is the last to go.
            if now.holder_pid != before.holder_pid && runs(now.holder_pid) == Some(true) {
                return Ok(());
            }
            if now.takeovers > before.takeovers && now.state != State::Failed && runs(now.pid) == Some(false) {
                return Err(UpgradeError::WentBack);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(UpgradeError::Late)
}

/// Why a mount is served by the program that it was.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// How it is cannot be told.
    #[error(transparent)]
    Status(StatusError),
    /// Its holder cannot be asked.
    #[error("the process that holds it cannot be asked: {0}")]
    Holder(#[from] io::Error),
    /// It has no worker that could be replaced.
    #[error("it is not served just now: try again")]
    Busy,
    /// The new program does not show the same tree, or cannot show it.
    #[error("this program cannot serve it, and the old one goes on (its log tells why): mount it again instead")]
    WentBack,
    /// It is not settled after a minute.
    #[error("it has not moved in time (its log may tell why)")]
    Late,
}
