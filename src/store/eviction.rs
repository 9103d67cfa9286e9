//! What goes when there is too much.
//!
//! Files of the store are evicted one by one, those that were used longest ago first: objects, objects in
//! progress, indexes. What no index names goes before everything else; what a mounted layer names stays.
//! Eviction only unlinks: whoever has a file open keeps it. Three budgets hold: bytes in the store, free
//! bytes and free inodes on its file system.
//!
//! The last use of a large object is the mtime of its record, which is set when it is opened; a small one has
//! its own atime, as exact as the mount options of the disk let it be.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::kit::index::Index;
use crate::store::Store;
use crate::store::index_name;
use crate::store::objects::has_record;
use crate::store::read_whole;
use crate::store::usage::name_of;
use crate::store::usage::walk;
use crate::store::write_whole;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verity::FileTree;
use crate::verity::VerityDigest;

/// A staging area that nobody wrote to for this long was left by a crash.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The part of its file system that is left free, 1 in so many bytes …
const FREE_SHARE: u64 = 20;

/// … but never more than that,
const FREE_LIMIT: u64 = 1 << 30;

/// and 1 in so many inodes.
const FREE_INODES: u64 = 100;

/// Bytes that may be added before somebody looks whether it is too much.
const LOOK_AFTER: u64 = 64 << 20;

/// How much the store may take, and what is known of how much it does.
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes; 0 until it is set, and then there is none.
    limit: AtomicU64,
    /// Bytes that the store had when they were last counted, and that this process has added since.
    held: AtomicU64,
    /// Bytes that this process has added since it last looked.
    added: AtomicU64,
    is_full: AtomicBool,
    is_looking: AtomicBool,
}

/// How much has to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Excess {
    bytes: u64,
    inodes: u64,
}

/// One thing that can go, with all its files.
#[derive(Debug)]
struct Candidate {
    used: SystemTime,
    bytes: u64,
    files: Vec<PathBuf>,
}

impl Store {
    /// Sets the budget in bytes.
    pub fn set_limit(&self, bytes: u64) {
        self.budget.limit.store(bytes.max(1), Ordering::Relaxed);
    }

    /// Whether there is room for more. Where there is not, it is looked for: ask again later.
    pub fn has_room(self: &Arc<Self>) -> bool {
        let is_full = self.budget.is_full.load(Ordering::Relaxed);
        if is_full {
            self.look();
        }
        !is_full
    }

    /// Notes that something was added.
    pub fn note_added(self: &Arc<Self>, bytes: u64) {
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        if self.budget.added.fetch_add(bytes, Ordering::Relaxed) + bytes >= LOOK_AFTER {
            self.budget.added.store(0, Ordering::Relaxed);
            self.look();
        }
    }

    /// Makes room for `bytes` more, if it takes the eviction of everything that may go. Whether there is.
    /// The store is counted only if there seems to be too much.
    pub fn make_room(&self, bytes: u64) -> io::Result<bool> {
        if self.excess(self.budget.held.load(Ordering::Relaxed), bytes)? == Excess::default() {
            return Ok(true);
        }
        let excess = self.excess(self.count()?, bytes)?;
        if excess == Excess::default() {
            return Ok(true);
        }
        self.evict(excess)?;
        Ok(self.excess(self.count()?, bytes)? == Excess::default())
    }

    /// Evicts until the store holds at most `limit` bytes. Returns how many went.
    pub fn prune(&self, limit: u64) -> io::Result<u64> {
        let before = self.usage()?.bytes;
        let bytes = if limit == 0 { u64::MAX } else { before.saturating_sub(limit) };
        self.evict(Excess { bytes, inodes: 0 })?;
        Ok(before.saturating_sub(self.count()?))
    }

