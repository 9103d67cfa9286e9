//! The Merkle tree of fs-verity, computed in user space: SHA-256, 4 KiB blocks, no salt.
//!
//! Source: the kernel's `Documentation/filesystems/fsverity.rst`, sections "Merkle tree" and
//! "fs-verity descriptor". A file's blocks are hashed (the last one padded with zeros), 128 hashes
//! fill one hash block, hash blocks are hashed in turn, until one hash is left: the root. The digest
//! of the file is the SHA-256 of a descriptor that holds the root and the size.
//!
//! kitfs keeps one level of the tree: the hashes of the level-1 hash blocks. Each covers a [`UNIT`]
//! of 512 KiB, which is therefore the smallest part of a file that can be proved alone. Everything
//! below is computed from the data, everything above from the units.
//!
//! This module computes and compares nothing against anything: proofs are made in `verify`. The one question
//! to the kernel is what it has measured itself.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Hasher;
use crate::sha256::{self, Sha256};

/// Bytes in a data block and in a hash block.
pub const BLOCK: usize = 4096;

/// Bytes that one level-1 hash block covers: 128 blocks, the unit of proof.
pub const UNIT: u64 = 128 * BLOCK as u64;

/// One SHA-256 value inside a tree.
pub type Hash = [u8; 32];

/// The fs-verity digest of a file: what `fsverity digest` prints, and the name of its object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VerityDigest(pub Hash);

impl VerityDigest {
    /// The digest of a file of `size` bytes whose tree has these units.
    pub fn of(size: u64, units: &[Hash]) -> Self {
        let mut descriptor = [0u8; 256];
        descriptor[0] = 1; // version
        descriptor[1] = 1; // FS_VERITY_HASH_ALG_SHA256
        descriptor[2] = 12; // log2 of the block size
        descriptor[8..16].copy_from_slice(&size.to_le_bytes());
        descriptor[16..48].copy_from_slice(&root(units));
        Self(Sha256::of(&descriptor))
    }

    /// The hash value in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for VerityDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for VerityDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verity:{}", self.hex())
    }
}

impl FromStr for VerityDigest {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut hash = Hash::default();
        hex::decode_to_slice(text, &mut hash)?;
        Ok(Self(hash))
    }
}

/// The digest of a file that is sealed with fs-verity: the kernel checks every page that it reads of it.
/// ENODATA where it is not, ENOTTY or EOPNOTSUPP where kernel or file system have no fs-verity.
pub fn measured(file: BorrowedFd<'_>) -> io::Result<VerityDigest> {
    /// `FS_IOC_MEASURE_VERITY`: `_IOWR('f', 134, struct fsverity_digest)`, include/uapi/linux/fsverity.h.
    const MEASURE: libc::c_ulong = 0xc004_6686;
    /// `FS_VERITY_HASH_ALG_SHA256`.
    const SHA256: u16 = 1;
    #[repr(C)]
    struct Measured {
        algorithm: u16,
        size: u16,
        digest: Hash,
    }
    let mut measured = Measured { algorithm: 0, size: 32, digest: Hash::default() };
    // SAFETY: the kernel writes at most `size` bytes behind the two numbers, which is the room that there is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), MEASURE as _, &mut measured) };
    match (result, measured.algorithm, measured.size) {
        (0, SHA256, 32) => Ok(VerityDigest(measured.digest)),
        (0, ..) => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The units of one file, and with them its digest: what a range of the file is proved against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTree {
    /// Bytes in the file.
    pub size: u64,
    /// The digest that size and units make.
    pub verity: VerityDigest,
    units: Arc<[Hash]>,
}

impl FileTree {
    /// The tree over the units of a file of `size` bytes; `None` where their number does not fit.
    pub fn new(size: u64, units: impl Into<Arc<[Hash]>>) -> Option<Self> {
        let units = units.into();
        (units.len() as u64 == unit_count(size)).then(|| Self { size, verity: VerityDigest::of(size, &units), units })
    }

    /// All units, in order.
    pub fn units(&self) -> &[Hash] {
        &self.units
    }

    /// The hash of unit `number`, if the file has it.
    pub fn unit(&self, number: u64) -> Option<&Hash> {
        self.units.get(usize::try_from(number).ok()?)
    }

    /// Where unit `number` lies in the file.
    pub fn unit_range(&self, number: u64) -> Range<u64> {
        let start = number.saturating_mul(UNIT).min(self.size);
        start..start.saturating_add(UNIT).min(self.size)
    }
}

/// Computes the tree of a file whose bytes arrive in pieces of any size, in order.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    size: u64,
    /// The block that is being hashed; `size` says how far it is.
    block: Sha256,
    /// Leaf hashes of the unit that is being filled.
    leaves: Vec<Hash>,
    units: Vec<Hash>,
}

impl TreeBuilder {
    /// Takes the next bytes of the file, which are also the next that `flat` takes: the two together cost
    /// about as much as one of them.
    pub fn update_beside(&mut self, flat: &mut Hasher, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled()));
            flat.update_beside(&mut self.block, head);
            self.size += head.len() as u64;
            if self.filled() == 0 {
                self.close_block();
            }
            bytes = rest;
        }
    }

    /// Bytes that it has taken.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How much of the current block is there.
    fn filled(&self) -> usize {
        (self.size % BLOCK as u64) as usize
    }

    fn close_block(&mut self) {
        self.leaves.push(std::mem::take(&mut self.block).finish());
        if self.leaves.len() == UNIT as usize / BLOCK {
            self.close_unit();
        }
    }

    fn close_unit(&mut self) {
        let is_only_block = self.units.is_empty() && self.leaves.len() == 1;
        self.units.push(if is_only_block { self.leaves[0] } else { hash_block(&self.leaves) });
        self.leaves.clear();
    }

    /// The tree, after the last byte.
    pub fn finish(mut self) -> FileTree {
        if self.filled() != 0 {
            self.block.update(&ZEROS[self.filled()..]);
            self.close_block();
        }
        if !self.leaves.is_empty() {
            self.close_unit();
        }
        let verity = VerityDigest::of(self.size, &self.units);
        FileTree { size: self.size, verity, units: self.units.into() }
    }
}

