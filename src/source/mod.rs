//! Where a kit's bytes come from: a registry, an OCI image layout, or KitOps' own local store.
//!
//! One contract for all, stated here and tested once against each: a source hands out unverified
//! bytes by digest and range, in bounded time, and never more of them than were asked for.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;
use crate::kit::descriptor::Descriptor;
use crate::reference::{Reference, RegistryReference};
use crate::verify::Unverified;

/// Manifests and configs larger than this are refused before they are read.
pub const METADATA_LIMIT: u64 = 8 * 1024 * 1024;

/// How sources are reached. Each member is set by the option of the same name.
#[derive(Clone, Debug)]
pub struct Options {
    /// Plain HTTP to registries that are not on a loopback address.
    pub plain_http: bool,
    /// PEM files with certificates to trust beside the system's roots.
    pub ca_cert: Vec<PathBuf>,
    /// The credentials file to use in place of KitOps' and Docker's.
    pub registry_config: Option<PathBuf>,
    /// The longest that one request may take, with all its retries.
    pub timeout: Duration,
}

/// A place that has (or says that it has) one kit and its parents.
#[derive(Debug)]
pub struct Source(Kind);

#[derive(Debug)]
enum Kind {}

impl Source {
    /// Opens the place that a reference points at. Asks nothing of a network yet; a layout or a store
    /// that is not there is [`SourceError::NotFound`], one that is malformed [`SourceError::Malformed`].
    pub async fn open(_reference: &Reference, _options: &Options) -> Result<Self, SourceError> {
        unreachable!()
    }

    /// Asks what a reference names now, once: the digest of its manifest.
    ///
    /// With a digest in the reference, that digest, without asking. Without a tag, `latest` in a
    /// registry and in KitOps' store, and the only manifest of a layout
    /// ([`SourceError::Ambiguous`] where there are more).
    pub async fn resolve(&self) -> Result<Digest, SourceError> {
        unreachable!()
    }

    /// The source of a parent that a kit of this source refers to, and the digest it has now: beside the kit first
    /// (in a layout by the whole reference in `org.opencontainers.image.ref.name`, never by tag alone;
    /// in the store by name), then at the parent's registry.
    pub async fn parent(&self, _parent: &RegistryReference) -> Result<(Self, Digest), SourceError> {
        unreachable!()
    }

    /// The manifest of that digest, at most [`METADATA_LIMIT`] bytes.
    pub async fn manifest(&self, _digest: &Digest) -> Result<Unverified, SourceError> {
        unreachable!()
    }

    /// A small blob whole, such as a config: exactly `blob.size` bytes, at most [`METADATA_LIMIT`].
    pub async fn blob(&self, _blob: &Descriptor) -> Result<Unverified, SourceError> {
        unreachable!()
    }

    /// Part of a blob: exactly the bytes of `range`, which is at most one buffer long
    /// ([`crate::buffers::BUFFER`]) and lies inside the blob's size.
    ///
    /// [`SourceError::NoRanges`] where the source ignores ranges; then only [`Source::stream`] serves.
    pub async fn range(&self, _blob: &Descriptor, _range: Range<u64>) -> Result<Unverified, SourceError> {
        unreachable!()
    }

    /// What extended attributes and messages call this source: the registry's host, `oci:PATH` or `kit:`.
    pub fn name(&self) -> String {
        unreachable!()
    }
}

/// Why a source did not give what was asked of it. Each variant is something a caller does differently.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kit, tag, blob or layout is not there.
    #[error("{0} is not there")]
    NotFound(String),
}
