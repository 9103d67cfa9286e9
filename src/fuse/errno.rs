//! The one table from errors to what a reader is told.

use fuser::Errno;

use crate::fs::ReadError;

/// The number for an error of a read. Everything that keeps proved bytes from a reader is EIO, as it is
/// for the kernel's own fs-verity and dm-verity; what happened is told in the log and by `status`.
pub(super) fn of(error: &ReadError) -> Errno {
    match error {
        ReadError::NoSuchInode => Errno::ENOENT,
        ReadError::IsDirectory => Errno::EISDIR,
        ReadError::Chunk(_) | ReadError::Touched => Errno::EIO,
    }
}
