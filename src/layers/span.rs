//! A part of a layer, fetched alone: for who can prove it alone.

use std::ops::Range;

use crate::kit::media::Compression;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::verify::Unverified;

impl Layer {
    /// Whether parts of the layer can be fetched alone.
    pub fn has_spans(&self) -> bool {
        self.spec.compression == Compression::None
    }

    /// Bytes of the uncompressed layer, by one request: exactly those of `content`, in pieces. All of it is
    /// in memory at once: whoever asks for much bounds that.
    pub async fn span(&self, content: Range<u64>) -> Result<Vec<Unverified>, LayerError> {
        let layer = *self.digest();
        let pieces = self.source.range(&self.spec.descriptor, content).await;
        let pieces = pieces.map_err(|source| LayerError::Source { layer, source })?;
        self.workshop.ledger.add_fetched(pieces.iter().map(|piece| piece.len() as u64).sum());
        Ok(pieces)
    }
}
