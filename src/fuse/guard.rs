//! Notes which request each thread works on, and refuses those that have killed two workers.
//!
//! A request that makes a worker crash is sent again to the next one, and would kill that too, and in the end the
//! mount. Refused alone, it costs one reader an error.

use std::collections::HashSet;
use std::ffi::OsStr;

use fuser::{
    Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};

use crate::fuse::beat::Beat;
use crate::fuse::opens::RESENT;

/// A file system whose requests are noted.
#[derive(Debug)]
pub(super) struct Guard<F> {
    pub inner: F,
    pub beat: Beat,
    /// Requests that are refused.
    pub condemned: HashSet<u64>,
}

impl<F> Guard<F> {
    fn is_condemned(&self, request: &Request) -> bool {
        if self.condemned.is_empty() || !self.condemned.contains(&(request.unique().0 & !RESENT)) {
            return false;
        }
        tracing::error!(request = request.unique().0 & !RESENT, "a request that has killed two workers is refused");
        self.beat.answered();
        true
    }
}

/// Passes requests on, each under a note.
macro_rules! guarded {
    ($($name:ident($($argument:ident: $type:ty),*; $reply:ty);)*) => {
        $(
            fn $name(&self, request: &Request, $($argument: $type,)* reply: $reply) {
                if self.is_condemned(request) {
                    return reply.error(Errno::EIO);
                }
                let _note = self.beat.note(request.unique());
                self.inner.$name(request, $($argument,)* reply);
            }
        )*
    };
}

impl<F: Filesystem> Filesystem for Guard<F> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.inner.init(request, config)
    }

    guarded! {
        lookup(parent: INodeNo, name: &OsStr; ReplyEntry);
        getattr(inode: INodeNo, handle: Option<FileHandle>; ReplyAttr);
        open(inode: INodeNo, flags: OpenFlags; ReplyOpen);
        read(inode: INodeNo, handle: FileHandle, offset: u64, size: u32, flags: OpenFlags, owner: Option<LockOwner>; ReplyData);
        flush(inode: INodeNo, handle: FileHandle, owner: LockOwner; ReplyEmpty);
        release(inode: INodeNo, handle: FileHandle, flags: OpenFlags, owner: Option<LockOwner>, flush: bool; ReplyEmpty);
        opendir(inode: INodeNo, flags: OpenFlags; ReplyOpen);
        readdir(inode: INodeNo, handle: FileHandle, offset: u64; ReplyDirectory);
        readdirplus(inode: INodeNo, handle: FileHandle, offset: u64; ReplyDirectoryPlus);
        statfs(inode: INodeNo; ReplyStatfs);
        getxattr(inode: INodeNo, name: &OsStr, size: u32; ReplyXattr);
        listxattr(inode: INodeNo, size: u32; ReplyXattr);
        ioctl(inode: INodeNo, handle: FileHandle, flags: IoctlFlags, command: u32, input: &[u8], output_size: u32; ReplyIoctl);
        lseek(inode: INodeNo, handle: FileHandle, offset: i64, whence: i32; ReplyLseek);
    }
}
