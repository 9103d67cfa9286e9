//! Proved bytes of a file: from the store, else from the layer's source.
//!
//! This is where content crosses the trust boundary on its way to a reader. A layer that is indexed, by its
//! own proof or by an index that was admitted, gives any unit of its files alone: what is not at hand is
//! fetched, proved against the file's tree, and kept. A layer that nobody has indexed is proved whole first.
//! What is damaged on the disk is fetched again.

mod ahead;
mod fetches;
mod flight;
mod lanes;
mod loader;
mod readers;
mod shelf;
mod warm;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::buffers::BUFFER;
use crate::chunks::ahead::Ahead;
use crate::chunks::fetches::Fetches;
use crate::chunks::flight::Flight;
use crate::chunks::flight::Landing;
use crate::chunks::lanes::Purpose;
use crate::chunks::shelf::Share;
use crate::chunks::shelf::Shelf;
use crate::chunks::shelf::units;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::Prefetch;
use crate::layers::Workshop;
use crate::source::SourceError;
use crate::verify::UnitMismatch;
use crate::verify::Verified;
use crate::verify::Witness;
use crate::verity;
use crate::verity::FileTree;
use crate::verity::UNIT;

/// How often a read starts again because what was at hand was not what it should be, or gone again.
const ATTEMPTS: u32 = 4;

/// Reads files of layers.
#[derive(Debug)]
pub struct Chunks {
    fetches: Arc<Fetches>,
    ahead: Ahead,
}

/// A file of a layer: its position among the layer's entries, and its size as it was listed.
#[derive(Clone, Copy, Debug)]
pub struct FileAt<'a> {
    /// The layer.
    pub layer: &'a Arc<Layer>,
    /// Which of its entries.
    pub entry: u32,
    /// Bytes in the file.
    pub size: u64,
}

/// A file of which every byte is proved, for the kernel to read by itself.
#[derive(Clone, Debug)]
pub struct Whole(Arc<Witness>);

impl Whole {
    /// The open file.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.descriptor()
    }

    /// Whether nobody has touched the file since it was proved, and its mode lets nobody write.
    pub fn is_unchanged(&self) -> bool {
        self.0.is_whole_and_untouched()
    }

    /// Whether the kernel itself checks every page of it against the digest that it was proved by.
    pub fn is_sealed(&self) -> bool {
        verity::measured(self.descriptor()).is_ok_and(|measured| measured == self.0.tree().verity)
    }
}

impl Chunks {
    /// Reads through the store of a workshop; fetches run on `runtime`.
    pub fn new(workshop: Arc<Workshop>, runtime: Handle) -> Self {
        let fetches = Fetches::new(Shelf::new(workshop), runtime);
        Self { ahead: Ahead::new(Arc::clone(&fetches)), fetches }
    }

    /// The bytes of `range`, which lies inside the file and is at most one buffer long, if nothing but
    /// memory and the local disk is needed for them. Blocks for the disk, never for a source.
    pub fn ready(&self, file: FileAt<'_>, range: &Range<u64>) -> Option<Verified<Bytes>> {
        debug_assert!(range.end - range.start <= BUFFER as u64);
        let index = file.layer.index()?;
        let (offset, tree) = ahead::file_at(&index, file.entry).filter(|(_, tree)| tree.size == file.size)?;
        let bytes = self.fetches.shelf.read(file.layer, &tree, range)?;
        self.fetches.shelf.workshop.ledger.add_cache_hit();
        self.ahead.note(file, &tree, offset, range, &bytes);
        Some(bytes)
    }

    /// The bytes of `range`, however long that takes within the deadlines of the layer.
    pub async fn read(&self, file: FileAt<'_>, range: &Range<u64>) -> Result<Verified<Bytes>, Arc<ChunkError>> {
        let layer = file.layer;
        let lost = || Arc::new(ChunkError::Lost { layer: *layer.digest() });
        for _attempt in 0..ATTEMPTS {
            let index = match layer.index() {
                Some(index) => index,
                None => layer.prove().await.map_err(ChunkError::Layer)?,
            };
            let found = ahead::file_at(&index, file.entry).filter(|(_, tree)| tree.size == file.size);
            let (offset, tree) = found.ok_or_else(lost)?;
            if let Some(bytes) = self.fetches.shelf.read(layer, &tree, range) {
                self.ahead.note(file, &tree, offset, range, &bytes);
                return Ok(bytes);
            }
            if !layer.has_spans() {
                let proved = match layer.proved() {
                    Some(_) => layer.prove_again().await,
                    None => layer.prove().await,
                };
                proved.map_err(ChunkError::Layer)?;
                continue;
            }
            let parts = match tree.size {
                0..=UNIT => self.ahead.group(layer, &index, file.entry),
                _ => ahead::missing(&self.fetches, layer, &tree, offset, units(range)).collect(),
            };
            let flights = self.fetches.of(layer, parts, Purpose::Demand, u64::from(u32::MAX));
            let mut landed = Landing::new();
            let wanted: Vec<_> = units(range).map(|unit| (tree.verity, unit)).collect();
            if tree.size <= UNIT {
                let beside = |flight: &&Arc<Flight>| !flight.keys().iter().any(|key| wanted.contains(key));
                self.ahead.hold(layer, flights.iter().filter(beside).cloned());
            }
            for flight in &flights {
                landed.extend(flight.landed(&wanted).await);
            }
            if let Some(bytes) = self.assemble(layer, &tree, range, &landed)? {
                self.ahead.note(file, &tree, offset, range, &bytes);
                return Ok(bytes);
            }
        }
        Err(lost())
    }

