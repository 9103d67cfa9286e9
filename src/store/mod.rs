//! The content store of one host or user, shared by all its mounts and processes.
//!
//! What comes out is [`Unverified`], or a [`Witness`](crate::verify::Witness) that proves a file before it is read: the disk is
//! not trusted. What goes in is proved. Opening is O(1); nothing is scanned on the way to a mount.
//!
//! # On disk
//! The format is part of the path: another version of kitfs keeps its own beside this one.
//! ```text
//! CACHE/v1/
//!       access/<hex>               sealed: when a source let somebody have a kit; named by a keyed hash of both
//!       blobs/<algorithm>-<hex>    manifests and configs, by their digest
//!       condemned/<algorithm>-<hex>  sealed: a published index that turned out to be false
//!       layers/<algorithm>-<hex>.<reading>  the sealed index of a layer that was proved whole, as it was
//!                                  read (`tar+gzip`); its mtime is its last use
//!       named/<the same>           the sealed index of a layer that a mount was admitted with: it says what
//!                                  may not be evicted, and is never read as an index
//!       material/<hex>             sealed: what lay beside a manifest; named by the SHA-256 of its reference
//!       objects/ab/<hex>           contents of files, by their fs-verity digest, 0400
//!       partial/ab/<hex>           such a file in progress: sparse, written unit by unit, 0600
//!       partial/ab/<hex>.map       which of its units have been written: a byte each
//!       records/ab/<hex>           sealed: the stamp under which a large object was proved whole
//!       tags/<hex>                 sealed: the digest last seen for a tag; named by the SHA-256 of the reference
//!       staging/<name>.<random>/   a layer that is being split; nobody reads it
//!       locks/<name>               empty; locked with flock(2), see `lock`
//! ```
//! Every file is written beside its place and renamed into it, so a crash leaves the old file, the new
//! one, or none. None of them is trusted when it is read again: blobs are checked against their digest,
//! objects against their tree, everything else against the seal of this host's key. Losing or damaging
//! any of them costs a fetch.

mod access;
mod eviction;
mod indexes;
mod lock;
mod material;
mod objects;
mod partial;
mod sealing;
mod settling;
mod staging;
mod usage;

pub use eviction::Budget;
pub use lock::{Fetching, Lock, RangeLock};
pub use partial::Partial;
pub use sealing::probe_sealing;
pub use staging::{Staged, Staging};
pub use usage::{BadObject, KeptLayer, Usage, Verification};

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::buffers::WRITE;
use crate::digest::Digest;
use crate::kit::index::Index;
use crate::kit::media::Reading;
use crate::store::settling::Settling;
use crate::verify::FromVerified;
use crate::verify::LocalKey;
use crate::verify::Unverified;
use crate::verify::Verified;

/// The folder of this format.
const FORMAT: &str = "v1";

/// What lies in it.
const FOLDERS: [&str; 12] = [
    "access",
    "blobs",
    "condemned",
    "layers",
    "named",
    "material",
    "objects",
    "partial",
    "records",
    "tags",
    "staging",
    "locks",
];

