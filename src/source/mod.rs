//! Where a kit's bytes come from: a registry, an OCI image layout, or KitOps' own local store.
//!
//! One contract for all, stated here and tested once against each: a source hands out unverified
//! bytes by digest and range, in bounded time, and never more of them than were asked for. Nothing is
//! proved here, and nothing is parsed but what it takes to find the bytes.

mod registry;
mod layout;
mod tarball;
mod kitops;
mod companions;
mod credentials;
mod files;
mod meter;

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::buffers::BUFFER;
use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::descriptor::Descriptor;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;
pub use crate::source::companions::Companion;
use crate::source::companions::Referrers;
use crate::source::companions::Tags;
pub use crate::source::credentials::Visitor;
pub use crate::source::credentials::asks_helpers;
pub use crate::source::credentials::end_helpers;
pub use crate::source::credentials::hold_helpers_back;
pub use crate::source::credentials::needs_helpers;
use crate::source::files::Extent;
use crate::source::files::ExtentStream;
use crate::source::kitops::Store;
use crate::source::layout::Layout;
pub use crate::source::meter::FAST;
pub use crate::source::meter::Meter;
use crate::source::registry::Registry;
pub use crate::source::registry::push::Publisher;
use crate::source::registry::stream::BlobStream;
use crate::source::registry::stream::Ranges;
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

/// A place that has (or says that it has) one kit and its parents. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Source {
    kind: Kind,
    options: Arc<Options>,
    buffers: Buffers,
    meter: Meter,
}

#[derive(Clone, Debug)]
enum Kind {
    Registry(Registry),
    Layout(Layout),
    Kitops(Store),
    /// A place that could not be opened again, and why.
    Lost {
        at: Reference,
        error: SourceError,
    },
}

impl Source {
    /// Opens the place that a reference points at. Asks nothing of a network yet; a layout or a store
    /// that is not there is [`SourceError::NotFound`], one that is malformed [`SourceError::Malformed`].
    /// Ranges are read into buffers of the pool.
    pub async fn open(reference: &Reference, options: &Options, buffers: &Buffers) -> Result<Self, SourceError> {
        let kind = match reference {
            Reference::Registry(reference) => Kind::Registry(Registry::open(reference, options).await?),
            Reference::Layout { path, version } => Kind::Layout(Layout::open(path, version, options.timeout).await?),
            Reference::Kitops { name, version } => Kind::Kitops(Store::open(name, version, options.timeout).await?),
        };
        Ok(Self { kind, options: Arc::new(options.clone()), buffers: buffers.clone(), meter: Meter::default() })
    }

    /// A source that was there once and cannot be opened now: it answers everything with that error, so
    /// that what the store has of its kits can still be shown.
    pub fn lost(at: &Reference, error: SourceError, options: &Options, buffers: &Buffers) -> Self {
        let kind = Kind::Lost { at: at.clone(), error };
        Self { kind, options: Arc::new(options.clone()), buffers: buffers.clone(), meter: Meter::default() }
    }

    /// Asks what a reference names now, once: the digest of its manifest.
    ///
    /// With a digest in the reference, that digest, without asking. Without a tag, `latest` in a
    /// registry and in KitOps' store, and the only manifest of a layout
    /// ([`SourceError::Ambiguous`] where there are more).
    pub async fn resolve(&self) -> Result<Digest, SourceError> {
        match &self.kind {
            Kind::Registry(registry) => registry.resolve().await,
            Kind::Layout(layout) => layout.resolve().await,
            Kind::Kitops(store) => store.resolve().await,
            Kind::Lost { error, .. } => Err(error.clone()),
        }
    }

    /// The source of a parent that a kit of this source refers to, and the digest it has now: beside the kit first
    /// (in a layout by the whole reference in `org.opencontainers.image.ref.name`, never by tag alone;
    /// in the store by name), then at the parent's registry. The host `localhost` without a port is
    /// KitOps' word for its local store, so such a parent is asked of no registry.
    pub async fn parent(&self, parent: &RegistryReference) -> Result<(Self, Digest), SourceError> {
        let beside = match &self.kind {
            Kind::Registry(_) => None,
            Kind::Layout(layout) => layout.parent(parent).await?.map(|(layout, digest)| (Kind::Layout(layout), digest)),
            Kind::Kitops(store) => store.parent(parent).await?.map(|(store, digest)| (Kind::Kitops(store), digest)),
            Kind::Lost { error, .. } => return Err(error.clone()),
        };
        if let Some((kind, digest)) = beside {
            return Ok((Self { kind, ..self.clone() }, digest));
        }
        if parent.host == kitops::LOCAL_HOST {
            return Err(SourceError::NotFound(format!(
                "parent {parent}, which names a kit in a local store and no registry, and beside its kit in {}",
                self.name()
            )));
        }
        let registry = match &self.kind {
            Kind::Registry(registry) => registry.sibling(parent, &self.options).await?,
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => Registry::open(parent, &self.options).await?,
        };
        let source = Self { kind: Kind::Registry(registry), ..self.clone() };
        let digest = source.resolve().await?;
        Ok((source, digest))
    }