/// How many units a file of `size` bytes has.
pub fn unit_count(size: u64) -> u64 {
    size.div_ceil(UNIT)
}

/// The hash of one unit of a file of `file_size` bytes: `data` is the whole unit, which only the last
/// one of a file may leave short.
///
/// In a file of one block there is no hash block: the hash of the block itself stands for the unit,
/// as it stands for the root in the kernel's tree.
pub fn unit_hash(data: &[u8], file_size: u64) -> Hash {
    let (whole, last) = data.as_chunks::<BLOCK>();
    let mut leaves = Vec::with_capacity(UNIT as usize / BLOCK);
    let (pairs, single) = whole.as_chunks::<2>();
    for [first, second] in pairs {
        leaves.extend(sha256::of_two(first, second));
    }
    leaves.extend(single.iter().map(|block| Sha256::of(block)));
    if !last.is_empty() {
        let mut hasher = Sha256::new();
        hasher.update(last);
        hasher.update(&ZEROS[last.len()..]);
        leaves.push(hasher.finish());
    }
    match leaves[..] {
        [only] if file_size <= BLOCK as u64 => only,
        _ => hash_block(&leaves),
    }
}

/// What pads the last block of a file.
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The hash of a hash block: at most 128 hashes, and zeros.
fn hash_block(hashes: &[Hash]) -> Hash {
    let hashes = hashes.as_flattened();
    let mut hasher = Sha256::new();
    hasher.update(hashes);
    hasher.update(&ZEROS[hashes.len()..]);
    hasher.finish()
}

/// The root over the units. No units: the file is empty, and its root is all zeros.
fn root(units: &[Hash]) -> Hash {
    let mut level: Vec<Hash> = units.to_vec();
    while level.len() > 1 {
        level = level.chunks(BLOCK / 32).map(hash_block).collect();
    }
    level.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn digest(data: &[u8]) -> String {
        let size = data.len() as u64;
        let units: Vec<Hash> = data.chunks(UNIT as usize).map(|unit| unit_hash(unit, size)).collect();
        let tree = FileTree::new(size, units).unwrap();
        for piece in [1000, BLOCK, 100_000, UNIT as usize + 1] {
            let mut builder = TreeBuilder::default();
            let mut flat = Digest::of(b"").hasher();
            // What lies ahead of the file in its layer.
            flat.update(&[1; 512]);
            data.chunks(piece).for_each(|bytes| builder.update_beside(&mut flat, bytes));
            assert_eq!(builder.finish(), tree, "{} bytes in pieces of {piece}", data.len());
            assert_eq!(flat.finish(), Digest::of(&[&[1; 512], data].concat()));
        }
        tree.verity.to_string()
    }

    /// Computed with `fsverity digest` of fsverity-utils 1.5.
    #[test]
    fn agrees_with_fsverity_utils() {
        let pattern = |len: usize| (0..len).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>();
        for (len, expected) in [
            (0, "sha256:3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
            (1, "sha256:b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551"),
            (4095, "sha256:841acbc4d3c22ad5f67a748aab2d3e5a4d21de6879a73cb6ec235049dd94dc40"),
            (4096, "sha256:2b41866549a2f4f4a80ebbb30aa8d8436ce675229143bf493d8dc6fce99081a0"),
            (4097, "sha256:2492558cab5973a8b471d3a517cf3fc8ae04bffa6083e7d443e7839b65d94651"),
            (8192, "sha256:19ad5b00837397618aab333afcc2a355332cd641eb2b99fcbd46a1d415d231fd"),
            (524288, "sha256:6feaceaea1f345a5da49693b409602e6b1878a9484241670db45aef27aaec575"),
            (524289, "sha256:64272326908c4b8fdd9de8dd28615fcb25d5bb0fca2a9949d29305f6ce54ac6c"),
            (1572881, "sha256:298767c8831e8b13087961314b83ed6bc6aa28cf37c7c3d4040f10c688f7d8ac"),
            (67113864, "sha256:87015dfa976849e42332619e8e1937a1caf7c91b9e98cb901a0d9b39921bc2df"),
        ] {
            assert_eq!(digest(&pattern(len)), expected, "{len} bytes");
        }
    }
}
