//! The file system of one kit, in its own terms: it knows inodes, names and bytes, and no FUSE.
//!
//! Whatever is asked about names, sizes and attributes is answered from memory. Bytes are either at hand
//! ([`KitFs::ready`]) or waited for ([`KitFs::read`]); in both cases they are proved.

mod attributes;
mod model;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::audit::AuditError;
use crate::buffers::BUFFER;
use crate::chunks::ChunkError;
use crate::chunks::Chunks;
use crate::chunks::FileAt;
use crate::chunks::Whole;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::filter::Filter;
use crate::kit::listing::Certainty;
use crate::kit::listing::Entry;
use crate::kit::listing::Listing;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::LayerNumber;
use crate::kit::tree::NodeKind;
use crate::kit::tree::Tree;
use crate::kit::tree::TreeError;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::Metadata;
use crate::layers::Workshop;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::policy::Judgement;
use crate::resolve::Kit;
use crate::resolve::Pinned;
use crate::resolve::ResolveError;
use crate::source;
use crate::verify::Verified;
use crate::verity::UNIT;

pub use model::ModelFailure;

/// How many layers are listed at once.
const LISTED_AT_ONCE: usize = 8;

/// Bytes in large files up to which it hardly counts who reads them.
const FEW_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of a large file that can be copied once more in the time in which a file is opened and closed.
const OPENED_MEANWHILE: u64 = 32 * 1024;

/// The longest that opening a file waits for its proof.
const SOON: Duration = Duration::from_secs(5);

/// Which files the kernel may read by itself, once every byte of them is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    /// None.
    Off,
    /// Those that the kernel itself checks, for they are sealed with fs-verity.
    Sealed,
    /// Those that nobody can write to without being noticed.
    Auto,
}

/// A kit as a read-only tree of files.
#[derive(Debug)]
pub struct KitFs {
    kit: Kit,
    layers: Vec<Arc<Layer>>,
    tree: Tree,
    size: u64,
    kitfile: Option<Verified<Bytes>>,
    chunks: Chunks,
    workshop: Arc<Workshop>,
    judgements: Vec<Judgement>,
}

impl KitFs {
    /// Lists every layer of the kit and merges them. `metadata` says how layers are listed that are not
    /// proved yet.
    pub async fn open(workshop: Arc<Workshop>, kit: Kit, metadata: Metadata) -> Result<Self, FsError> {
        let layers = kit.layers(&workshop);
        Self::open_layers(workshop, kit, layers, metadata).await
    }

