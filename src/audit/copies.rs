//! Copies of the log's lines, for the system's log daemon, for the journal, or for whoever reads a
//! descriptor: on another machine perhaps, where nobody on this one can change them.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use serde::Deserialize;
use serde::Serialize;
use tracing::Level;

use crate::audit::daemon::Daemon;
use crate::audit::daemon::Stream;

/// A place that gets a copy of every line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Copy {
    /// The system's log daemon.
    Syslog,
    /// systemd's journal.
    Journal,
    /// A descriptor that this process was started with.
    Descriptor(RawFd),
}

/// How long a reader of the descriptor may let a line wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// The lowest number that a copy of a descriptor gets: those below are put in place for a child by number.
const LOWEST: RawFd = 10;

/// What a pipe that can be written to takes without blocking (PIPE_BUF).
const PIECE: usize = 4096;

impl Copy {
    /// Says whether a descriptor can be written to.
    pub fn check(self) -> io::Result<()> {
        let Self::Descriptor(number) = self else { return Ok(()) };
        duplicate(number).map(drop)
    }

    /// The same place for processes that outlive this one: a descriptor under a number that is not taken
    /// there, open for as long as the second value lives.
    pub fn for_children(self) -> io::Result<(Self, Option<File>)> {
        let Self::Descriptor(number) = self else { return Ok((self, None)) };
        let ours = duplicate(number)?;
        Ok((Self::Descriptor(ours.as_raw_fd()), Some(ours)))
    }

    /// Keeps a descriptor that this process was started with from the programs that it starts.
    pub fn keep_private(self) {
        let Self::Descriptor(number) = self else { return };
        // SAFETY: a system call on a number; if nothing is open under it, that is all that happens.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }

    /// The descriptor, if it is one.
    pub fn descriptor(self) -> Option<RawFd> {
        match self {
            Self::Descriptor(number) => Some(number),
            Self::Syslog | Self::Journal => None,
        }
    }
}

/// Places that get copies, as this process has them open.
#[derive(Debug)]
pub(super) struct Copies(Vec<(Copy, Mutex<Option<Target>>)>);

#[derive(Debug)]
enum Target {
    Daemon(Daemon),
    Descriptor(File),
}

impl Copies {
    pub(super) fn new(copies: &[Copy]) -> Self {
        Self(copies.iter().map(|copy| (*copy, Mutex::new(None))).collect())
    }

    /// Sends lines everywhere. The error is that of the last place that did not take them; the others did.
    pub(super) fn send(&self, lines: &[(Level, String)]) -> io::Result<()> {
        let mut result = Ok(());
        for (copy, target) in &self.0 {
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = send(*copy, &mut target, lines) {
                let name = match copy {
                    Copy::Syslog => "syslog".to_owned(),
                    Copy::Journal => "journal".to_owned(),
                    Copy::Descriptor(number) => format!("fd:{number}"),
                };
                result = Err(io::Error::new(error.kind(), format!("{name}: {error}")));
            }
        }
        result
    }
}

fn send(copy: Copy, target: &mut Option<Target>, lines: &[(Level, String)]) -> io::Result<()> {
    let target = match target {
        Some(target) => target,
        None => target.insert(match copy {
            Copy::Syslog => Target::Daemon(Daemon::syslog(Stream::Audit)?),
            Copy::Journal => Target::Daemon(Daemon::journal(Stream::Audit)?),
            Copy::Descriptor(number) => Target::Descriptor(duplicate(number)?),
        }),
    };
    lines.iter().try_for_each(|(level, line)| match target {
        Target::Daemon(daemon) => daemon.write(*level, line),
        Target::Descriptor(file) => write_patiently(file, format!("{line}\n").as_bytes()),
    })
}

/// A descriptor of our own for what is open under this number, which no program that we start inherits.
fn duplicate(number: RawFd) -> io::Result<File> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: it is borrowed for the duplication alone, and whether it is open is what that tells.
    let named = unsafe { BorrowedFd::borrow_raw(number) };
    let ours = rustix::io::fcntl_dupfd_cloexec(named, LOWEST)?;
    let mode = rustix::fs::fcntl_getfl(&ours)? & rustix::fs::OFlags::RWMODE;
    if mode == rustix::fs::OFlags::RDONLY {
        return Err(io::Error::other("it is not open for writing"));
    }
    Ok(ours.into())
}

fn write_patiently(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for piece in bytes.chunks(PIECE) {
        let mut rest = piece;
        while !rest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&left)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it")),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_descriptor_gets_lines_and_one_that_nobody_reads_stops_nobody() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let copies = Copies::new(&[Copy::Descriptor(writer.as_raw_fd())]);
        copies.send(&[(Level::INFO, "one".into()), (Level::INFO, "two".into())]).unwrap();
        let mut read = [0; 8];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\ntwo\n");
        let error = copies.send(&[(Level::INFO, "x".repeat(1 << 20))]).unwrap_err();
        assert!(error.to_string().contains("nobody reads it"), "{error}");
    }

    #[test]
    fn a_descriptor_that_cannot_be_written_to_is_said() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(Copy::Descriptor(reader.as_raw_fd()).check().is_err());
        assert!(Copy::Descriptor(987_654).check().is_err());
        assert!(Copy::Descriptor(-1).check().is_err());
    }
}
