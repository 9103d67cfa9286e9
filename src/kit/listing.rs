//! What is in one layer: names, sizes, modes and times, and never a byte of content.
//!
//! A listing is the same thing whether it was read ahead of the proof or out of a proved index; it
//! carries which, and two can be compared. The rules inside one layer live here; the rules between
//! layers are the tree's.

use serde::{Deserialize, Serialize};

use crate::kit::name::InvalidPath;
use crate::kit::name::KitPath;
use crate::kit::tar::Member;
use crate::kit::tar::MemberKind;

/// The most entries in one layer. An archive of a few megabytes can open to any number of them.
pub const ENTRY_LIMIT: usize = 1 << 20;

/// The most bytes in all paths of one layer, for the same reason.
pub const PATHS_LIMIT: usize = 64 << 20;

/// The entries of one layer, in the layer's own order: one for each member of a tar, and one for a
/// raw layer. No file is in it twice, and nothing is both a file and a directory; a directory may be in
/// it more than once, and the root may be.
#[derive(Clone, Debug)]
pub struct Listing {
    entries: Vec<Entry>,
    certainty: Certainty,
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it lies in the kit.
    pub path: KitPath,
    /// Permission bits, never more than 0777.
    pub mode: u16,
    /// Seconds since 1970.
    pub mtime: i64,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes in it.
        size: u64,
    },
}

/// Whether the layer's digest has been checked over what a listing was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certainty {
    /// Not yet: the layer's bytes may turn out to be others.
    Provisional,
    /// Yes, or a trusted index or manifest says the same.
    Verified,
}

impl From<Member> for Entry {
    fn from(member: Member) -> Self {
        let kind = match member.kind {
            MemberKind::Dir => EntryKind::Dir,
            MemberKind::File => EntryKind::File { size: member.size },
        };
        Self { path: member.path, mode: member.mode, mtime: member.mtime, kind }
    }
}

impl Listing {
    /// Checks the entries of one layer against the rules inside a layer.
    pub fn new(entries: Vec<Entry>, certainty: Certainty) -> Result<Self, ListingError> {
        check_rules(&entries, |entry| (&entry.path, entry.kind))?;
        Ok(Self { entries, certainty })
    }

    /// A listing of entries for which [`check_rules`] was asked before.
    pub(super) fn of_checked(entries: Vec<Entry>, certainty: Certainty) -> Self {
        Self { entries, certainty }
    }

    /// The entries, in the layer's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the listing was read out of proved bytes.
    pub fn certainty(&self) -> Certainty {
        self.certainty
    }

    /// Whether two listings of one layer show the same, however certain they are.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The listing with all paths taken as relative to `base`: kits from before KitOps 0.5 name a
    /// layer's members relative to the directory that holds the layer's own path.
    pub fn under(mut self, base: &KitPath) -> Result<Self, ListingError> {
        for entry in &mut self.entries {
            entry.path = base.join(&entry.path)?;
        }
        check_rules(&self.entries, |entry| (&entry.path, entry.kind))?;
        Ok(self)
    }

    /// Checks that every entry is what the Kitfile calls the layer: its path, something beneath it, or
    /// a directory on the way to it. A listing that is not proved yet is believed no further.
    pub fn agrees_with(&self, path: &KitPath) -> Result<(), ListingError> {
        let is_on_the_way = |entry: &Entry| entry.kind == EntryKind::Dir && path.starts_with(&entry.path);
        match self.entries.iter().find(|entry| !entry.path.starts_with(path) && !is_on_the_way(entry)) {
            None => Ok(()),
            Some(stray) => Err(ListingError::Stray { path: stray.path.clone(), layer: path.clone() }),
        }
    }
}

/// Collects the entries of a layer as they are read, and stops one that would fill the memory.
#[derive(Debug, Default)]
pub struct Lister {
    entries: Vec<Entry>,
    path_bytes: usize,
}

