//! Objects in progress: sparse files that fill unit by unit, in any order, by any number of processes.
//!
//! Beside each lies a map of the units that have been written. It is a hint and never a proof: a unit is
//! proved when it is read, unless this very process has put it there and nobody touched the file since.
//! When every unit is there and proved, the file moves to `objects/` and is written no more.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::buffers::Buffers;
use crate::store::Store;
use crate::store::objects::Durability;
use crate::store::write_whole;
use crate::verify::UnitMismatch;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verify::Witness;
use crate::verify::WitnessError;
use crate::verity;
use crate::verity::FileTree;
use crate::verity::VerityDigest;

/// What the map has for a unit that has been written.
const WRITTEN: u8 = 1;

/// An object in progress, open for reading and writing.
#[derive(Debug)]
pub struct Partial {
    store: Arc<Store>,
    witness: Witness,
    map: File,
    /// The units that this process knows to have been written, a bit each: the map costs a system call.
    known: Box<[AtomicU64]>,
    /// The units that are not known to have been written.
    missing: AtomicU64,
    is_finished: AtomicBool,
}

impl Store {
    /// Opens the object in progress with that tree, making it if it is not there.
    pub fn partial(self: &Arc<Self>, tree: &Verified<FileTree>) -> io::Result<Partial> {
        let path = self.partial_path(&tree.verity);
        let file = match open_writable(&path, Missing::Fails) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), super::make_folder)?;
                open_writable(&path, Missing::IsMade)?
            }
            opened => opened?,
        };
        if file.metadata()?.len() != tree.size {
            file.set_len(tree.size)?;
        }
        let map = open_writable(&map_path(&path), Missing::IsMade)?;
        let units = verity::unit_count(tree.size);
        let known = (0..units.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let witness = Witness::new(file, tree.clone())?;
        let (missing, is_finished) = (AtomicU64::new(units), AtomicBool::new(false));
        Ok(Partial { store: Arc::clone(self), witness, map, known, missing, is_finished })
    }

    /// Whether there is an object in progress in that place. It says nothing about its content.
    pub fn has_partial(&self, verity: &VerityDigest) -> bool {
        fs::symlink_metadata(self.partial_path(verity)).is_ok()
    }

    /// How many bytes of an object in progress have been written, by its map.
    pub fn partial_bytes(&self, tree: &FileTree) -> u64 {
        let map = super::read_whole(&map_path(&self.partial_path(&tree.verity))).unwrap_or_default();
        let units = (0..verity::unit_count(tree.size)).zip(map).filter(|(_, byte)| *byte == WRITTEN);
        units.map(|(number, _)| tree.unit_range(number)).map(|range| range.end - range.start).sum()
    }

    /// Keeps a file of a single unit. Where it is there already it is replaced: it may be damaged.
    pub fn keep_small(&self, tree: &Verified<FileTree>, content: &Verified<Bytes>) -> io::Result<()> {
        let path = self.object_path(&tree.verity);
        match write_whole(&path, content) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), super::make_folder)?;
                write_whole(&path, content)
            }
            written => written,
        }
    }

    /// Removes an object in progress.
    pub(super) fn discard_partial(&self, verity: &VerityDigest) {
        let path = self.partial_path(verity);
        let _gone = fs::remove_file(map_path(&path));
        let _gone = fs::remove_file(path);
    }

    pub(super) fn partial_path(&self, verity: &VerityDigest) -> PathBuf {
        let hex = verity.hex();
        self.root.join("partial").join(&hex[..2]).join(hex)
    }
}

impl Partial {
    /// Whether a unit has been written, by whomever.
    pub fn has(&self, unit: u64) -> bool {
        if self.known[(unit / 64) as usize].load(Ordering::Acquire) & (1 << (unit % 64)) != 0 {
            return true;
        }
        let mut byte = [0];
        let written = self.map.read_at(&mut byte, unit).is_ok_and(|len| len == 1) && byte[0] == WRITTEN;
        if written {
            self.know(unit);
        }
        written
    }

