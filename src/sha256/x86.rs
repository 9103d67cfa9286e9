//! Two streams of SHA-256 with the SHA extensions of x86 (Intel 64 Software Developer's Manual, volume 2,
//! SHA256RNDS2, SHA256MSG1, SHA256MSG2). The instructions keep a state as the words ABEF and CDGH.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x, _mm_setzero_si128,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
    _mm_storeu_si128,
};

/// The round constants (FIPS 180-4, 4.2.2), four rounds a row.
const K: [[u32; 4]; 16] = [
    [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5],
    [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
    [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3],
    [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
    [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc],
    [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
    [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7],
    [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
    [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13],
    [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
    [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3],
    [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
    [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5],
    [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
    [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208],
    [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
];

/// Whether this CPU has what the functions here need. The standard library asks it once.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Two states, the same blocks: one message schedule serves both.
#[target_feature(enable = "sha,ssse3,sse4.1")]
pub(super) fn compress_same(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; 64]]) {
    let (mut lane_a, mut lane_b) = (Lane::load(a), Lane::load(b));
    for block in blocks {
        let (before_a, before_b) = (lane_a, lane_b);
        for words in schedule(block) {
            Lane::rounds(&mut lane_a, &mut lane_b, words, words);
        }
        lane_a.add(before_a);
        lane_b.add(before_b);
    }
    lane_a.store(a);
    lane_b.store(b);
}

/// Two states, each with its blocks.
#[target_feature(enable = "sha,ssse3,sse4.1")]
pub(super) fn compress_two(a: &mut [u32; 8], b: &mut [u32; 8], blocks_a: &[[u8; 64]], blocks_b: &[[u8; 64]]) {
    let (mut lane_a, mut lane_b) = (Lane::load(a), Lane::load(b));
    for (block_a, block_b) in blocks_a.iter().zip(blocks_b) {
        let (before_a, before_b) = (lane_a, lane_b);
        for (words_a, words_b) in schedule(block_a).into_iter().zip(schedule(block_b)) {
            Lane::rounds(&mut lane_a, &mut lane_b, words_a, words_b);
        }
        lane_a.add(before_a);
        lane_b.add(before_b);
    }
    lane_a.store(a);
    lane_b.store(b);
}

/// A state as the instructions want it.
#[derive(Clone, Copy)]
struct Lane {
    abef: __m128i,
    cdgh: __m128i,
}

impl Lane {
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    #[inline]
    fn load(state: &[u32; 8]) -> Self {
        let (abcd, efgh) = state.split_at(4);
        // SAFETY: both halves are the 16 bytes that are read; no alignment is asked for.
        let (dcba, hgfe) = unsafe { (_mm_loadu_si128(abcd.as_ptr().cast()), _mm_loadu_si128(efgh.as_ptr().cast())) };
        let (cdab, efgh) = (_mm_shuffle_epi32(dcba, 0xB1), _mm_shuffle_epi32(hgfe, 0x1B));
        Self { abef: _mm_alignr_epi8(cdab, efgh, 8), cdgh: _mm_blend_epi16(efgh, cdab, 0xF0) }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    #[inline]
    fn store(self, state: &mut [u32; 8]) {
        let (feba, dchg) = (_mm_shuffle_epi32(self.abef, 0x1B), _mm_shuffle_epi32(self.cdgh, 0xB1));
        let (abcd, efgh) = state.split_at_mut(4);
        // SAFETY: both halves are the 16 bytes that are written; no alignment is asked for.
        unsafe {
            _mm_storeu_si128(abcd.as_mut_ptr().cast(), _mm_blend_epi16(feba, dchg, 0xF0));
            _mm_storeu_si128(efgh.as_mut_ptr().cast(), _mm_alignr_epi8(dchg, feba, 8));
        }
    }

    /// Four rounds of both lanes, so interleaved that neither waits for the other. The words come with
    /// their round constants.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    #[inline]
    fn rounds(a: &mut Self, b: &mut Self, words_a: __m128i, words_b: __m128i) {
        a.cdgh = _mm_sha256rnds2_epu32(a.cdgh, a.abef, words_a);
        b.cdgh = _mm_sha256rnds2_epu32(b.cdgh, b.abef, words_b);
        a.abef = _mm_sha256rnds2_epu32(a.abef, a.cdgh, _mm_shuffle_epi32(words_a, 0x0E));
        b.abef = _mm_sha256rnds2_epu32(b.abef, b.cdgh, _mm_shuffle_epi32(words_b, 0x0E));
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    #[inline]
    fn add(&mut self, other: Self) {
        self.abef = _mm_add_epi32(self.abef, other.abef);
        self.cdgh = _mm_add_epi32(self.cdgh, other.cdgh);
    }
}

/// The sixty-four words of the message schedule of a block, each with its round constant, four rounds a
/// vector. It does not depend on the state, so the CPU is at it while the rounds of the block before are
/// in work.
#[target_feature(enable = "sha,ssse3,sse4.1")]
#[inline]
fn schedule(block: &[u8; 64]) -> [__m128i; 16] {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut words = [_mm_setzero_si128(); 16];
    for (words, quarter) in words.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: a quarter is the 16 bytes that are read; no alignment is asked for.
        *words = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) }, big_endian);
    }
    for step in 4..16 {
        let [oldest, second, third, newest] = [4, 3, 2, 1].map(|age| words[step - age]);
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, second), _mm_alignr_epi8(newest, third, 4));
        words[step] = _mm_sha256msg2_epu32(sum, newest);
    }
    for (words, constants) in words.iter_mut().zip(&K) {
        // SAFETY: a row of the table is the 16 bytes that are read; no alignment is asked for.
        *words = _mm_add_epi32(*words, unsafe { _mm_loadu_si128(constants.as_ptr().cast()) });
    }
    words
}
