//! The local index of one proved layer: its listing, where each file lies in it, and each file's tree.
//!
//! # Format
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 8 | `kitfsidx` |
//! | 2 | version of the format, little-endian: 1 |
//! | n | a postcard message (postcard wire format 1.0): the struct `Body` of this file |
//! | rest | the units of all files, in order, 32 bytes each |
//!
//! The body is: the layer's digest as text; how it is read; the digest, as text, and the size of the
//! uncompressed layer; and the entries in the
//! layer's order, each with path (bytes), mode, time, and for a file its size and its place. How many
//! units are a file's follows from its size, and its digest from size and units.
//!
//! An index is believed as far as its bytes are proved: it is `FromVerified`, and sealed on disk.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::kit::listing;
use crate::kit::listing::Certainty;
use crate::kit::listing::Entry;
use crate::kit::listing::EntryKind;
use crate::kit::listing::Listing;
use crate::kit::listing::ListingError;
use crate::kit::media::Reading;
use crate::kit::name::KitPath;
use crate::verify::FromVerified;
use crate::verity;
use crate::verity::FileTree;
use crate::verity::Hash;

const MAGIC: &[u8; 8] = b"kitfsidx";
const VERSION: u16 = 1;

/// What is in one layer, and how to prove each part of it. The rules of [`Listing`] hold for its
/// entries, and every file lies inside the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    layer: Digest,
    reading: Reading,
    content: Digest,
    content_size: u64,
    entries: Vec<IndexEntry>,
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
    /// The index of a layer as it is read in one way. `content` and `content_size` are the digest and the
    /// length of the layer when it is not compressed; that is what offsets count in.
    pub fn new(
        layer: Digest,
        reading: Reading,
        content: Digest,
        content_size: u64,
        entries: Vec<IndexEntry>,
    ) -> Result<Self, IndexError> {
        listing::check_rules(&entries, |entry| (&entry.path, entry.listing_kind()))?;
        for entry in &entries {
            let IndexKind::File { offset, tree } = &entry.kind else { continue };
            if offset.checked_add(tree.size).is_none_or(|end| end > content_size) {
                return Err(IndexError::Outside { path: entry.path.clone() });
            }
        }
        Ok(Self { layer, reading, content, content_size, entries })
    }

    /// The digest of the layer, compressed as it is stored.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// How the layer was read.
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// The digest of the uncompressed layer, by an algorithm that suited whoever made the index.
    pub fn content(&self) -> &Digest {
        &self.content
    }

    /// Bytes in the uncompressed layer.
    pub fn content_size(&self) -> u64 {
        self.content_size
    }

    /// Whether another index of the same layer says the same of its files. The uncompressed layer may be
    /// named by digests of two algorithms.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.content_size == other.content_size && self.entries == other.entries
    }

    /// The entries, in the layer's order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
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

    /// The index in the format that the documentation of this file tells.
    pub fn encode(&self) -> Vec<u8> {
        let records = self.entries.iter().map(|entry| Record {
            path: entry.path.clone(),
            mode: entry.mode,
            mtime: entry.mtime,
            extent: match &entry.kind {
                IndexKind::Dir => None,
                IndexKind::File { offset, tree } => Some(Extent { offset: *offset, size: tree.size }),
            },
        });
        let body = Body {
            layer: self.layer,
            reading: self.reading,
            content: self.content,
            content_size: self.content_size,
            records: records.collect(),
        };
        let head = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        // A Vec takes every byte, and no type in the body has a serializer that can fail.
        let mut bytes = postcard::to_extend(&body, head).expect("an index has an encoding");
        for tree in self.entries.iter().filter_map(IndexEntry::tree) {
            bytes.extend_from_slice(tree.units().as_flattened());
        }
        bytes
    }
}

impl FromVerified<Bytes> for Index {
    type Error = IndexError;

    fn from_verified(bytes: &Bytes) -> Result<Self, IndexError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(IndexError::Damaged("it does not begin as one"))?;
        let (version, rest) = rest.split_first_chunk().ok_or(IndexError::Damaged("it ends in its version"))?;
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let (body, units): (Body, &[u8]) = postcard::take_from_bytes(rest)?;
        let (units, []) = units.as_chunks() else {
            return Err(IndexError::Damaged("a unit is cut off"));
        };
        let mut units = Units(units);
        let entries = body.records.into_iter().map(|record| record.into_entry(&mut units)).collect::<Result<_, _>>()?;
        if !units.0.is_empty() {
            return Err(IndexError::Damaged("it has units that belong to no file"));
        }
        Self::new(body.layer, body.reading, body.content, body.content_size, entries)
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

/// What is encoded ahead of the units. Changing it means another [`VERSION`].
#[derive(Serialize, Deserialize)]
struct Body {
    layer: Digest,
    reading: Reading,
    content: Digest,
    content_size: u64,
    records: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    path: KitPath,
    mode: u16,
    mtime: i64,
    /// `None` for a directory.
    extent: Option<Extent>,
}

#[derive(Serialize, Deserialize)]
struct Extent {
    offset: u64,
    size: u64,
}

/// The units that no file has taken yet.
struct Units<'a>(&'a [Hash]);

