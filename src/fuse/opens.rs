//! What is open: one entry for every OPEN that was answered, in memory that outlives this process.
//!
//! The kernel holds an inode to one mode until its last descriptor is closed: cached, or passthrough with
//! one backing file. An OPEN that is answered otherwise fails with EIO, also when another process answers it
//! that never saw the first one. So the modes are written down before they are replied, in a file in memory
//! that the holder keeps. An entry is one OPEN and no counter: an OPEN or RELEASE whose answer died with a
//! worker arrives again, with the same number but for [`RESENT`], and finds what became of the first one.
//! In doubt an entry stays, which costs nothing but the mode.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::{FileHandle, RequestId};
use rustix::fs::MemfdFlags;

use crate::fuse::backing::{Backing, Keeper};

/// Set in the number of a request that the kernel has sent before (FUSE_UNIQUE_RESEND).
pub const RESENT: u64 = 1 << 63;

/// Bytes of an entry. A power of two: an entry lies in one page, and to write within a page is one step that
/// no SIGKILL cuts in two.
const ENTRY: usize = 32;

/// Inodes that are in passthrough at a time. The holder has a descriptor for each.
const MOST_BACKED: usize = 8192;

/// In which mode an inode is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its pages are cached, and those that are missing are asked for.
    Cached,
    /// The kernel reads the backing file of this number.
    Passthrough(u32),
}

/// What is open on a connection.
#[derive(Debug)]
pub struct Opens {
    table: File,
    keeper: Box<dyn Keeper>,
    /// Whether files may be registered.
    registers: AtomicBool,
    /// A std mutex: what is waited for while it is held is the keeper, in bounded time.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<u64, Entry>,
    inodes: HashMap<u64, Inode>,
    free: Vec<u64>,
    /// Entries that the table has room for.
    slots: u64,
    backed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u64,
    inode: u64,
}

#[derive(Clone, Copy, Debug)]
struct Inode {
    opens: usize,
    mode: Mode,
    /// Somebody may have written to the backing file.
    touched: bool,
}

/// A table without entries, for the one that keeps it.
pub fn table() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create("kitfs-opens", MemfdFlags::CLOEXEC)?)
}

impl Opens {
    /// Reads what is open. Until [`Opens::allow_passthrough`] no file is registered.
    pub fn new(table: OwnedFd, keeper: Box<dyn Keeper>) -> io::Result<Self> {
        let table = File::from(table);
        let mut state = State { slots: table.metadata()?.len() / ENTRY as u64, ..State::default() };
        for slot in 0..state.slots {
            let mut bytes = [0; ENTRY];
            table.read_exact_at(&mut bytes, slot * ENTRY as u64)?;
            match decode(&bytes) {
                Some((handle, inode)) => state.add(handle, slot, inode),
                None => state.free.push(slot),
            }
        }
        Ok(Self { table, keeper, registers: AtomicBool::new(false), state: Mutex::new(state) })
    }

    /// From now on files may be registered.
    pub fn allow_passthrough(&self) {
        self.registers.store(true, Ordering::Relaxed);
    }

    /// Whether files are handed to the kernel.
    pub fn passes_through(&self) -> bool {
        self.registers.load(Ordering::Relaxed)
    }

    /// The inodes that are in passthrough, with their backing files.
    pub fn backed(&self) -> Vec<(u64, u32)> {
        let state = self.lock();
        let backed = state.inodes.iter().filter_map(|(inode, open)| match open.mode {
            Mode::Passthrough(id) => Some((*inode, id)),
            Mode::Cached => None,
        });
        backed.collect()
    }

    /// Whether an inode is open, and so has a mode.
    pub fn is_open(&self, inode: u64) -> bool {
        self.lock().inodes.contains_key(&inode)
    }

    /// Decides how an OPEN is to be answered, and writes it down. `backing` is asked for a file to hand to the
    /// kernel if nothing is open of the inode.
    pub fn open<B: Backing>(
        &self,
        request: RequestId,
        inode: u64,
        backing: impl FnOnce() -> Option<B>,
    ) -> Result<(FileHandle, Mode), OpenError> {
        let handle = request.0 & !RESENT;
        let mut state = self.lock();
        if let Some(open) = state.entries.get(&handle).and_then(|entry| state.inodes.get(&entry.inode)) {
            return Ok((FileHandle(handle), open.mode));
        }
        let open = match state.inodes.get(&inode) {
            Some(open) if open.touched => return Err(OpenError::Touched),
            Some(open) => *open,
            None => {
                let mode = if state.backed < MOST_BACKED { self.choose(backing) } else { Mode::Cached };
                Inode { opens: 0, mode, touched: false }
            }
        };
        let slot = match state.free.pop() {
            Some(slot) => slot,
            None => {
                state.slots += 1;
                state.slots - 1
            }
        };
        if let Err(error) = self.table.write_all_at(&encode(handle, inode, open), slot * ENTRY as u64) {
            state.free.push(slot);
            if let (Mode::Passthrough(id), 0) = (open.mode, open.opens) {
                self.keeper.release(id);
            }
            return Err(OpenError::Table(error));
        }
        state.add(handle, slot, (inode, open));
        Ok((FileHandle(handle), open.mode))
    }