    /// The source of a parent whose digest is known: beside the kit if the manifest is there, else at the
    /// parent's registry. Asks nothing of a network.
    pub async fn parent_at(&self, parent: &RegistryReference, digest: &Digest) -> Result<Self, SourceError> {
        let kind = match &self.kind {
            Kind::Registry(registry) => Kind::Registry(registry.sibling(parent, &self.options).await?),
            kind if self.extent(digest).await.is_ok() => kind.clone(),
            _ => Kind::Registry(Registry::open(parent, &self.options).await?),
        };
        Ok(Self { kind, ..self.clone() })
    }

    /// A reference that opens this source again, for the manifest of that digest.
    pub fn pinned(&self, digest: &Digest) -> Reference {
        let version = Version { tag: None, digest: Some(*digest) };
        match &self.kind {
            Kind::Registry(registry) => Reference::Registry(RegistryReference { version, ..registry.reference() }),
            Kind::Layout(layout) => Reference::Layout { path: layout.path(), version },
            Kind::Kitops(store) => Reference::Kitops { name: store.repository().clone(), version },
            Kind::Lost { at, .. } => at.clone(),
        }
    }

    /// Asks whether the source lets us have the manifest of that digest. Of files on this host that says whether they
    /// are there: who may read them is said by their modes.
    pub async fn admits(&self, digest: &Digest) -> Result<(), SourceError> {
        match &self.kind {
            Kind::Registry(registry) => registry.admits(digest).await,
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => self.extent(digest).await.map(drop),
        }
    }

    /// As whom the source was asked last.
    pub fn asked_as(&self) -> Visitor {
        match &self.kind {
            Kind::Registry(registry) => registry.asked_as(),
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => Visitor::ANYBODY,
        }
    }

    /// As whom it would be asked if it wanted to know. Looks at the credentials, and asks no registry.
    pub async fn visitor(&self) -> Result<Visitor, SourceError> {
        match &self.kind {
            Kind::Registry(registry) => registry.visitor().await,
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => Ok(Visitor::ANYBODY),
        }
    }

