//! The trust boundary: the only place where bytes become [`Verified`].
//!
//! Bytes from a disk or a wire are [`Unverified`], and nobody can look inside. They come out through a
//! check against a digest, against a unit of an fs-verity tree, or against this host's own key, and
//! what comes out says so by its type. The FUSE reply, the exporter and every parser take nothing else.
//!
//! This file has no child modules but its tests: a child could build a `Verified` by hand.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::buffers::{BUFFER, Buffers, WRITE};
use crate::digest::{Digest, Hasher};
use crate::verity::{self, FileTree, TreeBuilder, VerityDigest};

/// Bytes as they came off a disk or a wire. Nothing is known about them.
#[derive(Clone, Debug)]
#[must_use]
pub struct Unverified(Bytes);

/// Content that a hash chain proved. Immutable, and cheap to clone and slice.
///
/// Not `Default`, not `Deserialize`, no `From`: the ways in are the checks of this module.
#[derive(Clone, Debug)]
pub struct Verified<T>(T);

impl Unverified {
    /// Wraps what a source or a store read.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// How many bytes there are. A length is no content: it may be compared, never served.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts pieces together that came one after the other.
    pub fn join(pieces: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Vec::new();
        pieces.into_iter().for_each(|piece| whole.extend_from_slice(&piece.0));
        Self(whole.into())
    }

    /// The bytes of `range` out of pieces that came one after the other; `None` if there are not so many.
    pub fn cut(pieces: &[Self], range: &Range<u64>) -> Option<Self> {
        let mut at = 0;
        let mut found = Vec::new();
        for piece in pieces {
            let end = at + piece.0.len() as u64;
            let part = range.start.max(at)..range.end.min(end);
            if part.start < part.end {
                found.push(Self(piece.0.slice((part.start - at) as usize..(part.end - at) as usize)));
            }
            at = end;
        }
        match found.len() {
            _ if at < range.end => None,
            1 => found.pop(),
            _ => Some(Self::join(found)),
        }
    }

    /// The bytes before they are proved, for the two that must look ahead of the proof: the splitter,
    /// which writes into a staging area that nobody reads before the layer's digest has matched, and
    /// the lister, whose result is a listing and never content. The tests hold the list of callers.
    pub fn ahead_of_proof(&self) -> &Bytes {
        &self.0
    }

    /// Checks the bytes against the digest that something trusted names.
    pub fn verify(self, expected: &Digest) -> Result<Verified<Bytes>, DigestMismatch> {
        let mut hasher = expected.hasher();
        hasher.update(&self.0);
        same_digest(expected, hasher.finish()).map(|()| Verified(self.0))
    }

    /// Checks the bytes as unit `number` of a file whose tree is trusted.
    pub fn verify_unit(self, tree: &Verified<FileTree>, number: u64) -> Result<Verified<Bytes>, UnitMismatch> {
        let mismatch = |actual| UnitMismatch {
            file: tree.verity,
            unit: number,
            expected: tree.unit(number).map(hex::encode).unwrap_or_default(),
            actual,
        };
        let expected = tree.unit(number).ok_or_else(|| mismatch(String::new()))?;
        if self.0.len() as u64 != tree.unit_range(number).end - tree.unit_range(number).start {
            return Err(mismatch(format!("{} bytes", self.0.len())));
        }
        let actual = verity::unit_hash(&self.0, tree.size);
        if actual != *expected {
            return Err(mismatch(hex::encode(actual)));
        }
        Ok(Verified(self.0))
    }

    /// Checks that [`LocalKey::seal`] made these bytes for `purpose`, and takes the seal off.
    ///
    /// The purpose is part of what is authenticated, so one sealed file cannot stand in for another.
    pub fn unseal(self, key: &LocalKey, purpose: &str) -> Result<Verified<Bytes>, BrokenSeal> {
        let split = self.0.len().checked_sub(SEAL_LEN).ok_or(BrokenSeal)?;
        let mut mac = key.mac(purpose);
        mac.update(&self.0[..split]);
        mac.verify_slice(&self.0[split..]).map_err(|_| BrokenSeal)?;
        Ok(Verified(self.0.slice(..split)))
    }
}

impl Verified<Bytes> {
    /// No bytes, of which nothing can be wrong.
    pub fn nothing() -> Self {
        Self(Bytes::new())
    }

