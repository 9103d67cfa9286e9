//! A FUSE connection from `/dev/fuse` to its end: mounting, the INIT exchange, unmounting, aborting.
//!
//! Root mounts itself, others through `fusermount3`. Everything here is bounded in time, and nothing
//! touches the mounted file system.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use crate::fuse::session;
use crate::mounts::mountinfo;
use crate::mounts::request::{MountOptions, MountRequest};
use crate::mounts::wire;

/// The longest that fusermount3 may take, and the kernel with its INIT.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least that the kernel accepts to put a request in (FUSE_MIN_READ_BUFFER).
const SMALLEST_BUFFER: usize = 8192;

/// A mounted connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The one open file description that every worker of this mount reads from.
    device: OwnedFd,
    /// The number of the file system.
    number: (u32, u32),
    /// The kernel's INIT request, as it was.
    init: Vec<u8>,
    /// The first worker's answer to it, which binds all others: the kernel asks once.
    reply: Option<Vec<u8>>,
}

impl Connection {
    /// Mounts, and takes the INIT request off the connection. Nothing is answered yet.
    pub(super) fn mount(request: &MountRequest) -> Result<Self, ConnectionError> {
        let directory: &Path = &request.directory;
        let device = if rustix::process::geteuid().is_root() {
            mount_directly(request)?
        } else {
            mount_through_fusermount(request)?
        };
        let mounted = || -> io::Result<((u32, u32), Vec<u8>)> {
            let (_, entry) = mountinfo::at(directory)?;
            let entry = entry.filter(|entry| entry.fstype == mountinfo::FSTYPE).ok_or(io::ErrorKind::NotFound)?;
            if !wire::readable(&device, Some(Instant::now() + PATIENCE))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut init = vec![0; SMALLEST_BUFFER];
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&device, &mut init))?;
            init.truncate(length);
            Ok((entry.device, init))
        };
        match mounted() {
            Ok((number, init)) => Ok(Self { device, number, init, reply: None }),
            Err(source) => {
                let _ = unmount(directory, Busy::Detach);
                Err(ConnectionError::Init(source))
            }
        }
    }

    /// A connection that another holder mounted, with the INIT request and its answer.
    pub(super) fn adopt(device: OwnedFd, number: (u32, u32), init: Vec<u8>, reply: Vec<u8>) -> Self {
        Self { device, number, init, reply: Some(reply) }
    }

    /// The descriptor that workers serve.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Major and minor number of the file system.
    pub(super) fn number(&self) -> (u32, u32) {
        self.number
    }

    /// The INIT request and its answer, for the record.
    pub(super) fn negotiated(&self) -> (&[u8], &[u8]) {
        (&self.init, self.reply.as_deref().unwrap_or_default())
    }

    /// A socket on which a copy of the INIT request waits for a worker, and our end of it.
    pub(super) fn greeter(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::write(&ours, &self.init)?;
        Ok((ours, theirs))
    }

    /// Takes a worker's answer to INIT: the first one goes to the kernel, a later one must equal it.
    pub(super) fn settle(&mut self, reply: Vec<u8>) -> Result<(), ConnectionError> {
        match &self.reply {
            Some(first) if *first == reply => Ok(()),
            Some(_) => Err(ConnectionError::OtherReply),
            None => {
                rustix::io::write(&self.device, &reply).map_err(|error| ConnectionError::Init(error.into()))?;
                self.reply = Some(reply);
                Ok(())
            }
        }
    }

    /// Whether the kernel has let go of the connection: unmounted everywhere, or aborted.
    pub(super) fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.device, PollFlags::empty())];
        match rustix::event::poll(&mut polled, Some(&wire::timespec(Duration::ZERO))) {
            Ok(_) => polled[0].revents().contains(PollFlags::ERR),
            Err(_) => false,
        }
    }

    /// Whether a request waits for an answer, for somebody to read it or for somebody who died. They are
    /// queued again for it, which a worker that takes over would do all the same.
    pub(super) fn has_requests(&self) -> bool {
        if let Err(error) = session::resend(self.device.as_fd()) {
            tracing::warn!(%error, "requests that a dead worker took stay without an answer");
        }
        wire::readable(&self.device, Some(Instant::now())).unwrap_or(true)
    }

    /// Ends the connection under its users. Where there is no fusectl, it ends with its last descriptor.
    pub(super) fn abort(&self) {
        if let Err(error) = fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.number.1), "1") {
            tracing::debug!(%error, "the connection ends with its last process, and not before");
        }
    }

    /// Lets the kernel read ahead more than the 128 KiB that FUSE may ask for. Around the page at which a mapping
    /// faults it reads as much, whatever is wanted of it. Root's, and best effort.
    pub(super) fn raise_readahead(&self) {
        let (major, minor) = self.number;
        if let Err(error) = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024") {
            tracing::debug!(%error, "readahead stays as it is");
        }
    }

    /// Answers every request that is there with EIO, in place of a worker. Does not wait for any.
    pub(super) fn refuse_requests(&self) -> io::Result<()> {
        const FUSE_FORGET: u32 = 2;
        const FUSE_INTERRUPT: u32 = 36;
        const FUSE_BATCH_FORGET: u32 = 42;
        let flags = rustix::fs::fcntl_getfl(&self.device)?;
        rustix::fs::fcntl_setfl(&self.device, flags | OFlags::NONBLOCK)?;
        let mut buffer = vec![0; self.largest_request()];
        loop {
            let length = match rustix::io::read(&self.device, &mut buffer) {
                Ok(length) => length,
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(Errno::AGAIN | Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // fuse_in_header: length, opcode, unique, and more that an error needs not.
            let Some(header) = buffer[..length].first_chunk::<16>() else { continue };
            let [_, _, _, _, o0, o1, o2, o3, unique @ ..] = *header;
            if matches!(u32::from_ne_bytes([o0, o1, o2, o3]), FUSE_FORGET | FUSE_INTERRUPT | FUSE_BATCH_FORGET) {
                continue;
            }
            let mut reply = [0u8; 16];
            reply[..4].copy_from_slice(&16u32.to_ne_bytes());
            reply[4..8].copy_from_slice(&Errno::IO.raw_os_error().wrapping_neg().to_ne_bytes());
            reply[8..].copy_from_slice(&unique);
            // ENOENT: its reader was killed meanwhile.
            let _ = rustix::io::write(&self.device, &reply);
        }
    }

    /// The kernel refuses a buffer that could not take a write of the size that was negotiated.
    fn largest_request(&self) -> usize {
        // fuse_out_header, then major, minor, max_readahead, flags, max_background and its threshold.
        let max_write = self.reply.as_deref().and_then(|reply| reply.get(36..40));
        let max_write = max_write.and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        SMALLEST_BUFFER + usize::try_from(max_write).unwrap_or(0)
    }
}

/// What to do with a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Leave it.
    Keep,
    /// Take it out of the tree; it lives on for those who use it (`umount --lazy`).
    Detach,
}

