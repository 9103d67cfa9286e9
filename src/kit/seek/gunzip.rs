//! gzip (RFC 1952), member by member, and deflate (RFC 1951) from the middle of a member.
//!
//! A decoder has no way to be put onto a bit in the middle of a byte. Instead it is given blocks that say nothing and
//! end on that bit: an empty block in the fixed code has ten bits, and one with a code of its own has
//! ninety-three. The bits of the real block follow them.

use std::fmt;
use std::io;

use zlib_rs::Inflate;
use zlib_rs::InflateFlush;
use zlib_rs::Status;

use crate::kit::seek::Progress;
use crate::kit::seek::SeekPoint;
use crate::kit::seek::WINDOW;
use crate::kit::seek::history::History;
use crate::kit::seek::invalid;

/// What `zlib` calls windows of 32 KiB, without a header and in the format of gzip.
const RAW: u8 = 15;
const GZIP: u8 = 15 + 16;

/// Bytes behind the deflate stream of a member: its checksum and its length (RFC 1952, 2.3.1).
const TRAILER: usize = 8;

/// Decompresses members that follow each other.
pub(super) struct Gunzip {
    inflate: Inflate,
    place: Place,
    /// Notes points; a decoder that started in the middle does not.
    history: Option<History>,
}

/// Where in a member a decoder is.
enum Place {
    /// In a member from its header on.
    Member,
    /// Before the first byte of a member that it joins in the middle, whose low bits up to this one belong to
    /// what comes before.
    Joining { bit: u8 },
    /// In such a member, with bytes that are still to be given to the decoder first.
    Joined { first: Vec<u8> },
    /// Behind its last block, with that many bytes of the trailer to come: its checksum is of the whole member.
    Trailer { left: usize },
    /// Between two members.
    Between,
}

impl Gunzip {
    pub(super) fn new() -> Self {
        Self { inflate: Inflate::new(true, GZIP), place: Place::Member, history: Some(History::default()) }
    }

    pub(super) fn at(point: &SeekPoint) -> io::Result<Self> {
        let window = match point.window.is_empty() {
            true => vec![0; WINDOW],
            false => zstd::bulk::decompress(&point.window, WINDOW)?,
        };
        Self::with_window(&window, point.bits)
    }

    pub(super) fn with_window(window: &[u8], bits: u8) -> io::Result<Self> {
        let mut inflate = Inflate::new(false, RAW);
        inflate.set_dictionary(window).map_err(|_| invalid("the window of a seek point is none"))?;
        Ok(Self { inflate, place: Place::Joining { bit: (8 - bits) % 8 }, history: None })
    }

    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Progress> {
        match &mut self.place {
            Place::Joining { bit } => {
                let Some(first) = input.first() else { return Ok(Progress { read: 0, written: 0 }) };
                self.place = Place::Joined { first: preamble(*bit, *first) };
                // The byte is in what the decoder is given first.
                let Progress { read: _, written } = self.decode(&[], output)?;
                Ok(Progress { read: 1, written })
            }
            Place::Joined { first } if !first.is_empty() => {
                let given = std::mem::take(first);
                let (progress, ended) = inflate(&mut self.inflate, &given, output, InflateFlush::NoFlush)?;
                self.place = match ended {
                    true => Place::Trailer { left: TRAILER },
                    false => Place::Joined { first: given[progress.read..].to_vec() },
                };
                Ok(Progress { read: 0, written: progress.written })
            }
            Place::Trailer { left } => {
                let read = input.len().min(*left);
                *left -= read;
                if *left == 0 {
                    self.place = Place::Between;
                }
                Ok(Progress { read, written: 0 })
            }
            Place::Between if input.is_empty() => Ok(Progress { read: 0, written: 0 }),
            Place::Between => {
                self.inflate = Inflate::new(true, GZIP);
                self.place = Place::Member;
                self.decode(input, output)
            }
            Place::Member | Place::Joined { .. } => self.decode_member(input, output),
        }
    }