    /// A part of proved bytes, proved as they are. The range is cut to what is there.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = range.end.min(self.0.len());
        Self(self.0.slice(range.start.min(end)..end))
    }

    /// Proved bytes that follow each other, as one; at most a buffer.
    pub fn join(parts: &[Self], buffers: &Buffers) -> io::Result<Self> {
        if let [one] = parts {
            return Ok(one.clone());
        }
        let mut buffer = buffers.take()?;
        let mut len = 0;
        for part in parts {
            let place = buffer.get_mut(len..len + part.len()).ok_or(io::ErrorKind::InvalidInput)?;
            place.copy_from_slice(&part.0);
            len += part.len();
        }
        buffer.truncate(len);
        Ok(Self(buffer.freeze()))
    }
}

impl<T> Verified<T> {
    /// What the proved content says, read by the type's only parser.
    pub fn parse<U: FromVerified<T>>(&self) -> Result<Verified<U>, U::Error> {
        U::from_verified(&self.0).map(Verified)
    }

    /// A part of the proved content, proved as the whole is.
    pub fn part<U: Clone>(&self, part: impl for<'a> FnOnce(&'a T) -> Option<&'a U>) -> Option<Verified<U>> {
        part(&self.0).cloned().map(Verified)
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Types that are read out of proved content. An implementation looks at nothing but its argument;
/// the tests hold the list of them.
pub trait FromVerified<T>: Sized {
    /// What can be wrong with content whose digest is right.
    type Error;

    /// Reads the type out of the content.
    fn from_verified(content: &T) -> Result<Self, Self::Error>;
}

/// Checks a layer against its flat digest while it streams by.
#[derive(Debug)]
pub struct LayerCheck {
    expected: Digest,
    hasher: Hasher,
}

impl LayerCheck {
    /// Starts at the first byte of the layer that `expected` names.
    pub fn new(expected: Digest) -> Self {
        Self { hasher: expected.hasher(), expected }
    }

    /// Takes the next bytes of the layer, in order.
    pub fn update(&mut self, piece: &Unverified) {
        self.hasher.update(&piece.0);
    }

    /// Takes the next bytes of the layer, at which somebody has looked ahead. Where they are a file's, its
    /// tree is made of the very same bytes, for little more than the price of the layer's digest.
    pub fn update_with(&mut self, bytes: &[u8], tree: Option<&mut TreeBuilder>) {
        match tree {
            Some(tree) => tree.update_beside(&mut self.hasher, bytes),
            None => self.hasher.update(bytes),
        }
    }

    /// Compares, after the last byte.
    pub fn finish(self) -> Result<LayerProof, DigestMismatch> {
        same_digest(&self.expected, self.hasher.finish()).map(|()| LayerProof { layer: self.expected })
    }
}

/// Says that every byte of a layer has been seen and its digest was right. What was computed from the
/// same bytes on the way is as proved as the layer.
#[derive(Debug)]
pub struct LayerProof {
    layer: Digest,
}

impl LayerProof {
    /// The layer that was proved.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// Marks what was computed from exactly the bytes that this proof is about.
    pub fn covers<T>(&self, computed: T) -> Verified<T> {
        Verified(computed)
    }
}

fn same_digest(expected: &Digest, actual: Digest) -> Result<(), DigestMismatch> {
    if actual == *expected { Ok(()) } else { Err(DigestMismatch { expected: *expected, actual }) }
}

/// A file on the local disk, proved unit by unit, and read only where it is proved.
///
/// What was proved stays proved as long as the file's [`Stamp`] does: a write changes the ctime, and
/// the stamp is looked at again after every read. Anything else is proved again before its first use.
/// Only what is written through the witness itself, which is proved, may change the stamp.
#[derive(Debug)]
pub struct Witness {
    file: File,
    tree: Verified<FileTree>,
    watch: Mutex<Watch>,
    /// One bit a unit.
    proved: Box<[AtomicU64]>,
}

/// The stamp under which the proved units were proved, and how often another one was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    stamp: Stamp,
    touched: u64,
}

/// What tells whether a file was touched since it was proved. The kernel sets the ctime; nobody else can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    ctime: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file as it is now.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { inode: metadata.ino(), size: metadata.len(), ctime: (metadata.ctime(), metadata.ctime_nsec()) })
    }
}

