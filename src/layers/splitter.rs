//! Splits the bytes of a layer into files while they stream by.
//!
//! It looks at bytes while their digest is being computed and ahead of the result: what it writes is in
//! a staging area, and what it says is a draft, until the proof of the layer covers both.

use std::io;
use std::sync::mpsc::SendError;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::buffers::BUFFER;
use crate::buffers::WRITE;
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
use crate::layers::QUEUE;
use crate::layers::download::Piece;
use crate::store::Staged;
use crate::store::Staging;
use crate::verify::DigestMismatch;
use crate::verify::LayerCheck;
use crate::verify::LayerProof;
use crate::verity::TreeBuilder;

/// Where the files of a layer go.
#[derive(Debug)]
pub(super) enum Target {
    /// Into the store, once the layer is proved.
    Store(Staging),
    /// Nowhere: the layer is only checked.
    Nowhere,
}

/// What became of a layer that was read to its end.
#[derive(Debug)]
pub(super) struct Split {
    /// Whether its bytes were what its digest says.
    pub(super) proof: Result<LayerProof, DigestMismatch>,
    /// A draft of its index, and the target with its files.
    pub(super) files: Result<(Index, Target), SplitError>,
}

/// Reads a layer to its end, checks its digest and splits it.
///
/// Whoever gives up splitting has found the layer malformed. Whether it was also tampered with is told by
/// its digest, which therefore is computed to the end.
pub(super) fn split(layer: &KitLayer, pieces: mpsc::Receiver<Piece>, target: Target) -> Split {
    let check = LayerCheck::new(layer.descriptor.digest);
    match layer.compression {
        Compression::None => split_plain(layer, pieces, target, check),
        Compression::Gzip | Compression::Zstd => split_compressed(layer, pieces, target, check),
    }
}

/// The layer is what its files are made of: one computation is for its digest and for the files' trees.
fn split_plain(layer: &KitLayer, mut pieces: mpsc::Receiver<Piece>, target: Target, mut check: LayerCheck) -> Split {
    let mut splitter = Splitter::new(layer, target);
    // Where the config has one, it is of another algorithm than the layer's own digest.
    let mut diff_id = layer.diff_id.map(|expected| expected.hasher());
    while let Some(piece) = pieces.blocking_recv() {
        let mut bytes = &piece.bytes.ahead_of_proof()[..];
        if let Some(hasher) = &mut diff_id {
            hasher.update(bytes);
        }
        if let Ok(working) = &mut splitter
            && let Err(error) = working.take(&mut check, &mut bytes)
        {
            splitter = Err(error);
        }
        check.update_with(bytes, None);
    }
    let files = splitter.and_then(|splitter| {
        let files = splitter.finish(layer, layer.descriptor.digest, SeekPoints::default())?;
        diff_id.map_or(Ok(()), |hasher| compare(layer, hasher.finish()))?;
        Ok(files)
    });
    Split { proof: check.finish(), files }
}

/// The digest is over other bytes than the files are made of, so it is computed on a thread of its own, if there is
/// one to be had.
fn split_compressed(layer: &KitLayer, mut pieces: mpsc::Receiver<Piece>, target: Target, check: LayerCheck) -> Split {
    let check = Mutex::new(check);
    let update = |piece: Piece| check.lock().unwrap_or_else(PoisonError::into_inner).update(&piece.bytes);
    let (to_check, checked) = std::sync::mpsc::sync_channel::<Piece>(QUEUE);
    let files = std::thread::scope(|scope| {
        let checking = std::thread::Builder::new().name("kitfs-check".to_owned());
        let _checking = checking.spawn_scoped(scope, || checked.into_iter().for_each(update));
        let mut opener = Opener::new(layer, target);
        while let Some(piece) = pieces.blocking_recv() {
            // Whoever checks listens to the end, if there is anybody.
            if let Err(SendError(piece)) = to_check.send(piece.clone()) {
                update(piece);
            }
            if let Ok(working) = &mut opener
                && let Err(error) = working.take(piece.bytes.ahead_of_proof())
            {
                opener = Err(error);
            }
        }
        drop(to_check);
        opener.and_then(|opener| opener.finish(layer))
    });
    Split { proof: check.into_inner().unwrap_or_else(PoisonError::into_inner).finish(), files }
}

/// Splits what a compressed layer opens to.
struct Opener {
    decoder: Decoder,
    splitter: Splitter,
    content: Hasher,
    buffer: Vec<u8>,
}

