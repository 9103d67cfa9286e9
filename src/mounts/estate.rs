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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::message::{FromWorker, Task, ToWorker};
    use crate::mounts::request::tests::FIRST;

    const SUMMARY: &str = r#"{"digest":
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "resolved": "registry", "signers": ["key:sha256:00"], "policy": "allow", "bytes_total": 5}"#;

    const SNAPSHOT: &str = r#"{"state": "degraded", "bytes_verified": 1, "bytes_fetched": 2, "cache_hits": 3,
        "passthrough": true, "last_error": {"time": "2026-11-22T10:00:00Z", "kind": "unreachable", "path": null,
        "layer": null, "expected": null, "actual": null, "source": null, "message": "nobody answers"}}"#;

    /// What the first version that could be upgraded gave to those after it, and took from them.
    #[test]
    fn what_the_first_holders_and_workers_said_is_still_understood() {
        let estate = format!(
            r#"{{"request": {FIRST}, "summary": {SUMMARY}, "id": "a1", "worker": 7, "device": [0, 50],
            "init_request": [1, 2], "init_reply": [3], "mounted_at": "2026-11-22T10:00:00Z", "takeovers": 1,
            "snapshot": {SNAPSHOT}, "oom_score": null}}"#
        );
        let adopted = serde_json::from_str(&format!(r#"{{"Adopt": {estate}}}"#)).unwrap();
        assert!(matches!(adopted, FromCaller::Adopt(estate) if estate.takeovers == 1 && estate.snapshot.is_some()));
        let task = format!(
            r#"{{"Prepare": {{"request": {FIRST}, "predecessor": [{SUMMARY}, {SNAPSHOT}], "condemned": [4],
            "oom_score": 0}}}}"#
        );
        let task = serde_json::from_str(&task).unwrap();
        let Task { condemned, .. } = match task {
            ToWorker::Prepare(task) => *task,
            other => panic!("{other:?}"),
        };
        assert!(condemned.contains(&4));
        let serve = format!(r#"{{"Serve": {{"passthrough": true, "estate": {estate}}}}}"#);
        assert!(matches!(serde_json::from_str(&serve).unwrap(), ToWorker::Serve { passthrough: true, .. }));
        for said in [
            format!(r#"{{"Prepared": {SUMMARY}}}"#),
            r#"{"Failed": {"exit_code": 3, "message": "it is not there"}}"#.into(),
            r#""Serving""#.into(),
            format!(r#"{{"Report": [1, {SNAPSHOT}]}}"#),
            r#""Ended""#.into(),
        ] {
            serde_json::from_str::<FromWorker>(&said).unwrap_or_else(|error| panic!("{said}: {error}"));
        }
    }
}
