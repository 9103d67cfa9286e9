//! Proved bytes of a file: from the store, else from the layer's source.
//!
//! This is where content crosses the trust boundary on its way to a reader. A file of a proved layer is
//! read from its object, which is proved unit by unit. A file whose layer is not proved yet waits for
//! that. A file whose object is lost or damaged is healed: its layer is proved again.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use crate::audit::Event;
use crate::buffers::BUFFER;
use crate::kit::index::Index;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::Workshop;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::verify::Verified;
use crate::verify::Witness;
use crate::verify::WitnessError;
use crate::verity::FileTree;
use crate::verity::VerityDigest;

/// Objects that stay open between two reads.
const OPEN_OBJECTS: NonZeroUsize = NonZeroUsize::new(256).expect("is not zero");

/// Reads files of layers.
#[derive(Debug)]
pub struct Chunks {
    workshop: Arc<Workshop>,
    /// A std mutex: nothing is awaited while it is held.
    open: Mutex<LruCache<VerityDigest, Arc<Witness>>>,
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

impl Chunks {
    /// Reads through the store of a workshop.
    pub fn new(workshop: Arc<Workshop>) -> Self {
        Self { workshop, open: Mutex::new(LruCache::new(OPEN_OBJECTS)) }
    }

    /// The bytes of `range`, which lies inside the file and is at most one buffer long, if nothing but
    /// the local disk is needed for them. Blocks for the disk, never for a source.
    pub fn ready(&self, file: FileAt<'_>, range: &Range<u64>) -> Option<Verified<Bytes>> {
        debug_assert!(range.end - range.start <= BUFFER as u64);
        let index = file.layer.index()?;
        let tree = index.part(|index| index.tree(file.entry))?;
        let bytes = self.read_object(&tree, range).ok()??;
        self.workshop.ledger.add_cache_hit();
        Some(bytes)
    }

    /// The bytes of `range`, however long that takes within the deadlines of the layer.
    pub async fn read(&self, file: FileAt<'_>, range: &Range<u64>) -> Result<Verified<Bytes>, ChunkError> {
        let index = file.layer.prove().await?;
        match self.read_proved(file, &index, range) {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        let index = file.layer.prove_again().await?;
        self.read_proved(file, &index, range)?.ok_or_else(|| ChunkError::Lost { layer: *file.layer.digest() })
    }

    /// `None` if the object is not there, or was not what it should be and has been removed.
    fn read_proved(
        &self,
        file: FileAt<'_>,
        index: &Verified<Index>,
        range: &Range<u64>,
    ) -> Result<Option<Verified<Bytes>>, ChunkError> {
        let tree = index
            .part(|index| index.tree(file.entry))
            .filter(|tree| tree.size == file.size)
            .ok_or_else(|| ChunkError::Lost { layer: *file.layer.digest() })?;
        match self.read_object(&tree, range) {
            Ok(bytes) => Ok(bytes),
            Err(error) => {
                let mut trouble = Trouble::new(TroubleKind::Store, &error);
                if let WitnessError::Mismatch(mismatch) = &error {
                    trouble.expected = Some(mismatch.expected.clone());
                    trouble.actual = Some(mismatch.actual.clone());
                    self.workshop.audit.record_soon(Event::Mismatch {
                        reference: file.layer.kit.reference.clone(),
                        digest: Some(file.layer.kit.digest),
                        layer: Some(*file.layer.digest()),
                        expected: mismatch.expected.clone(),
                        actual: mismatch.actual.clone(),
                        source: "cache".into(),
                        repeated: 0,
                    });
                }
                trouble.layer = Some(file.layer.digest().to_string());
                trouble.source = Some("cache".into());
                trouble.message = format!("a cached file is damaged and is fetched again: {}", trouble.message);
                self.workshop.ledger.report(trouble);
                self.lock().pop(&tree.verity);
                self.workshop.store.discard_object(&tree.verity);
                Ok(None)
            }
        }
    }

    fn read_object(
        &self,
        tree: &Verified<FileTree>,
        range: &Range<u64>,
    ) -> Result<Option<Verified<Bytes>>, WitnessError> {
        let cached = self.lock().get(&tree.verity).cloned();
        let witness = match cached {
            Some(witness) => witness,
            None => {
                let Some(witness) = self.workshop.store.object(tree) else { return Ok(None) };
                let witness = Arc::new(witness);
                self.lock().put(tree.verity, Arc::clone(&witness));
                witness
            }
        };
        witness.read(range.clone(), &self.workshop.buffers).map(Some)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<VerityDigest, Arc<Witness>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why bytes of a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The layer could not be proved.
    #[error(transparent)]
    Layer(#[from] Arc<LayerError>),
    /// The layer was proved, and the store has lost the file again.
    #[error("the store does not keep the files of layer {layer}: is its disk full or failing?")]
    Lost {
        /// The layer.
        layer: crate::digest::Digest,
    },
}