    /// A descriptor is closed. One that is not known was closed before. Whether it was the last one of its
    /// inode.
    pub fn close(&self, handle: FileHandle) -> io::Result<bool> {
        let mut state = self.lock();
        let Some(entry) = state.entries.get(&handle.0).copied() else { return Ok(false) };
        self.table.write_all_at(&[0; ENTRY], entry.slot * ENTRY as u64)?;
        state.entries.remove(&handle.0);
        state.free.push(entry.slot);
        let Some(open) = state.inodes.get_mut(&entry.inode) else { return Ok(false) };
        open.opens -= 1;
        if open.opens > 0 {
            return Ok(false);
        }
        let mode = open.mode;
        state.inodes.remove(&entry.inode);
        if let Mode::Passthrough(id) = mode {
            state.backed -= 1;
            self.keeper.release(id);
        }
        Ok(true)
    }

    /// Somebody may have written to a backing file: the inode that has it is not opened any more until its
    /// last descriptor is closed, for any other answer than the same file would be an error too. The inode, if
    /// this is news.
    pub fn touched(&self, id: u32) -> Option<u64> {
        let mut state = self.lock();
        let known = |open: &Inode| open.mode == Mode::Passthrough(id) && !open.touched;
        let (inode, open) = state.inodes.iter_mut().find(|(_, open)| known(open))?;
        open.touched = true;
        let (inode, open) = (*inode, *open);
        for (handle, entry) in state.entries.iter().filter(|(_, entry)| entry.inode == inode) {
            if let Err(error) = self.table.write_all_at(&encode(*handle, inode, open), entry.slot * ENTRY as u64) {
                tracing::error!(%error, "the next worker will not know that a file was touched");
            }
        }
        Some(inode)
    }

    fn choose<B: Backing>(&self, backing: impl FnOnce() -> Option<B>) -> Mode {
        let Some(backing) = self.passes_through().then(backing).flatten() else { return Mode::Cached };
        match self.keeper.register(backing.descriptor()) {
            // A write from before the lease shows by now.
            Ok(id) if backing.is_unchanged() => Mode::Passthrough(id),
            Ok(id) => {
                self.keeper.release(id);
                Mode::Cached
            }
            Err(error) => {
                if is_final(&error) && self.registers.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "files are not handed to the kernel any more");
                } else {
                    tracing::debug!(%error, "a file is not handed to the kernel");
                }
                Mode::Cached
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, handle: u64, slot: u64, (inode, open): (u64, Inode)) {
        self.entries.insert(handle, Entry { slot, inode });
        let known = self.inodes.entry(inode).or_insert(Inode { opens: 0, ..open });
        if known.opens == 0 && matches!(open.mode, Mode::Passthrough(_)) {
            self.backed += 1;
        }
        known.opens += 1;
        known.touched |= open.touched;
    }
}

/// Whether the next file will be refused like this one.
fn is_final(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EPERM | libc::ELOOP | libc::ENOTTY | libc::EOPNOTSUPP | libc::ENODEV))
        || matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
}

/// Handle, inode, backing file (0 for none), and whether it was touched. A handle is never 0: the kernel counts
/// requests from 2.
fn encode(handle: u64, inode: u64, open: Inode) -> [u8; ENTRY] {
    let id = match open.mode {
        Mode::Cached => 0,
        Mode::Passthrough(id) => id,
    };
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&handle.to_ne_bytes());
    bytes[8..16].copy_from_slice(&inode.to_ne_bytes());
    bytes[16..20].copy_from_slice(&id.to_ne_bytes());
    bytes[20..24].copy_from_slice(&u32::from(open.touched).to_ne_bytes());
    bytes
}

/// The handle and the inode of an entry; `None` where the slot is free.
fn decode(bytes: &[u8; ENTRY]) -> Option<(u64, (u64, Inode))> {
    let [handle, inode, state] =
        [0, 8, 16].map(|at| bytes[at..].first_chunk::<8>().copied().map_or(0, u64::from_ne_bytes));
    let (id, touched) = (state as u32, state >> 32 != 0);
    let mode = if id == 0 { Mode::Cached } else { Mode::Passthrough(id) };
    (handle != 0).then_some((handle, (inode, Inode { opens: 0, mode, touched })))
}

