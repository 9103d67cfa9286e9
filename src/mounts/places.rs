//! Where a worker writes, and whether that is still what it was when the worker began.
//!
//! What holds a worker to its directories holds it to those that were there. Where one has another in its place since,
//! the next worker may use that; this one never will.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use crate::mounts::request::{LogTarget, MountRequest};

/// Where a worker of a mount writes.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// It may do there what it likes.
    pub directories: Vec<PathBuf>,
    /// It makes, writes and removes files there.
    pub folders_of_logs: Vec<PathBuf>,
    /// Files that are written and never rotated, for they are none of the disk: terminals, pipes.
    pub devices: Vec<PathBuf>,
    /// The cache directory and those that the store has in it, and what was there when they were first seen.
    watched: Vec<(Watched, Option<Identity>)>,
}

/// Device and inode number.
type Identity = (u64, u64);

/// A directory of the cache.
#[derive(Debug)]
enum Watched {
    /// Whatever is there.
    Directory(PathBuf),
    /// What it leads to, if it is a link. All else the worker may make itself.
    Link(PathBuf),
}

impl Watched {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Link(path) => path,
        }
    }

    fn identity(&self) -> Option<Identity> {
        let is_watched = matches!(self, Self::Directory(_)) || self.path().is_symlink();
        let data = fs::metadata(self.path()).ok().filter(|data| is_watched && data.is_dir())?;
        Some((data.dev(), data.ino()))
    }
}

impl Places {
    /// Those of this mount, with the directories that its store has in the cache directory: the one that the others
    /// lie in is the first.
    pub(super) fn of(request: &MountRequest, store: &[PathBuf]) -> Self {
        let own: [&Path; 3] = [&request.cache_dir, &request.state_dir, &request.runtime_dir];
        let mut directories: Vec<_> = own.into_iter().map(Path::to_owned).collect();
        directories.extend(store.iter().filter(|folder| is_our_link(folder)).cloned());
        let mut files: Vec<&Path> = vec![&request.audit.file];
        if let LogTarget::File(path) = &request.log.target {
            files.push(path);
        }
        let (mut folders_of_logs, mut devices) = (Vec::new(), Vec::new());
        for file in files {
            // A log may be a link to one that lies elsewhere.
            let elsewhere = file.canonicalize().ok();
            if let Some(device) = elsewhere.as_deref().filter(|file| is_device(file)) {
                devices.push(device.to_owned());
                continue;
            }
            let folders = [file.parent(), elsewhere.as_deref().and_then(Path::parent)];
            folders_of_logs.extend(folders.into_iter().flatten().map(Path::to_owned));
        }
        let (outer, inner) = store.split_at(store.len().min(1));
        let outer = std::iter::once(request.cache_dir.to_path_buf()).chain(outer.iter().cloned());
        let watched = outer.map(Watched::Directory).chain(inner.iter().cloned().map(Watched::Link));
        let watched = watched.map(|watched| (watched, None)).collect();
        Self { directories, folders_of_logs, devices, watched }
    }

    /// Remembers what is there now, where nothing was until now.
    pub(super) fn remember(&mut self) {
        self.watched.iter_mut().for_each(|(watched, seen)| *seen = seen.or_else(|| watched.identity()));
    }

    /// A directory of the cache that is not the one that was remembered and can be written to. What is not there is
    /// none: whoever took it away may bring it back. Asks the disk, which may take its time.
    pub(super) fn moved(&self) -> Option<&Path> {
        let has_moved = |(watched, seen): &&(Watched, Option<Identity>)| {
            let now = watched.identity();
            now.is_some() && now != *seen
        };
        let path = self.watched.iter().find(has_moved)?.0.path();
        let may_write = rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        may_write.is_ok().then_some(path)
    }
}

/// Whether a directory is a link that this user or root has made. Those of others lead nobody out of the cache.
fn is_our_link(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|data| data.is_symlink() && (data.uid() == own || data.uid() == 0))
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.file_type().is_char_device() || data.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::mounts::request::AbsolutePath;
    use crate::mounts::request::tests::FIRST;

    fn request(cache: &Path) -> MountRequest {
        let mut request = serde_json::from_str::<MountRequest>(FIRST).unwrap();
        request.cache_dir = AbsolutePath::new(cache).unwrap();
        request
    }

    #[test]
    fn another_directory_is_noticed_where_the_worker_has_not_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let [cache, away, elsewhere] = ["cache", "away", "elsewhere"].map(|name| folder.path().join(name));
        let store = [cache.join("v1"), cache.join("v1/objects"), cache.join("v1/blobs")];
        for path in store[1..].iter().chain([&away, &elsewhere]) {
            fs::create_dir_all(path).unwrap();
        }
        let request = request(&cache);
        let start = || {
            let mut places = Places::of(&request, &store);
            places.remember();
            assert_eq!(places.moved(), None);
            places
        };
        let places = start();
        // The next one must not be one of the same number.
        fs::rename(&store[1], away.join("1")).unwrap();
        fs::create_dir(&store[1]).unwrap();
        assert_eq!(places.moved(), None, "a worker may have made it");
        fs::rename(&store[1], away.join("2")).unwrap();
        symlink(&elsewhere, &store[1]).unwrap();
        assert_eq!(places.moved(), Some(&*store[1]));
        let places = start();
        assert!(places.directories.contains(&store[1]) && !places.directories.contains(&store[2]), "{places:?}");
        fs::rename(&elsewhere, away.join("3")).unwrap();
        assert_eq!(places.moved(), None, "it is not there");
        fs::create_dir(&elsewhere).unwrap();
        assert_eq!(places.moved(), Some(&*store[1]));
        let places = start();
        fs::rename(&cache, away.join("4")).unwrap();
        assert_eq!(places.moved(), None, "it is not there");
        fs::create_dir(&cache).unwrap();
        assert_eq!(places.moved(), Some(&*cache));
    }

    #[test]
    fn a_device_that_is_logged_to_is_all_that_is_written_there() {
        let mut request = request(Path::new("/nowhere"));
        request.audit.file = AbsolutePath::new("/nowhere/audit/log").unwrap();
        request.log.target = LogTarget::File(AbsolutePath::new("/dev/full").unwrap());
        let places = Places::of(&request, &[]);
        assert_eq!(places.devices, [Path::new("/dev/full")]);
        assert_eq!(places.folders_of_logs, [Path::new("/nowhere/audit")]);
        request.log.target = LogTarget::File(AbsolutePath::new("/nowhere/log").unwrap());
        assert_eq!(Places::of(&request, &[]).folders_of_logs, ["/nowhere/audit", "/nowhere"].map(Path::new));
    }
}
