//! Backing files: what the kernel reads by itself instead of asking (FUSE passthrough, Linux 6.9).
//!
//! A file is registered with a connection and has a number from then on; an OPEN that is answered with the
//! number reads the file itself, mappings included, and goes on doing so whatever happens to us. So only
//! what is proved whole and cannot change is registered, under a read lease: while it is held nobody has the
//! file open for writing, and whoever tries waits until the one who holds the lease has heard of it.
//! Registering takes CAP_SYS_ADMIN in the initial user namespace.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`, include/uapi/linux/fuse.h.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// Who registers backing files, and remembers them when this process is dead.
pub trait Keeper: Debug + Send + Sync {
    /// Registers a file, once there is a read lease on it. Bounded in time.
    ///
    /// `WouldBlock` where somebody has it open for writing.
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// The inode of that backing file is not open any more.
    fn release(&self, id: u32);
}

/// A file that may be handed to the kernel.
pub trait Backing {
    /// The open file.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Whether it is what was proved. Asked when the lease is there, after which nobody can change it.
    fn is_unchanged(&self) -> bool;
}

/// Registers a file with a connection, and gives it a number.
///
/// EPERM without the capability; ELOOP where the file lies on more layers of file systems than were
/// negotiated.
pub fn register(device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<u32> {
    fuser::BackingId::create_raw(device, file)
}

/// Gives a number back. Descriptors that were opened with it keep the file.
pub fn unregister(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel reads one u32.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &id) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a read lease, for as long as the result is open. This process gets SIGIO when somebody wants to write.
/// `WouldBlock` while somebody can.
///
/// The file is opened once more: the kernel keeps a file that is registered, and its lease would outlive whoever is
/// told of it.
pub fn take_lease(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let leased = OwnedFd::from(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
    fcntl(leased.as_fd(), libc::F_SETLEASE, libc::F_RDLCK)?;
    Ok(leased)
}

/// Whether nobody has asked for the lease back.
pub fn has_lease(file: BorrowedFd<'_>) -> bool {
    fcntl(file, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK)
}

/// Gives the lease back: whoever waits to write may go on.
pub fn end_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(file, libc::F_SETLEASE, libc::F_UNLCK).map(drop)
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: commands of this module take a number and touch no memory.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_needs_that_nobody_can_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        // Its own handle can write.
        assert_eq!(take_lease(reader.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let path = file.into_temp_path();
        let leased = take_lease(reader.as_fd()).unwrap();
        assert!(has_lease(leased.as_fd()) && !has_lease(reader.as_fd()));
        end_lease(leased.as_fd()).unwrap();
        assert!(!has_lease(leased.as_fd()));
        drop(path);
    }
}
