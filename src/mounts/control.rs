//! The holder's control socket, `RUNTIME_DIR/ID.sock`: who listens on it, and who asks.
//!
//! Open to the mount's user alone, and the one who asks makes sure that the one who answers is that user or
//! root.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::mounts::message::{Answer, Query};
use crate::mounts::process;
use crate::mounts::record;
use crate::mounts::wire::Channel;

/// A socket that listens. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at a path, which may be longer than the 107 bytes that a socket address has.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let (folder, name) = parts(path)?;
        record::make_private(folder)?;
        let socket = socket()?;
        through(folder, name, |address| rustix::net::bind(&socket, address))?;
        let listener = Self { socket, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&listener.socket, 16)?;
        Ok(listener)
    }

    /// The next one who asks, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<Channel>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => Channel::new(client).map(Some),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks a holder, and waits for its answer this long at most.
pub(super) fn ask(path: &Path, query: &Query, longest: Duration) -> io::Result<Answer> {
    ask_with(path, query, &[], longest)
}

/// The same, with descriptors that belong to the question.
pub(super) fn ask_with(
    path: &Path,
    query: &Query,
    descriptors: &[BorrowedFd<'_>],
    longest: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + longest;
    let (folder, name) = parts(path)?;
    let socket = socket()?;
    through(folder, name, |address| rustix::net::connect(&socket, address))?;
    let (own, peer) = (rustix::process::geteuid(), rustix::net::sockopt::socket_peercred(&socket)?.uid);
    if !own.is_root() && !peer.is_root() && own != peer {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the socket is another user's"));
    }
    let channel = Channel::new(socket)?;
    channel.send(query, descriptors)?;
    let answer = channel.wait(Some(deadline))?;
    answer.map(|(answer, _)| answer).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Uses a socket's address by way of an open folder, so that its length is that of the name.
fn through(
    folder: &Path,
    name: &OsStr,
    with: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(process::proc_path(&folder).join(name))?;
    Ok(with(&address)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_listened_at_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d".repeat(200)).join("id.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = ask(&path, &Query::Identity, Duration::from_millis(20));
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let client = listener.accept().unwrap().unwrap();
        assert!(matches!(client.receive::<Query>().unwrap(), Some((Query::Identity, _))));
        drop(listener);
        assert!(!path.exists());
    }
}
