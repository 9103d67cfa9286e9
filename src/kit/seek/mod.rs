//! Decompression of layers: from the beginning, and from where else it can begin.
//!
//! While a layer is decompressed from its beginning, places are noted from which a decoder can start
//! again: in gzip the beginning of a deflate block, with what the decoder looks back at from there; in
//! zstd the beginning of a frame. A seek point is a hint and needs no proof: what is decoded from it is
//! proved unit by unit, and a false one costs a fetch.

mod gunzip;
mod history;
mod unzstd;

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::kit::media::Compression;
use crate::kit::seek::gunzip::Gunzip;
use crate::kit::seek::unzstd::Unzstd;

/// Bytes of a layer between two points at the least: what is decompressed for nothing before a byte is
/// reached is half of that on average.
const LEAST_SPACING: u64 = 2 << 20;

/// Windows take at most this part of the content: the larger they are, the farther apart points lie.
const SPACING_PER_WINDOW: u64 = 512;

/// The most bytes that a window has: 32 KiB that no compression makes smaller, and what zstd puts around them.
pub const WINDOW_LIMIT: usize = 33 * 1024;

/// Bytes that a deflate decoder looks back at (RFC 1951, 2).
const WINDOW: usize = 32 * 1024;

/// A place in a compressed layer where decoding can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekPoint {
    /// The byte of the uncompressed layer that comes out first.
    pub content: u64,
    /// The byte of the compressed layer that goes in first. For gzip the first whole byte of a deflate
    /// block, for zstd the first of a frame.
    pub blob: u64,
    /// For gzip, how many bits of the byte ahead of `blob` belong to the block: 0 to 7, its highest ones.
    pub bits: u8,
    /// For gzip, what the block may refer to: a zstd frame that holds the last bytes of the uncompressed
    /// layer before the point, at most 32 KiB, with zeros in place of those that nothing refers to. Empty if
    /// that is all of them.
    pub window: Bytes,
}

impl SeekPoint {
    /// The first byte of the compressed layer that a decoder needs: one ahead of `blob` where bits of it
    /// belong to the block.
    pub fn start(&self) -> u64 {
        if self.bits == 0 { self.blob } else { self.blob - 1 }
    }
}

/// The seek points of one layer, by rising place. The start of the layer needs none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeekPoints(Vec<SeekPoint>);

impl SeekPoints {
    /// The points, if each lies behind the one before it and behind the layer's start.
    pub fn new(points: Vec<SeekPoint>) -> Option<Self> {
        let mut before = (0, 0);
        let rise = points.iter().all(|point| {
            let (content, blob) = std::mem::replace(&mut before, (point.content, point.blob));
            content < point.content && blob < point.blob && point.bits < 8
        });
        rise.then_some(Self(points))
    }

    /// All of them.
    pub fn points(&self) -> &[SeekPoint] {
        &self.0
    }

    /// Where decoding has to begin for `content`, bytes of the uncompressed layer (`None` is the layer's
    /// start), and the byte of the compressed layer behind which nothing is needed (`None` is its end).
    pub fn around(&self, content: &Range<u64>) -> (Option<&SeekPoint>, Option<u64>) {
        let begin = self.0.partition_point(|point| point.content <= content.start);
        let end = self.0.partition_point(|point| point.content < content.end);
        (begin.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(end).map(|point| point.blob))
    }
}

/// How far a decoder came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that it has taken.
    pub read: usize,
    /// Bytes of the output that it has filled.
    pub written: usize,
}

/// Decompresses a layer. Members of gzip and frames of zstd follow each other as one stream.
#[derive(Debug)]
pub struct Decoder(Kind);

#[derive(Debug)]
enum Kind {
    Plain,
    Gzip(Box<Gunzip>),
    Zstd(Unzstd),
}

impl Decoder {
    /// Starts at the first byte of a layer, and notes points on the way.
    pub fn new(compression: Compression) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::Plain,
            Compression::Gzip => Kind::Gzip(Box::new(Gunzip::new())),
            Compression::Zstd => Kind::Zstd(Unzstd::new()?),
        }))
    }

    /// Starts at a point, with byte [`SeekPoint::start`] of the layer.
    pub fn at(compression: Compression, point: &SeekPoint) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::Plain,
            Compression::Gzip => Kind::Gzip(Box::new(Gunzip::at(point)?)),
            Compression::Zstd => Kind::Zstd(Unzstd::new()?),
        }))
    }

    /// Decompresses what of `input` fits into `output`. Neither read nor written is said where it needs
    /// more of the one or of the other.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Progress> {
        match &mut self.0 {
            Kind::Plain => {
                let len = input.len().min(output.len());
                output[..len].copy_from_slice(&input[..len]);
                Ok(Progress { read: len, written: len })
            }
            Kind::Gzip(gunzip) => gunzip.decode(input, output),
            Kind::Zstd(unzstd) => unzstd.decode(input, output),
        }
    }

    /// Says that there is no more input. What was decompressed is whole, or this is an error; the points
    /// that were noted come out.
    pub fn finish(self) -> io::Result<SeekPoints> {
        let (is_whole, points) = match self.0 {
            Kind::Plain => (true, Vec::new()),
            Kind::Gzip(gunzip) => gunzip.finish(),
            Kind::Zstd(unzstd) => unzstd.finish(),
        };
        if is_whole { Ok(SeekPoints(points)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// How far from a point with such a window the next one is noted.
fn spacing(window: &[u8]) -> u64 {
    LEAST_SPACING.max(window.len() as u64 * SPACING_PER_WINDOW)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
