//! zstd (RFC 8878), frame by frame.

use std::fmt;
use std::io;

use bytes::Bytes;
use zstd::stream::raw::DParameter;
use zstd::stream::raw::InBuffer;
use zstd::stream::raw::Operation;
use zstd::stream::raw::OutBuffer;

use crate::kit::seek::Progress;
use crate::kit::seek::SeekPoint;
use crate::kit::seek::spacing;

/// The largest window of a zstd frame that is decoded, as a power of two: 64 MiB. Encoders use up to
/// 8 MiB unless told otherwise; a frame can ask for terabytes.
const WINDOW_LOG: u32 = 26;

/// Decompresses frames that follow each other.
pub(super) struct Unzstd {
    decoder: zstd::stream::raw::Decoder<'static>,
    is_between_frames: bool,
    read: u64,
    written: u64,
    points: Vec<SeekPoint>,
}

impl Unzstd {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self { decoder, is_between_frames: false, read: 0, written: 0, points: Vec::new() })
    }

    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Progress> {
        if self.is_between_frames && input.is_empty() {
            return Ok(Progress { read: 0, written: 0 });
        }
        if self.is_between_frames && self.written >= self.points.last().map_or(0, |last| last.content) + spacing(&[]) {
            self.points.push(SeekPoint { content: self.written, blob: self.read, bits: 0, window: Bytes::new() });
        }
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
        let wanted = self.decoder.run(&mut from, &mut to)?;
        self.is_between_frames = wanted == 0;
        let progress = Progress { read: from.pos, written: to.pos() };
        self.read += progress.read as u64;
        self.written += progress.written as u64;
        Ok(progress)
    }

    pub(super) fn finish(self) -> (bool, Vec<SeekPoint>) {
        (self.is_between_frames, self.points)
    }
}

impl fmt::Debug for Unzstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unzstd").field("read", &self.read).field("written", &self.written).finish_non_exhaustive()
    }
}
