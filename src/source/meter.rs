//! How much has come from a source.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A connection that brings this many bytes a second is not worth doubting: what holds it up is as likely a CPU as
/// the network, and every request costs a registry some megabytes of reading, whatever it asks for.
pub const FAST: f64 = 150e6;

/// Counts bytes of blobs as they arrive, long before a piece is complete. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Begins again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}
