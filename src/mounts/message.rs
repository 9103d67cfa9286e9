//! The messages between the processes of a mount, direction by direction.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::mounts::estate::Estate;
use crate::mounts::privileges::Privileges;
use crate::mounts::request::{MountFailure, MountRequest, Progress, Snapshot, Summary};
use crate::mounts::status::Status;

/// From `kitfs mount` to the holder, or from whoever held its mount before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromCaller {
    /// Mount this.
    Mount(Box<Order>),
    /// Hold this, which is mounted and served. Comes with connection, tree and table.
    Adopt(Box<Estate>),
}

/// What the holder is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The mount to make.
    pub request: MountRequest,
    /// There is a mount already: resolve only, and say whether it is the same kit.
    pub mounted: Option<Summary>,
}

/// From the holder to `kitfs mount`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToCaller {
    /// Still at it.
    Progress(Progress),
    /// The tree can be listed.
    Ready(Summary),
    /// The kit is the one that is mounted already.
    Same(Summary),
    /// There is no mount, and nothing is left of it.
    Failed(MountFailure),
}

/// From the holder to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// Prepare this. Comes with the page of [`crate::fuse::beat::Beat`], a channel for [`ToKeeper`], the
    /// table of what is open, and after a death with the tree of the worker before.
    Prepare(Box<Task>),
    /// Shake hands on the socket, and get ready to serve the device. Comes with both.
    Greet,
    /// The INIT reply is good: serve, with files handed to the kernel where that works.
    Serve {
        /// Whether it does.
        passthrough: bool,
        /// What to leave to a new holder if this one dies.
        estate: Box<Estate>,
    },
    /// Somebody wanted to write to these backing files.
    Touched(Vec<u32>),
    /// Say how you are, and repeat the number.
    Report(u64),
}

/// What a worker is to serve.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// The mount, the same for every worker of it.
    pub request: MountRequest,
    /// What the worker before had prepared, and how it was when last heard of.
    pub predecessor: Option<(Summary, Option<Snapshot>)>,
    /// Requests that were worked on when two workers crashed.
    pub condemned: HashSet<u64>,
    /// What the out-of-memory killer thought of the caller, in place of what it thinks of the holder.
    pub oom_score: Option<i32>,
}

/// From a worker to the holder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// It has given up what it does not need.
    Confined(Privileges),
    /// Still at it.
    Progress(Progress),
    /// The tree is built. Comes with a descriptor of it.
    Prepared(Summary),
    /// It cannot be served.
    Failed(MountFailure),
    /// Not by this one, for a program would have to be asked for credentials.
    NeedsHelpers,
    /// Serving from now on.
    Serving,
    /// How it is, on request (with its number) or unasked.
    Report(Option<u64>, Snapshot),
    /// The connection has ended.
    Ended,
}

/// From a worker to the holder, as the one who registers backing files.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// Register the file that comes with this.
    Register,
    /// Keep the file that comes with this and has that number: another holder registered it.
    Adopt(u32),
    /// These are in use, and no others.
    Retain(HashSet<u32>),
    /// That one is not in use any more. Not answered.
    Release(u32),
}

/// The answer, in the order of the questions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// The number of the file, or an errno.
    Registered(Result<u32, i32>),
    /// Those of the ones in use that this holder does not have.
    Unknown(Vec<u32>),
}

/// To the holder, from anybody who may open its socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Query {
    /// Which mount it holds. Answered at once.
    Identity,
    /// How the mount is. Answered by the worker, or in its place.
    Status,
    /// Move the mount to the program that comes with this.
    Upgrade,
}

/// The holder's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To [`Query::Identity`].
    Identity(Box<Identity>),
    /// To [`Query::Status`].
    Status(Box<Status>),
    /// To [`Query::Upgrade`]: it has begun.
    Upgrading,
    /// There is no mount yet.
    Preparing,
}

/// Which mount a holder holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The number that the kernel gave the file system.
    pub device: (u32, u32),
    /// What it was made from.
    pub request: MountRequest,
    /// What it shows.
    pub summary: Summary,
    /// No worker lives long enough to serve it.
    pub has_failed: bool,
}
