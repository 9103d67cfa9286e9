//! The worker: prepares a kit, answers the kernel, and may die at any moment without a reader noticing.
//!
//! What it serves is the business of [`Served`]. It opens no connection and mounts nothing: the holder hands
//! it both, and the next worker the same ones.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::fuse::backing::Backing;
use crate::fuse::beat::Beat;
use crate::fuse::opens::Opens;
use crate::fuse::session::{Access, Connection, Greeted};
use crate::mounts::estate;
use crate::mounts::estate::{Estate, Keys};
use crate::mounts::keeper::Keeper;
use crate::mounts::message::{FromWorker, Task, ToWorker};
use crate::mounts::places::Places;
use crate::mounts::privileges::{Helpers, Privileges};
use crate::mounts::process;
use crate::mounts::request::{LogSettings, MountFailure, MountRequest, Presence, Progress, Snapshot, Summary};
use crate::mounts::wire::Channel;

/// How often a worker looks for another holder.
const HOLDERS: u32 = 5;

/// How often a worker looks whether its directories are those that it may write to.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often a worker says how it is without being asked: what dies with it is younger than this.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What a mount shows. The file system, as seen from the processes that carry it.
pub trait Served: Sized + Send + Sync + 'static {
    /// What answers the kernel.
    type Filesystem: fuser::Filesystem;

    /// Starts the log of this process, a holder's or a worker's, as the request says. `Progress` and
    /// failures before it go to the caller.
    fn start_log(settings: &LogSettings, state_dir: &Path);

    /// The directories that it has in the cache directory, first the one that the others lie in. Any of them may be a
    /// link to one that lies elsewhere.
    fn directories(request: &MountRequest) -> Vec<PathBuf>;

    /// Gets ready to answer: resolves the reference, builds the tree, opens the store.
    ///
    /// After a death `predecessor` is what the worker before had prepared; the kernel remembers inode
    /// numbers of that tree, so it is used as it is, and the source is not asked. Progress may be reported
    /// from any thread.
    fn prepare(
        request: &MountRequest,
        predecessor: Option<Predecessor>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Prepared<Self>, Unprepared>;

    /// The kit is in the tree, and nothing of it has been answered yet. Not told to a worker that takes over.
    ///
    /// The error ends the mount before anybody has read from it.
    fn mounted(&self) -> Result<(), MountFailure>;

    /// The mount has ended. Told to the process that outlived the other.
    fn unmounted(request: &MountRequest, summary: &Summary);

    /// What answers the kernel from now on. `Filesystem::init` must ask for the same every time; the beat is
    /// told of the first request that is answered, and what is open of every OPEN and RELEASE.
    fn filesystem(self: &Arc<Self>, beat: Beat, opens: Arc<Opens>) -> Self::Filesystem;

    /// The file behind an inode, if the kernel may read it by itself.
    fn backing(&self, inode: u64) -> Option<impl Backing>;

    /// Somebody may have written to the file that the kernel reads for an inode. It is not opened any more
    /// while it is open.
    fn touched(&self, inode: u64);

    /// How it is now. Called about once a second, from a thread that may not wait.
    fn snapshot(&self) -> Snapshot;

    /// The connection has ended, and the process will.
    fn ended(&self);
}

/// What a worker that died leaves behind.
#[derive(Debug)]
pub struct Predecessor {
    /// The tree it served.
    pub tree: File,
    /// What it knew of the kit.
    pub summary: Summary,
    /// How it was when last heard of, for the counters to go on from.
    pub snapshot: Option<Snapshot>,
}

/// What a worker serves, and what it leaves behind if it dies.
#[derive(Debug)]
pub struct Prepared<S> {
    /// The file system's state.
    pub served: S,
    /// The tree, from [`tree_file`]: all that the next worker needs to number it the same way.
    pub tree: File,
    /// What is known of the kit.
    pub summary: Summary,
}

/// Why a worker serves nothing.
#[derive(Debug)]
pub enum Unprepared {
    /// Nobody could.
    Failed(MountFailure),
    /// It needs a program that hands out credentials, and the request says that there is none to ask.
    NeedsHelpers,
}

impl From<MountFailure> for Unprepared {
    fn from(failure: MountFailure) -> Self {
        Self::Failed(failure)
    }
}

/// A file in memory that nobody can change any more, for a tree to be handed from worker to worker.
pub fn tree_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("kitfs-tree", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(content)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file)
}