/// Why an OPEN is refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is open already, and not to be trusted any more.
    #[error(
        "its cached file was opened for writing while it was in use: it can be opened again when all have closed it"
    )]
    Touched,
    /// It cannot be written down.
    #[error("what is open cannot be written down")]
    Table(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::Arc;

    use super::*;

    /// Counts from 7, and remembers what it was given back.
    #[derive(Clone, Debug, Default)]
    struct Counting(Arc<Mutex<(u32, Vec<u32>)>>);

    impl Keeper for Counting {
        fn register(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
            let mut kept = self.0.lock().unwrap();
            kept.0 += 1;
            Ok(6 + kept.0)
        }

        fn release(&self, id: u32) {
            self.0.lock().unwrap().1.push(id);
        }
    }

    /// A file, and whether it is what was proved.
    struct Proved(File, bool);

    impl Backing for Proved {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn is_unchanged(&self) -> bool {
            self.1
        }
    }

    fn file() -> Option<Proved> {
        Some(Proved(File::open("/dev/null").unwrap(), true))
    }

    fn none() -> Option<Proved> {
        None
    }

    struct Table(OwnedFd, Counting);

    impl Table {
        fn new() -> Self {
            Self(table().unwrap(), Counting::default())
        }

        /// As the next worker sees it.
        fn opens(&self) -> Opens {
            let opens = Opens::new(self.0.try_clone().unwrap(), Box::new(self.1.clone())).unwrap();
            opens.allow_passthrough();
            opens
        }

        fn released(&self) -> Vec<u32> {
            self.1.0.lock().unwrap().1.clone()
        }
    }

    fn mode(opens: &Opens, request: u64, inode: u64, backing: fn() -> Option<Proved>) -> Mode {
        opens.open(RequestId(request), inode, backing).unwrap().1
    }

    #[test]
    fn an_inode_keeps_its_mode_until_its_last_close() {
        let table = Table::new();
        let opens = table.opens();
        assert_eq!(mode(&opens, 2, 5, none), Mode::Cached);
        assert_eq!(mode(&opens, 4, 5, file), Mode::Cached, "it became complete while it was open");
        opens.close(FileHandle(2)).unwrap();
        assert_eq!(mode(&opens, 6, 5, file), Mode::Cached);
        opens.close(FileHandle(4)).unwrap();
        opens.close(FileHandle(6)).unwrap();
        assert_eq!(mode(&opens, 8, 5, file), Mode::Passthrough(7));
        assert_eq!(mode(&opens, 10, 5, none), Mode::Passthrough(7), "one backing file for an inode");
        assert_eq!(mode(&opens, 12, 6, file), Mode::Passthrough(8));
        opens.close(FileHandle(8)).unwrap();
        assert!(table.released().is_empty());
        opens.close(FileHandle(10)).unwrap();
        assert_eq!(table.released(), [7]);
    }

    #[test]
    fn the_next_worker_knows_what_is_open() {
        let table = Table::new();
        let opens = table.opens();
        for (request, inode) in [(2, 5), (4, 5), (6, 9)] {
            mode(&opens, request, inode, file);
        }
        mode(&opens, 8, 10, none);
        opens.close(FileHandle(6)).unwrap();
        let next = table.opens();
        assert_eq!(next.backed(), [(5, 7)]);
        assert_eq!(mode(&next, 10, 5, none), Mode::Passthrough(7));
        assert_eq!(mode(&next, 12, 10, file), Mode::Cached);
        for handle in [2, 4, 10, 12, 8] {
            next.close(FileHandle(handle)).unwrap();
        }
        assert_eq!(table.released(), [8, 7]);
        assert_eq!(table.opens().backed(), []);
        assert_eq!(table.opens().lock().slots, 5, "slots are used again");
    }

    #[test]
    fn what_is_sent_again_changes_nothing() {
        let table = Table::new();
        let opens = table.opens();
        let first = opens.open(RequestId(2), 5, file).unwrap();
        let next = table.opens();
        let again = next.open(RequestId(2 | RESENT), 5, none).unwrap();
        assert_eq!((first, again), ((FileHandle(2), Mode::Passthrough(7)), first));
        assert!(next.close(FileHandle(2)).unwrap());
        assert!(!next.close(FileHandle(2)).unwrap());
        assert_eq!(table.released(), [7]);
    }

    #[test]
    fn a_file_that_changed_before_its_lease_is_not_handed_over() {
        let table = Table::new();
        let opens = table.opens();
        let changed = || Some(Proved(File::open("/dev/null").unwrap(), false));
        assert_eq!(mode(&opens, 2, 5, changed), Mode::Cached);
        assert_eq!(table.released(), [7]);
    }

    #[test]
    fn a_file_that_was_touched_is_refused_until_its_last_close() {
        let table = Table::new();
        let opens = table.opens();
        mode(&opens, 2, 5, file);
        assert_eq!(opens.touched(7), Some(5));
        assert_eq!((opens.touched(7), opens.touched(99)), (None, None));
        for opens in [opens, table.opens()] {
            assert!(matches!(opens.open(RequestId(4), 5, file), Err(OpenError::Touched)));
        }
        let next = table.opens();
        next.close(FileHandle(2)).unwrap();
        assert_eq!(mode(&next, 6, 5, none), Mode::Cached);
    }
}
