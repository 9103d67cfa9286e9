//! The inode table of a mount: every layer's entries merged, in one order that never changes.
//!
//! Inode numbers are positions in this order, and the kernel remembers them longer than one process
//! lives. So the order is canonical: breadth first, names sorted by their bytes, which also makes the
//! children of a directory neighbours. It depends on the merged paths alone; [`NUMBERING`] names it.
//!
//! The table holds names and numbers. What a file's bytes are is up to its layer.

mod build;

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::kit::listing::Listing;
use crate::kit::name::EntryName;
use crate::kit::name::KitPath;

/// The version of the order. Another one makes another digest, and then no worker takes over a
/// mount whose numbers it would give to other files.
pub const NUMBERING: u32 = 1;

/// The name of the file that every kit has at its root.
pub const KITFILE: &[u8] = b"Kitfile";

/// The most files and directories in one tree, and the most bytes in all their names.
pub const NODE_LIMIT: usize = 1 << 20;
const NAMES_LIMIT: usize = 64 << 20;

/// The number of a file or directory; from 1, the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(pub u64);

impl Inode {
    /// The root of the kit, as FUSE numbers it.
    pub const ROOT: Self = Self(1);

    fn position(self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(1)?).ok()
    }

    fn at(position: usize) -> Self {
        Self(position as u64 + 1)
    }
}

/// Which of the layers that a tree was built from; the builder's caller gives the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNumber(pub u32);

/// The files and directories of a mount. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// In canonical order; the root is the first.
    slots: Vec<Slot>,
    /// The names of all slots, in the same order.
    names: Vec<u8>,
}

/// A node as it is kept: 48 bytes and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    parent: u32,
    name_start: u32,
    name_len: u8,
    mode: u16,
    mtime: i64,
    kind: SlotKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SlotKind {
    Dir { first_child: u32, children: u32, directories: u32 },
    Kitfile { size: u64 },
    File { size: u64, layer: LayerNumber, entry: u32 },
}

/// What the table says about one file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The directory that holds it; the root holds itself.
    pub parent: Inode,
    /// What it is.
    pub kind: NodeKind,
    /// Bytes in it; 0 for a directory.
    pub size: u64,
    /// Permission bits, never more than 0777.
    pub mode: u16,
    /// Seconds since 1970, between the years 0 and 9999.
    pub mtime: i64,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Dir {
        /// The numbers of what is in it, in the order of the names.
        children: Range<u64>,
        /// Its links: 2 and one for each directory in it, as readers expect.
        links: u32,
    },
    /// The file `Kitfile`, which is in no layer.
    Kitfile,
    /// A file out of a layer.
    File {
        /// The layer.
        layer: LayerNumber,
        /// Its position among the entries of the layer's listing and index.
        entry: u32,
    },
}

impl Tree {
    /// Merges layers, given in the order in which `kit unpack` would write them, and a `Kitfile` of
    /// `kitfile` bytes if there is one.
    ///
    /// Directories are shared: the first layer that has one gives its mode, and one that none has is
    /// 0755, as the root always is. Everything else that is there twice is refused.
    pub fn build<'a>(
        layers: impl IntoIterator<Item = (LayerNumber, &'a Listing)>,
        kitfile: Option<u64>,
    ) -> Result<Self, TreeError> {
        build::build(layers, kitfile)
    }