    /// The same over layers that somebody follows meanwhile, to show how far they are. Where a policy demands
    /// that the model is signed, all of that is read and compared before anybody sees a file.
    pub async fn open_layers(
        workshop: Arc<Workshop>,
        kit: Kit,
        layers: Vec<Arc<Layer>>,
        metadata: Metadata,
    ) -> Result<Self, FsError> {
        stream::iter(&layers)
            .map(|layer| async move { layer.list(metadata).await.map(drop) })
            .buffer_unordered(LISTED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let kitfile = kit.kitfile();
        let listings =
            layers.iter().zip(0..).filter_map(|(layer, number)| Some((LayerNumber(number), layer.listing()?)));
        let tree = Tree::build(listings, kitfile.as_ref().map(|kitfile| kitfile.len() as u64))
            .map_err(|error| FsError::of_tree(error, &layers))?;
        let size =
            tree.inodes().filter_map(|inode| tree.node(inode)).fold(0, |size, node| node.size.saturating_add(size));
        let chunks = Chunks::new(Arc::clone(&workshop), Handle::current());
        Self { kit, layers, tree, size, kitfile, chunks, workshop, judgements: Vec::new() }.judge().await
    }

    /// What another process needs to show the same tree under the same numbers.
    pub fn handover(&self) -> Handover {
        let listings = self.layers.iter().map(|layer| {
            layer.listing().map_or((Certainty::Provisional, Vec::new()), |l| (l.certainty(), l.entries().to_vec()))
        });
        Handover { pinned: self.kit.pinned(), listings: listings.collect(), tree: self.tree.digest() }
    }

    /// Shows what another process has shown before. The kernel remembers its numbers, so a tree that is
    /// not exactly the same is refused. The source is not asked.
    pub async fn take_over(
        workshop: Arc<Workshop>,
        handover: Handover,
        filters: &[Filter],
        options: &source::Options,
    ) -> Result<Self, TakeoverError> {
        let kit = Kit::reopen(&workshop, &handover.pinned, filters, options).await?;
        let layers = kit.layers(&workshop);
        for (layer, (certainty, entries)) in layers.iter().zip(handover.listings) {
            let listing = Listing::new(entries, certainty).map_err(|_| FsError::OtherTree)?;
            layer.adopt_listing(listing);
        }
        let fs = Self::open_layers(workshop, kit, layers, Metadata::Provisional).await?;
        if fs.tree.digest() == handover.tree { Ok(fs) } else { Err(FsError::OtherTree.into()) }
    }

    /// Whether a layer could not be had when it was last needed.
    pub fn is_degraded(&self) -> bool {
        self.layers.iter().any(|layer| layer.has_failed())
    }

    /// The kit that is shown.
    pub fn kit(&self) -> &Kit {
        &self.kit
    }

    /// Its layers, in the order of the tree's layer numbers.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// What the policies said of the files.
    pub fn judgements(&self) -> &[Judgement] {
        &self.judgements
    }

    /// What this file system shares with others.
    pub fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    /// Names, sizes and modes.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// One of its layers.
    pub fn layer(&self, number: LayerNumber) -> Option<&Arc<Layer>> {
        self.layers.get(number.0 as usize)
    }

    /// Bytes in all files.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Keeps the layers in the store for as long as this value lives.
    pub fn pin(&self) {
        self.layers.iter().for_each(|layer| layer.pin());
    }

    /// Fetches everything in the background, if that was asked for, for as long as this value lives.
    pub fn prefetch(&self) {
        self.chunks.fetch_all(&self.layers);
    }

    /// The bytes of `range`, cut at the end of the file, if they are at hand. At most one buffer's worth.
    pub fn ready(&self, inode: Inode, range: Range<u64>) -> Option<Verified<Bytes>> {
        match self.content(inode, range).ok()? {
            Content::Kitfile(bytes) => Some(bytes),
            Content::Layer(file, range) => self.chunks.ready(file, &range),
        }
    }

    /// The bytes of `range`, cut at the end of the file. At most one buffer's worth.
    pub async fn read(&self, inode: Inode, range: Range<u64>) -> Result<Verified<Bytes>, ReadError> {
        match self.content(inode, range)? {
            Content::Kitfile(bytes) => Ok(bytes),
            Content::Layer(file, range) => Ok(self.chunks.read(file, &range).await?),
        }
    }

    /// The file that holds the content of an inode, if every byte of it is proved and the kernel may read it by
    /// itself. Small files are faster where they are asked for: they have no object that is known to be whole.
    pub fn whole(&self, inode: Inode, which: Passthrough) -> Option<Whole> {
        let node = self.tree.node(inode)?;
        let NodeKind::File { layer, entry } = node.kind else { return None };
        let whole = || self.chunks.whole(FileAt { layer: self.layer(layer)?, entry, size: node.size });
        match which {
            Passthrough::Off => None,
            Passthrough::Sealed => whole().filter(Whole::is_sealed),
            Passthrough::Auto => whole(),
        }
    }

    /// Waits until [`KitFs::whole`] can name a file, where nobody can read of it earlier and that is soon: within
    /// seconds, and not from a source that is silent. `None` if there is nothing to wait for, as where only sealed files
    /// count: what was just proved is sealed later.
    pub fn soon_whole(&self, inode: Inode, which: Passthrough) -> Option<impl Future<Output = ()> + use<>> {
        if which != Passthrough::Auto {
            return None;
        }
        let node = self.tree.node(inode)?;
        let NodeKind::File { layer, entry } = node.kind else { return None };
        self.chunks.soon_whole(FileAt { layer: self.layer(layer)?, entry, size: node.size }, SOON)
    }

    /// Whether it is worth knowing which files are open. Otherwise opening many small ones costs more than is
    /// saved where the kernel reads a few larger ones by itself.
    pub fn profits_from_opens(&self) -> bool {
        let files = self.tree.inodes().filter_map(|inode| self.tree.node(inode));
        let files = files.filter(|node| matches!(node.kind, NodeKind::File { .. }));
        let (large, small): (Vec<u64>, Vec<u64>) = files.map(|node| node.size).partition(|&size| size > UNIT);
        let meanwhile = OPENED_MEANWHILE.saturating_mul(small.len() as u64);
        large.iter().fold(0, |all, size| size.saturating_add(all)) > FEW_BYTES.min(meanwhile)
    }

    /// The inode was closed by the last that had it open.
    pub fn close(&self, inode: Inode) {
        let Some(node) = self.tree.node(inode) else { return };
        let NodeKind::File { layer, entry } = node.kind else { return };
        if let Some(layer) = self.layer(layer) {
            self.chunks.close(FileAt { layer, entry, size: node.size });
        }
    }

    /// Somebody may have written to the object that holds the content of an inode.
    pub fn report_touched(&self, inode: Inode) {
        let path = self.tree.path(inode).map(|path| path.to_string());
        self.workshop.ledger.report(Trouble { path, ..Trouble::new(TroubleKind::Store, &ReadError::Touched) });
    }

    fn content(&self, inode: Inode, range: Range<u64>) -> Result<Content<'_>, ReadError> {
        let node = self.tree.node(inode).ok_or(ReadError::NoSuchInode)?;
        let end = range.end.min(node.size).min(range.start.saturating_add(BUFFER as u64));
        let range = range.start.min(end)..end;
        match node.kind {
            NodeKind::Dir { .. } => Err(ReadError::IsDirectory),
            _ if range.is_empty() => Ok(Content::Kitfile(Verified::nothing())),
            NodeKind::Kitfile => {
                let kitfile = self.kitfile.clone().unwrap_or_else(Verified::nothing);
                Ok(Content::Kitfile(kitfile.slice(range.start as usize..range.end as usize)))
            }
            NodeKind::File { layer, entry } => {
                let layer = self.layer(layer).ok_or(ReadError::NoSuchInode)?;
                Ok(Content::Layer(FileAt { layer, entry, size: node.size }, range))
            }
        }
    }
}