    /// Whether it is on this host.
    pub fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Layout(_) | Kind::Kitops(_))
    }

    /// The manifest of that digest, at most [`METADATA_LIMIT`] bytes.
    pub async fn manifest(&self, digest: &Digest) -> Result<Unverified, SourceError> {
        match &self.kind {
            Kind::Registry(registry) => registry.manifest(digest).await,
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => {
                let extent = self.extent(digest).await?;
                let len = extent.len();
                if len > METADATA_LIMIT {
                    return Err(too_large(format!("manifest {digest} in {}", self.name()), len));
                }
                extent.read_whole().await
            }
        }
    }

    /// The manifests that may say something about `manifest`, each once: what cosign's tags name first, then
    /// referrers, at least `enough` of them if there are so many.
    ///
    /// Where a source cannot say, this is an error: it is never the same as having none.
    pub async fn companions(&self, manifest: &Digest, enough: usize) -> Result<Vec<Companion>, SourceError> {
        let tags = Tags::of(manifest);
        let mut companions = match &self.kind {
            Kind::Registry(registry) => {
                let [signatures, attestations] = &tags.legacy;
                let (signatures, attestations, fallback, listed) = tokio::try_join!(
                    tagged(registry, signatures),
                    tagged(registry, attestations),
                    self.fallback(registry, &tags.fallback),
                    registry.referrers(manifest, enough),
                )?;
                let legacy = signatures.into_iter().chain(attestations);
                legacy.chain(listed.unwrap_or_default()).chain(fallback).collect()
            }
            Kind::Layout(layout) => layout.companions(manifest, &tags).await?,
            Kind::Kitops(store) => store.companions(&tags).await?,
            Kind::Lost { error, .. } => return Err(error.clone()),
        };
        let mut seen = HashSet::new();
        companions.retain(|companion: &Companion| companion.digest != *manifest && seen.insert(companion.digest));
        Ok(companions)
    }

    /// What the fallback tag of a registry lists.
    async fn fallback(&self, registry: &Registry, tag: &str) -> Result<Vec<Companion>, SourceError> {
        let Some(index) = tagged(registry, tag).await? else { return Ok(Vec::new()) };
        let bytes = match registry.manifest(&index.digest).await?.verify(&index.digest) {
            Ok(bytes) => bytes,
            Err(mismatch) => {
                return Err(SourceError::Malformed { what: index.found, why: mismatch.to_string() });
            }
        };
        Ok(Referrers::of_fallback(&bytes, &index.found))
    }

    /// A small blob whole, such as a config: exactly `blob.size` bytes, at most [`METADATA_LIMIT`].
    pub async fn blob(&self, blob: &Descriptor) -> Result<Unverified, SourceError> {
        if blob.size > METADATA_LIMIT {
            return Err(too_large(format!("blob {} in {}", blob.digest, self.name()), blob.size));
        }
        match &self.kind {
            Kind::Registry(registry) => registry.blob(blob).await,
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => self.exact(blob).await?.read_whole().await,
        }
    }

    /// A blob of at most `limit` bytes whole, which is all in memory then.
    pub async fn whole(&self, blob: &Descriptor, limit: u64) -> Result<Unverified, SourceError> {
        if blob.size > limit {
            let why = format!("it has {} bytes, and at most {limit} are read", blob.size);
            return Err(SourceError::Malformed { what: format!("blob {} in {}", blob.digest, self.name()), why });
        }
        let mut stream = self.stream(blob, 0);
        let mut pieces = Vec::new();
        while let Some(piece) = stream.next().await {
            pieces.push(piece?);
        }
        Ok(Unverified::join(pieces))
    }

    /// Prepares to push into this place; `None` where that is no registry.
    pub async fn publisher(&self) -> Result<Option<Publisher>, SourceError> {
        match &self.kind {
            Kind::Registry(registry) => Publisher::open(registry.clone(), &self.options).await.map(Some),
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => Ok(None),
        }
    }

    /// Part of a blob: exactly the bytes of `range`, which lies inside the blob's size, in order and in
    /// pieces of one buffer ([`crate::buffers::BUFFER`]), of which only the last may be shorter.
    ///
    /// One request, so a range of some megabytes costs a registry little more than one of a few bytes. All
    /// of it is in memory at once: whoever asks for much bounds that.
    /// [`SourceError::NoRanges`] where the source ignores ranges; then only [`Source::stream`] serves.
    pub async fn range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Vec<Unverified>, SourceError> {
        if range.end > blob.size || range.start > range.end {
            return Err(SourceError::Malformed {
                what: format!("range {range:?} of blob {}", blob.digest),
                why: format!("the blob has {} bytes", blob.size),
            });
        }
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Kind::Registry(registry) = &self.kind {
            return registry.range(blob, range, &self.buffers, &self.meter).await;
        }
        let extent = self.exact(blob).await?;
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + BUFFER as u64);
            pieces.push(extent.read(at..end, &self.buffers).await?);
            self.meter.add(end - at);
            at = end;
        }
        Ok(pieces)
    }

    /// The blob from byte `from` to its end, in order.
    pub fn stream(&self, blob: &Descriptor, from: u64) -> ByteStream {
        self.bytes(blob, from.min(blob.size)..blob.size, Ranges::Hoped)
    }

    /// What [`Source::range`] gives, in order and as it comes.
    pub fn stream_range(&self, blob: &Descriptor, range: Range<u64>) -> ByteStream {
        self.bytes(blob, range, Ranges::Needed)
    }

    fn bytes(&self, blob: &Descriptor, range: Range<u64>, ranges: Ranges) -> ByteStream {
        ByteStream(match &self.kind {
            Kind::Registry(registry) => {
                Bytes::Registry(Box::new(registry.stream(blob, range, ranges, &self.buffers, &self.meter)))
            }
            Kind::Layout(_) | Kind::Kitops(_) | Kind::Lost { .. } => {
                Bytes::Local { source: Box::new(self.clone()), blob: Box::new(blob.clone()), range, open: None }
            }
        })
    }

    /// The same source, with a count of its own of what arrives in ranges and streams of blobs.
    pub fn metered(&self, meter: Meter) -> Self {
        Self { meter, ..self.clone() }
    }

    /// What extended attributes and messages call this source: the registry's host, `oci:PATH` or `kit:`.
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Registry(registry) => registry.host().to_owned(),
            Kind::Layout(layout) => layout.name(),
            Kind::Kitops(_) => "kit:".to_owned(),
            Kind::Lost { at: Reference::Layout { path, .. }, .. } => layout::name(path),
            Kind::Lost { at: Reference::Registry(registry), .. } => registry.host.clone(),
            Kind::Lost { at: Reference::Kitops { .. }, .. } => "kit:".to_owned(),
        }
    }

    async fn extent(&self, digest: &Digest) -> Result<Extent, SourceError> {
        match &self.kind {
            Kind::Layout(layout) => layout.blobs().find(digest).await,
            Kind::Kitops(store) => store.blobs().find(digest).await,
            Kind::Lost { error, .. } => Err(error.clone()),
            Kind::Registry(registry) => {
                Err(SourceError::NotFound(format!("{digest} on the disk of {}", registry.host())))
            }
        }
    }

    /// The extent of a blob, if it is as long as its descriptor says.
    async fn exact(&self, blob: &Descriptor) -> Result<Extent, SourceError> {
        let extent = self.extent(&blob.digest).await?;
        if extent.len() != blob.size {
            return Err(SourceError::WrongSize {
                what: format!("blob {} in {}", blob.digest, self.name()),
                expected: blob.size,
                actual: format!("{}", extent.len()),
            });
        }
        Ok(extent)
    }
}

