//! Sealing with fs-verity, where kernel and file system have it: from then on the kernel itself checks every
//! page of a file against the digest that the store names it by, and nobody can write to it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `struct fsverity_enable_arg`, include/uapi/linux/fsverity.h.
#[repr(C)]
#[derive(Debug, Default)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `FS_IOC_ENABLE_VERITY`: `_IOW('f', 133, struct fsverity_enable_arg)`.
const ENABLE: libc::c_ulong = 0x4080_6685;

/// Whether a file system can seal files: asked by sealing a new one in `folder`, which is removed again.
pub fn probe_sealing(folder: &Path) -> io::Result<()> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    // The kernel refuses while anybody has the file open for writing.
    let path = file.into_temp_path();
    seal(&File::open(&path)?)
}

/// Seals a file that is open for reading, and for writing nowhere (ETXTBSY). One that is sealed stays so.
pub(super) fn seal(file: &File) -> io::Result<()> {
    // SHA-256 over blocks of 4 KiB, without salt: what the store's objects are named by.
    let argument = EnableArg { version: 1, hash_algorithm: 1, block_size: 4096, ..EnableArg::default() };
    // SAFETY: the descriptor is open, and the kernel reads exactly one `fsverity_enable_arg`, whose
    // pointers are null with lengths of zero.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &argument) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

const _: () = assert!(size_of::<EnableArg>() == 128);