    /// Reads `range`, all of whose units have been written.
    pub fn read(&self, range: Range<u64>, buffers: &Buffers) -> Result<Verified<Bytes>, WitnessError> {
        let read = self.witness.read(range.clone(), buffers);
        if read.is_err() {
            // Whichever unit it was: those that are good come back for the price of a fetch.
            (range.start / verity::UNIT..=(range.end - 1) / verity::UNIT).for_each(|unit| self.forget(unit));
        }
        read
    }

    /// Proves bytes as a unit and writes them. They are returned also where they could not be written.
    pub fn put(&self, unit: u64, bytes: Unverified) -> Result<(Verified<Bytes>, io::Result<()>), UnitMismatch> {
        let (bytes, written) = self.witness.put(unit, bytes)?;
        let noted = written.and_then(|()| self.map.write_all_at(&[WRITTEN], unit));
        if noted.is_ok() {
            self.know(unit);
        }
        Ok((bytes, noted))
    }

    /// Whether every unit has been written, as far as this process knows.
    pub fn is_complete(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// Learns what other processes have written.
    pub fn refresh(&self) {
        for unit in 0..verity::unit_count(self.witness.tree().size) {
            let _noted_if_it_has = self.has(unit);
        }
    }

    /// Proves every unit that has been written, and forgets those that are not what they should be.
    pub(super) fn verify(&self, buffers: &Buffers) -> Vec<WitnessError> {
        let units = 0..verity::unit_count(self.witness.tree().size);
        let check = |unit| {
            let error = self.witness.ensure(unit, buffers).err()?;
            self.forget(unit);
            Some(error)
        };
        units.filter(|unit| self.has(*unit)).filter_map(check).collect()
    }

    /// Turns a complete file into an object, after proof of what this process has not proved. Returns
    /// whether it is one now: a unit that was not what it should be is missing again. To be called once
    /// nobody reads from it here any more or with readers that keep it; it is written no more after this.
    pub fn finish(&self, buffers: &Buffers) -> io::Result<bool> {
        let tree = self.witness.tree();
        if self.is_finished.load(Ordering::Acquire) {
            return Ok(true);
        }
        if !self.is_complete() {
            return Ok(false);
        }
        for unit in 0..verity::unit_count(tree.size) {
            match self.witness.ensure(unit, buffers) {
                Ok(()) => {}
                Err(WitnessError::Io(error)) => return Err(error),
                Err(WitnessError::Mismatch(_)) => self.forget(unit),
            }
        }
        if !self.is_complete() {
            return Ok(false);
        }
        let adding = self.store.lock_adding()?;
        let place = self.store.object_path(&tree.verity);
        let own = self.store.partial_path(&tree.verity);
        if self.store.object(tree).is_some_and(|object| object.whole().is_some()) {
            self.store.discard_partial(&tree.verity);
        } else {
            place.parent().map_or(Ok(()), super::make_folder)?;
            let stamp = self.witness.rename(|file| {
                file.set_permissions(fs::Permissions::from_mode(0o400))?;
                fs::rename(&own, &place)
            })?;
            let _gone = fs::remove_file(map_path(&own));
            if let Some(stamp) = stamp {
                self.store.keep_record(&tree.verity, &stamp, Durability::Cached);
            }
        }
        drop(adding);
        self.is_finished.store(true, Ordering::Release);
        Ok(true)
    }

    fn know(&self, unit: u64) {
        let bit = 1 << (unit % 64);
        if self.known[(unit / 64) as usize].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.missing.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A unit that is not what it should be: it is fetched again.
    fn forget(&self, unit: u64) {
        let bit = 1 << (unit % 64);
        if self.known[(unit / 64) as usize].fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.missing.fetch_add(1, Ordering::AcqRel);
        }
        let _still_refused_by_its_proof = self.map.write_all_at(&[0], unit);
    }
}

fn map_path(path: &Path) -> PathBuf {
    path.with_added_extension("map")
}

/// What becomes of opening a file that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fails,
    IsMade,
}

fn open_writable(path: &Path, missing: Missing) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(missing == Missing::IsMade).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}