/// Bytes of a blob in order. Dropping it ends the transfer.
#[derive(Debug)]
pub struct ByteStream(Bytes);

#[derive(Debug)]
enum Bytes {
    Registry(Box<BlobStream>),
    Local { source: Box<Source>, blob: Box<Descriptor>, range: Range<u64>, open: Option<ExtentStream> },
    Ended,
}

impl ByteStream {
    /// The next piece, of 1 byte to [`crate::buffers::BUFFER`] bytes.
    ///
    /// Broken connections are resumed here, with a range where the source has them, else from the
    /// start with what was seen already left out. Ends (`None`) after exactly the bytes that were asked for; a
    /// body that is shorter or longer is [`SourceError::WrongSize`]. Nothing follows an error.
    pub async fn next(&mut self) -> Option<Result<Unverified, SourceError>> {
        let next = match &mut self.0 {
            Bytes::Registry(stream) => stream.next().await,
            Bytes::Local { source, blob, range, open } => {
                if open.is_none() {
                    match source.exact(blob).await {
                        Ok(extent) => *open = Some(extent.stream(range.clone(), source.buffers.clone())),
                        Err(error) => {
                            self.0 = Bytes::Ended;
                            return Some(Err(error));
                        }
                    }
                }
                let next = match open {
                    Some(stream) => stream.next().await,
                    None => None,
                };
                if let Some(Ok(piece)) = &next {
                    source.meter.add(piece.len() as u64);
                }
                next
            }
            Bytes::Ended => None,
        };
        if !matches!(next, Some(Ok(_))) {
            self.0 = Bytes::Ended;
        }
        next
    }
}

/// What a tag beside a manifest names, if it is there.
async fn tagged(registry: &Registry, tag: &str) -> Result<Option<Companion>, SourceError> {
    match registry.tag(tag).await {
        Ok(digest) => Ok(Some(Companion { digest, artifact_type: String::new(), found: format!("tag {tag}") })),
        Err(SourceError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn too_large(what: String, size: u64) -> SourceError {
    SourceError::Malformed { what, why: format!("it has {size} bytes, and at most {METADATA_LIMIT} are read") }
}

/// What lies behind an error; shared, because one failure can be the answer to many requests.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a source did not give what was asked of it. Each variant is something a caller does differently.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The kit, tag, blob or layout is not there.
    #[error("{0} is not there")]
    NotFound(String),
    /// The source refuses access, with the credentials that there are.
    #[error("access to {what} is denied: {why}")]
    Denied {
        /// What was asked for.
        what: String,
        /// What the source answered.
        why: String,
    },
    /// The source cannot be reached in time.
    #[error("{what} cannot be reached: {why}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
        /// What lies behind it.
        #[source]
        source: Option<Cause>,
    },
    /// A reference without a tag to a layout of several kits.
    #[error("{what} has several manifests; name one by its tag or digest: it has {tags}")]
    Ambiguous {
        /// The layout.
        what: String,
        /// Some of the tags that there are.
        tags: String,
    },
    /// The source holds or answers something that cannot be what it should be.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A blob is not as long as its descriptor says.
    #[error("{what} has the wrong size: expected {expected} bytes, got {actual}")]
    WrongSize {
        /// The blob.
        what: String,
        /// What its descriptor says.
        expected: u64,
        /// How long it is, as far as it was read.
        actual: String,
    },
    /// The source does not serve ranges of blobs, or not honestly.
    #[error("{0} is not served in ranges")]
    NoRanges(String),
    /// Settings that cannot be used: a certificate or credentials file, or a credential helper.
    #[error("{what} cannot be used: {why}")]
    Configuration {
        /// The file or the program.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The local disk, or this host's memory, failed.
    #[error("{what} cannot be read")]
    Local {
        /// The file.
        what: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

impl SourceError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound(_) => Fault::NotFound,
            Self::Denied { .. } => Fault::Denied,
            Self::Unreachable { .. } => Fault::Unreachable,
            Self::Ambiguous { .. } | Self::Configuration { .. } => Fault::Usage,
            Self::Malformed { .. } | Self::WrongSize { .. } | Self::NoRanges(_) | Self::Local { .. } => Fault::Other,
        }
    }
}
