//! The bytes of an index, read and written. `docs/index-format.md` is the specification.

use std::collections::HashSet;

use bytes::Bytes;

use crate::digest::Digest;
use crate::kit::index::Content;
use crate::kit::index::Index;
use crate::kit::index::IndexEntry;
use crate::kit::index::IndexError;
use crate::kit::index::IndexKind;
use crate::kit::index::LayerBlob;
use crate::kit::index::input::Input;
use crate::kit::index::input::put_bytes;
use crate::kit::index::input::put_number;
use crate::kit::index::input::put_signed;
use crate::kit::listing::ENTRY_LIMIT;
use crate::kit::listing::ListingError;
use crate::kit::listing::PATHS_LIMIT;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::media::Reading;
use crate::kit::name::KitPath;
use crate::kit::seek::SeekPoint;
use crate::kit::seek::SeekPoints;
use crate::kit::seek::WINDOW_LIMIT;
use crate::verity;
use crate::verity::FileTree;
use crate::verity::Hash;

const MAGIC: &[u8; 8] = b"kitindex";
pub(super) const VERSION: u16 = 1;

/// Layers of one index.
const LAYER_LIMIT: usize = 4096;

/// The bit above the permission bits of an entry that makes it a file.
const FILE: u64 = 0o1000;

/// The fewest bytes of a layer's record, an entry and a seek point.
const LEAST_LAYER: usize = 75;
const LEAST_ENTRY: usize = 4;
const LEAST_POINT: usize = 4;

pub(super) fn encode<'a>(layers: impl IntoIterator<Item = &'a Index> + Clone) -> Vec<u8> {
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    put_number(&mut out, layers.clone().into_iter().count() as u64);
    for index in layers.clone() {
        put_layer(&mut out, index);
    }
    for tree in layers.into_iter().flat_map(Index::trees) {
        out.extend_from_slice(tree.units().as_flattened());
    }
    out
}

fn put_layer(out: &mut Vec<u8>, index: &Index) {
    let LayerBlob { digest, size, reading } = index.blob();
    put_bytes(out, digest.to_string().as_bytes());
    put_number(out, *size);
    out.push(match reading.format {
        Format::Tar => 0,
        Format::Raw => 1,
    });
    out.push(match reading.compression {
        Compression::None => 0,
        Compression::Gzip => 1,
        Compression::Zstd => 2,
    });
    if reading.compression != Compression::None {
        put_bytes(out, index.content().to_string().as_bytes());
        put_number(out, index.content_size());
    }
    put_number(out, index.entries().len() as u64);
    for entry in index.entries() {
        put_bytes(out, entry.path.as_bytes());
        let flag = if entry.tree().is_some() { FILE } else { 0 };
        put_number(out, u64::from(entry.mode) | flag);
        put_signed(out, entry.mtime);
        if let IndexKind::File { offset, tree } = &entry.kind {
            put_number(out, *offset);
            put_number(out, tree.size);
        }
    }
    if reading.compression != Compression::None {
        put_number(out, index.seek().points().len() as u64);
        let mut before = (0, 0);
        for SeekPoint { content, blob, bits, window } in index.seek().points() {
            put_number(out, content - before.0);
            put_number(out, blob - before.1);
            out.push(*bits);
            put_bytes(out, window);
            before = (*content, *blob);
        }
    }
}

pub(super) fn decode(bytes: &Bytes) -> Result<Vec<Index>, IndexError> {
    let mut input = Input(bytes.clone());
    if input.take(MAGIC.len()).ok().as_deref() != Some(MAGIC) {
        return Err(IndexError::Damaged("it does not begin as one"));
    }
    let version = u16::from_le_bytes([input.byte()?, input.byte()?]);
    if version != VERSION {
        return Err(IndexError::Version(version));
    }
    let layers = input.count(LEAST_LAYER)?;
    if layers > LAYER_LIMIT {
        return Err(IndexError::Damaged("it has too many layers"));
    }
    let mut budget = Budget { entries: ENTRY_LIMIT, path_bytes: PATHS_LIMIT };
    let mut drafts = Vec::new();
    for _ in 0..layers {
        drafts.push(read_layer(&mut input, &mut budget)?);
    }
    let (units, []) = input.0.as_chunks() else {
        return Err(IndexError::Damaged("a unit is cut off"));
    };
    let mut units = Units(units);
    let indexes = drafts.into_iter().map(|draft| draft.finish(&mut units)).collect::<Result<Vec<_>, _>>()?;
    if !units.0.is_empty() {
        return Err(IndexError::Damaged("it has units that belong to no file"));
    }
    let mut seen = HashSet::new();
    match indexes.iter().all(|index| seen.insert((*index.layer(), index.reading()))) {
        true => Ok(indexes),
        false => Err(IndexError::Damaged("a layer is in it twice")),
    }
}

/// How much more may be read before an index counts as too large: it is in memory.
struct Budget {
    entries: usize,
    path_bytes: usize,
}

