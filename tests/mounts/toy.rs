//! A file system to mount in tests: the same few files for every worker, and faults by reference.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use kitfs::digest::Digest;
use kitfs::fuse::backing::Backing;
use kitfs::fuse::beat::Beat;
use kitfs::fuse::opens::Opens;
use kitfs::fuse::reply_opened;
use kitfs::mounts::{
    Decision, LogSettings, MountFailure, MountRequest, Predecessor, Prepared, Progress, Served, Snapshot, State,
    Summary, Unprepared, tree_file,
};
use kitfs::resolve::Resolved;

/// How many files there are, `f0` and on.
pub const FILES: u64 = 300;

/// How long each of them is.
pub const SIZE: usize = 3 * 1024 * 1024 + 123;

/// What file `number` holds. Files differ by where they begin in one pattern.
pub fn content(number: u64) -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 1u64;
        (0..SIZE + usize::try_from(FILES).unwrap())
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state.to_be_bytes()[0]
            })
            .collect()
    });
    &PATTERN[usize::try_from(number).unwrap()..][..SIZE]
}

/// The file behind file `number`, of a toy whose kernel reads by itself.
pub fn backing_path(state_dir: &Path, number: u64) -> PathBuf {
    state_dir.join(format!("f{number}"))
}

/// Is there once a worker of `toy:tangled` waits for an answer of its own, which will not come.
pub fn tangled(state_dir: &Path) -> PathBuf {
    state_dir.join("tangled")
}

/// How many files there is a file behind, the first ones.
pub const BACKED: u64 = 20;

pub struct Toy {
    reference: String,
    counted: Option<Snapshot>,
    state_dir: PathBuf,
    directory: PathBuf,
    opens: OnceLock<Arc<Opens>>,
}

pub struct ToyFs {
    toy: Arc<Toy>,
    opens: Arc<Opens>,
    beat: Beat,
}

pub struct ToyBacking(File);

impl Backing for ToyBacking {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn is_unchanged(&self) -> bool {
        self.0.metadata().unwrap().len() == SIZE as u64
    }
}

impl Served for Toy {
    type Filesystem = ToyFs;

    fn start_log(_: &LogSettings, state_dir: &Path) {
        std::fs::create_dir_all(state_dir).unwrap();
        let log = std::fs::File::options().append(true).create(true).open(state_dir.join("kitfs.log")).unwrap();
        tracing_subscriber::fmt().with_writer(log).with_max_level(tracing::Level::DEBUG).with_ansi(false).init();
    }

    fn directories(_: &MountRequest) -> Vec<PathBuf> {
        Vec::new()
    }

    fn prepare(
        request: &MountRequest,
        predecessor: Option<Predecessor>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Prepared<Self>, Unprepared> {
        let reference = request.reference.clone();
        progress(Progress::Step("resolving".to_owned()));
        match reference.as_str() {
            "toy:refused" => return Err(MountFailure::new(5, "expected sha256:a, got sha256:b").into()),
            "toy:slow" => std::thread::sleep(Duration::from_secs(1000)),
            "toy:stillborn" => std::process::abort(),
            "toy:sterile" if predecessor.is_some() => std::process::abort(),
            _ => {}
        }
        content(0);
        let summary = Summary {
            digest: Digest::of(reference.as_bytes()),
            resolved: Resolved::Digest,
            signers: Vec::new(),
            policy: Decision::None,
            bytes_total: SIZE as u64 * FILES,
            comes_in_parts: false,
        };
        let (tree, counted) = match predecessor {
            Some(predecessor) => {
                assert_eq!(predecessor.summary, summary);
                (predecessor.tree, predecessor.snapshot)
            }
            None => (tree_file(b"tree").unwrap(), None),
        };
        if reference == "toy:passing" && counted.is_none() {
            for number in 0..BACKED {
                let path = backing_path(&request.state_dir, number);
                std::fs::write(&path, content(number)).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
            }
        }
        let (state_dir, directory) = (request.state_dir.to_path_buf(), request.directory.to_path_buf());
        Ok(Prepared {
            served: Self { reference, counted, state_dir, directory, opens: OnceLock::new() },
            tree,
            summary,
        })
    }

    fn filesystem(self: &Arc<Self>, beat: Beat, opens: Arc<Opens>) -> ToyFs {
        ToyFs { toy: Arc::clone(self), opens: Arc::clone(self.opens.get_or_init(|| opens)), beat }
    }

    fn backing(&self, inode: u64) -> Option<impl Backing> {
        let path = backing_path(&self.state_dir, inode - 2);
        (self.reference == "toy:passing").then(|| File::open(path).ok()).flatten().map(ToyBacking)
    }

    fn touched(&self, inode: u64) {
        tracing::error!(inode, "touched");
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: State::Ready,
            bytes_verified: 0,
            bytes_fetched: 7,
            cache_hits: self.counted.as_ref().map_or(0, |counted| counted.cache_hits),
            passthrough: self.opens.get().is_some_and(|opens| opens.passes_through()),
            last_error: None,
        }
    }