    /// Notes that an object is in use now. Of a small one only its layer's index tells that.
    pub fn touch_object(&self, tree: &FileTree) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        if has_record(tree.size)
            && let Ok(record) = File::open(self.record_path(&tree.verity))
        {
            let _unused_stays_older = record.set_times(now);
        }
    }

    /// Notes what an admitted index names, so that it is not evicted while its layer is pinned.
    pub fn keep_names(&self, index: &Verified<Index>) -> io::Result<()> {
        let name = index_name(index.layer(), index.reading());
        let sealed = self.key.seal(&index.encode(), &format!("names {name}"));
        write_whole(&self.root.join("named").join(name), &sealed)
    }

    /// Looks in the background whether the budgets hold, and makes room if not.
    pub fn look(self: &Arc<Self>) {
        if self.budget.is_looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Arc::clone(self);
        let looking = thread::Builder::new().name("kitfs-evict".to_owned()).spawn(move || {
            let is_counted = store.budget.held.load(Ordering::Relaxed) > 0;
            let counted = if is_counted { Ok(()) } else { store.count().map(drop) };
            let has_room = counted.and_then(|()| store.make_room(0)).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot keep the store within its limit");
                true
            });
            if !store.budget.is_full.swap(!has_room, Ordering::Relaxed) && !has_room {
                tracing::warn!("the store is full of what is mounted: more is verified in memory and not kept");
            }
            store.budget.is_looking.store(false, Ordering::Release);
        });
        if let Err(error) = looking {
            tracing::debug!(%error, "the limits of the store are looked at later");
            self.budget.is_looking.store(false, Ordering::Release);
        }
    }

    /// Counts the bytes of the store, file by file.
    fn count(&self) -> io::Result<u64> {
        let bytes = self.usage()?.bytes;
        self.budget.held.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// What has to go if the store holds `held` bytes and is to hold `more`.
    fn excess(&self, held: u64, more: u64) -> io::Result<Excess> {
        let system = rustix::fs::statvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let limit = match self.budget.limit.load(Ordering::Relaxed) {
            0 => u64::MAX,
            limit => limit,
        };
        let keep_free = (bytes(system.f_blocks) / FREE_SHARE).min(FREE_LIMIT);
        let over = held.saturating_add(more).saturating_sub(limit);
        let short = keep_free.saturating_add(more).saturating_sub(bytes(system.f_bavail));
        // Some file systems have no such number.
        let inodes = (system.f_files / FREE_INODES).saturating_sub(system.f_favail);
        Ok(Excess { bytes: over.max(short), inodes: if system.f_files == 0 { 0 } else { inodes } })
    }

    fn evict(&self, excess: Excess) -> io::Result<()> {
        let _alone = self.lock_sweeping()?;
        let (named, pinned) = self.names()?;
        let mut candidates = self.candidates(&named, &pinned)?;
        candidates.sort_by_key(|candidate| candidate.used);
        let mut left = excess;
        for candidate in candidates {
            // What no index names has no time.
            let is_named = candidate.used != SystemTime::UNIX_EPOCH;
            if is_named && left == Excess::default() {
                break;
            }
            left.bytes = left.bytes.saturating_sub(candidate.bytes);
            left.inodes = left.inodes.saturating_sub(candidate.files.len() as u64);
            for file in candidate.files {
                let _gone = fs::remove_file(file);
            }
        }
        self.remove_abandoned()
    }

    /// What all indexes name, and what those of pinned layers do.
    fn names(&self) -> io::Result<(HashSet<VerityDigest>, HashSet<VerityDigest>)> {
        let (mut named, mut pinned) = (HashSet::new(), HashSet::new());
        let mut note = |index: &Index| -> io::Result<()> {
            named.extend(index.trees().map(|tree| tree.verity));
            if self.try_lock_unpinned(index.layer())?.is_none() {
                pinned.extend(index.trees().map(|tree| tree.verity));
            }
            Ok(())
        };
        for path in self.index_files()? {
            if let Some(index) = self.index_file(&name_of(&path)) {
                note(&index)?;
            }
        }
        walk(&self.root.join("named"), &mut |path, _| {
            let name = name_of(path);
            let sealed = read_whole(path).map(Unverified::new).ok();
            let opened = sealed.and_then(|sealed| sealed.unseal(&self.key, &format!("names {name}")).ok());
            if let Some(index) = opened.and_then(|bytes| bytes.parse::<Index>().ok()) {
                let _told_by_the_next_call = note(&index);
            }
        })?;
        Ok((named, pinned))
    }

    fn candidates(&self, named: &HashSet<VerityDigest>, pinned: &HashSet<VerityDigest>) -> io::Result<Vec<Candidate>> {
        let mut found: HashMap<VerityDigest, Candidate> = HashMap::new();
        for folder in ["objects", "records", "partial"] {
            walk(&self.root.join(folder), &mut |path, metadata| {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let Ok(verity) = stem.parse::<VerityDigest>() else {
                    // Left by a crash: nothing has such a name for long.
                    if metadata.modified().is_ok_and(|time| time.elapsed().unwrap_or_default() > ABANDONED) {
                        let _gone = fs::remove_file(path);
                    }
                    return;
                };
                if pinned.contains(&verity) {
                    return;
                }
                let none = || Candidate { used: SystemTime::UNIX_EPOCH, bytes: 0, files: Vec::new() };
                let candidate = found.entry(verity).or_insert_with(none);
                candidate.bytes += metadata.blocks() * 512;
                candidate.files.push(path.to_owned());
                if named.contains(&verity) {
                    // Whoever looks at a record reads it: only its mtime says more than that.
                    let read = metadata.accessed().ok().filter(|_| folder == "objects");
                    let times = metadata.modified().into_iter().chain(read);
                    candidate.used = times.fold(candidate.used, SystemTime::max);
                }
            })?;
        }
        let mut candidates: Vec<_> = found.into_values().collect();
        for path in self.index_files()?.into_iter().chain(list(&self.root.join("named"))?) {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let name = name_of(&path);
            let layer = name.split('.').next().and_then(|layer| layer.replacen('-', ":", 1).parse::<Digest>().ok());
            let is_pinned = match layer {
                Some(layer) => self.try_lock_unpinned(&layer)?.is_none(),
                None => false,
            };
            if !is_pinned {
                let bytes = metadata.blocks() * 512;
                candidates.push(Candidate { used: metadata.modified()?, bytes, files: vec![path] });
            }
        }
        Ok(candidates)
    }

    fn remove_abandoned(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("staging"))? {
            let entry = entry?;
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > ABANDONED {
                let _gone = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}
