//! The index of a layer: its listing, where each file lies in it, each file's tree, and where a
//! decoder can start in the middle of it.
//!
//! An index is kept here for every layer that was proved whole, and travels beside kits, several layers
//! in one [`Published`]. Both are in one format, which `docs/index-format.md` specifies and `encoding`
//! reads and writes. An index is believed as far as its bytes are proved: it is `FromVerified`. Whose
//! published index counts at all is decided by `policy`.

mod encoding;
mod input;

use std::collections::HashSet;

use bytes::Bytes;

use crate::digest::Digest;
use crate::kit::listing;
use crate::kit::listing::Certainty;
use crate::kit::listing::ENTRY_LIMIT;
use crate::kit::listing::Entry;
use crate::kit::listing::EntryKind;
use crate::kit::listing::Listing;
use crate::kit::listing::ListingError;
use crate::kit::listing::PATHS_LIMIT;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::media::Reading;
use crate::kit::name::InvalidPath;
use crate::kit::name::KitPath;
use crate::kit::seek::SeekPoints;
use crate::verify::FromVerified;
use crate::verity::FileTree;

/// The most bytes of a published index that are read: enough for 4 TiB of files.
pub const INDEX_LIMIT: u64 = 256 << 20;

/// What is in one layer, and how to prove each part of it. The rules of [`Listing`] hold for its
/// entries; every file lies inside the layer, and no two share a byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    layer: LayerBlob,
    content: Content,
    entries: Vec<IndexEntry>,
    seek: SeekPoints,
}

/// A layer as it is stored, and how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest of the blob.
    pub digest: Digest,
    /// Bytes in the blob.
    pub size: u64,
    /// How the blob is read.
    pub reading: Reading,
}

/// A layer when it is not compressed: what the offsets of files count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest, by an algorithm that suited whoever made the index.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
}

/// One entry of a layer, at the same position as in the layer's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where it lies, as the layer has it.
    pub path: KitPath,
    /// Permission bits, never more than 0777.
    pub mode: u16,
    /// Seconds since 1970.
    pub mtime: i64,
    /// What it is.
    pub kind: IndexKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Where its data begins in the uncompressed layer, in bytes.
        offset: u64,
        /// Its size and what proves every part of it.
        tree: FileTree,
    },
}

impl Index {
    /// The index of a layer as it is read in one way. `seek` is where its decoding can begin; that is a
    /// hint, and may be nowhere.
    pub fn new(
        layer: LayerBlob,
        content: Content,
        entries: Vec<IndexEntry>,
        seek: SeekPoints,
    ) -> Result<Self, IndexError> {
        if layer.reading.compression == Compression::None
            && (content != Content { digest: layer.digest, size: layer.size } || !seek.points().is_empty())
        {
            return Err(IndexError::Damaged("a layer that is not compressed differs from its content"));
        }
        listing::check_rules(&entries, |entry| (&entry.path, entry.listing_kind()))?;
        let mut end = 0;
        for entry in &entries {
            let IndexKind::File { offset, tree } = &entry.kind else { continue };
            if entry.path.is_root() {
                return Err(IndexError::Damaged("a file has no name"));
            }
            if *offset < end {
                return Err(IndexError::Overlap { path: entry.path.clone() });
            }
            end = match offset.checked_add(tree.size) {
                Some(end) if end <= content.size => end,
                _ => return Err(IndexError::Outside { path: entry.path.clone() }),
            };
        }
        let is_whole = |entry: &IndexEntry| entry.tree().is_some_and(|tree| tree.size == content.size);
        if layer.reading.format == Format::Raw && !matches!(&entries[..], [file] if is_whole(file)) {
            return Err(IndexError::Damaged("a raw layer is one file"));
        }
        if seek.points().last().is_some_and(|last| last.content >= content.size || last.blob >= layer.size) {
            return Err(IndexError::Damaged("a seek point does not lie inside the layer"));
        }
        Ok(Self { layer, content, entries, seek })
    }

    /// The digest of the layer, compressed as it is stored.
    pub fn layer(&self) -> &Digest {
        &self.layer.digest
    }

    /// The layer as it is stored.
    pub fn blob(&self) -> &LayerBlob {
        &self.layer
    }

    /// How the layer was read.
    pub fn reading(&self) -> Reading {
        self.layer.reading
    }

    /// The digest of the uncompressed layer, by an algorithm that suited whoever made the index.
    pub fn content(&self) -> &Digest {
        &self.content.digest
    }

    /// Bytes in the uncompressed layer.
    pub fn content_size(&self) -> u64 {
        self.content.size
    }

    /// The entries, in the layer's order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Where decoding can begin. Nowhere if the layer is not compressed, or nobody noted it.
    pub fn seek(&self) -> &SeekPoints {
        &self.seek
    }