impl Opener {
    fn new(layer: &KitLayer, target: Target) -> Result<Self, SplitError> {
        Ok(Self {
            decoder: Decoder::new(layer.compression).map_err(SplitError::Decode)?,
            splitter: Splitter::new(layer, target)?,
            content: layer.diff_id.unwrap_or(layer.descriptor.digest).hasher(),
            buffer: vec![0; BUFFER / 4],
        })
    }

    /// Takes the next bytes of the compressed layer.
    fn take(&mut self, mut input: &[u8]) -> Result<(), SplitError> {
        loop {
            let progress = self.decoder.decode(input, &mut self.buffer).map_err(SplitError::Decode)?;
            if progress.read == 0 && progress.written == 0 {
                return Ok(());
            }
            input = &input[progress.read..];
            self.splitter.take(&mut self.content, &mut &self.buffer[..progress.written])?;
        }
    }

    fn finish(self, layer: &KitLayer) -> Result<(Index, Target), SplitError> {
        let seek = self.decoder.finish().map_err(SplitError::Decode)?;
        let content = self.content.finish();
        let files = self.splitter.finish(layer, content, seek)?;
        compare(layer, content)?;
        Ok(files)
    }
}

/// Holds what the uncompressed layer hashes to against what the config says.
fn compare(layer: &KitLayer, actual: Digest) -> Result<(), SplitError> {
    match layer.diff_id {
        Some(expected) if expected != actual => Err(SplitError::DiffId { expected, actual }),
        _ => Ok(()),
    }
}

/// A digest over all bytes that files lie in. The bytes of a file go to the file's tree at the same time.
trait Flat {
    fn update(&mut self, bytes: &[u8], tree: Option<&mut TreeBuilder>);
}

impl Flat for LayerCheck {
    fn update(&mut self, bytes: &[u8], tree: Option<&mut TreeBuilder>) {
        self.update_with(bytes, tree);
    }
}

impl Flat for Hasher {
    fn update(&mut self, bytes: &[u8], tree: Option<&mut TreeBuilder>) {
        match tree {
            Some(tree) => tree.update_beside(self, bytes),
            None => Hasher::update(self, bytes),
        }
    }
}

/// What is made of the uncompressed layer.
struct Splitter {
    shape: Shape,
    files: Files,
    /// Bytes of the uncompressed layer so far.
    len: u64,
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
        Ok(Self { shape, files, len: 0 })
    }

    /// Takes the next bytes of the uncompressed layer, and `flat` takes them. What is left of `bytes`, which
    /// is nothing unless this ends in an error, nobody took.
    fn take(&mut self, flat: &mut impl Flat, bytes: &mut &[u8]) -> Result<(), SplitError> {
        self.len += bytes.len() as u64;
        let Shape::Tar(reader) = &mut self.shape else {
            return self.files.data(flat, std::mem::take(bytes));
        };
        loop {
            let before = *bytes;
            let event = reader.next(bytes);
            if let Ok(Some(Event::Data(data))) = event {
                // Data comes alone: it is all that was taken.
                self.files.data(flat, data)?;
                continue;
            }
            flat.update(&before[..before.len() - bytes.len()], None);
            match event? {
                Some(Event::Member(member)) => self.files.start(member)?,
                Some(Event::End) => self.files.end()?,
                Some(Event::Data(_)) | None => return Ok(()),
            }
        }
    }

    /// Ends the layer, whose uncompressed bytes have the digest `content`.
    fn finish(mut self, layer: &KitLayer, content: Digest, seek: SeekPoints) -> Result<(Index, Target), SplitError> {
        match self.shape {
            Shape::Tar(reader) => reader.finish()?,
            Shape::Raw(expected) => {
                self.files.end()?;
                if let Some(expected) = expected.filter(|&expected| expected != self.len) {
                    return Err(SplitError::RawSize { expected, actual: self.len });
                }
            }
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

    fn data(&mut self, flat: &mut impl Flat, mut bytes: &[u8]) -> Result<(), SplitError> {
        while !bytes.is_empty() {
            // What was hashed is written while the CPU's nearest caches still hold it, and in pieces that lie in the
            // file as the kernel's do in memory: it cuts others up, and then every reading of the file is slower.
            let at = self.open.as_ref().map_or(0, |file| file.tree.size());
            let (piece, rest) = bytes.split_at(bytes.len().min(WRITE - (at % WRITE as u64) as usize));
            flat.update(piece, self.open.as_mut().map(|file| &mut file.tree));
            if let Some(OpenFile { staged: Some(staged), .. }) = &mut self.open {
                staged.append(piece).map_err(SplitError::Store)?;
            }
            bytes = rest;
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