/// Unmounts the topmost mount at a directory. `ResourceBusy` where it is in use.
pub(super) fn unmount(directory: &Path, busy: Busy) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = match busy {
            Busy::Keep => UnmountFlags::NOFOLLOW,
            Busy::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        return Ok(rustix::mount::unmount(directory, flags)?);
    }
    let mut command = Command::new(fusermount()?);
    command.arg("-u").arg("-q");
    if busy == Busy::Detach {
        command.arg("-z");
    }
    command.arg("--").arg(directory).env("LC_ALL", "C");
    let said = run(command, Stdio::null())?;
    // Its text is all that fusermount3 tells; it prints the errno's in English under this locale.
    match said {
        None => Ok(()),
        Some(message) if message.contains("busy") => Err(io::ErrorKind::ResourceBusy.into()),
        Some(message) => Err(io::Error::other(message)),
    }
}

/// What the mount table calls the source: the reference, or the beginning of a very long one. The kernel takes a page
/// of it, and fusermount3 all options together in one, with a backslash before some characters.
fn name_of_source(request: &MountRequest) -> &str {
    const LONGEST: usize = 1024;
    &request.reference[..request.reference.floor_char_boundary(LONGEST)]
}

fn mount_directly(request: &MountRequest) -> Result<OwnedFd, ConnectionError> {
    let device = open_device()?;
    let MountOptions { noexec, allow_other } = request.options;
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    if noexec {
        flags |= MountFlags::NOEXEC;
    }
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},default_permissions,subtype=kitfs",
        device.as_raw_fd()
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data).map_err(|error| ConnectionError::Mount(error.into()))?;
    let source = name_of_source(request);
    rustix::mount::mount(source, &*request.directory, "fuse", flags, &*data).map_err(|error| match error {
        Errno::PERM => ConnectionError::NotPermitted,
        Errno::NODEV => ConnectionError::NoDevice,
        error => ConnectionError::Mount(error.into()),
    })?;
    Ok(device)
}

