//! Proves a layer into the store, and where the store cannot keep it, without.
//!
//! What a layer needs of the disk is a convenience: its index is what makes its files readable, and that
//! fits in memory. So a disk that is full, read-only or gone costs fetches and no errors.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::kit::index::Index;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::splitter::Target;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::verify::Verified;

/// How long a layer that the store could not keep is read from its source before the store is tried again.
const UNKEPT_FOR: Duration = Duration::from_secs(60);

impl Layer {
    /// Why the store does not keep this layer, if it lately could not.
    pub fn unkept(&self) -> Option<Arc<io::Error>> {
        let unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
        unkept.as_ref().filter(|(since, _)| since.elapsed() < UNKEPT_FOR).map(|(_, why)| Arc::clone(why))
    }

    /// Fetches every byte of the layer, proves it, and keeps its files if the store takes them.
    pub(super) async fn fetch_and_keep(&self) -> Result<Verified<Index>, LayerError> {
        let (store, size) = (Arc::clone(&self.workshop.store), self.spec.descriptor.size);
        let room = tokio::task::spawn_blocking(move || store.make_room(size));
        let kept = match room.await {
            // Where room cannot be counted it may still be there.
            Ok(Ok(true) | Err(_)) | Err(_) => self.prove_into_store().await,
            Ok(Ok(false)) => {
                let source = io::Error::new(io::ErrorKind::StorageFull, "the store is full of what is mounted");
                Err(LayerError::Store { layer: *self.digest(), source })
            }
        };
        let why = match kept {
            Err(LayerError::Store { source, .. }) => source,
            done => return done,
        };
        let mut trouble = Trouble::new(TroubleKind::Store, &why);
        trouble.layer = Some(self.digest().to_string());
        trouble.message = format!("layer {} is not kept, and verified in memory: {why}", self.digest());
        self.workshop.ledger.report(trouble);
        *self.unkept.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::new(why)));
        let index = self.check().await?;
        let _small_and_so_perhaps_kept = self.workshop.store.keep_index(&index);
        Ok(index)
    }

    async fn prove_into_store(&self) -> Result<Verified<Index>, LayerError> {
        let layer = *self.digest();
        let staging = self.workshop.store.staging(&layer).map_err(|source| LayerError::Store { layer, source })?;
        let (proof, index, target) = self.pass(Target::Store(staging)).await?;
        let shown = self.shown(&index);
        let store = Arc::clone(&self.workshop.store);
        let committed = tokio::task::spawn_blocking(move || {
            let Target::Store(staging) = target else { return Ok(proof.covers(index)) };
            let index = staging.commit(&proof, index)?;
            let large_files = index.clone();
            store.when_settled(move |store| store.make_durable(&large_files));
            Ok(index)
        });
        // A layer whose files contradict each other is kept all the same: it is proved, and proving it
        // again would not make it better.
        shown?;
        let index = committed.await.map_err(|_| LayerError::Stopped { layer })?;
        self.agree(index.map_err(|source| LayerError::Store { layer, source })?)
    }
}
