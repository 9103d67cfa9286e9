//! A fuser session on a connection that somebody else opened, and may have initialised long ago.
//!
//! fuser begins every session with a handshake, and the kernel sends INIT once in the life of a
//! connection. So the handshake takes place on a socket pair on which the holder of the connection has
//! put a copy of the INIT request; then the real descriptor takes the socket's number. Relies on the
//! holder to judge the INIT reply before the session is attached. Mounts and unmounts nothing.

use std::collections::HashSet;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use fuser::{Config, Filesystem, SessionACL};
use rustix::io::{DupFlags, Errno};

use crate::fuse::beat::Beat;
use crate::fuse::guard::Guard;

/// Who may use the mount. The kernel is told the same at mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody whom the modes of the files let in.
    Everybody,
    /// The user that mounted, and nobody else.
    Owner,
}

/// What the connection has seen before this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing but its INIT.
    New,
    /// Sessions that died and may have left requests without an answer.
    Inherited,
}

/// A session that has answered INIT and is not on the connection yet.
#[derive(Debug)]
pub struct Greeted<F: Filesystem>(fuser::Session<Guard<F>>);

/// A session that reads from the connection once it runs.
#[derive(Debug)]
pub struct Attached<F: Filesystem>(fuser::Session<Guard<F>>);

impl<F: Filesystem> Greeted<F> {
    /// Shakes hands on `greeter`, a `SOCK_SEQPACKET` socket on which an INIT request waits; the reply goes
    /// back through it. Calls `Filesystem::init`. Requests are noted in `beat`, and those that are `condemned`
    /// get EIO in place of the file system's answer.
    pub fn shake_hands(
        filesystem: F,
        greeter: OwnedFd,
        access: Access,
        beat: Beat,
        condemned: HashSet<u64>,
    ) -> io::Result<Self> {
        let filesystem = Guard { inner: filesystem, beat, condemned };
        let acl = match access {
            Access::Everybody => SessionACL::All,
            Access::Owner => SessionACL::Owner,
        };
        let mut config = Config::default();
        config.acl = acl;
        // Two at least, so that one slow answer leaves somebody who listens.
        config.n_threads = Some(std::thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2)));
        // The end of a cloned descriptor ends the requests that were read from it, and with them the
        // takeover: every thread reads the one description that the holder keeps.
        config.clone_fd = false;
        fuser::Session::from_fd(filesystem, greeter, acl, config).map(Self)
    }

    /// Puts the session on the real connection. On an inherited one the kernel is asked to send again what
    /// it has sent and got no answer to.
    pub fn attach(self, device: BorrowedFd<'_>, connection: Connection) -> io::Result<Attached<F>> {
        // SAFETY: the number is open, the session owns it and lives in `self`; `ManuallyDrop` leaves the
        // closing to the session, so that for a moment there are two names and one owner.
        let mut slot = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.0.as_fd().as_raw_fd()) });
        // dup2 would clear CLOEXEC, and a credential helper that hangs would inherit the mount.
        rustix::io::dup3(device, &mut slot, DupFlags::CLOEXEC)?;
        if connection == Connection::Inherited {
            resend(device)?;
        }
        Ok(Attached(self.0))
    }
}

impl<F: Filesystem> Attached<F> {
    /// Answers the kernel until the connection ends.
    pub fn run(self) -> io::Result<()> {
        match self.0.run() {
            // The read that meets an abort says ECONNABORTED, all others ENODEV.
            Err(error) if error.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(()),
            result => result,
        }
    }
}

/// Asks the kernel to queue again every request that was read and not answered (Linux 6.9; EINVAL before).
/// They come with bit 63 set in their unique.
pub fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    const FUSE_NOTIFY_RESEND: u32 = 7;
    // fuse_out_header: length, the notification's code in place of an error, and 0 in place of a unique.
    let mut header = [0u8; 16];
    header[..4].copy_from_slice(&16u32.to_ne_bytes());
    header[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &header)?;
    Ok(())
}
