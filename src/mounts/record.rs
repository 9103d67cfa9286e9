//! Mount records, `STATE_DIR/mounts/ID.json`: what is mounted, and what binds the mount's later workers.
//!
//! A record is written whole (temporary file, rename) when the mount is ready, and its holder keeps it
//! locked; a record without a lock is of a holder that died, whatever its pid means by now. It holds no
//! secrets, and nothing is mounted from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::mounts::request::AbsolutePath;
use crate::mounts::request::Summary;

/// What stands in a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of this form; a reader passes over others.
    pub version: u32,
    /// Where it is mounted.
    pub directory: AbsolutePath,
    /// What was asked for.
    pub reference: String,
    /// What it was.
    pub summary: Summary,
    /// The process that keeps the connection.
    pub holder_pid: u32,
    /// Where it listens.
    pub socket: AbsolutePath,
    /// Major and minor number of the file system.
    pub device: (u32, u32),
    /// RFC 3339.
    pub mounted_at: String,
    /// The kernel's INIT request, in hexadecimal.
    pub init_request: String,
    /// The answer that it got, which every later worker must give.
    pub init_reply: String,
}

/// The form that this program writes.
pub(super) const VERSION: u32 = 1;

/// A record that is written and locked. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Written {
    path: PathBuf,
    _lock: File,
}

impl Record {
    /// Writes the record of a mount.
    pub(super) fn write(&self, state_dir: &Path, id: &str) -> io::Result<Written> {
        let folder = folder(state_dir);
        make_private(&folder)?;
        let path = folder.join(format!("{id}.json"));
        let unfinished = folder.join(format!(".{id}.new"));
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let written = serde_json::to_writer_pretty(&file, self).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, &path)) {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        Ok(Written { path, _lock: file })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.path);
        if let Some(error) = removed.err().filter(|error| error.kind() != io::ErrorKind::NotFound) {
            tracing::warn!(%error, path = %self.path.display(), "the mount record cannot be removed");
        }
    }
}

/// The records of living holders. Those of dead ones are removed, with their sockets.
pub(super) fn living(state_dir: &Path) -> io::Result<Vec<Record>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut living = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // Gone since the directory was read, or no file.
        let Ok(file) = File::open(&path) else { continue };
        let dead = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok();
        let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        if dead {
            let _ = fs::remove_file(&path);
            if let Some(record) = record {
                let _ = fs::remove_file(record.socket);
            }
        } else {
            living.extend(record.filter(|record| record.version == VERSION));
        }
    }
    living.sort_by(|a, b| a.directory.as_os_str().cmp(b.directory.as_os_str()));
    Ok(living)
}

/// Removes the record of a holder that another one follows.
pub(super) fn forget(state_dir: &Path, id: &str) {
    let _gone = fs::remove_file(folder(state_dir).join(format!("{id}.json")));
}

/// Makes a folder, and what it lies in, for this user alone. One that is there stays as it is.
pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("mounts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_is_still_read_and_that_of_another_form_passed_over() {
        let record = |version: u32| {
            format!(
                r#"{{"version": {version}, "directory": "/mnt/kit", "reference": "registry.example/kit:v1",
                "summary": {{"digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                    "resolved": "registry", "signers": [], "policy": "none", "bytes_total": 5}},
                "holder_pid": 7, "socket": "/run/kitfs/a1.sock", "device": [0, 50],
                "mounted_at": "2026-11-22T10:00:00Z", "init_request": "0102", "init_reply": "03"}}"#
            )
        };
        let state_dir = tempfile::tempdir().unwrap();
        make_private(&folder(state_dir.path())).unwrap();
        let held = [1, 2].map(|version| {
            let path = folder(state_dir.path()).join(format!("{version}.json"));
            fs::write(&path, record(version)).unwrap();
            let file = File::open(path).unwrap();
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
            file
        });
        let living = living(state_dir.path()).unwrap();
        assert_eq!(living.iter().map(|record| (record.version, record.holder_pid)).collect::<Vec<_>>(), [(1, 7)]);
        drop(held);
    }
}
