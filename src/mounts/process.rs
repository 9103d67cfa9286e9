//! Starting and watching the processes of a mount.
//!
//! Both are this program again, under arguments of their own: `kitfs hold ID DIR SOCKET` and
//! `kitfs work ID DIR`. What they work on arrives on standard input, which is a socket.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::mounts::wire::{self, Channel};

/// The first argument of a holder.
pub(super) const HOLD: &str = "hold";

/// The first argument of a worker.
pub(super) const WORK: &str = "work";

/// What /proc calls all our processes.
pub(super) const NAME: &str = "kitfs";

/// Whether a new process leaves the session of the one that starts it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// It does.
    Own,
    /// It stays.
    Same,
}

/// The program that runs here, also when its path leads to a newer one by now: a worker that takes over must number
/// the tree as the first one did.
pub(super) fn program() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// The program that is in the place of the one that runs here.
pub(super) fn newer_program() -> io::Result<File> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::fs::read_link("/proc/self/exe")?;
    // What the kernel says of a file that was replaced.
    let path = path.as_os_str().as_bytes();
    File::open(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)))
}

/// Starts a program, this one as a rule. It has the socket for standard input, `/` for working directory, and no
/// other descriptor of this process but, where asked, standard error and those in `kept`.
pub(super) fn start(
    program: &File,
    arguments: &[&OsStr],
    channel: OwnedFd,
    errors: Stdio,
    session: Session,
    kept: Vec<RawFd>,
) -> io::Result<Child> {
    let mut command = Command::new(proc_path(program));
    command.arg0(NAME).args(arguments).current_dir("/").stdin(channel).stdout(Stdio::null()).stderr(errors);
    // SAFETY: system calls only, no memory is touched: what fork allows before exec.
    unsafe {
        command.pre_exec(move || {
            if session == Session::Own {
                rustix::process::setsid()?;
            }
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
            // Whoever starts a process here has signals blocked to poll for them, and that is inherited.
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            // Closed by exec, and not here, for std has a pipe of its own open until then.
            let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_uint;
            if libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, flags) != 0 {
                return Err(io::Error::last_os_error());
            }
            for descriptor in &kept {
                if libc::fcntl(*descriptor, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// What a started process does first: takes the socket off standard input, and a name.
pub(super) fn begin() -> io::Result<Channel> {
    let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::thread::set_name(c"kitfs")?;
    // A caller that ignores SIGCHLD hands that down, and nothing could be waited for.
    // SAFETY: installs the default action, no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Channel::new(channel)
}

/// A process that this one started.
#[derive(Debug)]
pub(super) struct Started {
    child: Child,
    /// Readable when all threads are dead.
    group: OwnedFd,
    /// How it ended, once all threads are dead.
    status: Option<ExitStatus>,
}

impl Started {
    /// Watches a child.
    pub(super) fn new(child: Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        let group = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, group, status: None })
    }

    /// As /proc numbers it.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when all threads are dead, of which some may be stuck for ever.
    pub(super) fn death(&self) -> &OwnedFd {
        &self.group
    }

    /// Whether the first thread is dead. From Linux 6.15 on a descriptor of it (PIDFD_THREAD) does not tell. What was
    /// not waited for keeps its number.
    pub(super) fn is_headless(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The name before the state may hold anything (proc_pid_stat(5)).
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']))
    }

    /// Whether every thread is dead; then the process is also reaped.
    pub(super) fn is_gone(&mut self) -> bool {
        let gone = wire::readable(&self.group, Some(Instant::now())).unwrap_or(true);
        if gone && self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        gone
    }

    /// Whether somebody ended it, a person or the out-of-memory killer: it did not do so itself.
    pub(super) fn was_killed(&self) -> bool {
        let signal = self.status.and_then(|status| status.signal());
        matches!(signal, Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP))
    }

    /// Kills it. It may stay a while.
    pub(super) fn kill(&self) {
        signal(&self.group, Signal::KILL);
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) {
        signal(&self.group, Signal::TERM);
    }

    /// Waits for every thread to be dead, and says whether they are.
    pub(super) fn wait(&mut self, longest: Duration) -> bool {
        let _ = wire::readable(&self.group, Some(Instant::now() + longest));
        self.is_gone()
    }
}

/// Sends a signal to a process that may be gone.
pub(super) fn signal(process: impl AsFd, signal: Signal) {
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => tracing::warn!(%error, ?signal, "a process of this mount cannot be signalled"),
    }
}

/// Signals as something to poll, blocked in this thread for as long as it lives.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: OwnedFd,
    before: libc::sigset_t,
}

/// The signals that ask a mount to end.
pub(super) const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

impl Signals {
    /// Blocks these signals.
    pub(super) fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is written by sigemptyset before anything reads it, `before` by pthread_sigmask
        // before it is taken; the descriptor is new and nobody else's.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let descriptor = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            let descriptor = std::os::fd::FromRawFd::from_raw_fd(descriptor);
            Ok(Self { descriptor, before: before.assume_init() })
        }
    }

    /// Takes one signal that has arrived.
    pub(super) fn take(&self) -> Option<libc::c_int> {
        let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.descriptor, &mut info).ok()?;
        // ssi_signo is the first member.
        let number = info.first_chunk::<4>().filter(|_| read == info.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// The holders that run here, as their arguments tell: pid and arguments after the first.
///
/// Reads arguments only of processes of our name: reading those of a process that waits for a dead mount
/// could wait with it.
pub(super) fn holders() -> Vec<(u32, HolderArguments)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_ascii() == NAME.as_bytes()))
        .filter_map(|pid| Some((pid, HolderArguments::parse(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?)?)))
        .collect()
}

/// What a holder's arguments tell about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HolderArguments {
    /// Where it mounts.
    pub directory: std::path::PathBuf,
    /// Where it listens.
    pub socket: std::path::PathBuf,
}

impl HolderArguments {
    fn parse(cmdline: &[u8]) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let mut arguments = cmdline.strip_suffix(b"\0")?.split(|byte| *byte == 0).skip(1);
        if arguments.next()? != HOLD.as_bytes() {
            return None;
        }
        let path = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).to_owned();
        let (_id, directory, socket) = (arguments.next()?, arguments.next()?, arguments.next()?);
        Some(Self { directory: path(directory), socket: path(socket) })
    }
}

/// A descriptor that is readable when the process is gone.
pub(super) fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// What the out-of-memory killer thinks of this process.
pub(super) fn oom_score() -> Option<i32> {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Tells the out-of-memory killer what to think of this process. Lower than before needs privileges.
pub(super) fn set_oom_score(score: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// The number of an open descriptor, as /proc shows it.
pub(super) fn proc_path(descriptor: impl AsFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_known_by_its_arguments() {
        let holder = HolderArguments::parse(b"kitfs\0hold\0a1\0/mnt/a b\0/run/kitfs/a1.sock\0");
        let expected = HolderArguments { directory: "/mnt/a b".into(), socket: "/run/kitfs/a1.sock".into() };
        assert_eq!(holder, Some(expected));
    }

    #[test]
    fn other_processes_are_not_taken_for_holders() {
        for other in [&b""[..], b"kitfs\0", b"kitfs\0mount\0hold\0/mnt\0/x\0", b"kitfs\0hold\0a1\0/mnt\0", b"hold"] {
            assert_eq!(HolderArguments::parse(other), None, "{}", other.escape_ascii());
        }
    }
}
