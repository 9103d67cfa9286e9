//! What a deflate decoder has read and written lately, and the points that are made of that.
//!
//! The decoder stops where a block begins, and does not say on which bit. So each of the eight that it can
//! be is tried, and the one that goes on with the same bytes is the right one; a point that was noted is
//! therefore one that works. The same trial tells which bytes of the window are looked at: the others
//! are left out.

use bytes::Bytes;

use crate::kit::seek::SeekPoint;
use crate::kit::seek::WINDOW;
use crate::kit::seek::gunzip::Gunzip;
use crate::kit::seek::spacing;

/// The level at which windows are compressed: they are small, and many.
const LEVEL: i32 = 9;

/// The most compressed bytes that a trial reads: what opens to one window is hardly longer than it, unless
/// it is made of empty blocks.
const TRIAL_LIMIT: usize = 4 * WINDOW;

/// Notes points in a stream that is decompressed from its beginning.
#[derive(Default)]
pub(super) struct History {
    read: u64,
    written: u64,
    last_read: u8,
    /// The last bytes that were written, at least a window of them if there were so many.
    recent: Vec<u8>,
    trial: Option<Trial>,
    /// From where on the next point is wanted.
    due: u64,
    points: Vec<SeekPoint>,
}

/// A block that may become a point once its first bytes are known.
struct Trial {
    content: u64,
    blob: u64,
    window: Vec<u8>,
    /// The byte before the block, in which it may begin, and what follows.
    read: Vec<u8>,
    written: Vec<u8>,
}

impl History {
    /// Whether the decoder should stop at the next block.
    pub(super) fn wants_point(&self) -> bool {
        self.trial.is_none() && self.written >= self.due.max(spacing(&[]))
    }

    /// Takes what the decoder has read and what it wrote.
    pub(super) fn take(&mut self, read: &[u8], written: &[u8]) {
        self.read += read.len() as u64;
        self.written += written.len() as u64;
        self.last_read = read.last().copied().unwrap_or(self.last_read);
        if let Some(trial) = &mut self.trial {
            trial.read.extend_from_slice(&read[..read.len().min(TRIAL_LIMIT - trial.read.len())]);
            trial.written.extend_from_slice(&written[..written.len().min(WINDOW - trial.written.len())]);
            if trial.written.len() == WINDOW || trial.read.len() == TRIAL_LIMIT {
                let point = self.trial.take().and_then(Trial::point);
                self.due = self.written + point.as_ref().map_or(spacing(&[]), |point| spacing(&point.window));
                self.points.extend(point);
            }
        }
        self.recent.extend_from_slice(&written[written.len().saturating_sub(WINDOW)..]);
        if self.recent.len() > 4 * WINDOW {
            self.recent.drain(..self.recent.len() - WINDOW);
        }
    }

    /// The decoder has stopped where a block begins.
    pub(super) fn begin_block(&mut self) {
        let window = self.recent[self.recent.len().saturating_sub(WINDOW)..].to_vec();
        let (read, written) = (vec![self.last_read], Vec::new());
        self.trial = Some(Trial { content: self.written, blob: self.read, window, read, written });
    }

    /// A member has ended: what follows is no block.
    pub(super) fn end_member(&mut self) {
        self.trial = None;
    }

    pub(super) fn into_points(self) -> Vec<SeekPoint> {
        self.points
    }
}

impl Trial {
    fn point(self) -> Option<SeekPoint> {
        let bits = (0..8).find(|&bits| self.decode(&self.window, bits).is_some_and(|bytes| bytes == self.written))?;
        let window = self.needed_window(bits)?;
        Some(SeekPoint { content: self.content, blob: self.blob, bits, window })
    }

    /// What a decoder makes of the block that has a window before it and begins with so many bits of its first byte.
    fn decode(&self, window: &[u8], bits: u8) -> Option<Vec<u8>> {
        let mut decoder = Gunzip::with_window(window, bits).ok()?;
        let mut input = if bits == 0 { &self.read[1..] } else { &self.read[..] };
        let mut output = vec![0; self.written.len()];
        let mut written = 0;
        while written < output.len() {
            let progress = decoder.decode(input, &mut output[written..]).ok()?;
            if progress.read == 0 && progress.written == 0 {
                return None;
            }
            input = &input[progress.read..];
            written += progress.written;
        }
        Some(output)
    }

    /// The window without the bytes that nothing looks at. Four windows tell which those are: what
    /// differs between two that differ everywhere comes out of the window, and two more hold their
    /// own positions.
    fn needed_window(&self, bits: u8) -> Option<Bytes> {
        let decode = |byte: fn(usize) -> u8| {
            let window: Vec<_> = (0..self.window.len()).map(byte).collect();
            self.decode(&window, bits)
        };
        let (zeros, ones) = (decode(|_| 0)?, decode(|_| 0xff)?);
        let (low, high) = (decode(|at| at as u8)?, decode(|at| (at >> 8) as u8)?);
        let mut needed = vec![0; self.window.len()];
        for place in (0..zeros.len()).filter(|&place| zeros[place] != ones[place]) {
            let at = usize::from(low[place]) | usize::from(high[place]) << 8;
            needed[at] = *self.window.get(at)?;
        }
        if needed.iter().all(|&byte| byte == 0) {
            return Some(Bytes::new());
        }
        zstd::bulk::compress(&needed, LEVEL).ok().map(Bytes::from)
    }
}
