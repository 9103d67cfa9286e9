//! Objects: the contents of files, named by their fs-verity digest.
//!
//! A large object that was proved whole has a record of its stamp, so that it need not be hashed again
//! while nobody touched it. A record counts in the boot that wrote it; after another start of the
//! machine only if the object had reached the disk before (a power cut leaves zeros where inode, size
//! and ctime are unchanged). Small objects have no record: proving them costs less than reading one.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::Store;
use crate::store::open_file;
use crate::store::read_whole;
use crate::store::write_whole;
use crate::verify::FromVerified;
use crate::verify::Stamp;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verify::Witness;
use crate::verity::FileTree;
use crate::verity::UNIT;
use crate::verity::VerityDigest;

/// When and how an object was proved whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    stamp: Stamp,
    boot: String,
    /// Whether the object had reached the disk.
    durable: bool,
}

impl FromVerified<bytes::Bytes> for Record {
    type Error = postcard::Error;

    fn from_verified(content: &bytes::Bytes) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content)
    }
}

/// Whether an object has reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Cached,
    OnDisk,
}

impl Store {
    /// Opens the object with that tree; `None` if it is not there or cannot be it.
    pub fn object(&self, tree: &Verified<FileTree>) -> Option<Witness> {
        let file = open_file(&self.object_path(&tree.verity)).ok()?;
        if file.metadata().ok()?.len() != tree.size {
            return None;
        }
        let record = if has_record(tree.size) { self.record(&tree.verity) } else { None };
        match record {
            Some(stamp) => Witness::with_record(file, tree.clone(), &stamp).ok(),
            None => Witness::new(file, tree.clone()).ok(),
        }
    }

    /// Whether there is a file in the place of that object. It says nothing about its content.
    pub fn has_object(&self, verity: &VerityDigest) -> bool {
        fs::symlink_metadata(self.object_path(verity)).is_ok()
    }

    /// Removes an object that is not what it should be. Whoever has it open keeps it.
    pub fn discard_object(&self, verity: &VerityDigest) {
        let _gone = fs::remove_file(self.record_path(verity));
        let _gone = fs::remove_file(self.object_path(verity));
    }

    /// Remembers that an object was proved whole under `stamp`.
    pub fn note_proved(&self, witness: &Witness) {
        if has_record(witness.tree().size)
            && let Some(stamp) = witness.whole()
        {
            self.keep_record(&witness.tree().verity, &stamp, Durability::Cached);
        }
    }

    /// A record that cannot be written costs a proof later, nothing else.
    pub(super) fn keep_record(&self, verity: &VerityDigest, stamp: &Verified<Stamp>, durability: Durability) {
        let record = Record { stamp: **stamp, boot: self.boot.clone(), durable: durability == Durability::OnDisk };
        let path = self.record_path(verity);
        let Ok(encoded) = postcard::to_stdvec(&record) else { return };
        let _unwritten = path
            .parent()
            .map_or(Ok(()), super::make_folder)
            .and_then(|()| write_whole(&path, &self.key.seal(&encoded, &format!("record {verity}"))));
    }

    fn record(&self, verity: &VerityDigest) -> Option<Verified<Stamp>> {
        let sealed = Unverified::new(read_whole(&self.record_path(verity)).ok()?);
        let record = sealed.unseal(&self.key, &format!("record {verity}")).ok()?.parse::<Record>().ok()?;
        let counts = record.durable || (!self.boot.is_empty() && record.boot == self.boot);
        if counts { record.part(|record| Some(&record.stamp)) } else { None }
    }

    pub(super) fn object_path(&self, verity: &VerityDigest) -> PathBuf {
        let hex = verity.hex();
        self.root.join("objects").join(&hex[..2]).join(hex)
    }

    pub(super) fn record_path(&self, verity: &VerityDigest) -> PathBuf {
        let hex = verity.hex();
        self.root.join("records").join(&hex[..2]).join(hex)
    }
}

/// Whether an object of this size has a record.
pub(super) fn has_record(size: u64) -> bool {
    size > UNIT
}

/// Waits until a file and its name have reached the disk.
pub(super) fn sync_object(path: &std::path::Path) -> io::Result<File> {
    let file = open_file(path)?;
    file.sync_data()?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}