impl Witness {
    /// Takes a file of which nothing is proved yet.
    pub fn new(file: File, tree: Verified<FileTree>) -> io::Result<Self> {
        let watch = Watch { stamp: Stamp::of(&file)?, touched: 0 };
        let words = verity::unit_count(tree.size).div_ceil(64) as usize;
        let proved = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { file, tree, watch: Mutex::new(watch), proved })
    }

    /// Takes a file that was proved whole when it had this stamp. If it has another one now, nothing
    /// of it is proved.
    pub fn with_record(file: File, tree: Verified<FileTree>, proved_at: &Verified<Stamp>) -> io::Result<Self> {
        let witness = Self::new(file, tree)?;
        if witness.watch().stamp == **proved_at && proved_at.size == witness.tree.size {
            witness.proved.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        }
        Ok(witness)
    }

    /// The tree that the file is proved against.
    pub fn tree(&self) -> &Verified<FileTree> {
        &self.tree
    }

    /// The stamp under which every unit was proved, if every unit is.
    pub fn whole(&self) -> Option<Verified<Stamp>> {
        let stamp = self.watch().stamp;
        let whole = (0..verity::unit_count(self.tree.size)).all(|unit| self.is_proved(unit));
        (whole && stamp.size == self.tree.size).then_some(Verified(stamp))
    }

    /// Whether every unit is proved, nobody has touched the file since, and its mode lets nobody write to it.
    pub fn is_whole_and_untouched(&self) -> bool {
        let read_only = || self.file.metadata().is_ok_and(|metadata| metadata.mode() & 0o222 == 0);
        self.whole().is_some_and(|stamp| Stamp::of(&self.file).is_ok_and(|now| now == *stamp)) && read_only()
    }

    /// The open file, for the kernel to read: what is read here comes from [`Witness::read`] alone.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Reads `range`, which must lie inside the file and be at most one buffer long: exactly its bytes.
    pub fn read(&self, range: Range<u64>, buffers: &Buffers) -> Result<Verified<Bytes>, WitnessError> {
        if range.start >= range.end || range.end > self.tree.size || range.end - range.start > BUFFER as u64 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let units = range.start / verity::UNIT..=(range.end - 1) / verity::UNIT;
        let before = self.look()?;
        if units.clone().all(|unit| self.is_proved(unit)) {
            let bytes = self.pread(range.clone(), buffers)?;
            if self.look()?.touched == before.touched {
                return Ok(Verified(bytes));
            }
        }
        let mut parts = Vec::new();
        for number in units {
            let unit = self.tree.unit_range(number);
            let part = range.start.max(unit.start) - unit.start..range.end.min(unit.end) - unit.start;
            parts.push(self.prove(number, buffers)?.slice(part.start as usize..part.end as usize));
        }
        Ok(Verified::join(&parts, buffers)?)
    }

    /// Proves every unit that is not proved yet.
    pub fn prove_whole(&self, buffers: &Buffers) -> Result<(), WitnessError> {
        (0..verity::unit_count(self.tree.size)).try_for_each(|unit| self.ensure(unit, buffers))
    }

    /// Proves unit `number` unless it is proved.
    pub fn ensure(&self, number: u64, buffers: &Buffers) -> Result<(), WitnessError> {
        self.look()?;
        if self.is_proved(number) { Ok(()) } else { self.prove(number, buffers).map(drop) }
    }

    /// Reads unit `number` and proves it.
    fn prove(&self, number: u64, buffers: &Buffers) -> Result<Verified<Bytes>, WitnessError> {
        let before = self.look()?;
        let unit = Unverified(self.pread(self.tree.unit_range(number), buffers)?);
        let unit = unit.verify_unit(&self.tree, number)?;
        let watch = self.watch();
        if watch.touched == before.touched && Stamp::of(&self.file)? == watch.stamp {
            self.mark(number);
        }
        Ok(unit)
    }

    /// Proves bytes as unit `number` and writes them into its place; the file was opened for writing.
    /// Whatever else has touched the file meanwhile is noticed here. Bytes that are proved are returned
    /// also where they could not be written.
    pub fn put(&self, number: u64, unit: Unverified) -> Result<(Verified<Bytes>, io::Result<()>), UnitMismatch> {
        let unit = unit.verify_unit(&self.tree, number)?;
        let mut watch = self.watch();
        let written = self.compare(&mut watch).and_then(|()| {
            let mut at = self.tree.unit_range(number).start;
            for bytes in unit.chunks(WRITE) {
                self.file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
            }
            watch.stamp = Stamp::of(&self.file)?;
            self.mark(number);
            Ok(())
        });
        drop(watch);
        Ok((unit, written))
    }

    /// Does something to the file that changes its stamp and not its content, such as giving it another
    /// name; returns the stamp after it if every unit is proved.
    pub fn rename(&self, change: impl FnOnce(&File) -> io::Result<()>) -> io::Result<Option<Verified<Stamp>>> {
        let mut watch = self.watch();
        self.compare(&mut watch)?;
        change(&self.file)?;
        watch.stamp = Stamp::of(&self.file)?;
        drop(watch);
        Ok(self.whole())
    }

    fn pread(&self, range: Range<u64>, buffers: &Buffers) -> io::Result<Bytes> {
        let mut buffer = buffers.take()?;
        buffer.truncate((range.end - range.start) as usize);
        self.file.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer.freeze())
    }

    fn is_proved(&self, unit: u64) -> bool {
        self.proved[(unit / 64) as usize].load(Ordering::Acquire) & (1 << (unit % 64)) != 0
    }

    fn mark(&self, unit: u64) {
        self.proved[(unit / 64) as usize].fetch_or(1 << (unit % 64), Ordering::AcqRel);
    }

    /// Looks whether the file was touched.
    fn look(&self) -> io::Result<Watch> {
        let mut watch = self.watch();
        self.compare(&mut watch)?;
        Ok(*watch)
    }

    /// If the file was touched nothing is proved any more, and proofs count from now. Unless it was sealed
    /// by the digest that it is proved against: then the kernel lets nobody write to it.
    fn compare(&self, watch: &mut Watch) -> io::Result<()> {
        let now = Stamp::of(&self.file)?;
        let is_sealed = || verity::measured(self.file.as_fd()).is_ok_and(|digest| digest == self.tree.verity);
        if now != watch.stamp && is_sealed() {
            self.proved.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
            watch.stamp = now;
        } else if now != watch.stamp {
            self.proved.iter().for_each(|word| word.store(0, Ordering::Release));
            *watch = Watch { stamp: now, touched: watch.touched + 1 };
        }
        Ok(())
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that only this host's user can read: it authenticates what kitfs wrote for itself.
pub struct LocalKey([u8; 32]);

/// Bytes that a seal adds.
const SEAL_LEN: usize = 32;

impl LocalKey {
    /// Wraps key material.
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Seals content for `purpose`; [`Unverified::unseal`] takes the seal off again.
    pub fn seal(&self, content: &[u8], purpose: &str) -> Vec<u8> {
        let mut mac = self.mac(purpose);
        mac.update(content);
        let mut sealed = content.to_vec();
        sealed.extend_from_slice(&mac.finalize().into_bytes());
        sealed
    }

    /// A hash of `content` for `purpose` that says nothing to whoever does not have this key.
    pub fn hash(&self, content: &[u8], purpose: &str) -> [u8; 32] {
        let mut mac = self.mac(purpose);
        mac.update(content);
        mac.finalize().into_bytes().into()
    }

    fn mac(&self, purpose: &str) -> Hmac<Sha256> {
        let mut block = [0u8; 64];
        block[..32].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(&(purpose.len() as u64).to_le_bytes());
        mac.update(purpose.as_bytes());
        mac
    }
}

impl std::fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalKey")
    }
}

/// Content whose digest is not the one that was promised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content does not match its digest: expected {expected}, got {actual}")]
pub struct DigestMismatch {
    /// What something trusted promised.
    pub expected: Digest,
    /// What was there.
    pub actual: Digest,
}

/// A unit of a file that is not what the file's tree says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unit {unit} of file {file} does not match: expected {expected}, got {actual}")]
pub struct UnitMismatch {
    /// The digest of the file.
    pub file: VerityDigest,
    /// Which unit of it, counted from 0.
    pub unit: u64,
    /// The unit's hash in the tree, in hexadecimal.
    pub expected: String,
    /// What the bytes hash to, in hexadecimal.
    pub actual: String,
}

/// Why a file on the local disk could not be read as proved bytes.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The disk failed, or the file is shorter than it was.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file does not hold what it should.
    #[error(transparent)]
    Mismatch(#[from] UnitMismatch),
}

/// A local file that this host's key did not seal: damaged, swapped, or written under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seal of a local file is broken")]
pub struct BrokenSeal;