/// No metadata file of the store is larger than this: the index of a layer of 4 TiB is.
const METADATA_LIMIT: u64 = 1 << 30;

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    key: LocalKey,
    budget: Budget,
    settling: Settling,
    /// Tells this start of the machine from the others.
    boot: String,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there. `key` seals what kitfs writes there for
    /// itself; it lies elsewhere, so that whoever can write the cache still cannot forge it.
    pub fn open(root: &Path, key: LocalKey) -> Result<Self, StoreError> {
        for path in Self::folders(root) {
            make_folder(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(Self::at(root, key))
    }

    /// The same for who goes on where another process has died. Where the disk does not take what is missing, it
    /// takes nothing, and that is no reason to serve nobody.
    pub fn open_again(root: &Path, key: LocalKey) -> Self {
        for path in Self::folders(root) {
            if let Err(error) = make_folder(&path) {
                tracing::warn!(%error, path = %path.display(), "the store cannot be used");
                break;
            }
        }
        Self::at(root, key)
    }

    fn at(root: &Path, key: LocalKey) -> Self {
        let root = root.join(FORMAT);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (budget, settling) = (Budget::default(), Settling::default());
        Self { root, key, budget, settling, boot: boot.trim().into() }
    }

    /// The folders of a store at `root`, the one that they lie in first.
    pub fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
        let root = root.join(FORMAT);
        std::iter::once(root.clone()).chain(FOLDERS.map(|folder| root.join(folder)))
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A manifest or config that was kept earlier.
    pub fn blob(&self, digest: &Digest) -> Option<Unverified> {
        read_whole(&self.blob_path(digest)).ok().map(Unverified::new)
    }

    /// Keeps a manifest or config. Where that fails it is asked for again the next time.
    pub fn keep_blob(&self, digest: &Digest, content: &Verified<bytes::Bytes>) -> io::Result<()> {
        write_whole(&self.blob_path(digest), content)
    }

    /// The index of a layer that was proved here, if its seal is whole and it is about that layer.
    pub fn index(&self, layer: &Digest, reading: Reading) -> Option<Verified<Index>> {
        self.index_file(&index_name(layer, reading))
            .filter(|index| index.layer() == layer && index.reading() == reading)
    }

    /// The index in a file of that name, if its seal is whole.
    fn index_file(&self, name: &str) -> Option<Verified<Index>> {
        let sealed = Unverified::new(read_whole(&self.root.join("layers").join(name)).ok()?);
        let index = sealed.unseal(&self.key, &format!("index {name}")).ok()?.parse::<Index>().ok()?;
        (index_name(index.layer(), index.reading()) == name).then_some(index)
    }

    /// Keeps the index of a layer that was proved, where its files cannot be kept.
    pub fn keep_index(&self, index: &Verified<Index>) -> io::Result<()> {
        let name = index_name(index.layer(), index.reading());
        let sealed = self.key.seal(&index.encode(), &format!("index {name}"));
        write_whole(&self.root.join("layers").join(name), &sealed)
    }

    /// Notes that a layer is in use now: what was used last is evicted last.
    pub fn touch(&self, layer: &Digest, reading: Reading) {
        let now = FileTimes::new().set_modified(SystemTime::now());
        if let Ok(file) = File::open(self.index_path(layer, reading)) {
            let _unused_stays_older = file.set_times(now);
        }
    }

    /// The digest that a tag had when it was last asked for, and when that was.
    pub fn tag(&self, reference: &str) -> Option<Verified<SeenTag>> {
        let sealed = Unverified::new(read_whole(&self.tag_path(reference)).ok()?);
        let tag = sealed.unseal(&self.key, "tag").ok()?.parse::<SeenTag>().ok()?;
        (tag.reference == reference).then_some(tag)
    }

    /// Remembers the digest that a source gave for a tag.
    pub fn keep_tag(&self, seen: SeenTag) -> io::Result<()> {
        let path = self.tag_path(&seen.reference);
        let encoded = postcard::to_stdvec(&seen).map_err(io::Error::other)?;
        write_whole(&path, &self.key.seal(&encoded, "tag"))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(file_name(digest))
    }

    fn index_path(&self, layer: &Digest, reading: Reading) -> PathBuf {
        self.root.join("layers").join(index_name(layer, reading))
    }

    fn tag_path(&self, reference: &str) -> PathBuf {
        self.root.join("tags").join(Digest::of(reference.as_bytes()).hex())
    }
}

/// What a source said of a tag. It proves nothing about content: it is an answer, kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenTag {
    /// The reference as it prints.
    pub reference: String,
    /// The digest that its source gave.
    pub digest: Digest,
    /// Seconds since 1970 when it was asked.
    pub seen_at: i64,
}

impl FromVerified<bytes::Bytes> for SeenTag {
    type Error = postcard::Error;

    fn from_verified(content: &bytes::Bytes) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content)
    }
}

/// Reads this host's key from `path`, making one if there is none.
pub fn local_key(path: &Path) -> Result<LocalKey, StoreError> {
    let at = |source| StoreError::Io { path: path.into(), source };
    if let Some(folder) = path.parent() {
        make_folder(folder).map_err(at)?;
    }
    if !path.exists() {
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| at(io::Error::other(error)))?;
        let temporary = beside(path);
        let made = write_new(&temporary, &key).and_then(|()| fs::hard_link(&temporary, path));
        let _gone = fs::remove_file(&temporary);
        match made {
            // Another process was faster: its key counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(at)?,
        }
    }
    let key = read_whole(path).map_err(at)?;
    let key = <[u8; 32]>::try_from(key).map_err(|_| StoreError::BadKey { path: path.into() })?;
    Ok(LocalKey::new(key))
}

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

fn index_name(layer: &Digest, reading: Reading) -> String {
    format!("{}.{reading}", file_name(layer))
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A name for a temporary file in the folder of `path`, on the same file system therefore.
fn beside(path: &Path) -> PathBuf {
    let mut random = [0u8; 8];
    // Without randomness the name may be taken; then making the file fails, and nothing is lost.
    let _ = getrandom::fill(&mut random);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", hex::encode(random)))
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    content.chunks(WRITE).try_for_each(|bytes| file.write_all(bytes))
}

/// Writes a file that appears whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _gone = fs::remove_file(&temporary);
    }
    written
}

/// Opens a file of the store for reading; never waits, whatever somebody put in its place.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_file(path)?.take(METADATA_LIMIT).read_to_end(&mut content)?;
    Ok(content)
}

/// Why the store cannot be used. What it merely does not have, or has damaged, is no error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("cannot use the store: {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file with this host's key is not a key.
    #[error("{} does not hold a key: remove it, and what was cached is proved again", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests;
