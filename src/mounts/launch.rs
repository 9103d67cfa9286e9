//! `kitfs mount`, from the side of the one who waits: is the directory fit, start the holder, hear it out.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;

use crate::mounts::message::{FromCaller, Order, ToCaller};
use crate::mounts::mountinfo;
use crate::mounts::process;
use crate::mounts::process::{ENDING, Session, Signals, Started};
use crate::mounts::request::{AbsolutePath, MountFailure, MountRequest, Presence, Progress, Summary};
use crate::mounts::status;
use crate::mounts::wire::Channel;

/// How long a holder may take to clean up after a mount that was not to be.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mount that can be listed.
#[derive(Debug)]
pub struct Mounted {
    /// What is known of the kit.
    pub summary: Summary,
    /// Whether it was there before.
    pub novelty: Novelty,
    /// The process to stay with, in the foreground. Signals stay blocked from its start on: one that came
    /// before somebody looks for them would be lost, or leave without a word.
    holder: Option<(Started, Channel, Signals)>,
}

/// Whether a mount was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// It was made.
    New,
    /// The same kit was mounted there already.
    Already,
}

/// Mounts, and returns when the tree can be listed. SIGINT, SIGTERM and SIGHUP cancel it, unless another
/// thread of the process takes them.
pub fn mount(mut request: MountRequest, mut progress: impl FnMut(Progress)) -> Result<Mounted, MountFailure> {
    let cannot = |error: io::Error| MountFailure::new(1, format!("the mount's process cannot be started: {error}"));
    let signals = Signals::block(&ENDING).map_err(cannot)?;
    let place = vacancy(&request, &signals, &mut progress)?;
    request.directory = place.directory;
    let presence = request.presence;

    let id = random_id().map_err(cannot)?;
    let socket = request.runtime_dir.join(format!("{id}.sock"));
    let arguments = [OsStr::new(process::HOLD), OsStr::new(&id), request.directory.as_os_str(), socket.as_os_str()];
    let errors = match presence {
        Presence::Background => Stdio::null(),
        Presence::Foreground => Stdio::inherit(),
    };
    let (channel, theirs) = Channel::pair().map_err(cannot)?;
    // Under numbers that are free in the processes to come.
    let copies = request.audit.copies.iter().map(|copy| copy.for_children()).collect::<io::Result<Vec<_>>>();
    let (copies, descriptors): (Vec<_>, Vec<_>) = copies.map_err(cannot)?.into_iter().unzip();
    request.audit.copies = copies;
    let kept = request.audit.descriptors();
    let program = process::program().map_err(cannot)?;
    let child = process::start(&program, &arguments, theirs, errors, Session::Own, kept).map_err(cannot)?;
    drop(descriptors);
    let mut holder = Started::new(child).map_err(cannot)?;
    let order = FromCaller::Mount(Box::new(Order { request, mounted: place.mounted }));
    let result = channel.send(&order, &[]).map_err(cannot).and_then(|()| hear_out(&channel, &signals, &mut progress));
    match result {
        Ok((summary, Novelty::New)) => {
            let holder = (presence == Presence::Foreground).then_some((holder, channel, signals));
            Ok(Mounted { summary, novelty: Novelty::New, holder })
        }
        Ok((summary, Novelty::Already)) => Ok(Mounted { summary, novelty: Novelty::Already, holder: None }),
        Err(failure) => {
            // The end of the channel cancels what is under way; nothing is left when the holder is gone.
            drop(channel);
            holder.wait(PATIENCE);
            Err(failure)
        }
    }
}

impl Mounted {
    /// Stays until the mount ends, which SIGINT and SIGTERM make it do. Returns at once where the mount was
    /// not made in the foreground.
    pub fn stay(self) -> io::Result<()> {
        let Some((mut holder, channel, signals)) = self.holder else { return Ok(()) };
        while !holder.is_gone() {
            let mut polled = [PollFd::new(&signals, PollFlags::IN), PollFd::new(holder.death(), PollFlags::IN)];
            match rustix::event::poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if signals.take().is_some() {
                holder.terminate();
            }
        }
        drop(channel);
        Ok(())
    }
}

/// Where a mount is to be.
struct Place {
    directory: AbsolutePath,
    /// The mount that is there and may be the same.
    mounted: Option<Summary>,
    /// Keeps other `kitfs mount` off the directory, as long as this one is at it.
    _lock: Option<File>,
}