impl Record {
    fn into_entry(self, units: &mut Units<'_>) -> Result<IndexEntry, IndexError> {
        if self.mode > 0o777 {
            return Err(IndexError::Damaged("a mode has more than permission bits"));
        }
        let kind = match self.extent {
            None => IndexKind::Dir,
            Some(Extent { offset, size }) => IndexKind::File { offset, tree: units.take(size)? },
        };
        Ok(IndexEntry { path: self.path, mode: self.mode, mtime: self.mtime, kind })
    }
}

impl Units<'_> {
    /// The tree of the next file, which is `size` bytes long.
    fn take(&mut self, size: u64) -> Result<FileTree, IndexError> {
        let missing = IndexError::Damaged("it has too few units");
        let count = usize::try_from(verity::unit_count(size)).unwrap_or(usize::MAX);
        let (units, rest) = self.0.split_at_checked(count).ok_or(missing)?;
        self.0 = rest;
        FileTree::new(size, units).ok_or(IndexError::Damaged("the units of a file are not as many as its size says"))
    }
}

/// Why bytes are not an index, or entries not those of a layer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// An index that another kitfs wrote.
    #[error("the index has version {0} of its format, and this kitfs knows {VERSION}")]
    Version(u16),
    /// An index whose parts do not fit together.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// An index whose body cannot be read.
    #[error("the index is damaged: {0}")]
    Body(#[from] postcard::Error),
    /// A file that the layer is too small for.
    #[error("file {path} does not lie inside its layer")]
    Outside {
        /// The file.
        path: KitPath,
    },
    /// Entries that break the rules inside a layer.
    #[error(transparent)]
    Listing(#[from] ListingError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kit::media::Compression;
    use crate::kit::media::Format;
    use crate::verify::Unverified;
    use crate::verity::TreeBuilder;

    const TAR_GZIP: Reading = Reading { format: Format::Tar, compression: Compression::Gzip };

    fn tree(data: &[u8]) -> FileTree {
        let mut builder = TreeBuilder::default();
        builder.update(data);
        builder.finish()
    }

    fn entry(path: &str, kind: IndexKind) -> IndexEntry {
        IndexEntry { path: KitPath::parse(path.as_bytes()).unwrap(), mode: 0o644, mtime: -1, kind }
    }

    fn sample() -> Index {
        let file = |offset, data: &[u8]| IndexKind::File { offset, tree: tree(data) };
        let entries = vec![
            entry("d", IndexKind::Dir),
            entry("d/big", file(1024, &[7; 600_000])),
            entry("d/empty", file(602_112, b"")),
            entry("d/small", file(602_624, b"hello")),
        ];
        Index::new(Digest::of(b"layer"), TAR_GZIP, Digest::of(b"content"), 604_160, entries).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<Index, IndexError> {
        let bytes = Bytes::copy_from_slice(bytes);
        let digest = Digest::of(&bytes);
        let verified = Unverified::new(bytes).verify(&digest).unwrap();
        verified.parse::<Index>().map(|index| (*index).clone())
    }

    #[test]
    fn an_index_survives_a_round_trip() {
        let index = sample();
        assert_eq!(decode(&index.encode()).unwrap(), index);
        let listing = index.listing();
        assert_eq!(listing.certainty(), Certainty::Verified);
        assert_eq!(listing.entries().len(), 4);
        assert_eq!(listing.entries()[1].kind, EntryKind::File { size: 600_000 });
        assert_eq!(index.tree(1), Some(&tree(&[7; 600_000])));
        assert_eq!((index.tree(0), index.tree(4)), (None, None));
    }

    /// An index on a disk outlives the kitfs that wrote it.
    #[test]
    fn the_format_is_frozen() {
        let bytes = sample().encode();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "sha256:6f49eee7063733540d730453186760ea61d53cf81478d0eeadf31ad520ef7596"
        );
        assert_eq!(&bytes[..11], b"kitfsidx\x01\0\x47");
        assert_eq!(bytes.len(), 309);
    }

    #[test]
    fn an_index_that_does_not_fit_together_is_refused() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode(&[&bytes[..], &[0; 32]].concat()).is_err());
        let mut other = bytes;
        other[8] = 2;
        assert!(matches!(decode(&other), Err(IndexError::Version(2))));
    }

    #[test]
    fn a_file_outside_its_layer_is_refused() {
        for offset in [96, u64::MAX] {
            let file = entry("a", IndexKind::File { offset, tree: tree(b"hello") });
            assert!(matches!(
                Index::new(Digest::of(b""), TAR_GZIP, Digest::of(b""), 100, vec![file]),
                Err(IndexError::Outside { .. })
            ));
        }
        let twice = vec![entry("a", IndexKind::Dir), entry("a", IndexKind::File { offset: 0, tree: tree(b"") })];
        assert!(matches!(
            Index::new(Digest::of(b""), TAR_GZIP, Digest::of(b""), 100, twice),
            Err(IndexError::Listing(_))
        ));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(place: prop::sample::Index, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = sample().encode();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = decode(&bytes);
            bytes.truncate(place);
            bytes.extend_from_slice(&tail);
            let _ = decode(&bytes);
        }
    }
}
