//! Splits the bytes of a layer into files while they stream by.
//!
//! It runs beside the check of the layer's digest and ahead of its result: what it writes is in a
//! staging area, and what it says is a draft, until the proof of the layer covers both.

use std::io;

use tokio::sync::mpsc;

use crate::buffers::BUFFER;
use crate::digest::Digest;
use crate::digest::Hasher;
use crate::kit::contents::KitLayer;
use crate::kit::index::Content;
use crate::kit::index::Index;
use crate::kit::index::IndexEntry;
use crate::kit::index::IndexError;
use crate::kit::index::IndexKind;
use crate::kit::listing::ENTRY_LIMIT;
use crate::kit::listing::ListingError;
use crate::kit::listing::PATHS_LIMIT;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::seek::Decoder;
use crate::kit::seek::SeekPoints;
use crate::kit::tar::Event;
use crate::kit::tar::Member;
use crate::kit::tar::MemberKind;
use crate::kit::tar::TarError;
use crate::kit::tar::TarReader;
use crate::layers::download::Piece;
use crate::store::Staged;
use crate::store::Staging;
use crate::verity::TreeBuilder;

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
    mut pieces: mpsc::Receiver<Piece>,
    target: Target,
) -> Result<(Index, Target), SplitError> {
    let mut splitter = Splitter::new(layer, target)?;
    if layer.compression == Compression::None {
        while let Some(piece) = pieces.blocking_recv() {
            splitter.take(piece.bytes.ahead_of_proof())?;
        }
        return splitter.finish(layer, SeekPoints::default());
    }
    let mut decoder = Decoder::new(layer.compression).map_err(SplitError::Decode)?;
    let mut buffer = vec![0; BUFFER / 4];
    while let Some(piece) = pieces.blocking_recv() {
        let mut input = &piece.bytes.ahead_of_proof()[..];
        loop {
            let progress = decoder.decode(input, &mut buffer).map_err(SplitError::Decode)?;
            if progress.read == 0 && progress.written == 0 {
                break;
            }
            input = &input[progress.read..];
            splitter.take(&buffer[..progress.written])?;
        }
    }
    let seek = decoder.finish().map_err(SplitError::Decode)?;
    splitter.finish(layer, seek)
}

/// What is made of the uncompressed layer.
struct Splitter {
    shape: Shape,
    files: Files,
    /// Bytes of the uncompressed layer so far.
    len: u64,
    /// Computes the digest of the uncompressed layer, where that is not the digest of the layer itself.
    content: Option<Hasher>,
    /// What that digest should be, if the config says it.
    diff_id: Option<Digest>,
}

enum Shape {
    Tar(TarReader),
    /// One file, and its size if the metadata says it.
    Raw(Option<u64>),
}

impl Splitter {
    fn new(layer: &KitLayer, target: Target) -> Result<Self, SplitError> {
        let is_plain = layer.compression == Compression::None;
        let mut files = Files { target, entries: Vec::new(), path_bytes: 0, open: None };
        let shape = match (layer.format, &layer.raw) {
            (Format::Tar, _) => Shape::Tar(TarReader::new(is_plain.then_some(layer.descriptor.size))),
            (Format::Raw, Some(file)) => {
                files.start(Member {
                    path: file.path.clone(),
                    kind: MemberKind::File,
                    size: file.size.unwrap_or_default(),
                    mode: file.mode,
                    mtime: file.mtime.unwrap_or_default(),
                    offset: 0,
                })?;
                Shape::Raw(file.size)
            }
            (Format::Raw, None) => return Err(SplitError::NoPath),
        };
        let any = layer.descriptor.digest;
        let content = (!is_plain).then(|| layer.diff_id.unwrap_or(any).hasher());
        Ok(Self { shape, files, len: 0, content, diff_id: layer.diff_id })
    }

    /// Takes the next bytes of the uncompressed layer.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), SplitError> {
        self.len += bytes.len() as u64;
        if let Some(hasher) = &mut self.content {
            hasher.update(bytes);
        }
        let Shape::Tar(reader) = &mut self.shape else { return self.files.data(bytes) };
        while let Some(event) = reader.next(&mut bytes)? {
            match event {
                Event::Member(member) => self.files.start(member)?,
                Event::Data(data) => self.files.data(data)?,
                Event::End => self.files.end()?,
            }
        }
        Ok(())
    }

    fn finish(mut self, layer: &KitLayer, seek: SeekPoints) -> Result<(Index, Target), SplitError> {
        match self.shape {
            Shape::Tar(reader) => reader.finish()?,
            Shape::Raw(expected) => {
                self.files.end()?;
                if let Some(expected) = expected.filter(|&expected| expected != self.len) {
                    return Err(SplitError::RawSize { expected, actual: self.len });
                }
            }
        }
        let content = self.content.map_or(layer.descriptor.digest, Hasher::finish);
        if let Some(expected) = self.diff_id.filter(|&expected| expected != content) {
            return Err(SplitError::DiffId { expected, actual: content });
        }
        let content = Content { digest: content, size: self.len };
        Ok((Index::new(layer.blob(), content, self.files.entries, seek)?, self.files.target))
    }
}

/// Collects the entries of a layer and writes the files among them.
struct Files {
    target: Target,
    entries: Vec<IndexEntry>,
    path_bytes: usize,
    open: Option<OpenFile>,
}

struct OpenFile {
    member: Member,
    tree: TreeBuilder,
    staged: Option<Staged>,
}

impl Files {
    fn start(&mut self, member: Member) -> Result<(), SplitError> {
        // A few megabytes of gzip open to millions of headers.
        self.path_bytes += member.path.as_bytes().len();
        if self.entries.len() >= ENTRY_LIMIT || self.path_bytes > PATHS_LIMIT {
            return Err(ListingError::TooLarge.into());
        }
        match member.kind {
            MemberKind::Dir => self.push(member, IndexKind::Dir),
            MemberKind::File => {
                let staged = match &mut self.target {
                    Target::Store(staging) => Some(staging.file().map_err(SplitError::Store)?),
                    Target::Nowhere => None,
                };
                self.open = Some(OpenFile { member, tree: TreeBuilder::default(), staged });
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
        if let Some(OpenFile { member, tree, staged }) = self.open.take() {
            if let Some(staged) = staged {
                staged.finish().map_err(SplitError::Store)?;
            }
            let kind = IndexKind::File { offset: member.offset, tree: tree.finish() };
            self.push(member, kind);
        }
        Ok(())
    }

    fn push(&mut self, member: Member, kind: IndexKind) {
        self.entries.push(IndexEntry { path: member.path, mode: member.mode, mtime: member.mtime, kind });
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
    /// The files of the layer cannot be indexed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The staging area cannot be written.
    #[error("cannot write to the store")]
    Store(#[source] io::Error),
}