/// Makes sure that the directory is one to mount on, and that nobody else is about to.
fn vacancy(
    request: &MountRequest,
    signals: &Signals,
    progress: &mut impl FnMut(Progress),
) -> Result<Place, MountFailure> {
    let mut waits = false;
    loop {
        let (real, entry) = look_at(&request.directory)?;
        if entry.as_ref().is_some_and(|entry| entry.fstype == mountinfo::FSTYPE) {
            return occupied(request, real, entry.map_or((0, 0), |entry| entry.device));
        }
        let unfit =
            |error: io::Error| MountFailure::new(2, format!("{} cannot be mounted on: {error}", real.display()));
        let lock = File::open(&real).map_err(unfit)?;
        // Some file systems have no locks; two mounts at the same moment then end up on each other.
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
            if !std::mem::replace(&mut waits, true) {
                progress(Progress::Step(format!("waiting for another mount on {}", real.display())));
            }
            if signals.take().is_some() {
                return Err(interrupted());
            }
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        // Whoever had the lock may have mounted meanwhile.
        if look_at(&request.directory)?.1 != entry {
            continue;
        }
        if fs::read_dir(&real).map_err(unfit)?.next().is_some() {
            return Err(MountFailure::new(2, format!("{} is not empty", real.display())));
        }
        let directory = AbsolutePath::new(real).map_err(|error| MountFailure::new(2, error.to_string()))?;
        return Ok(Place { directory, mounted: None, _lock: Some(lock) });
    }
}

fn look_at(directory: &Path) -> Result<(PathBuf, Option<mountinfo::Entry>), MountFailure> {
    mountinfo::at(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountFailure::new(3, format!("{} is not there", directory.display())),
        _ => MountFailure::new(2, format!("{} cannot be mounted on: {error}", directory.display())),
    })
}

/// There is a mount of ours already. If it could be of the same kit, the holder finds out.
fn occupied(request: &MountRequest, real: PathBuf, device: (u32, u32)) -> Result<Place, MountFailure> {
    let at = real.display();
    let Some((_, _, identity)) = status::holder(&real, device) else {
        let message = format!("{at} has a mount that is dead or another user's (`kitfs umount` removes it)");
        return Err(MountFailure::new(2, message));
    };
    if identity.has_failed {
        return Err(MountFailure::new(2, format!("{at} has a mount that has failed (`kitfs umount` removes it)")));
    }
    let there = identity.request;
    if there.reference != request.reference {
        return Err(MountFailure::new(2, format!("{at} has {} mounted", there.reference)));
    }
    if (&there.filters, there.metadata, there.options) != (&request.filters, request.metadata, request.options) {
        return Err(MountFailure::new(2, format!("{at} has {} mounted with other options", there.reference)));
    }
    Ok(Place { directory: there.directory, mounted: Some(identity.summary), _lock: None })
}

/// Hears what the holder has to say, to the last word.
fn hear_out(
    channel: &Channel,
    signals: &Signals,
    progress: &mut impl FnMut(Progress),
) -> Result<(Summary, Novelty), MountFailure> {
    let died = || MountFailure::new(1, "the process of the mount died (its log may tell why)");
    loop {
        match channel.receive::<ToCaller>() {
            Ok(Some((ToCaller::Progress(step), _))) => progress(step),
            Ok(Some((ToCaller::Ready(summary), _))) => return Ok((summary, Novelty::New)),
            Ok(Some((ToCaller::Same(summary), _))) => return Ok((summary, Novelty::Already)),
            Ok(Some((ToCaller::Failed(failure), _))) => return Err(failure),
            Ok(None) => return Err(died()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut polled = [PollFd::new(channel, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
                match rustix::event::poll(&mut polled, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return Err(died()),
                }
                if signals.take().is_some() {
                    return Err(interrupted());
                }
            }
            Err(error) => {
                return Err(MountFailure::new(1, format!("the process of the mount is not understood: {error}")));
            }
        }
    }
}

fn interrupted() -> MountFailure {
    MountFailure::new(1, "interrupted, and nothing is mounted")
}

/// A name that no other mount has.
pub(super) fn random_id() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex::encode(bytes))
}
