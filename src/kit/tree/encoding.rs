//! A tree as bytes, for the next worker of the same mount.
//!
//! [`NUMBERING`] as four bytes, little-endian, then a postcard message of the nodes in canonical order.
//! What follows from the order is not written down: which children a directory has, and the root's name.

use std::iter;

use serde::{Deserialize, Serialize};

use crate::kit::name::EntryName;
use crate::kit::name::InvalidPath;
use crate::kit::name::PATH_LIMIT;
use crate::kit::tree::Assembly;
use crate::kit::tree::LayerNumber;
use crate::kit::tree::NUMBERING;
use crate::kit::tree::Slot;
use crate::kit::tree::SlotKind;
use crate::kit::tree::Tree;

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    parent: u32,
    #[serde(borrow)]
    name: Name<'a>,
    mode: u16,
    mtime: i64,
    kind: Kind,
}

/// A name as a byte string, which serde takes for a list of numbers otherwise.
struct Name<'a>(&'a [u8]);

impl Serialize for Name<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Deserialize::deserialize(deserializer).map(Self)
    }
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Dir,
    Kitfile { size: u64 },
    File { size: u64, layer: u32, entry: u32 },
}

impl Tree {
    /// The tree as bytes that [`Tree::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let records = self.slots.iter().map(|slot| Record {
            parent: slot.parent,
            name: Name(self.name_bytes(slot)),
            mode: slot.mode,
            mtime: slot.mtime,
            kind: match slot.kind {
                SlotKind::Dir { .. } => Kind::Dir,
                SlotKind::Kitfile { size } => Kind::Kitfile { size },
                SlotKind::File { size, layer, entry } => Kind::File { size, layer: layer.0, entry },
            },
        });
        let records = Vec::from_iter(records);
        // A Vec takes every byte, and no type in a record has a serializer that can fail.
        postcard::to_extend(&records, NUMBERING.to_le_bytes().to_vec()).expect("a tree has an encoding")
    }

    /// Reads a tree, and checks that it is one whose numbers this version would give.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeDecodeError> {
        let damaged = TreeDecodeError::Damaged;
        let (version, rest) = bytes.split_first_chunk().ok_or(damaged("it ends in its version"))?;
        let version = u32::from_le_bytes(*version);
        if version != NUMBERING {
            return Err(TreeDecodeError::Numbering(version));
        }
        let (records, rest): (Vec<Record<'_>>, &[u8]) = postcard::take_from_bytes(rest)?;
        if !rest.is_empty() {
            return Err(damaged("something follows it"));
        }
        let Some((root, nodes)) = records.split_first() else {
            return Err(damaged("it has no root"));
        };
        if root.parent != 0 || !root.name.0.is_empty() || !matches!(root.kind, Kind::Dir) {
            return Err(damaged("its root is none"));
        }
        let mut assembly = Assembly::default();
        assembly.push(None, root.slot()?).ok_or(damaged("it is too large"))?;
        // Lengths of the paths, by number.
        let mut lengths = vec![0usize];
        for (previous, node) in iter::zip(&records, nodes) {
            let name = EntryName::parse(node.name.0)?;
            if (node.parent, node.name.0) <= (previous.parent, previous.name.0) {
                return Err(damaged("its nodes are not in order"));
            }
            assembly.push(Some(name), node.slot()?).ok_or(damaged("a node is in no directory"))?;
            let directory = lengths.get(node.parent as usize).copied().unwrap_or_default();
            let length = directory + usize::from(directory > 0) + node.name.0.len();
            if length > PATH_LIMIT {
                return Err(damaged("a path is too long"));
            }
            lengths.push(length);
        }
        Ok(assembly.finish())
    }
}

impl Record<'_> {
    fn slot(&self) -> Result<Slot, TreeDecodeError> {
        if self.mode > 0o777 {
            return Err(TreeDecodeError::Damaged("a mode has more than permission bits"));
        }
        let kind = match self.kind {
            Kind::Dir => SlotKind::Dir { first_child: 0, children: 0, directories: 0 },
            Kind::Kitfile { size } => SlotKind::Kitfile { size },
            Kind::File { size, layer, entry } => SlotKind::File { size, layer: LayerNumber(layer), entry },
        };
        Ok(Slot { parent: self.parent, name_start: 0, name_len: 0, mode: self.mode, mtime: self.mtime, kind })
    }
}

/// Why bytes are not a tree that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TreeDecodeError {
    /// A tree whose numbers mean something else.
    #[error("the tree has version {0} of the numbering, and this kitfs knows {NUMBERING}")]
    Numbering(u32),
    /// A tree whose parts do not fit together.
    #[error("the tree is damaged: {0}")]
    Damaged(&'static str),
    /// A name that cannot be in a tree.
    #[error("the tree is damaged: {0}")]
    Name(#[from] InvalidPath),
    /// A tree that cannot be read.
    #[error("the tree is damaged: {0}")]
    Encoding(#[from] postcard::Error),
}