    /// How many nodes there are, the root included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.slots.len() <= 1
    }

    /// The node of this number.
    pub fn node(&self, inode: Inode) -> Option<Node> {
        let slot = self.slot(inode)?;
        let (kind, size) = match slot.kind {
            SlotKind::Dir { directories, .. } => {
                let children = self.children(inode);
                (NodeKind::Dir { children, links: directories.saturating_add(2) }, 0)
            }
            SlotKind::Kitfile { size } => (NodeKind::Kitfile, size),
            SlotKind::File { size, layer, entry } => (NodeKind::File { layer, entry }, size),
        };
        Some(Node { parent: Inode::at(slot.parent as usize), kind, size, mode: slot.mode, mtime: slot.mtime })
    }

    /// What has this name in a directory. Nothing is in what is no directory.
    pub fn lookup(&self, directory: Inode, name: &[u8]) -> Option<Inode> {
        let Range { mut start, mut end } = self.children(directory);
        while start < end {
            let middle = start + (end - start) / 2;
            match self.name_bytes(self.slot(Inode(middle))?).cmp(name) {
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Equal => return Some(Inode(middle)),
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        None
    }

    /// The node at a path.
    pub fn find(&self, path: &KitPath) -> Option<Inode> {
        path.components().try_fold(Inode::ROOT, |inode, name| self.lookup(inode, name.as_bytes()))
    }

    /// The numbers of what is in a directory, in the order of the names; none for a file.
    pub fn children(&self, inode: Inode) -> Range<u64> {
        match self.slot(inode).map(|slot| &slot.kind) {
            Some(SlotKind::Dir { first_child, children, .. }) => {
                let start = Inode::at(*first_child as usize).0;
                start..start + u64::from(*children)
            }
            _ => 0..0,
        }
    }

    /// The name of a node in its directory; the root has none.
    pub fn name(&self, inode: Inode) -> Option<&[u8]> {
        let slot = self.slot(inode)?;
        (slot.name_len > 0).then(|| self.name_bytes(slot))
    }

    /// The path of a node.
    pub fn path(&self, inode: Inode) -> Option<KitPath> {
        let mut names = Vec::new();
        let mut slot = self.slot(inode)?;
        while slot.name_len > 0 {
            names.push(self.name_bytes(slot));
            slot = self.slots.get(slot.parent as usize)?;
        }
        names.reverse();
        Some(KitPath::of_names(&names))
    }

    /// Every node in the order of the numbers: directories of one depth before those below them.
    pub fn inodes(&self) -> impl ExactSizeIterator<Item = Inode> {
        (0..self.slots.len()).map(Inode::at)
    }

    /// `inode` and everything beneath it, each directory followed by what is in it, as `find` prints it.
    pub fn walk(&self, inode: Inode) -> impl Iterator<Item = Inode> {
        let mut pending = Vec::from_iter(self.slot(inode).map(|_| inode.0..inode.0 + 1));
        std::iter::from_fn(move || {
            let next = loop {
                match pending.last_mut()?.next() {
                    Some(next) => break Inode(next),
                    None => pending.pop(),
                };
            };
            pending.push(self.children(next));
            Some(next)
        })
    }

    /// The digest of what numbers mean: [`NUMBERING`], and for each node its number, its directory's
    /// number and its name (which together are its path), its kind and its size.
    ///
    /// Not the proof of anything: sizes may be provisional, and digests of files are not in it.
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(b"kitfs tree");
        hasher.update(NUMBERING.to_le_bytes());
        for (position, slot) in self.slots.iter().enumerate() {
            let (kind, size) = match slot.kind {
                SlotKind::Dir { .. } => (0u8, 0),
                SlotKind::File { size, .. } => (1, size),
                SlotKind::Kitfile { size } => (2, size),
            };
            hasher.update(Inode::at(position).0.to_le_bytes());
            hasher.update(Inode::at(slot.parent as usize).0.to_le_bytes());
            hasher.update([kind, slot.name_len]);
            hasher.update(self.name_bytes(slot));
            hasher.update(size.to_le_bytes());
        }
        Digest::Sha256(hasher.finalize().into())
    }

    fn slot(&self, inode: Inode) -> Option<&Slot> {
        self.slots.get(inode.position()?)
    }

    fn name_bytes(&self, slot: &Slot) -> &[u8] {
        let start = slot.name_start as usize;
        self.names.get(start..start + usize::from(slot.name_len)).unwrap_or_default()
    }
}

/// Puts slots that are in canonical order together, and tells each directory what is in it.
#[derive(Debug, Default)]
struct Assembly {
    slots: Vec<Slot>,
    names: Vec<u8>,
}

impl Assembly {
    /// Adds the next slot. `None`: its parent is no directory that came before, or there is no room.
    fn push(&mut self, name: Option<EntryName<'_>>, mut slot: Slot) -> Option<()> {
        let number = u32::try_from(self.slots.len()).ok()?;
        if let Some(name) = name {
            let is_dir = matches!(slot.kind, SlotKind::Dir { .. });
            let parent = self.slots.get_mut(slot.parent as usize)?;
            let SlotKind::Dir { first_child, children, directories } = &mut parent.kind else { return None };
            if *children == 0 {
                *first_child = number;
            }
            *children += 1;
            *directories += u32::from(is_dir);
            slot.name_start = u32::try_from(self.names.len()).ok()?;
            slot.name_len = u8::try_from(name.as_bytes().len()).ok()?;
            self.names.extend_from_slice(name.as_bytes());
        }
        self.slots.push(slot);
        (self.slots.len() <= NODE_LIMIT && self.names.len() <= NAMES_LIMIT).then_some(())
    }

    fn finish(mut self) -> Tree {
        self.slots.shrink_to_fit();
        self.names.shrink_to_fit();
        Tree { slots: self.slots, names: self.names }
    }
}

/// Why layers do not make one tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// One file twice. The caller knows the layers by their digests, and says so.
    #[error("file {path} is in two layers")]
    SameFile {
        /// Where both lie.
        path: KitPath,
        /// The layer that comes first.
        first: LayerNumber,
        /// The other one; the same where one layer has both.
        second: LayerNumber,
    },
    /// A path that is a file in one layer and a directory in another.
    #[error("{path} is a file in one layer and a directory in another")]
    FileAndDirectory {
        /// The path.
        path: KitPath,
        /// The layer that has the file.
        file: LayerNumber,
        /// The layer that has the directory, or something in it.
        directory: LayerNumber,
    },
    /// A layer that has a `Kitfile` of its own, or something in a directory of that name.
    #[error("{path} is in a layer, where the kit's own Kitfile lies")]
    Kitfile {
        /// The path in the layer.
        path: KitPath,
        /// The layer.
        layer: LayerNumber,
    },
    /// More than kitfs holds in memory.
    #[error(
        "the kit is too large: more than {NODE_LIMIT} files and directories, or more than {NAMES_LIMIT} bytes of names"
    )]
    TooLarge,
}

#[cfg(test)]
mod tests;
