//! Why a layer could not be listed or proved, and what that means for whoever asked.

use std::time::Duration;

use crate::digest::Digest;
use crate::fault::Fault;
use crate::layers::Layer;
use crate::layers::SplitError;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::source::SourceError;
use crate::verify::DigestMismatch;

/// A layer that could not be had is tried again when it is asked for, but not sooner than this: many
/// readers that fail together are one attempt.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The same for a layer that did not match: the whole of it would be fetched again.
const MISMATCH_PAUSE: Duration = Duration::from_secs(10);

/// Why a layer could not be listed or proved.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source did not give it.
    #[error("cannot fetch layer {layer}")]
    Source {
        /// The layer.
        layer: Digest,
        /// Why.
        source: SourceError,
    },
    /// The source delivers too little.
    #[error("cannot fetch layer {layer}: {from} has delivered next to nothing for {waited:?}")]
    Silent {
        /// The layer.
        layer: Digest,
        /// The name of its source.
        from: String,
        /// For how long.
        waited: Duration,
    },
    /// Its bytes are not what its digest says.
    #[error("layer {layer} from {from}")]
    Mismatch {
        /// The layer.
        layer: Digest,
        /// The name of its source.
        from: String,
        /// Both digests.
        source: DigestMismatch,
    },
    /// Its digest is right, and it is malformed.
    #[error("layer {layer} cannot be mounted")]
    Malformed {
        /// The layer.
        layer: Digest,
        /// Why.
        source: SplitError,
    },
    /// Proved, it tells another story than its headers told when they were read ahead.
    #[error("layer {layer} does not hold the files that its source listed before it was verified: mount it again")]
    OtherStory {
        /// The layer.
        layer: Digest,
    },
    /// An index that was admitted for it is about something else.
    #[error("the index of layer {layer} is not about this layer as this kit reads it")]
    OtherIndex {
        /// The layer.
        layer: Digest,
    },
    /// Proved, it is not what an index said that was admitted for it. The index is not used any more.
    #[error("layer {layer} is not what its index says: expected {expected}, got {actual}; the index is refused")]
    FalseIndex {
        /// The layer.
        layer: Digest,
        /// The digest of what the index says.
        expected: Digest,
        /// The digest of what the layer is.
        actual: Digest,
    },
    /// The store cannot keep it.
    #[error("cannot keep layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// Why.
        source: std::io::Error,
    },
    /// This process is ending.
    #[error("layer {layer} was given up")]
    Stopped {
        /// The layer.
        layer: Digest,
    },
}

impl LayerError {
    /// How long this answer stands for everybody who asks.
    pub(super) fn pause(&self) -> Duration {
        match self {
            Self::Mismatch { .. }
            | Self::Malformed { .. }
            | Self::OtherStory { .. }
            | Self::OtherIndex { .. }
            | Self::FalseIndex { .. } => MISMATCH_PAUSE,
            Self::Source { .. } | Self::Silent { .. } | Self::Store { .. } | Self::Stopped { .. } => RETRY_PAUSE,
        }
    }

    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Source { source, .. } => source.fault(),
            Self::Silent { .. } => Fault::Unreachable,
            Self::Mismatch { .. } | Self::FalseIndex { .. } => Fault::Mismatch,
            Self::Malformed { .. }
            | Self::OtherStory { .. }
            | Self::OtherIndex { .. }
            | Self::Store { .. }
            | Self::Stopped { .. } => Fault::Other,
        }
    }

    pub(super) fn trouble(&self, layer: &Layer) -> Trouble {
        let kind = match (self, self.fault()) {
            (Self::Store { .. }, _) => TroubleKind::Store,
            (_, Fault::Mismatch) => TroubleKind::Mismatch,
            (_, Fault::Denied) => TroubleKind::Denied,
            (_, Fault::Unreachable) => TroubleKind::Unreachable,
            _ => TroubleKind::Other,
        };
        let mut trouble = Trouble::new(kind, self);
        let digests = match self {
            Self::Mismatch { source, .. } => Some((source.expected, source.actual)),
            Self::FalseIndex { expected, actual, .. } => Some((*expected, *actual)),
            _ => None,
        };
        trouble.expected = digests.map(|(expected, _)| expected.to_string());
        trouble.actual = digests.map(|(_, actual)| actual.to_string());
        trouble.layer = Some(layer.digest().to_string());
        trouble.source = Some(layer.source.name());
        trouble
    }
}