impl Lister {
    /// Takes the next entry.
    pub fn add(&mut self, entry: impl Into<Entry>) -> Result<(), ListingError> {
        let entry = entry.into();
        self.path_bytes += entry.path.as_bytes().len();
        if self.entries.len() >= ENTRY_LIMIT || self.path_bytes > PATHS_LIMIT {
            return Err(ListingError::TooLarge);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The listing, after the last entry.
    pub fn finish(self, certainty: Certainty) -> Result<Listing, ListingError> {
        Listing::new(self.entries, certainty)
    }
}

/// The rules inside one layer, over anything that has entries.
pub(super) fn check_rules<T>(entries: &[T], entry: impl Fn(&T) -> (&KitPath, EntryKind)) -> Result<(), ListingError> {
    let mut path_bytes = 0;
    let mut sorted = Vec::with_capacity(entries.len().min(ENTRY_LIMIT));
    for (path, kind) in entries.iter().map(entry) {
        path_bytes += path.as_bytes().len();
        if sorted.len() >= ENTRY_LIMIT || path_bytes > PATHS_LIMIT {
            return Err(ListingError::TooLarge);
        }
        sorted.push((path, kind));
    }
    // In this order, an entry that another one collides with or lies beneath comes just before it,
    // or before others that lie beneath it too.
    sorted.sort_by_key(|(path, _)| *path);
    let mut file: Option<&KitPath> = None;
    let mut previous: Option<(&KitPath, EntryKind)> = None;
    for (path, kind) in sorted {
        if let Some((same, other)) = previous.filter(|(previous, _)| *previous == path)
            && (kind, other) != (EntryKind::Dir, EntryKind::Dir)
        {
            let both = matches!((kind, other), (EntryKind::File { .. }, EntryKind::File { .. }));
            let path = same.clone();
            return Err(if both { ListingError::SameFile { path } } else { ListingError::FileAndDirectory { path } });
        }
        if let Some(file) = file.filter(|file| path.starts_with(file)) {
            return Err(ListingError::FileAndDirectory { path: file.clone() });
        }
        if kind != EntryKind::Dir {
            file = Some(path);
        }
        previous = Some((path, kind));
    }
    Ok(())
}

/// Why the entries of a layer cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// One file twice.
    #[error("file {path} is in the layer twice")]
    SameFile {
        /// Where both lie.
        path: KitPath,
    },
    /// A path that is a file and a directory.
    #[error("{path} is a file and a directory in the layer")]
    FileAndDirectory {
        /// The path.
        path: KitPath,
    },
    /// An entry that a listing without proof may not have.
    #[error("{path} is in the layer of {layer}, which it is no part of")]
    Stray {
        /// The entry.
        path: KitPath,
        /// The layer's path in the Kitfile.
        layer: KitPath,
    },
    /// A path that became too long.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// More entries or longer names than kitfs holds in memory.
    #[error("the layer has too many entries: more than {ENTRY_LIMIT}, or more than {PATHS_LIMIT} bytes of names")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KitPath {
        KitPath::parse(text.as_bytes()).unwrap()
    }

    /// A listing of paths, where a slash at the end makes a directory.
    fn listing(paths: &[&str]) -> Result<Listing, ListingError> {
        let mut lister = Lister::default();
        for text in paths {
            let kind = if text.ends_with('/') { EntryKind::Dir } else { EntryKind::File { size: 1 } };
            lister.add(Entry { path: path(text), mode: 0o644, mtime: 0, kind })?;
        }
        lister.finish(Certainty::Provisional)
    }

    #[test]
    fn a_file_is_in_a_layer_once() {
        for (paths, says) in [
            (&["a/b", "a/./b"][..], "file a/b is in the layer twice"),
            (&["a/", "a"], "a is a file and a directory"),
            (&["a", "a/"], "a is a file and a directory"),
            (&["a/b", "a"], "a is a file and a directory"),
            (&["a", "a b", "a/b/c"], "a is a file and a directory"),
            (&["a", "a/b/", "a/b/c"], "a is a file and a directory"),
        ] {
            let error = listing(paths).unwrap_err().to_string();
            assert!(error.contains(says), "{paths:?}: {error}");
        }
        for paths in [&[][..], &["./"], &["a/", "a/b", "a/"], &["a/b", "a/"], &["a", "ab", "a b", "A"]] {
            assert!(listing(paths).is_ok(), "{paths:?}");
        }
    }

    #[test]
    fn a_listing_agrees_with_the_path_that_the_kitfile_gives() {
        let agrees = |paths: &[&str], with: &str| listing(paths).unwrap().agrees_with(&path(with)).is_ok();
        assert!(agrees(&["a/", "a/b/", "a/b/c"], "a/b/c"));
        assert!(agrees(&["./", "a/", "a/b/", "a/b/c", "a/b/d/e"], "a/b"));
        assert!(agrees(&["x", "y/z"], "."));
        assert!(!agrees(&["a/", "a/bc"], "a/b"));
        assert!(!agrees(&["a/", "a/b", "b/"], "a/b"));
        assert!(!agrees(&["a"], "a/b"));
    }

    #[test]
    fn a_base_moves_all_entries() {
        let moved = listing(&["./", "w.bin"]).unwrap().under(&path("a/b")).unwrap();
        assert_eq!(
            moved.entries().iter().map(|entry| entry.path.to_string()).collect::<Vec<_>>(),
            ["a/b", "a/b/w.bin"]
        );
        assert!(listing(&["w.bin"]).unwrap().under(&path(&"d/".repeat(2047))).is_err());
    }

    #[test]
    fn listings_are_compared_without_their_certainty() {
        let provisional = listing(&["a/", "a/b"]).unwrap();
        let verified = Listing::new(provisional.entries().to_vec(), Certainty::Verified).unwrap();
        assert!(provisional.shows_the_same(&verified));
        assert!(!provisional.shows_the_same(&listing(&["a/", "a/c"]).unwrap()));
    }

    #[test]
    fn a_layer_cannot_fill_the_memory() {
        let mut lister = Lister::default();
        let entry = Entry { path: path(&"d/".repeat(2000)), mode: 0, mtime: 0, kind: EntryKind::Dir };
        let added = (0..PATHS_LIMIT).take_while(|_| lister.add(entry.clone()).is_ok()).count();
        assert_eq!(added, PATHS_LIMIT / 3999);
    }
}
