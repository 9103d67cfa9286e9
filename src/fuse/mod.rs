//! FUSE: decodes requests, asks the file system, replies. Nothing else happens here.
//!
//! Metadata is answered from memory, on the thread that read the request: a process that waits for such
//! an answer cannot be killed. What needs a source moves into a task with its reply: reads, and the OPEN of a file
//! that the kernel will read by itself once it is proved.

pub mod backing;
pub mod beat;
mod caller;
mod errno;
mod guard;
mod opening;
pub mod opens;
pub mod session;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use crate::buffers::BUFFER;
use crate::chunks::Whole;
use crate::fs::KitFs;
use crate::fs::Passthrough;
use crate::fuse::backing::Backing;
use crate::fuse::beat::Beat;
use crate::fuse::opening::{Opening, Waiting};
use crate::fuse::opens::{Mode, Opens};
use crate::kit::tree::Inode;
use crate::kit::tree::Node;
use crate::kit::tree::NodeKind;
use crate::ledger::chain;
use crate::verify::Verified;

/// Nothing ever changes: what the kernel knows stays true for as long as the mount lives.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Requests that the kernel may have waiting in the background. A small number would let readahead of
/// one dead source stall files that are here.
const MAX_BACKGROUND: u16 = 1024;

/// Bytes of a block, for `stat` and `statfs`.
const BLOCK: u32 = 4096;

/// The longest name (Linux `NAME_MAX`). The kernel hands longer ones to the daemon.
const NAME_MAX: usize = 255;

/// Attributes that no file here can have. `ls -l` asks for them of every file, until it is told so.
const ABSENT_KINDS: [&str; 3] = ["security.selinux", "system.posix_acl_access", "system.posix_acl_default"];

/// Serves one kit to the kernel.
pub struct Adapter {
    fs: Arc<KitFs>,
    runtime: Handle,
    owner: (u32, u32),
    opens: Arc<Opens>,
    waiting: Arc<Waiting>,
    passthrough: Passthrough,
    stack_depth: u32,
    /// Whether the kernel can open directories without us.
    kernel_opens_directories: bool,
    /// Whether it opens files without us, for which there is no way back.
    kernel_opens_files: bool,
    beat: Beat,
}

impl Adapter {
    /// Serves `fs`; reads and opens that have to wait do so on `runtime`. Files belong to whoever runs this process.
    /// The beat hears of answers. Files of the `passthrough` kind are handed to the kernel if they lie on at most
    /// `stack_depth` file systems, ours counted.
    pub fn new(
        fs: Arc<KitFs>,
        runtime: Handle,
        opens: Arc<Opens>,
        (passthrough, stack_depth): (Passthrough, u32),
        beat: Beat,
    ) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (kernel_opens_directories, kernel_opens_files) = (false, false);
        let waiting = Arc::default();
        Self {
            fs,
            runtime,
            owner,
            opens,
            waiting,
            passthrough,
            stack_depth,
            kernel_opens_directories,
            kernel_opens_files,
            beat,
        }
    }

    fn attr(&self, inode: Inode, node: &Node) -> FileAttr {
        let time = time(node.mtime);
        let (kind, nlink) = match node.kind {
            NodeKind::Dir { links, .. } => (FileType::Directory, links),
            NodeKind::Kitfile | NodeKind::File { .. } => (FileType::RegularFile, 1),
        };
        FileAttr {
            ino: INodeNo(inode.0),
            size: node.size,
            // Blocks that did not cover the size would make tar and cp see holes.
            blocks: node.size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: node.mode,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }

    /// The attributes of what is not there.
    fn nothing(&self) -> FileAttr {
        let kind = NodeKind::Dir { children: 0..0, links: 0 };
        self.attr(Inode(0), &Node { parent: Inode::ROOT, kind, size: 0, mode: 0, mtime: 0 })
    }

    /// What has that name in a directory; `None` if nothing has.
    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<Option<FileAttr>, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let tree = self.fs.tree();
        let Some(inode) = tree.lookup(Inode(parent.0), name.as_bytes()) else { return Ok(None) };
        let node = tree.node(inode).ok_or(Errno::ENOENT)?;
        Ok(Some(self.attr(inode, &node)))
    }

    /// The entries of a directory behind cookie `offset`: itself, its parent, its children. A cookie
    /// is a position in the tree, so it means the same to every process that serves this kit.
    fn entries(&self, directory: INodeNo, offset: u64) -> Result<impl Iterator<Item = (u64, Inode, &OsStr)>, Errno> {
        let tree = self.fs.tree();
        let directory = Inode(directory.0);
        let node = tree.node(directory).ok_or(Errno::ENOENT)?;
        let NodeKind::Dir { children, .. } = node.kind else { return Err(Errno::ENOTDIR) };
        let itself = [(1, directory, OsStr::new(".")), (2, node.parent, OsStr::new(".."))];
        let first = children.start.saturating_add(offset.saturating_sub(2)).min(children.end);
        let rest = (first..children.end).map(move |number| {
            let name = OsStr::from_bytes(tree.name(Inode(number)).unwrap_or_default());
            (number - children.start + 3, Inode(number), name)
        });
        Ok(itself.into_iter().filter(move |(cookie, ..)| *cookie > offset).chain(rest))
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("fs", &self.fs).finish_non_exhaustive()
    }
}

/// Answers a read. The only function that hands content to the kernel takes nothing but proved bytes.
fn reply_verified(reply: ReplyData, bytes: &Verified<Bytes>) {
    #[expect(clippy::disallowed_methods, reason = "the one place where content leaves")]
    reply.data(bytes);
}

