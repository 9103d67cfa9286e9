//! An index that somebody trusted vouches for, used ahead of the layer's own proof.
//!
//! It says what is in the layer and proves each unit of its files, so that nothing needs the layer whole.
//! The layer itself has the last word: proved whole and found to be something else, it refuses the index.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::digest::Digest;
use crate::kit::index::Index;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::store::Store;
use crate::verify::Verified;

/// What was admitted for a layer, if anything was.
#[derive(Debug, Default)]
pub(super) struct Admission {
    admitted: OnceLock<Given>,
    is_refused: AtomicBool,
}

#[derive(Debug)]
struct Given {
    index: Arc<Verified<Index>>,
    /// The published index that it is a part of.
    published: Digest,
}

impl Layer {
    /// Admits an index of this layer: the way in for published indexes.
    ///
    /// `index` is proved by a chain that the policies accept: the manifest names its digest, or a
    /// signature on it was endorsed; `published` is the digest of the whole that it is a part of. To be
    /// called before [`Layer::list`]; the first index counts.
    ///
    /// From then on the layer is listed from the index at once, and any range of its files is fetched and
    /// proved alone; where it is compressed and has no seek points, it is proved whole when its first byte
    /// is read. [`LayerError::OtherIndex`] if the index is about something else, and
    /// [`LayerError::FalseIndex`] if the layer was proved here before and is not what the index says: both
    /// times the layer does without it. A false index is not used on this host any more.
    pub fn admit(&self, index: Verified<Index>, published: Digest) -> Result<(), LayerError> {
        let is_ours = *index.blob() == self.spec.blob() && self.spec.may_hold(index.content());
        if !is_ours {
            return Err(LayerError::OtherIndex { layer: *self.digest() });
        }
        self.shown(&index)?;
        let _admitted_before = self.admission.admitted.set(Given { index: Arc::new(index), published });
        self.proved().map_or(Ok(()), |proved| self.agree_with_index(&proved))
    }

    /// Holds what the layer proved to be against the index that was admitted for it, if one was.
    pub fn agree_with_index(&self, proved: &Verified<Index>) -> Result<(), LayerError> {
        let Some(Given { index, published }) = self.admission.admitted.get() else { return Ok(()) };
        if index.says_the_same(proved) {
            return Ok(());
        }
        self.admission.is_refused.store(true, Ordering::Release);
        if let Err(error) = self.workshop.store.condemn_index(published) {
            tracing::warn!(index = %published, %error, "cannot remember that an index is false");
        }
        let [expected, actual] = [&***index, &**proved].map(|index| Digest::of(&index.encode()));
        Err(LayerError::FalseIndex { layer: *proved.layer(), expected, actual })
    }

    /// Lets the store know what the admitted index names, which is pinned with the layer.
    pub(super) fn keep_names(&self) {
        let Some(index) = self.admission.index() else { return };
        let (store, names) = (Arc::clone(&self.workshop.store), Arc::clone(&index));
        let keeping = thread::Builder::new().name("kitfs-names".to_owned()).spawn(move || keep_names(&store, &names));
        if keeping.is_err() {
            keep_names(&self.workshop.store, &index);
        }
    }
}

fn keep_names(store: &Store, index: &Verified<Index>) {
    if let Err(error) = store.keep_names(index) {
        tracing::warn!(%error, "what is mounted by an index may be evicted");
    }
}

impl Admission {
    /// Whether the layer has refused the index.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Acquire)
    }

    /// The index that was admitted, unless the layer has refused it.
    pub(super) fn index(&self) -> Option<Arc<Verified<Index>>> {
        let admitted = self.admitted.get().filter(|_| !self.is_refused())?;
        Some(Arc::clone(&admitted.index))
    }
}