    /// The file's object, if all of it is proved and it is large enough to have a record of that.
    pub fn whole(&self, file: FileAt<'_>) -> Option<Whole> {
        let tree = file.layer.index()?.part(|index| index.tree(file.entry))?;
        if tree.size != file.size || tree.size <= UNIT {
            return None;
        }
        self.fetches.shelf.whole(&tree).map(Whole).filter(Whole::is_unchanged)
    }

    /// Waits until the file can be whole, if its layer has to be proved before any byte of it can be read, and if
    /// that does not look as if it took longer than `most`. `None` if there is nothing to wait for, or if nothing is
    /// to be fetched before it is read.
    pub fn soon_whole(&self, file: FileAt<'_>, most: Duration) -> Option<impl Future<Output = ()> + use<>> {
        let waits =
            file.size > UNIT && file.layer.index().is_none() && self.fetches.shelf.workshop.prefetch != Prefetch::None;
        let layer = Arc::clone(file.layer);
        waits.then_some(async move { layer.prove_within(most).await })
    }

    /// Fetches all that these layers hold, when nobody wants anything else, for as long as this value
    /// lives; if that was asked for.
    pub fn fetch_all(&self, layers: &[Arc<Layer>]) {
        self.ahead.fetch_all(layers);
    }

    /// The file was closed by the last that had it open: what is being fetched of it ahead is given up.
    pub fn close(&self, file: FileAt<'_>) {
        let found = file.layer.index().and_then(|index| ahead::file_at(&index, file.entry));
        if let Some((_, tree)) = found {
            self.ahead.close(&tree);
            self.fetches.shelf.close(&tree);
        }
    }

    /// A range out of what has landed and what is at hand; `None` if that is not all of it.
    fn assemble(
        &self,
        layer: &Layer,
        tree: &Verified<FileTree>,
        range: &Range<u64>,
        landed: &Landing,
    ) -> Result<Option<Verified<Bytes>>, Arc<ChunkError>> {
        let mut parts = Vec::new();
        for unit in units(range) {
            let share = Share::of(tree, unit, range);
            let bytes = match landed.get(&(tree.verity, unit)) {
                Some(Ok(Some(bytes))) => Some(bytes.slice(share.in_unit)),
                // Then the layer is had in another way.
                Some(Err(error)) if error.is_of_ranges() => None,
                Some(Err(error)) => return Err(Arc::clone(error)),
                Some(Ok(None)) | None => self.fetches.shelf.read(layer, tree, &share.in_file),
            };
            let Some(bytes) = bytes else { return Ok(None) };
            parts.push(bytes);
        }
        let joined = Verified::join(&parts, &self.fetches.shelf.workshop.buffers);
        joined.map(Some).map_err(|source| Arc::new(ChunkError::Memory(source)))
    }
}

/// Locks. A panic ends the program: nobody meets what one has left.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why bytes of a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The layer could not be proved, or a part of it not be fetched.
    #[error(transparent)]
    Layer(Arc<LayerError>),
    /// The source gave something else than what the file's tree says.
    #[error("layer {layer} from {from}")]
    Mismatch {
        /// The layer.
        layer: Digest,
        /// The name of its source.
        from: String,
        /// Both digests of the unit.
        source: UnitMismatch,
    },
    /// The layer is indexed, and the file cannot be had.
    #[error("the store does not keep the files of layer {layer}: is its disk full or failing?")]
    Lost {
        /// The layer.
        layer: Digest,
    },
    /// No memory for an answer.
    #[error("no memory for what was read")]
    Memory(#[source] std::io::Error),
}

impl ChunkError {
    /// Whether it is only that the source does not serve ranges.
    fn is_of_ranges(&self) -> bool {
        let Self::Layer(error) = self else { return false };
        matches!(**error, LayerError::Source { source: SourceError::NoRanges(_), .. })
    }

    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Layer(error) => error.fault(),
            Self::Mismatch { .. } => Fault::Mismatch,
            Self::Lost { .. } | Self::Memory(_) => Fault::Other,
        }
    }
}