fn open_device() -> Result<OwnedFd, ConnectionError> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => Ok(device.into()),
        // ENODEV and ENXIO: the node is there, the module is not.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ConnectionError::NoDevice),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            Err(ConnectionError::NoDevice)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Err(ConnectionError::Closed),
        Err(error) => Err(ConnectionError::Mount(error)),
    }
}

fn mount_through_fusermount(request: &MountRequest) -> Result<OwnedFd, ConnectionError> {
    // fusermount3 would say it in its own words, and later.
    drop(open_device()?);
    let program = fusermount().map_err(|_| ConnectionError::NoFusermount)?;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| ConnectionError::Mount(error.into()))?;
    let mut options = OsString::from("ro,nosuid,nodev,default_permissions,subtype=kitfs,fsname=");
    // A comma would end the option, and a backslash takes the meaning of what follows.
    options.push(name_of_source(request).replace('\\', "\\\\").replace(',', "\\,"));
    if request.options.noexec {
        options.push(",noexec");
    }
    if request.options.allow_other {
        options.push(",allow_other");
    }
    let mut command = Command::new(program);
    command.arg("-o").arg(options).arg("--").arg(&*request.directory);
    // Standard input is the socket that the descriptor comes back on.
    command.env("_FUSE_COMMFD", "0").env("LC_ALL", "C");
    let said = run(command, Stdio::from(theirs)).map_err(ConnectionError::Mount)?;
    match said {
        Some(message) => Err(ConnectionError::Refused(message)),
        None => receive_device(&ours).map_err(ConnectionError::Mount),
    }
}

fn receive_device(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    device.ok_or_else(|| io::Error::other("fusermount3 gave no descriptor"))
}

/// Runs fusermount3 in bounded time. What it said if it failed, in one line.
fn run(mut command: Command, input: Stdio) -> io::Result<Option<String>> {
    let mut child = command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // The command keeps the end of the socket that it gave away.
    drop(command);
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    if let Some(mut errors) = child.stderr.take() {
        let mut part = [0; 1024];
        while wire::readable(&errors, Some(deadline))? {
            match errors.read(&mut part)? {
                0 => break,
                length if said.len() < 4096 => said.extend_from_slice(&part[..length]),
                _ => {}
            }
        }
    }
    loop {
        if let Some(status) = child.try_wait()? {
            let said = String::from_utf8_lossy(&said);
            let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
            return Ok((!status.success()).then(|| if said.is_empty() { status.to_string() } else { said }));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::new(io::ErrorKind::TimedOut, "fusermount3 does not come back"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The helper that may mount for ordinary users: `FUSERMOUNT_PATH`, or the first one there is.
fn fusermount() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("FUSERMOUNT_PATH") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [OsStr::from_bytes(b"/usr/bin"), OsStr::from_bytes(b"/bin"), OsStr::from_bytes(b"/usr/local/bin")];
    let folders = std::env::split_paths(&path).chain(usual.iter().map(PathBuf::from)).collect::<Vec<_>>();
    ["fusermount3", "fusermount"]
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|program| program.is_file())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed"))
}

/// Why there is no connection. Each one has another cure.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The kernel has no FUSE, or shows none here.
    #[error(
        "this host has no FUSE: /dev/fuse is missing or has no driver (try `modprobe fuse`; in a container, \
         `--device /dev/fuse --cap-add SYS_ADMIN`)"
    )]
    NoDevice,
    /// The device is there for others.
    #[error("/dev/fuse may not be opened by this user (udev makes it 0666: try `chmod 666 /dev/fuse` as root)")]
    Closed,
    /// Root without the capability.
    #[error("mounting needs CAP_SYS_ADMIN, which this process does not have (in a container, `--cap-add SYS_ADMIN`)")]
    NotPermitted,
    /// There is no helper for ordinary users.
    #[error("fusermount3 is not installed, and only root can mount without it (Debian has it in the package fuse3)")]
    NoFusermount,
    /// The helper does not want to.
    #[error("fusermount3 refused: {0}")]
    Refused(String),
    /// The mount itself.
    #[error("mount failed: {0}")]
    Mount(#[source] io::Error),
    /// The kernel's first request, or our answer to it.
    #[error("the kernel did not start the connection: {0}")]
    Init(#[source] io::Error),
    /// A later worker negotiates something that the kernel did not hear from the first one.
    #[error("a worker's answer to INIT differs from the first one's")]
    OtherReply,
}
