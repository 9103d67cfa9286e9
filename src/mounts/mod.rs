//! The processes of a mount: one that asks for it, one that holds it, and one that serves it.
//!
//! `kitfs mount` ([`mount`]) starts a *holder*, which keeps the `/dev/fuse` descriptor and has nothing that
//! could fail, and the holder starts a *worker*, which does everything else ([`Served`]). A worker that dies
//! is replaced on the same connection, and no reader notices. [`umount`] and [`status`] find the processes
//! through the mount table and /proc, so they need no state of their own.
//!
//! In reading order: what the processes tell each other (`request`, `message`, `wire`), the two of them
//! (`holder`, `worker`), what they work with (`connection`, `control`, `record`, `process`, `keeper`,
//! `estate`, `places`, `privileges`), and the commands (`launch`, `umount`, `status`, `upgrade`, with `mountinfo`
//! and `users`).
//!
//! Carries a request and a summary of the kit, and asks nothing of sources and stores.

mod connection;
mod control;
mod estate;
mod holder;
mod keeper;
mod launch;
mod message;
mod mountinfo;
mod places;
mod privileges;
mod process;
mod record;
mod request;
mod status;
mod umount;
mod upgrade;
mod users;
mod wire;
mod worker;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use connection::Busy;
pub use launch::{Mounted, Novelty, mount};
pub use privileges::{Landlock, Privileges, has_landlock};
pub use request::{
    AbsolutePath, AuditSettings, Decision, LastError, LogSettings, LogTarget, MountFailure, MountOptions, MountRequest,
    PolicySettings, Presence, Progress, Snapshot, SourceSettings, State, Summary,
};
pub use status::{Status, StatusError, status, status_of_all};
pub use umount::{UmountError, Unmounted, umount};
pub use upgrade::{UpgradeError, Upgraded, upgrade, upgrade_to};
pub use worker::{Predecessor, Prepared, Served, Unprepared, tree_file};

/// Runs a holder or a worker, if the program's arguments (its name among them) are theirs. Comes before any
/// other reading of arguments and before any thread.
pub fn background<S: Served>(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let arguments = arguments.into_iter().skip(1).collect::<Vec<_>>();
    match arguments.as_slice() {
        [role, id, _directory, socket] if role == process::HOLD => {
            Some(holder::hold::<S>(id.to_str()?, Path::new(socket)))
        }
        [role, _id, _directory] if role == process::WORK => Some(worker::work::<S>()),
        _ => None,
    }
}
