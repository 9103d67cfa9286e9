//! The directory that a kit is exported into.
//!
//! Files are first written into a folder inside it that has an odd name; then they are moved to their
//! places, which on one file system is a matter of names. Every step goes from a descriptor to the next
//! name and refuses to follow links: whoever else can write there cannot lead it out of the directory.

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::cli::failure::Error;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;
use crate::kit::tree::Tree;

/// A directory that is being filled. Dropped before [`Target::publish`], it is as it was before.
#[derive(Debug)]
pub(in crate::cli::export) struct Target {
    directory: PathBuf,
    /// The folders that were made for it, outermost first.
    made: Vec<PathBuf>,
    root: OwnedFd,
    /// The folder inside it, by name and open. No name once it is gone.
    staging_name: Option<String>,
    staging: OwnedFd,
    /// The directory that the last entry was made in: the next one often is in it too.
    last: Option<(Inode, OwnedFd)>,
}

impl Target {
    /// Says what is wrong with a directory before anything is fetched for it.
    pub(in crate::cli::export) fn check(directory: &Path) -> Result<(), Error> {
        let wrong = |why| Err(Error::Target { directory: directory.into(), why });
        match fs::read_dir(directory) {
            Ok(mut entries) => match entries.next() {
                None => Ok(()),
                Some(_) => wrong("it is not empty"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => wrong("it is no directory"),
            Err(source) => Err(Error::Directory { directory: directory.into(), source }),
        }
    }

    /// Makes the directory if it is not there, and the folder inside it.
    pub(in crate::cli::export) fn make(directory: &Path) -> Result<Self, Error> {
        let mut made = Vec::new();
        let opened = make_folders(directory, &mut made).and_then(|()| open_inside(directory));
        match opened {
            Ok((root, staging_name, staging)) => {
                let directory = directory.into();
                Ok(Self { directory, made, root, staging_name: Some(staging_name), staging, last: None })
            }
            Err(source) => {
                remove_folders(&made);
                Err(Error::Directory { directory: directory.into(), source })
            }
        }
    }

    /// Makes a directory of the tree. The one that holds it was made before.
    pub(in crate::cli::export) fn make_dir(&mut self, tree: &Tree, inode: Inode) -> Result<(), Error> {
        let name = tree.name(inode).unwrap_or_default();
        let made = self.parent(tree, inode).and_then(|parent| Ok(rustix::fs::mkdirat(parent, name, Mode::RWXU)?));
        made.map_err(|error| self.failed(tree, inode, error))
    }

    /// Makes a file of the tree, with its mode, and opens it for writing.
    pub(in crate::cli::export) fn make_file(&mut self, tree: &Tree, inode: Inode) -> Result<File, Error> {
        let name = tree.name(inode).unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.parent(tree, inode).and_then(|parent| {
            let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::fchmod(&file, mode(tree, inode))?;
            Ok(File::from(file))
        });
        made.map_err(|error| self.failed(tree, inode, error))
    }

    /// Moves everything to its place and gives directories their modes.
    pub(in crate::cli::export) fn publish(mut self, tree: &Tree) -> Result<(), Error> {
        let mut moved = Vec::new();
        for inode in tree.children(Inode::ROOT).map(Inode) {
            if let Err(error) = move_entry(&self.staging, &self.root, tree, inode) {
                for inode in moved {
                    let _stays = move_entry(&self.root, &self.staging, tree, inode);
                }
                return Err(self.failed(tree, inode, error.into()));
            }
            moved.push(inode);
        }
        if let Some(name) = self.staging_name.take() {
            let _stays_empty = rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR);
        }
        self.made.clear();
        // Last, and what is deepest first: a directory may forbid its owner to enter it.
        let dirs: Vec<_> = tree.inodes().skip(1).filter(|inode| is_dir(tree, *inode)).collect();
        for inode in dirs.into_iter().rev() {
            let changed = open_dir(self.root.as_fd(), tree, inode)
                .and_then(|dir| Ok(rustix::fs::fchmod(dir, mode(tree, inode))?));
            changed.map_err(|error| self.failed(tree, inode, error))?;
        }
        Ok(())
    }

    /// The error that an entry could not be written.
    pub(in crate::cli::export) fn failed(&self, tree: &Tree, inode: Inode, error: io::Error) -> Error {
        let path = tree.path(inode).unwrap_or_else(KitPath::root);
        Error::Write { path, directory: self.directory.clone(), source: error }
    }

    fn parent(&mut self, tree: &Tree, inode: Inode) -> io::Result<BorrowedFd<'_>> {
        let parent = tree.node(inode).map_or(Inode::ROOT, |node| node.parent);
        let last = match self.last.take() {
            Some(last) if last.0 == parent => last,
            _ => (parent, open_dir(self.staging.as_fd(), tree, parent)?),
        };
        Ok(self.last.insert(last).1.as_fd())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(name) = self.staging_name.take() {
            // By way of the descriptor: the path of the directory may lead elsewhere by now.
            let path = format!("/proc/self/fd/{}/{name}", self.root.as_raw_fd());
            let _stays = fs::remove_dir_all(path);
        }
        remove_folders(&self.made);
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory of the tree beneath `start`, name by name.
fn open_dir(start: BorrowedFd<'_>, tree: &Tree, inode: Inode) -> io::Result<OwnedFd> {
    let mut dir = rustix::fs::openat(start, ".", DIRECTORY, Mode::empty())?;
    let path = tree.path(inode).unwrap_or_else(KitPath::root);
    for name in path.components() {
        dir = rustix::fs::openat(&dir, name.as_bytes(), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(dir)
}

fn move_entry(from: &OwnedFd, to: &OwnedFd, tree: &Tree, inode: Inode) -> Result<(), Errno> {
    let name = tree.name(inode).unwrap_or_default();
    match rustix::fs::renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
        // Some file systems do not know the flag. The directory was empty.
        Err(Errno::INVAL) => rustix::fs::renameat(from, name, to, name),
        result => result,
    }
}

/// Makes a directory and those above it, noting which ones were not there.
fn make_folders(directory: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<_> =
        directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    for path in missing.into_iter().rev() {
        fs::create_dir(path)?;
        made.push(path.into());
    }
    Ok(())
}

fn remove_folders(made: &[PathBuf]) {
    for path in made.iter().rev() {
        let _not_ours_any_more = fs::remove_dir(path);
    }
}

fn open_inside(directory: &Path) -> io::Result<(OwnedFd, String, OwnedFd)> {
    let root = rustix::fs::open(directory, DIRECTORY, Mode::empty())?;
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = format!(".kitfs-export-{}", hex::encode(random));
    rustix::fs::mkdirat(&root, &name, Mode::RWXU)?;
    let staging = rustix::fs::openat(&root, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    Ok((root, name, staging))
}

fn mode(tree: &Tree, inode: Inode) -> Mode {
    Mode::from_raw_mode(tree.node(inode).map_or(0, |node| node.mode.into()))
}

fn is_dir(tree: &Tree, inode: Inode) -> bool {
    tree.node(inode).is_some_and(|node| matches!(node.kind, NodeKind::Dir { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use crate::kit::listing::Certainty;
    use crate::kit::listing::Entry;
    use crate::kit::listing::EntryKind;
    use crate::kit::listing::Listing;
    use crate::kit::tree::LayerNumber;

    /// `locked/file`, `locked` forbidding everything, and `top`.
    fn tree() -> Tree {
        let entry = |path: &[u8], mode, kind| Entry { path: KitPath::parse(path).unwrap(), mode, mtime: 0, kind };
        let entries = vec![
            entry(b"locked", 0o000, EntryKind::Dir),
            entry(b"locked/file", 0o640, EntryKind::File { size: 3 }),
            entry(b"top", 0o644, EntryKind::File { size: 0 }),
        ];
        let listing = Listing::new(entries, Certainty::Verified).unwrap();
        Tree::build([(LayerNumber(0), &listing)], None).unwrap()
    }

    fn fill(directory: &Path) -> Result<Target, Error> {
        let tree = tree();
        let mut target = Target::make(directory)?;
        for inode in tree.walk(Inode::ROOT).skip(1) {
            match is_dir(&tree, inode) {
                true => target.make_dir(&tree, inode)?,
                false => target.make_file(&tree, inode)?.write_all(b"abc").unwrap(),
            }
        }
        Ok(target)
    }

    #[test]
    fn files_appear_with_their_modes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("new/dir");
        fill(&directory).unwrap().publish(&tree()).unwrap();
        let mode = |path: &str| fs::metadata(directory.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("locked"), mode("top")), (0, 0o644));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::set_permissions(directory.join("locked"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(mode("locked/file"), 0o640);
        assert_eq!(fs::read(directory.join("locked/file")).unwrap(), b"abc");
    }

    #[test]
    fn given_up_it_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(&folder.path().join("new/dir")).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(fill(folder.path()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_not_followed() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = tree();
        let mut target = Target::make(folder.path()).unwrap();
        let staging = folder.path().join(target.staging_name.as_ref().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), staging.join("locked")).unwrap();
        let inode = tree.find(&KitPath::parse(b"locked/file").unwrap()).unwrap();
        assert!(target.make_file(&tree, inode).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_empty_is_wrong_usage() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Target::check(folder.path()).is_ok());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(Target::check(folder.path()), Err(Error::Target { .. })));
        assert!(matches!(Target::check(&folder.path().join("file")), Err(Error::Target { .. })));
        assert!(Target::check(&folder.path().join("new")).is_ok());
    }
}
