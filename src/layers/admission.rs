//! An index that somebody trusted vouches for, used ahead of the layer's own proof.
//!
//! It says what is in the layer and proves each unit of its files, so that nothing needs the layer whole.
//! The layer itself has the last word: proved whole and found to be something else, it refuses the index.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::kit::index::Index;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::verify::Verified;

/// What was admitted for a layer, if anything was.
#[derive(Debug, Default)]
pub(super) struct Admission {
    admitted: OnceLock<Arc<Verified<Index>>>,
    is_refused: AtomicBool,
}

impl Layer {
    /// Admits an index of this layer: the way in for published indexes.
    ///
    /// `index` is proved by a chain that the policies accept: the manifest names its digest, or a
    /// signature on it was endorsed. To be called before [`Layer::list`]; the first index counts.
    ///
    /// From then on the layer is listed from the index at once, and any range of its files is fetched and
    /// proved alone; where it is compressed and has no seek points, it is proved whole when its first byte
    /// is read. [`LayerError::OtherIndex`] if the index is about something else, and
    /// [`LayerError::FalseIndex`] if the layer was proved here before and is not what the index says: both
    /// times the layer does without it.
    pub fn admit(&self, index: Verified<Index>) -> Result<(), LayerError> {
        let is_ours =
            *index.blob() == self.spec.blob() && self.spec.diff_id.is_none_or(|content| *index.content() == content);
        if !is_ours {
            return Err(LayerError::OtherIndex { layer: *self.digest() });
        }
        self.shown(&index)?;
        let _admitted_before = self.admission.admitted.set(Arc::new(index));
        self.proved().map_or(Ok(()), |proved| self.admission.agree(&proved))
    }

    /// Lets the store know what the admitted index names, which is pinned with the layer.
    pub(super) fn keep_names(&self) {
        let Some(index) = self.admission.index() else { return };
        let store = Arc::clone(&self.workshop.store);
        std::thread::spawn(move || {
            if let Err(error) = store.keep_names(&index) {
                tracing::warn!(%error, "what is mounted by an index may be evicted");
            }
        });
    }
}

impl Admission {
    /// The index that was admitted, unless the layer has refused it.
    pub(super) fn index(&self) -> Option<Arc<Verified<Index>>> {
        self.admitted.get().filter(|_| !self.is_refused.load(Ordering::Acquire)).cloned()
    }

    /// Holds what the layer proved to be against the index. One that says something else is refused, and
    /// the first to learn of it gets the error.
    pub(super) fn agree(&self, proved: &Verified<Index>) -> Result<(), LayerError> {
        let Some(admitted) = self.admitted.get() else { return Ok(()) };
        if admitted.says_the_same(proved) || self.is_refused.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let [expected, actual] = [&**admitted, proved].map(|index| Digest::of(&index.encode()));
        Err(LayerError::FalseIndex { layer: *proved.layer(), expected, actual })
    }
}
