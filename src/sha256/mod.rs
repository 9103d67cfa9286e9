//! SHA-256 (FIPS 180-4) of one stream, and of two at the price of one.
//!
//! On a CPU with SHA instructions one stream is held up by how long each instruction takes, not by how
//! many the CPU can have in work: it does a second stream beside the first in the same time. So a
//! layer's flat digest and the leaves of its files' fs-verity trees, which need the same bytes, are
//! computed together, and so are two leaves of a unit. Elsewhere the work is done by `sha2`, one stream
//! after the other, with the same result.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

use sha2::block_api::compress256;

/// Without optimisation each of the CPU's instructions is a call, and `sha2`, which is optimised in every
/// build, is by far the faster.
#[cfg(target_arch = "x86_64")]
const OPTIMISED: bool = !cfg!(debug_assertions);

/// Bytes that are hashed at once.
const BLOCK: usize = 64;

/// The value before the first block (FIPS 180-4, 5.3.3).
const START: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// Computes the hash of bytes that arrive in pieces.
#[derive(Clone)]
pub struct Sha256 {
    state: [u32; 8],
    /// Bytes so far.
    len: u64,
    /// The block that is being filled; `len` says how far it is.
    tail: [u8; BLOCK],
}

impl Sha256 {
    /// Starts at the first byte.
    pub fn new() -> Self {
        Self { state: START, len: 0, tail: [0; BLOCK] }
    }

    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> [u8; 32] {
        let mut hasher = Self::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let rest = self.fill(bytes);
        let (blocks, rest) = rest.as_chunks();
        compress256(&mut self.state, blocks);
        self.len += (blocks.len() * BLOCK) as u64;
        self.keep(rest);
    }

    /// Takes the next bytes of both: `first` and `second` hash the same bytes from here on.
    ///
    /// That costs as much as one of them where both stand at the same place in a block, and twice as
    /// much elsewhere.
    pub fn update_both(first: &mut Self, second: &mut Self, bytes: &[u8]) {
        if first.filled() != second.filled() {
            first.update(bytes);
            return second.update(bytes);
        }
        second.fill(bytes);
        let (blocks, rest) = first.fill(bytes).as_chunks();
        compress_same(&mut first.state, &mut second.state, blocks);
        for hasher in [first, second] {
            hasher.len += (blocks.len() * BLOCK) as u64;
            hasher.keep(rest);
        }
    }

    /// The hash of all bytes taken.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.len.wrapping_mul(8);
        // FIPS 180-4, 5.1.1: a one, zeros, and the length in bits at the end of a block.
        let zeros = (2 * BLOCK - 9 - self.filled()) % BLOCK;
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        padding[1 + zeros..9 + zeros].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..9 + zeros]);
        let mut hash = [0; 32];
        for (place, word) in hash.chunks_exact_mut(4).zip(self.state) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        hash
    }

    /// How much of the current block is there.
    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes the current block with the head of `bytes` and returns the rest.
    fn fill<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        if self.filled() == 0 {
            return bytes;
        }
        let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled()));
        self.keep(head);
        if self.filled() == 0 {
            compress256(&mut self.state, &[self.tail]);
        }
        rest
    }

    /// Puts bytes into the current block, where there is room for them.
    fn keep(&mut self, bytes: &[u8]) {
        let filled = self.filled();
        self.tail[filled..filled + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u64;
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sha256").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The hashes of two messages of the same length, at the price of one.
pub fn of_two(first: &[u8], second: &[u8]) -> [[u8; 32]; 2] {
    debug_assert_eq!(first.len(), second.len());
    let (mut a, mut b) = (Sha256::new(), Sha256::new());
    let ((blocks_a, rest_a), (blocks_b, rest_b)) = (first.as_chunks(), second.as_chunks());
    compress_two(&mut a.state, &mut b.state, blocks_a, blocks_b);
    for (hasher, blocks, rest) in [(&mut a, blocks_a, rest_a), (&mut b, blocks_b, rest_b)] {
        hasher.len = (blocks.len() * BLOCK) as u64;
        hasher.keep(rest);
    }
    [a.finish(), b.finish()]
}

/// Two states, the same blocks.
fn compress_same(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    if OPTIMISED && x86::is_supported() {
        // SAFETY: the CPU has the instructions.
        return unsafe { x86::compress_same(a, b, blocks) };
    }
    compress256(a, blocks);
    compress256(b, blocks);
}

/// Two states, each with its blocks, of which there are equally many.
fn compress_two(a: &mut [u32; 8], b: &mut [u32; 8], blocks_a: &[[u8; BLOCK]], blocks_b: &[[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    if OPTIMISED && x86::is_supported() {
        // SAFETY: the CPU has the instructions.
        return unsafe { x86::compress_two(a, b, blocks_a, blocks_b) };
    }
    compress256(a, blocks_a);
    compress256(b, blocks_b);
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;

    fn expected(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn agrees_with_sha2_at_every_length_and_cut() {
        let bytes = pattern(300);
        for len in 0..bytes.len() {
            assert_eq!(Sha256::of(&bytes[..len]), expected(&bytes[..len]), "{len} bytes");
            let mut hasher = Sha256::new();
            hasher.update(&bytes[..len]);
            hasher.update(&bytes[len..]);
            assert_eq!(hasher.finish(), expected(&bytes), "cut at {len}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_instructions_compute_what_sha2_does() {
        if !x86::is_supported() {
            return println!("skipped: this CPU has no SHA instructions");
        }
        let bytes = pattern(64 * BLOCK);
        let (blocks, _) = bytes.as_chunks();
        let (ahead, behind) = blocks.split_at(32);
        let after = |start: [u32; 8], blocks| {
            let mut state = start;
            compress256(&mut state, blocks);
            state
        };
        let other = after(START, ahead);
        let (mut a, mut b) = (START, other);
        // SAFETY: the CPU has the instructions.
        unsafe { x86::compress_same(&mut a, &mut b, behind) };
        assert_eq!([a, b], [after(START, behind), after(other, behind)]);
        let (mut a, mut b) = (START, other);
        // SAFETY: as above.
        unsafe { x86::compress_two(&mut a, &mut b, ahead, behind) };
        assert_eq!([a, b], [other, after(other, behind)]);
    }

    #[test]
    fn two_at_once_are_what_each_is_alone() {
        let bytes = pattern(1000);
        for ahead in 0..130 {
            for len in [0, 1, 63, 64, 65, 128, 500, 1000 - ahead] {
                let (mut first, mut second) = (Sha256::new(), Sha256::new());
                first.update(&bytes[..ahead]);
                let both = &bytes[ahead..ahead + len];
                Sha256::update_both(&mut first, &mut second, both);
                assert_eq!(first.finish(), expected(&bytes[..ahead + len]), "{ahead} and {len} bytes");
                assert_eq!(second.finish(), expected(both), "{len} bytes behind {ahead}");
            }
        }
        for len in 0..500 {
            let (a, b) = (&bytes[..len], &bytes[500..500 + len]);
            assert_eq!(of_two(a, b), [expected(a), expected(b)], "{len} bytes each");
        }
    }
}