/// The whole life of a worker.
pub(super) fn work<S: Served>() -> ExitCode {
    match process::begin().and_then(|channel| serve::<S>(&channel)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "this worker ends");
            ExitCode::FAILURE
        }
    }
}

fn serve<S: Served>(channel: &Channel) -> io::Result<()> {
    let (ToWorker::Prepare(task), mut descriptors) = next(channel)? else { return Err(unexpected()) };
    let Task { request, predecessor, condemned, oom_score } = *task;
    S::start_log(&request.log, &request.state_dir);
    request.audit.keep_private();
    if let Some(Err(error)) = oom_score.map(process::set_oom_score) {
        tracing::debug!(%error, "the out-of-memory score stays as it is");
    }
    let helpers = if request.source.helpers { Helpers::Expected } else { Helpers::None };
    let mut places = Places::of(&request, &S::directories(&request));
    match Privileges::drop_all_but_needed(&places, helpers) {
        Ok(left) => channel.send_patiently(&FromWorker::Confined(left), &[], None)?,
        Err(error) => tracing::warn!(%error, "this worker does not know what it may do"),
    }
    places.remember();
    let tree = (descriptors.len() > 3).then(|| descriptors.pop()).flatten();
    let [page, keeper, table] = <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| unexpected())?;
    let beat = Beat::from_descriptor(page)?;
    let connection = if predecessor.is_some() { Connection::Inherited } else { Connection::New };
    let predecessor = predecessor.zip(tree).map(|((summary, snapshot), tree)| Predecessor {
        tree: File::from(tree),
        summary,
        snapshot,
    });

    let progress = |progress| {
        // Only for a person to see: a holder that is slow to read misses some.
        let _ = channel.send(&FromWorker::Progress(progress), &[]);
    };
    let Prepared { served, tree, summary } = match S::prepare(&request, predecessor, &progress) {
        Ok(prepared) => prepared,
        Err(Unprepared::Failed(failure)) => return channel.send_patiently(&FromWorker::Failed(failure), &[], None),
        Err(Unprepared::NeedsHelpers) => return channel.send_patiently(&FromWorker::NeedsHelpers, &[], None),
    };
    // What was missing has been made.
    places.remember();
    let served = Arc::new(served);
    let prepared = FromWorker::Prepared(summary.clone());
    channel.send_patiently(&prepared, &[tree.as_fd()], None)?;

    let (ToWorker::Greet, descriptors) = next(channel)? else { return Err(unexpected()) };
    let [device, greeter] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| unexpected())?;
    let access = if request.options.allow_other { Access::Everybody } else { Access::Owner };
    let keeper = Arc::new(Keeper::new(Channel::new(keeper)?));
    let opens = Arc::new(Opens::new(table.try_clone()?, Box::new(Arc::clone(&keeper)))?);
    let filesystem = served.filesystem(beat.clone(), Arc::clone(&opens));
    let session = Greeted::shake_hands(filesystem, greeter, access, beat.clone(), condemned)?;
    let (ToWorker::Serve { passthrough, estate }, _) = next(channel)? else { return Err(unexpected()) };
    reclaim(&opens, &keeper, &*served)?;
    if passthrough {
        opens.allow_passthrough();
    }
    let session = session.attach(device.as_fd(), connection)?;
    if connection == Connection::New
        && let Err(failure) = served.mounted()
    {
        return channel.send_patiently(&FromWorker::Failed(failure), &[], None);
    }
    channel.send_patiently(&FromWorker::Serving, &[], None)?;

    // Locked while the mount is given to a new holder, or its end is told: one of the two.
    let farewell = Mutex::new(());
    std::thread::scope(|threads| {
        let reporter = std::thread::Builder::new().name("kitfs-report".to_owned());
        reporter.spawn_scoped(threads, || {
            report(channel, &beat, &opens, &*served);
            if request.presence == Presence::Background {
                let keys = Keys { device: device.as_fd(), tree: tree.as_fd(), opens: table.as_fd() };
                find_holder(&estate, keys, &farewell, || served.snapshot());
            }
        })?;
        let watcher = std::thread::Builder::new().name("kitfs-places".to_owned());
        if let Err(error) = watcher.spawn_scoped(threads, || leave_when_moved(&places)) {
            // Returning would be waiting for the reporter.
            tracing::warn!(%error, "a cache directory that is made again is not noticed");
        }
        if let Err(error) = session.run() {
            // Without a look back: the reporter would go on telling that all is well.
            tracing::error!(%error, "this worker ends");
            std::process::exit(1)
        }
        served.ended();
        let told = channel.send_patiently(&FromWorker::Ended, &[], Some(Instant::now() + REPORT_EVERY));
        if told.is_err() {
            // The holder is gone, and cannot say it; nor is there another one.
            let _last = farewell.lock().unwrap_or_else(PoisonError::into_inner);
            S::unmounted(&request, &summary);
            std::process::exit(0)
        }
        // Without a look back: the reporter listens for ever, and what waits for a source may too.
        std::process::exit(0)
    })
}

