//! Why a reference did not become a kit.

use std::path::PathBuf;
use std::sync::Arc;

use crate::audit::AuditError;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::contents::KitError;
use crate::kit::manifest::ManifestError;
use crate::policy::IndexRefused;
use crate::resolve::chain::MAX_LINKS;
use crate::source::SourceError;
use crate::trust::TrustError;
use crate::verify::DigestMismatch;

/// Why a reference did not become a kit.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Its source did not give it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The manifest or config is not what its digest says.
    #[error("manifest or config of {reference}")]
    Mismatch {
        /// The kit.
        reference: String,
        /// Both digests.
        source: DigestMismatch,
    },
    /// The config is not as long as the manifest says.
    #[error("config {digest} of {reference} has {actual} bytes, but the manifest says {said}")]
    ConfigSize {
        /// The kit.
        reference: String,
        /// The config.
        digest: Digest,
        /// What the manifest says.
        said: u64,
        /// What there is.
        actual: u64,
    },
    /// Its digest is right, and it is no kit.
    #[error("{reference} ({digest}) cannot be mounted")]
    NoKit {
        /// What was named.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// What it is.
        source: ManifestError,
    },
    /// Its digest is right, and it is a malformed kit.
    #[error("{reference} ({digest}) cannot be mounted")]
    Malformed {
        /// The kit.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        source: KitError,
    },
    /// A parent could not be had.
    #[error("cannot find the parent {parent}")]
    Parent {
        /// The parent.
        parent: String,
        /// Why.
        source: SourceError,
    },
    /// A chain of parents that is too long.
    #[error("{reference} has more than {MAX_LINKS} parents behind it")]
    TooManyParents {
        /// The kit.
        reference: String,
    },
    /// A chain of parents that comes back to itself.
    #[error("the parent {parent} ({digest}) refers back to a kit that refers to it")]
    Loop {
        /// The parent.
        parent: String,
        /// Its digest.
        digest: Digest,
    },
    /// Nobody may be asked, and nobody was asked before.
    #[error("{reference} was never seen by this cache: mount or pull it once without --offline")]
    NeverSeen {
        /// The reference.
        reference: String,
    },
    /// The cache has the kit, and whoever asks may not have it as far as is known.
    #[error("access to {reference} is denied: {why}")]
    NotAdmitted {
        /// The kit.
        reference: String,
        /// Why that is not known.
        why: String,
    },
    /// What lies beside a kit could not be had.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nobody may be asked for signatures, and nobody was asked before.
    #[error("signatures of {reference} were never seen by this cache: mount or pull it once without --offline")]
    NeverAsked {
        /// The reference.
        reference: String,
    },
    /// A policy demands an audit log, and it cannot be written.
    #[error("the policy demands an audit log")]
    Audit(#[from] Arc<AuditError>),
    /// The program ends.
    #[error("stopped")]
    Stopped,
    /// A policy says no.
    #[error("{reference} ({digest}) is refused by policy: {}", reasons.join("; "))]
    Refused {
        /// The kit.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        reasons: Vec<String>,
    },
    /// A file that should be an index is none, or cannot be read.
    #[error("cannot use --index {}: {why}", path.display())]
    IndexFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nobody who may has signed an index that was given as a file.
    #[error("--index {} is refused", path.display())]
    IndexRefused {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IndexRefused,
    },
    /// The pins of a mount are damaged.
    #[error("{at:?} pins no kit")]
    BadPin {
        /// What was pinned.
        at: String,
    },
}

impl ResolveError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            // A parent is the kit's business: its author named it, nobody typed it.
            Self::Parent { source: SourceError::Ambiguous { .. }, .. } => Fault::Other,
            Self::Source(error) | Self::Parent { source: error, .. } => error.fault(),
            Self::Mismatch { .. } => Fault::Mismatch,
            Self::Trust(error) => error.fault(),
            Self::Audit(error) => error.fault(),
            Self::Refused { .. } | Self::IndexRefused { .. } => Fault::Refused,
            Self::IndexFile { .. } => Fault::Usage,
            Self::NeverSeen { .. } | Self::NeverAsked { .. } => Fault::Unreachable,
            Self::NotAdmitted { .. } => Fault::Denied,
            Self::Stopped
            | Self::ConfigSize { .. }
            | Self::NoKit { .. }
            | Self::Malformed { .. }
            | Self::TooManyParents { .. }
            | Self::Loop { .. }
            | Self::BadPin { .. } => Fault::Other,
        }
    }
}
