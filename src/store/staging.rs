//! Staging: where a layer is split into files before its digest is known.
//!
//! Nobody reads a staging area. It becomes objects and an index in one step, [`Staging::commit`], which
//! takes the proof that the layer was what its digest says; without that proof it is thrown away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::Digest;
use crate::kit::index::Index;
use crate::store::Store;
use crate::store::beside;
use crate::store::file_name;
use crate::store::make_folder;
use crate::store::objects::Durability;
use crate::store::objects::has_record;
use crate::store::objects::sync_object;
use crate::store::open_file;
use crate::store::sealing::seal;
use crate::verify::LayerProof;
use crate::verify::Stamp;
use crate::verify::Verified;
use crate::verity::FileTree;

/// The staging area of one layer. Dropping it throws it away.
#[derive(Debug)]
pub struct Staging {
    store: Arc<Store>,
    folder: PathBuf,
    files: u32,
}

/// One file in a staging area, open for writing.
#[derive(Debug)]
pub struct Staged {
    file: File,
    len: u64,
}

impl Store {
    /// Makes a staging area for a layer.
    pub fn staging(self: &Arc<Self>, layer: &Digest) -> io::Result<Staging> {
        let folder = beside(&self.root.join("staging").join(file_name(layer)));
        make_folder(&folder)?;
        Ok(Staging { store: Arc::clone(self), folder, files: 0 })
    }
}

impl Staging {
    /// Makes the next file: file `n` of the layer's index is the `n`-th that was made here.
    pub fn file(&mut self) -> io::Result<Staged> {
        let path = self.folder.join(self.files.to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(path)?;
        self.files += 1;
        Ok(Staged { file, len: 0 })
    }

    /// Turns the area into objects and the layer's index. The proof says that the bytes out of which
    /// index and files were made are the layer.
    pub fn commit(self, proof: &LayerProof, index: Index) -> io::Result<Verified<Index>> {
        let adding = self.store.lock_adding()?;
        for (number, tree) in index.trees().enumerate() {
            let staged = self.folder.join(number.to_string());
            let place = self.store.object_path(&tree.verity);
            if self.has_equal_object(&proof.covers(tree.clone())) {
                fs::remove_file(&staged)?;
                continue;
            }
            if let Err(error) = fs::rename(&staged, &place) {
                if error.kind() != io::ErrorKind::NotFound {
                    return Err(error);
                }
                place.parent().map_or(Ok(()), make_folder)?;
                fs::rename(&staged, &place)?;
            }
            if has_record(tree.size) {
                let stamp = proof.covers(Stamp::of(&open_file(&place)?)?);
                self.store.keep_record(&tree.verity, &stamp, Durability::Cached);
            }
        }
        let index = proof.covers(index);
        self.store.keep_index(&index)?;
        self.store.note_added(index.trees().map(|tree| tree.size).sum());
        drop(adding);
        Ok(index)
    }

    /// Whether the same content is an object already, and proved: then that one stays, with its cache
    /// in memory and everybody who has it open.
    fn has_equal_object(&self, tree: &Verified<FileTree>) -> bool {
        has_record(tree.size) && self.store.object(tree).is_some_and(|object| object.whole().is_some())
    }
}

impl Store {
    /// Brings the large objects of a layer to the disk and notes that they are there, so that they
    /// need no second proof after the machine was started again. Slow: not for the way to a reader.
    pub fn make_durable(&self, index: &Verified<Index>) -> io::Result<()> {
        for entry in 0..index.entries().len() as u32 {
            let Some(tree) = index.part(|index| index.tree(entry)).filter(|tree| has_record(tree.size)) else {
                continue;
            };
            self.settle(&tree)?;
        }
        Ok(())
    }

    /// The same for one object. Where the kernel can check it by itself from now on, it will.
    pub fn settle(&self, tree: &Verified<FileTree>) -> io::Result<()> {
        sync_object(&self.object_path(&tree.verity))?;
        let Some(object) = self.object(tree).filter(|object| object.whole().is_some()) else { return Ok(()) };
        let stamp = object.rename(|file| {
            let _unsealed_where_that_is_not_possible = seal(file);
            Ok(())
        })?;
        if let Some(stamp) = stamp {
            self.keep_record(&tree.verity, &stamp, Durability::OnDisk);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.folder);
    }
}

impl Staged {
    /// Appends bytes. A run of zeros becomes a hole: a layer that opens to gigabytes of nothing costs
    /// no disk.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !is_zero(bytes) {
            self.file.write_all_at(bytes, self.len)?;
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file at the bytes that were appended.
    pub fn finish(self) -> io::Result<()> {
        // A hole at the end is not there until the file is made that long.
        if self.file.metadata()?.len() != self.len {
            self.file.set_len(self.len)?;
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.len() >= 4096 && bytes[0] == 0 && bytes.chunks(64).all(|chunk| chunk.iter().all(|&b| b == 0))
}
