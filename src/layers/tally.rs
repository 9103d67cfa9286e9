//! How much of a layer is proved and here, in bytes of its blob, for `status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::kit::index::Index;
use crate::layers::Layer;
use crate::verify::Verified;

/// Files that are counted while a mount waits. It takes some microseconds each.
const COUNTED_AT_ONCE: usize = 1000;

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Bytes of files that are here.
    here: AtomicU64,
    /// Bytes of all files.
    all: OnceLock<u64>,
    /// Bytes of the blob that the ledger was told of.
    told: AtomicU64,
}

impl Layer {
    /// Notes that `bytes` more of the layer's files are proved and here.
    pub fn note_here(&self, bytes: u64) {
        let Some(index) = self.index() else { return };
        let all = *self.tally.all.get_or_init(|| index.trees().map(|tree| tree.size).sum());
        let here = self.tally.here.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes).min(all);
        let size = self.spec.descriptor.size;
        // Headers and compression are spread over the files.
        let share = if here == all { size } else { (u128::from(size) * u128::from(here) / u128::from(all)) as u64 };
        self.tell(share);
    }

    /// Notes that all of the layer was proved.
    pub(super) fn note_whole(&self) {
        self.tell(self.spec.descriptor.size);
    }

    /// Counts what the store has of the layer.
    pub(super) fn count_here(self: &Arc<Self>) {
        let Some(index) = self.index() else { return };
        if index.entries().len() <= COUNTED_AT_ONCE {
            return self.count(&index);
        }
        let (layer, entries) = (Arc::clone(self), Arc::clone(&index));
        let counting = thread::Builder::new().name("kitfs-count".to_owned()).spawn(move || layer.count(&entries));
        if counting.is_err() {
            self.count(&index);
        }
    }

    /// Whether parts of the layer's files are fetched alone, when they are asked for.
    pub fn comes_in_parts(&self) -> bool {
        self.index().is_some() && self.tally.told.load(Ordering::Relaxed) < self.spec.descriptor.size
    }

    fn count(&self, index: &Verified<Index>) {
        let store = &self.workshop.store;
        self.note_here(index.trees().map(|tree| store.bytes_of(tree)).sum());
    }

    fn tell(&self, share: u64) {
        let before = self.tally.told.fetch_max(share, Ordering::Relaxed);
        self.workshop.ledger.add_verified(share.saturating_sub(before));
    }
}