/// Waits until a directory of the cache has another in its place, and leaves that to the next worker: what this one
/// opened, and what it was confined to, is not there any more.
fn leave_when_moved(places: &Places) {
    let directory = loop {
        std::thread::sleep(LOOK_EVERY);
        if let Some(directory) = places.moved() {
            break directory;
        }
    };
    tracing::warn!(directory = %directory.display(), "there is another directory in its place, for another worker");
    // As if it was killed, which no reader notices and no request is held responsible for.
    if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL) {
        tracing::error!(%error, "this worker stays, and does not use it");
    }
}

/// Starts a new holder in place of the one that died, and leaves the mount to it. Returns if that cannot be: then the
/// mount lives as long as this process.
fn find_holder(estate: &Estate, keys: Keys<'_>, farewell: &Mutex<()>, snapshot: impl Fn() -> Snapshot) {
    for attempt in 1..=HOLDERS {
        let locked = farewell.lock().unwrap_or_else(PoisonError::into_inner);
        let estate = Estate { worker: std::process::id(), snapshot: Some(snapshot()), ..estate.clone() };
        match process::program().and_then(|program| estate::hand_over(&program, &estate, keys)) {
            Ok(()) => {
                // Without a look back, and without destructors: a reply that is dropped is an error to its reader,
                // and one that is not sent is answered by the next worker.
                // SAFETY: ends the process, and touches no memory.
                unsafe { libc::_exit(0) }
            }
            Err(error) => tracing::error!(%error, attempt, "no other process holds the mount"),
        }
        drop(locked);
        std::thread::sleep(REPORT_EVERY * attempt);
    }
}

/// Makes holder and table agree about the files that are in passthrough. A holder that registered none of them
/// gets them, to keep their leases; one that cannot be leased, or is not there any more, may have been touched.
fn reclaim(opens: &Opens, keeper: &Keeper, served: &impl Served) -> io::Result<()> {
    let backed = opens.backed();
    let unknown = keeper.retain(backed.iter().map(|(_, id)| *id).collect())?;
    for (inode, id) in backed.into_iter().filter(|(_, id)| unknown.contains(id)) {
        let kept = served
            .backing(inode)
            .is_some_and(|file| keeper.adopt(id, file.descriptor()).is_ok() && file.is_unchanged());
        if !kept && opens.touched(id).is_some() {
            served.touched(inode);
        }
    }
    Ok(())
}

/// Says how the worker is, when asked and when it has changed, until the holder is gone.
fn report(channel: &Channel, beat: &Beat, opens: &Opens, served: &impl Served) {
    let mut last = None;
    loop {
        beat.beat();
        match channel.wait::<ToWorker>(Some(Instant::now() + REPORT_EVERY)) {
            Ok(Some((ToWorker::Report(number), _))) => {
                let snapshot = served.snapshot();
                // A holder that does not listen asks again.
                let _ = channel.send(&FromWorker::Report(Some(number), snapshot.clone()), &[]);
                last = Some(snapshot);
            }
            Ok(Some((ToWorker::Touched(ids), _))) => {
                ids.into_iter().filter_map(|id| opens.touched(id)).for_each(|inode| served.touched(inode));
            }
            Ok(Some(_)) => tracing::warn!("the holder asked for something at a wrong time"),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let snapshot = Some(served.snapshot());
                if snapshot != last {
                    if let Some(snapshot) = snapshot.clone() {
                        let _ = channel.send(&FromWorker::Report(None, snapshot), &[]);
                    }
                    last = snapshot;
                }
            }
            Ok(None) => {
                tracing::error!("the process that holds the mount is gone");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the process that holds the mount is not understood");
                return;
            }
        }
    }
}

fn next(channel: &Channel) -> io::Result<(ToWorker, Vec<OwnedFd>)> {
    channel.wait(None)?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the holder is gone"))
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an unexpected message of the holder")
}
