//! Splits the bytes of a layer into files while they stream by.
//!
//! It runs beside the check of the layer's digest and ahead of its result: what it writes is in a
//! staging area, and what it says is a draft, until the proof of the layer covers both.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::buffers::BUFFER;
use crate::digest::Digest;
use crate::digest::Hasher;
use crate::kit::contents::Compression;
use crate::kit::contents::Format;
use crate::kit::contents::KitLayer;
use crate::kit::contents::RawFile;
use crate::kit::index::EntryKind;
use crate::kit::index::Index;
use crate::kit::index::IndexEntry;
use crate::kit::listing::ListingError;
use crate::kit::tar::Member;
use crate::kit::tar::MemberKind;
use crate::kit::tar::Members;
use crate::kit::tar::TarError;
use crate::kit::tar::TarReader;
use crate::store::Staged;
use crate::store::Staging;
use crate::verify::Unverified;
use crate::verity::TreeBuilder;

/// The largest window of a zstd frame that is decoded, as a power of two: 64 MiB. Encoders use up to
/// 8 MiB unless told otherwise; a frame can ask for terabytes.
const ZSTD_WINDOW_LOG: u32 = 26;

/// Where the files of a layer go.
#[derive(Debug)]
pub(super) enum Target {
    /// Into the store, once the layer is proved.
    Store(Staging),
    /// Nowhere: the layer is only checked.
    Nowhere,
}

/// Reads a layer to its end and splits it. The index comes back with the target; it is a draft.
pub(super) fn split(
    layer: &KitLayer,
    pieces: mpsc::Receiver<Unverified>,
    target: Target,
) -> Result<(Index, Target), SplitError> {
    let mut files = Files { target, entries: Vec::new(), open: None };
    let mut pieces = Pieces { receiver: pieces, current: Bytes::new() };
    let mut shape = match (&layer.format, &layer.raw) {
        (Format::Tar, _) => {
            let size = (layer.compression == Compression::None).then_some(layer.descriptor.size);
            Shape::Tar(TarReader::new(size))
        }
        (Format::Raw, Some(file)) => {
            files.start_raw(file)?;
            Shape::Raw { len: 0, expected: file.size }
        }
        (Format::Raw, None) => return Err(SplitError::NoPath),
    };
    let mut plain = layer.diff_id.filter(|_| layer.compression != Compression::None).map(|id| (id, id.hasher()));
    let mut take = |bytes: &[u8]| -> Result<(), SplitError> {
        if let Some((_, hasher)) = &mut plain {
            Hasher::update(hasher, bytes);
        }
        match &mut shape {
            Shape::Tar(reader) => reader.push(bytes, &mut files),
            Shape::Raw { len, .. } => {
                *len += bytes.len() as u64;
                files.data(bytes)
            }
        }
    };
    match layer.compression {
        Compression::None => {
            while let Some(piece) = pieces.receiver.blocking_recv() {
                take(piece.ahead_of_proof())?;
            }
        }
        Compression::Gzip => drain(flate2::read::MultiGzDecoder::new(&mut pieces), &mut take)?,
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(&mut pieces).map_err(SplitError::Decode)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(SplitError::Decode)?;
            drain(decoder, &mut take)?;
        }
    }
    match shape {
        Shape::Tar(reader) => reader.finish()?,
        Shape::Raw { len, expected } => {
            files.end()?;
            if let Some(expected) = expected.filter(|&expected| expected != len) {
                return Err(SplitError::RawSize { expected, actual: len });
            }
        }
    }
    if let Some((expected, hasher)) = plain {
        let actual = hasher.finish();
        if actual != expected {
            return Err(SplitError::DiffId { expected, actual });
        }
    }
    let index = Index { layer: layer.descriptor.digest, layer_size: layer.descriptor.size, entries: files.entries };
    Ok((index, files.target))
}

enum Shape {
    Tar(TarReader),
    Raw { len: u64, expected: Option<u64> },
}

/// Reads a decoder to its end.
fn drain(
    mut decoder: impl Read,
    take: &mut impl FnMut(&[u8]) -> Result<(), SplitError>,
) -> Result<(), SplitError> {
    let mut buffer = vec![0; BUFFER / 4];
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => take(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SplitError::Decode(error)),
        }
    }
}

/// The pieces of a layer as one stream.
struct Pieces {
    receiver: mpsc::Receiver<Unverified>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece.ahead_of_proof().clone(),
                None => return Ok(0),
            }
        }
        let len = self.current.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

/// Collects the entries of a layer and writes the files among them.
struct Files {
    target: Target,
    entries: Vec<IndexEntry>,
    open: Option<OpenFile>,
}

struct OpenFile {
    entry: Member,
    tree: TreeBuilder,
    staged: Option<Staged>,
}

impl Files {
    fn start_raw(&mut self, file: &RawFile) -> Result<(), SplitError> {
        self.member(Member {
            path: file.path.clone(),
            kind: MemberKind::File,
            size: file.size.unwrap_or_default(),
            mode: file.mode,
            mtime: file.mtime,
            offset: 0,
        })
    }
}

impl Members for Files {
    type Error = SplitError;

    fn member(&mut self, member: Member) -> Result<(), SplitError> {
        match member.kind {
            MemberKind::Dir => self.entries.push(IndexEntry {
                path: member.path,
                mode: member.mode,
                mtime: member.mtime,
                kind: EntryKind::Dir,
            }),
            MemberKind::File => {
                let staged = match &mut self.target {
                    Target::Store(staging) => Some(staging.file().map_err(SplitError::Store)?),
                    Target::Nowhere => None,
                };
                self.open = Some(OpenFile { entry: member, tree: TreeBuilder::default(), staged });
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        if let Some(file) = &mut self.open {
            file.tree.update(bytes);
            if let Some(staged) = &mut file.staged {
                staged.append(bytes).map_err(SplitError::Store)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), SplitError> {
        if let Some(OpenFile { entry, tree, staged }) = self.open.take() {
            if let Some(staged) = staged {
                staged.finish().map_err(SplitError::Store)?;
            }
            let kind = EntryKind::File { offset: entry.offset, tree: tree.finish() };
            self.entries.push(IndexEntry { path: entry.path, mode: entry.mode, mtime: entry.mtime, kind });
        }
        Ok(())
    }
}

/// Why a layer cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The archive is malformed, or holds what a kit may not hold.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The compressed stream is malformed.
    #[error("the layer cannot be decompressed")]
    Decode(#[source] io::Error),
    /// A raw layer whose path nobody says.
    #[error("a raw layer needs the annotation org.cncf.model.filepath")]
    NoPath,
    /// A raw layer of another size than its metadata says.
    #[error("the file has {actual} bytes, but the layer's metadata says {expected}")]
    RawSize {
        /// What the metadata says.
        expected: u64,
        /// What there is.
        actual: u64,
    },
    /// The uncompressed layer is not what the config says.
    #[error("the uncompressed layer does not match its diffId: expected {expected}, got {actual}")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// What there is.
        actual: Digest,
    },
    /// The files of the layer contradict each other.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The staging area cannot be written.
    #[error("cannot write to the store")]
    Store(#[source] io::Error),
}