/// A layer whose units have not been read yet.
struct Draft {
    layer: LayerBlob,
    content: Content,
    records: Vec<Record>,
    seek: SeekPoints,
}

struct Record {
    path: KitPath,
    mode: u16,
    mtime: i64,
    /// Offset and size of a file; a directory has none.
    extent: Option<(u64, u64)>,
}

fn read_layer(input: &mut Input, budget: &mut Budget) -> Result<Draft, IndexError> {
    let digest = read_digest(input)?;
    let size = input.number()?;
    let format = match input.byte()? {
        0 => Format::Tar,
        1 => Format::Raw,
        _ => return Err(IndexError::Damaged("the format of a layer is unknown")),
    };
    let compression = match input.byte()? {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Zstd,
        _ => return Err(IndexError::Damaged("the compression of a layer is unknown")),
    };
    let layer = LayerBlob { digest, size, reading: Reading { format, compression } };
    let is_plain = compression == Compression::None;
    let content = match is_plain {
        true => Content { digest, size },
        false => Content { digest: read_digest(input)?, size: input.number()? },
    };
    let count = input.count(LEAST_ENTRY)?;
    budget.entries = budget.entries.checked_sub(count).ok_or(ListingError::TooLarge)?;
    let records = (0..count).map(|_| read_record(input, budget)).collect::<Result<_, _>>()?;
    let seek = if is_plain { SeekPoints::default() } else { read_points(input, compression)? };
    Ok(Draft { layer, content, records, seek })
}

fn read_digest(input: &mut Input) -> Result<Digest, IndexError> {
    let bytes = input.bytes()?;
    let text = str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
    text.ok_or(IndexError::Damaged("a digest is malformed"))
}

fn read_record(input: &mut Input, budget: &mut Budget) -> Result<Record, IndexError> {
    let bytes = input.bytes()?;
    budget.path_bytes = budget.path_bytes.checked_sub(bytes.len()).ok_or(ListingError::TooLarge)?;
    // The root is empty, as it is everywhere inside; what is not clean would have two spellings.
    let path = if bytes.is_empty() { KitPath::root() } else { KitPath::parse(&bytes)? };
    if path.as_bytes() != bytes {
        return Err(IndexError::Damaged("a path is not clean"));
    }
    let kind = input.number()?;
    let mode = u16::try_from(kind & 0o777).unwrap_or_default();
    let is_file = match kind - u64::from(mode) {
        0 => false,
        FILE => true,
        _ => return Err(IndexError::Damaged("a mode has more than permission bits")),
    };
    let mtime = input.signed()?;
    let extent = if is_file { Some((input.number()?, input.number()?)) } else { None };
    Ok(Record { path, mode, mtime, extent })
}

fn read_points(input: &mut Input, compression: Compression) -> Result<SeekPoints, IndexError> {
    let count = input.count(LEAST_POINT)?;
    let mut points = Vec::new();
    let mut before = (0u64, 0u64);
    for _ in 0..count {
        let far = || IndexError::Damaged("a seek point lies outside of everything");
        let content = before.0.checked_add(input.number()?).ok_or_else(far)?;
        let blob = before.1.checked_add(input.number()?).ok_or_else(far)?;
        let bits = input.byte()?;
        let window = input.bytes()?;
        let fits = match compression {
            Compression::Gzip => bits < 8 && window.len() <= WINDOW_LIMIT,
            Compression::Zstd | Compression::None => bits == 0 && window.is_empty(),
        };
        if !fits {
            return Err(IndexError::Damaged("a seek point is none of its compression"));
        }
        points.push(SeekPoint { content, blob, bits, window });
        before = (content, blob);
    }
    SeekPoints::new(points).ok_or(IndexError::Damaged("its seek points are not in order"))
}

/// The units that no file has taken yet.
struct Units<'a>(&'a [Hash]);

impl Draft {
    fn finish(self, units: &mut Units<'_>) -> Result<Index, IndexError> {
        let entries = self.records.into_iter().map(|Record { path, mode, mtime, extent }| {
            let kind = match extent {
                None => IndexKind::Dir,
                Some((offset, size)) => IndexKind::File { offset, tree: units.take(size)? },
            };
            Ok(IndexEntry { path, mode, mtime, kind })
        });
        let entries = entries.collect::<Result<_, IndexError>>()?;
        Index::new(self.layer, self.content, entries, self.seek)
    }
}

impl Units<'_> {
    /// The tree of the next file, which is `size` bytes long.
    fn take(&mut self, size: u64) -> Result<FileTree, IndexError> {
        let count = usize::try_from(verity::unit_count(size)).unwrap_or(usize::MAX);
        let (units, rest) = self.0.split_at_checked(count).ok_or(IndexError::CutOff)?;
        self.0 = rest;
        FileTree::new(size, units).ok_or(IndexError::Damaged("the units of a file are not as many as its size says"))
    }
}