    fn decode_member(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Progress> {
        let flush = match &self.history {
            Some(history) if history.wants_point() => InflateFlush::Block,
            _ => InflateFlush::NoFlush,
        };
        let (progress, ended) = inflate(&mut self.inflate, input, output, flush)?;
        if let Some(history) = &mut self.history {
            history.take(&input[..progress.read], &output[..progress.written]);
            let stopped_by_itself = progress.read < input.len() && progress.written < output.len();
            match (ended, flush) {
                (true, _) => history.end_member(),
                (false, InflateFlush::Block) if stopped_by_itself => history.begin_block(),
                (false, _) => {}
            }
        }
        if ended {
            self.place = match self.place {
                Place::Member => Place::Between,
                _ => Place::Trailer { left: TRAILER },
            };
        }
        Ok(progress)
    }

    pub(super) fn finish(self) -> (bool, Vec<SeekPoint>) {
        (matches!(self.place, Place::Between), self.history.map(History::into_points).unwrap_or_default())
    }
}

/// One step, and whether the stream has ended with it.
fn inflate(
    inflate: &mut Inflate,
    input: &[u8],
    output: &mut [u8],
    flush: InflateFlush,
) -> io::Result<(Progress, bool)> {
    let before = (inflate.total_in(), inflate.total_out());
    let status = inflate
        .decompress(input, output, flush)
        .map_err(|error| invalid(inflate.error_message().unwrap_or(error.as_str())))?;
    let progress =
        Progress { read: (inflate.total_in() - before.0) as usize, written: (inflate.total_out() - before.1) as usize };
    Ok((progress, status == Status::StreamEnd))
}

/// Blocks that say nothing and end on bit `bit` of a byte, and the other bits of that byte from `first`.
fn preamble(bit: u8, first: u8) -> Vec<u8> {
    let mut bits = Bits::default();
    let fixed = match bit % 2 {
        0 => bit / 2,
        _ => {
            bits.put_empty_dynamic_block();
            (bit + 3) / 2 % 4
        }
    };
    // Not the last block; the fixed code; its end of block.
    (0..fixed).for_each(|_| bits.put(0b010, 10));
    let mut bytes = bits.bytes;
    match bytes.last_mut() {
        Some(last) if bit > 0 => *last |= first & (0xff << bit),
        _ => bytes.push(first),
    }
    bytes
}

/// Bits in the order of deflate (RFC 1951, 3.1.1): the first is the lowest of its byte.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for place in 0..count {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> place & 1) as u8) << (self.len % 8);
            }
            self.len += 1;
        }
    }

    /// 93 bits (RFC 1951, 3.2.7): a code for nothing but the end of the block, and that.
    fn put_empty_dynamic_block(&mut self) {
        const END: usize = 2;
        const REPEATED_ZERO: usize = 17;
        self.put(0b100, 3);
        // 257 codes for literals and lengths, one for distances, and 19 lengths of codes for those lengths.
        self.put(0, 5);
        self.put(0, 5);
        self.put(15, 4);
        // Two of the 19 are used: the one of 18, which stands third, and the one of 1.
        for place in 0..19 {
            self.put(u32::from(place == END || place == REPEATED_ZERO), 3);
        }
        // In the order of their symbols: 1 has the code 0, and 18 the code 1. First 138 and 118 zeros, then
        // the lengths of the end of the block and of the only distance.
        for zeros in [138, 118] {
            self.put(1, 1);
            self.put(zeros - 11, 7);
        }
        self.put(0, 1);
        self.put(0, 1);
        // The end of the block.
        self.put(0, 1);
    }
}

impl fmt::Debug for Gunzip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gunzip")
            .field("read", &self.inflate.total_in())
            .field("written", &self.inflate.total_out())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_says_nothing_and_ends_on_its_bit() {
        let mut bits = Bits::default();
        bits.put_empty_dynamic_block();
        assert_eq!(bits.len, 93);
        for bit in 0..8 {
            // The last block, in the fixed code, with its end: ten bits from `bit` on.
            let last = 0b011_u32 << bit;
            let mut bytes = preamble(bit, last as u8);
            bytes.push((last >> 8) as u8);
            bytes.push((last >> 16) as u8);
            let mut inflate = Inflate::new(false, RAW);
            inflate.set_dictionary(&[7; WINDOW]).unwrap();
            let status = inflate.decompress(&bytes, &mut [0; 16], InflateFlush::NoFlush).unwrap();
            assert_eq!((status, inflate.total_out()), (Status::StreamEnd, 0), "{bit}");
        }
    }
}
