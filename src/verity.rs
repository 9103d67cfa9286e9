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
//! This module computes and compares nothing against anything: proofs are made in `verify`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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
        Self(Sha256::digest(descriptor).into())
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
    /// Leaf hashes of the unit that is being filled.
    leaves: Vec<Hash>,
    /// The block that is being filled, in a file that arrives in odd pieces.
    block: Vec<u8>,
    units: Vec<Hash>,
}

impl TreeBuilder {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if !self.block.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(head);
            bytes = rest;
            if self.block.len() < BLOCK {
                return;
            }
            let leaf = block_hash(&self.block);
            self.block.clear();
            self.push(leaf);
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.push(block_hash(block));
        }
        self.block.extend_from_slice(blocks.remainder());
    }

    fn push(&mut self, leaf: Hash) {
        self.leaves.push(leaf);
        if self.leaves.len() == UNIT as usize / BLOCK {
            self.close_unit();
        }
    }

    fn close_unit(&mut self) {
        let mut hash_block = [0u8; BLOCK];
        for (place, leaf) in hash_block.chunks_exact_mut(32).zip(&self.leaves) {
            place.copy_from_slice(leaf);
        }
        let is_only_block = self.units.is_empty() && self.leaves.len() == 1;
        let unit = if is_only_block { self.leaves[0] } else { Sha256::digest(hash_block).into() };
        self.units.push(unit);
        self.leaves.clear();
    }

    /// The tree, after the last byte.
    pub fn finish(mut self) -> FileTree {
        if !self.block.is_empty() {
            let leaf = block_hash(&self.block);
            self.push(leaf);
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
    let mut hash_block = [0u8; BLOCK];
    for (leaf, block) in hash_block.chunks_exact_mut(32).zip(data.chunks(BLOCK)) {
        leaf.copy_from_slice(&block_hash(block));
    }
    if file_size <= BLOCK as u64 {
        let mut leaf = Hash::default();
        leaf.copy_from_slice(&hash_block[..32]);
        return leaf;
    }
    Sha256::digest(hash_block).into()
}

fn block_hash(block: &[u8]) -> Hash {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut hasher = Sha256::new();
    hasher.update(block);
    hasher.update(&ZEROS[block.len()..]);
    hasher.finalize().into()
}

/// The root over the units. No units: the file is empty, and its root is all zeros.
fn root(units: &[Hash]) -> Hash {
    let mut level: Vec<Hash> = units.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(128)
            .map(|hashes| {
                let mut block = [0u8; BLOCK];
                for (place, hash) in block.chunks_exact_mut(32).zip(hashes) {
                    place.copy_from_slice(hash);
                }
                Sha256::digest(block).into()
            })
            .collect();
    }
    level.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(data: &[u8]) -> String {
        let size = data.len() as u64;
        let units: Vec<Hash> = data.chunks(UNIT as usize).map(|unit| unit_hash(unit, size)).collect();
        let tree = FileTree::new(size, units).unwrap();
        for piece in [1000, BLOCK, 100_000, UNIT as usize + 1] {
            let mut builder = TreeBuilder::default();
            data.chunks(piece).for_each(|bytes| builder.update(bytes));
            assert_eq!(builder.finish(), tree, "{} bytes in pieces of {piece}", data.len());
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