/// Answers an OPEN in the mode that was written down for it.
pub fn reply_opened(reply: ReplyOpen, handle: FileHandle, mode: Mode) {
    match mode {
        Mode::Cached => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        Mode::Passthrough(id) => {
            // SAFETY: `Opens` has registered it on this connection, and gives it back when nothing is open of
            // the inode, which an OPEN that is not answered keeps from happening.
            let backing = unsafe { reply.wrap_backing(id) };
            // The kernel refuses KEEP_CACHE beside passthrough.
            reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
            // Dropped, it would be given back here.
            backing.into_raw();
        }
    }
}

impl Backing for Whole {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor()
    }

    fn is_unchanged(&self) -> bool {
        self.is_unchanged()
    }
}

fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What the kernel does not offer is done without.
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.add_capabilities(InitFlags::FUSE_EXPLICIT_INVAL_DATA);
        self.kernel_opens_directories = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        // Not in the reply: that has to be the first worker's, which may have known nothing of it.
        let can_open = config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.kernel_opens_files = can_open && !self.fs.profits_from_opens();
        // It also bounds the size of a read: to one buffer.
        let _ = config.set_max_write(BUFFER as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        if self.passthrough != Passthrough::Off && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            let _ = config.set_max_stack_depth(self.stack_depth);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name) {
            Ok(Some(attr)) => reply.entry(&FOREVER, &attr, Generation(0)),
            // Number 0 lets the kernel remember that there is nothing, which ENOENT does not.
            Ok(None) => reply.entry(&FOREVER, &self.nothing(), Generation(0)),
            Err(errno) => reply.error(errno),
        }
        self.beat.answered();
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.tree().node(Inode(inode.0)) {
            Some(node) => reply.attr(&FOREVER, &self.attr(Inode(inode.0), &node)),
            None => reply.error(Errno::ENOENT),
        }
        self.beat.answered();
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != fuser::OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if self.fs.tree().node(Inode(inode.0)).is_none() {
            return reply.error(Errno::ENOENT);
        }
        if self.kernel_opens_files {
            // Then it opens and closes them all by itself from now on, and keeps what it has read of them.
            self.beat.answered();
            return reply.error(Errno::ENOSYS);
        }
        let opening = Opening {
            fs: Arc::clone(&self.fs),
            opens: Arc::clone(&self.opens),
            passthrough: self.passthrough,
            beat: self.beat.clone(),
            request: request.unique(),
            inode: Inode(inode.0),
        };
        opening.begin(&self.waiting, &self.runtime, request.pid(), reply);
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match self.opens.close(handle) {
            Ok(true) => self.fs.close(Inode(inode.0)),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "a descriptor that is closed counts as open"),
        }
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inode = Inode(inode.0);
        let range = offset..offset.saturating_add(u64::from(size));
        if let Some(bytes) = self.fs.ready(inode, range.clone()) {
            reply_verified(reply, &bytes);
            return self.beat.answered();
        }
        let (fs, beat) = (Arc::clone(&self.fs), self.beat.clone());
        let unique = request.unique();
        // Others can be killed while they wait.
        let killed = (flags.0 & libc::O_DIRECT != 0).then(|| caller::killed(request.pid()));
        self.runtime.spawn(async move {
            let read = beat.noted(unique, fs.read(inode, range));
            let result = match killed {
                Some(killed) => tokio::select! {
                    result = read => result,
                    () = killed => {
                        reply.error(Errno::EINTR);
                        return beat.answered();
                    }
                },
                None => read.await,
            };
            match result {
                Ok(bytes) => reply_verified(reply, &bytes),
                Err(error) => {
                    let path = fs.tree().path(inode).map(|path| path.to_string());
                    tracing::error!(path, "read failed: {}", chain(&error));
                    reply.error(errno::of(&error));
                }
            }
            beat.answered();
        });
    }

    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // There is nothing to flush, and nothing more is asked.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.tree().node(Inode(inode.0)).map(|node| node.kind) {
            // Then it opens and closes them all by itself from now on, with the same flags.
            Some(NodeKind::Dir { .. }) if self.kernel_opens_directories => reply.error(Errno::ENOSYS),
            Some(NodeKind::Dir { .. }) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR)
            }
            Some(_) => reply.error(Errno::ENOTDIR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        directory: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.entries(directory, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (cookie, inode, name) in entries {
            let kind = match self.fs.tree().node(inode).map(|node| node.kind) {
                Some(NodeKind::Dir { .. }) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(inode.0), cookie, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        directory: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.entries(directory, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (cookie, inode, name) in entries {
            let Some(node) = self.fs.tree().node(inode) else { continue };
            let attr = self.attr(inode, &node);
            if reply.add(INodeNo(inode.0), cookie, name, &FOREVER, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let tree = self.fs.tree();
        let blocks = self.fs.size().div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, tree.len() as u64, 0, BLOCK, NAME_MAX as u32, BLOCK);
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.fs.attribute(Inode(inode.0), name.as_bytes()) {
            Some(value) => reply_attribute(reply, value.as_bytes(), size),
            None if ABSENT_KINDS.iter().any(|kind| name == *kind) => reply.error(Errno::EOPNOTSUPP),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let names: String = self.fs.attribute_names(Inode(inode.0)).flat_map(|name| [name, "\0"]).collect();
        reply_attribute(reply, names.as_bytes(), size);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel then knows that there are no holes, and asks no more.
        reply.error(Errno::ENOSYS);
    }
}

/// Answers with a value, or with its length where that was asked for (xattr(7)).
fn reply_attribute(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