    fn mounted(&self) -> Result<(), MountFailure> {
        match self.reference.as_str() {
            "toy:unrecorded" => Err(MountFailure::new(6, "it cannot be recorded")),
            _ => Ok(()),
        }
    }

    fn unmounted(request: &MountRequest, summary: &Summary) {
        use std::io::Write;
        assert_eq!(summary.digest, Digest::of(request.reference.as_bytes()));
        let path = request.state_dir.join("unmounted");
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{}", request.reference).unwrap();
    }

    fn ended(&self) {}
}

const TTL: Duration = Duration::from_secs(1);

fn attributes(inode: INodeNo) -> Option<FileAttr> {
    let number = u64::from(inode);
    let (kind, perm, size) = match number {
        1 => (FileType::Directory, 0o755, 0),
        number if number - 2 < FILES => (FileType::RegularFile, 0o755, SIZE as u64),
        _ => return None,
    };
    Some(FileAttr {
        ino: inode,
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    })
}

impl Filesystem for ToyFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let is_heir = self.toy.counted.is_some();
        let background = if self.toy.reference == "toy:fickle" && is_heir { 100 } else { 1024 };
        if self.toy.reference == "toy:passing" {
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).unwrap();
            config.set_max_stack_depth(1).unwrap();
        }
        config.set_max_background(background).unwrap();
        config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS).unwrap();
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.beat.answered();
        let number = name.to_str().and_then(|name| name.strip_prefix('f')?.parse::<u64>().ok());
        if self.toy.reference == "toy:tangled" && number == Some(98) && self.toy.counted.is_none() {
            std::fs::write(tangled(&self.toy.state_dir), "").unwrap();
            std::thread::sleep(Duration::from_secs(1000));
        }
        match number.and_then(|number| attributes(INodeNo(number.checked_add(2)?))) {
            Some(attributes) => reply.entry(&TTL, &attributes, fuser::Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.opens.open(request.unique(), inode.0, || self.toy.backing(inode.0)) {
            Ok((handle, mode)) => reply_opened(reply, handle, mode),
            Err(error) => {
                tracing::error!(%error, "open");
                reply.error(Errno::EIO);
            }
        }
        self.beat.answered();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.opens.close(handle).unwrap();
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let number = u64::from(inode) - 2;
        match self.toy.reference.as_str() {
            "toy:poison" if number == 66 => std::process::abort(),
            "toy:stuck" if number == 66 => {
                std::thread::sleep(Duration::from_secs(1000));
            }
            "toy:tangled" if number == 66 => {
                let asked = self.toy.directory.join("f98");
                std::thread::spawn(move || asked.metadata());
            }
            _ => {}
        }
        let content = content(number);
        let from = usize::try_from(offset).unwrap().min(content.len());
        let to = (from + usize::try_from(size).unwrap()).min(content.len());
        #[expect(clippy::disallowed_methods, reason = "a toy has nothing to prove")]
        reply.data(&content[from..to]);
        self.beat.answered();
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for number in offset..FILES {
            if reply.add(INodeNo(number + 2), number + 1, FileType::RegularFile, format!("f{number}")) {
                break;
            }
        }
        reply.ok();
        self.beat.answered();
    }
}