/// What a process that serves a mount leaves to the one after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handover {
    pinned: Pinned,
    /// Each layer's listing, as it was mounted.
    listings: Vec<(Certainty, Vec<Entry>)>,
    /// The digest of the tree that they make.
    tree: Digest,
}

/// Why a mount cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The kit cannot be opened again.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It does not make the same tree.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// Where the bytes of a range are.
enum Content<'a> {
    Kitfile(Verified<Bytes>),
    Layer(FileAt<'a>, Range<u64>),
}

/// Why a kit cannot be shown as files.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A layer could not be listed.
    #[error(transparent)]
    Layer(#[from] Arc<LayerError>),
    /// Two layers have the same path, or disagree about what it is.
    #[error("layers {first} and {second} cannot be merged")]
    Conflict {
        /// The layer that comes first.
        first: Digest,
        /// The layer that contradicts it.
        second: Digest,
        /// At which path.
        source: TreeError,
    },
    /// A layer has a Kitfile of its own.
    #[error("layer {layer} cannot be mounted")]
    Kitfile {
        /// The layer.
        layer: Digest,
        /// At which path.
        source: TreeError,
    },
    /// The tree is not the one that the kernel knows.
    #[error("the tree is not the one that was mounted: mount the kit again")]
    OtherTree,
    /// The tree cannot be made for another reason.
    #[error("the layers of the kit cannot be merged")]
    Tree(#[source] TreeError),
    /// A file that a policy is about cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: KitPath,
        /// Why.
        source: ReadError,
    },
    /// A policy says no, now that the files are known.
    #[error("{reference} ({digest}) is refused by policy: {}", why(judgements))]
    Refused {
        /// The kit.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// What was looked at, the refusal last.
        judgements: Vec<Judgement>,
    },
    /// A policy demands an audit log, and it cannot be written.
    #[error("the policy demands an audit log")]
    Audit(#[from] Arc<AuditError>),
    /// The program ends.
    #[error("stopped")]
    Stopped,
}

impl FsError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Layer(error) => error.fault(),
            Self::Read { source, .. } => source.fault(),
            Self::Refused { .. } => Fault::Refused,
            Self::Audit(error) => error.fault(),
            Self::Conflict { .. } | Self::Kitfile { .. } | Self::Tree(_) | Self::OtherTree | Self::Stopped => {
                Fault::Other
            }
        }
    }

    fn of_tree(error: TreeError, layers: &[Arc<Layer>]) -> Self {
        let digest = |number: LayerNumber| layers.get(number.0 as usize).map(|layer| *layer.digest());
        let both = match &error {
            TreeError::SameFile { first, second, .. } => digest(*first).zip(digest(*second)),
            TreeError::FileAndDirectory { file, directory, .. } => digest(*file).zip(digest(*directory)),
            TreeError::Kitfile { layer, .. } => match digest(*layer) {
                Some(layer) => return Self::Kitfile { layer, source: error },
                None => None,
            },
            TreeError::TooLarge => None,
        };
        match both {
            Some((first, second)) => Self::Conflict { first, second, source: error },
            None => Self::Tree(error),
        }
    }
}

/// The last of what was said, which is a refusal.
fn why(judgements: &[Judgement]) -> String {
    judgements.last().map(Judgement::reason).unwrap_or_default()
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no file of that number.
    #[error("no such inode")]
    NoSuchInode,
    /// A directory has no bytes.
    #[error("is a directory")]
    IsDirectory,
    /// The bytes could not be had or proved.
    #[error(transparent)]
    Chunk(#[from] Arc<ChunkError>),
    /// Somebody opened the file's object for writing while the kernel read it.
    #[error("a cached file was opened for writing while it was read: it is proved again when all have closed it")]
    Touched,
}

impl ReadError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoSuchInode => Fault::NotFound,
            Self::IsDirectory | Self::Touched => Fault::Other,
            Self::Chunk(error) => error.fault(),
        }
    }
}