    /// The tree of the file at a position among the entries. Made for `Verified::part`.
    pub fn tree(&self, entry: u32) -> Option<&FileTree> {
        match &self.entries.get(usize::try_from(entry).ok()?)?.kind {
            IndexKind::Dir => None,
            IndexKind::File { tree, .. } => Some(tree),
        }
    }

    /// The trees of all files, in the layer's order.
    pub fn trees(&self) -> impl Iterator<Item = &FileTree> {
        self.entries.iter().filter_map(IndexEntry::tree)
    }

    /// The listing that the index holds, entry by entry.
    pub fn listing(&self) -> Listing {
        let entries = self.entries.iter().map(|entry| Entry {
            path: entry.path.clone(),
            mode: entry.mode,
            mtime: entry.mtime,
            kind: entry.listing_kind(),
        });
        Listing::of_checked(entries.collect(), Certainty::Verified)
    }

    /// Whether another index of the same layer says the same of its files. The uncompressed layer may be
    /// named by digests of two algorithms, and decoding begin in other places; how a raw layer's only file is
    /// called stands in the manifest.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let entries = match self.layer.reading.format {
            Format::Tar => self.entries == other.entries,
            Format::Raw => self.trees().eq(other.trees()),
        };
        self.layer == other.layer && self.content.size == other.content.size && entries
    }

    /// The index alone, in the format that `docs/index-format.md` specifies.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode([self])
    }
}

impl FromVerified<Bytes> for Index {
    type Error = IndexError;

    fn from_verified(bytes: &Bytes) -> Result<Self, IndexError> {
        let mut layers = encoding::decode(bytes)?;
        match layers.pop() {
            Some(index) if layers.is_empty() => Ok(index),
            _ => Err(IndexError::Damaged("it is not about one layer")),
        }
    }
}

impl IndexEntry {
    fn tree(&self) -> Option<&FileTree> {
        match &self.kind {
            IndexKind::Dir => None,
            IndexKind::File { tree, .. } => Some(tree),
        }
    }

    fn listing_kind(&self) -> EntryKind {
        self.tree().map_or(EntryKind::Dir, |tree| EntryKind::File { size: tree.size })
    }
}

/// The indexes of several layers, as one blob that travels beside a kit. No layer is in it twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    layers: Vec<Index>,
}

impl Published {
    /// Puts the indexes of layers together. One that is there twice is taken once.
    pub fn new(indexes: impl IntoIterator<Item = Index>) -> Result<Self, IndexError> {
        let mut seen = HashSet::new();
        let mut layers: Vec<_> = indexes.into_iter().collect();
        layers.retain(|index| seen.insert((*index.layer(), index.reading())));
        let entries = || layers.iter().flat_map(|index| &index.entries);
        let paths: usize = entries().map(|entry| entry.path.as_bytes().len()).sum();
        if entries().count() > ENTRY_LIMIT || paths > PATHS_LIMIT {
            return Err(ListingError::TooLarge.into());
        }
        Ok(Self { layers })
    }

    /// The index of each layer.
    pub fn layers(&self) -> &[Index] {
        &self.layers
    }

    /// The index of a layer as it is read, if there is one. Made for `Verified::part`.
    pub fn layer(&self, layer: &LayerBlob) -> Option<&Index> {
        self.layers.iter().find(|index| index.blob() == layer)
    }

    /// The blob, in the format that `docs/index-format.md` specifies.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(&self.layers)
    }
}

impl FromVerified<Bytes> for Published {
    type Error = IndexError;

    fn from_verified(bytes: &Bytes) -> Result<Self, IndexError> {
        Ok(Self { layers: encoding::decode(bytes)? })
    }
}

/// Why bytes are not an index, or entries not those of a layer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// An index in a format that came after this kitfs.
    #[error("the index has version {0} of its format, and this kitfs knows {known}", known = encoding::VERSION)]
    Version(u16),
    /// An index whose parts do not fit together.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// An index that ends too early.
    #[error("the index is damaged: it is cut off")]
    CutOff,
    /// A name that no file may have.
    #[error("the index is damaged")]
    Path(#[from] InvalidPath),
    /// A file that the layer is too small for.
    #[error("file {path} does not lie inside its layer")]
    Outside {
        /// The file.
        path: KitPath,
    },
    /// A file that begins inside the one before it.
    #[error("file {path} shares bytes with the one before it")]
    Overlap {
        /// The file.
        path: KitPath,
    },
    /// Entries that break the rules inside a layer.
    #[error(transparent)]
    Listing(#[from] ListingError),
}

#[cfg(test)]
mod tests;
