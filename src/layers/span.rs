//! A part of a layer, fetched alone: for who can prove it alone.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::buffers::BUFFER;
use crate::buffers::Buffer;
use crate::buffers::Buffers;
use crate::kit::media::Compression;
use crate::kit::seek::Decoder;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::SplitError;
use crate::source::ByteStream;
use crate::source::SourceError;
use crate::verify::Unverified;

impl Layer {
    /// Whether parts of the layer can be had for about the price of their bytes: by ranges, and where it is
    /// compressed from a seek point. Where that is not so the layer is better proved whole, unless the
    /// store does not keep it.
    pub fn has_spans(&self) -> bool {
        let has_points = || self.index().is_some_and(|index| !index.seek().points().is_empty());
        let is_seekable = self.spec.compression == Compression::None || has_points();
        is_seekable && !self.is_without_ranges.load(Ordering::Relaxed) || self.unkept().is_some()
    }

    /// The bytes of the uncompressed layer that come with `content` at no further cost: all between the seek
    /// points around it.
    pub fn around(&self, content: &Range<u64>) -> Range<u64> {
        let Some(index) = self.index().filter(|_| self.spec.compression != Compression::None) else {
            return content.clone();
        };
        let (begin, end) = (index.seek().around(content).0, index.seek().points());
        let end = end.iter().map(|point| point.content).find(|&end| end >= content.end);
        begin.map_or(0, |begin| begin.content)..end.unwrap_or(index.content_size())
    }

    /// Bytes of the uncompressed layer: exactly those of `content`, in pieces of one buffer, of which only
    /// the last may be shorter. All of it is in memory at once: whoever asks for much bounds that.
    pub async fn span(&self, content: Range<u64>) -> Result<Vec<Unverified>, LayerError> {
        let (layer, blob) = (*self.digest(), &self.spec.descriptor);
        let failed = |source| LayerError::Source { layer, source };
        let index = self.index();
        let (point, end) = index.as_ref().map_or((None, None), |index| index.seek().around(&content));
        if self.flows() {
            let pieces = self.source.range(blob, content).await.inspect_err(|error| self.note_ranges(error));
            let pieces = pieces.map_err(failed)?;
            self.workshop.ledger.add_fetched(pieces.iter().map(|piece| piece.len() as u64).sum());
            return Ok(pieces);
        }
        let decoder = match point {
            Some(point) => Decoder::at(self.spec.compression, point),
            None => Decoder::new(self.spec.compression),
        };
        let (at, start) = point.map_or((0, 0), |point| (point.content, point.start()));
        let decoder = decoder.map_err(|error| self.malformed(SplitError::Decode(error)))?;
        let mut cutter =
            Cutter { decoder, at, content, full: Vec::new(), open: None, buffers: self.workshop.buffers.clone() };
        let mut stream = match end {
            // A few megabytes, in one request.
            Some(end) if !self.is_without_ranges.load(Ordering::Relaxed) => {
                let pieces = self.source.range(blob, start..end).await.inspect_err(|error| self.note_ranges(error));
                Input::Range(pieces.map_err(failed)?.into_iter())
            }
            _ => Input::Stream(Box::new(self.source.stream(blob, start))),
        };
        while !cutter.is_done() {
            let Some(piece) = stream.next().await else { break };
            let piece = piece.map_err(failed)?;
            self.workshop.ledger.add_fetched(piece.len() as u64);
            let cut = tokio::task::spawn_blocking(move || cutter.take(&piece).map(|()| cutter)).await;
            cutter = cut
                .map_err(|_| LayerError::Stopped { layer })?
                .map_err(|error| self.malformed(SplitError::Decode(error)))?;
        }
        Ok(cutter.full)
    }

    /// Whether parts of the layer can be had as they come: it holds them as they are, and its source serves ranges.
    pub fn flows(&self) -> bool {
        self.spec.compression == Compression::None && !self.is_without_ranges.load(Ordering::Relaxed)
    }

    /// The bytes of `content` as they come, where the layer [flows](Layer::flows).
    pub fn flow(&self, content: Range<u64>) -> Flow<'_> {
        Flow { layer: self, stream: self.source.stream_range(&self.spec.descriptor, content) }
    }

    fn note_ranges(&self, error: &SourceError) {
        if matches!(error, SourceError::NoRanges(_)) {
            self.is_without_ranges.store(true, Ordering::Relaxed);
        }
    }
}

/// Part of a layer, piece by piece.
#[derive(Debug)]
pub struct Flow<'a> {
    layer: &'a Layer,
    stream: ByteStream,
}

impl Flow<'_> {
    /// The next piece: one buffer, unless it is the last. `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Unverified, LayerError>> {
        let piece = self.stream.next().await?.map_err(|source| {
            self.layer.note_ranges(&source);
            LayerError::Source { layer: *self.layer.digest(), source }
        });
        if let Ok(piece) = &piece {
            self.layer.workshop.ledger.add_fetched(piece.len() as u64);
        }
        Some(piece)
    }
}

/// The compressed bytes from a seek point on.
enum Input {
    Range(std::vec::IntoIter<Unverified>),
    Stream(Box<ByteStream>),
}

impl Input {
    async fn next(&mut self) -> Option<Result<Unverified, SourceError>> {
        match self {
            Self::Range(pieces) => pieces.next().map(Ok),
            Self::Stream(stream) => stream.next().await,
        }
    }
}

/// Cuts a range out of what a decoder gives.
#[derive(Debug)]
struct Cutter {
    decoder: Decoder,
    /// The byte of the uncompressed layer that comes next.
    at: u64,
    content: Range<u64>,
    full: Vec<Unverified>,
    /// The buffer that is being filled, and how far it is.
    open: Option<(Buffer, usize)>,
    buffers: Buffers,
}

impl Cutter {
    fn is_done(&self) -> bool {
        self.at >= self.content.end
    }

    /// Takes the next bytes of the compressed layer.
    fn take(&mut self, piece: &Unverified) -> io::Result<()> {
        let mut input = &piece.ahead_of_proof()[..];
        let mut skipped = [0; 16 * 1024];
        while !self.is_done() {
            let progress = if self.at < self.content.start {
                let len = (self.content.start - self.at).min(skipped.len() as u64) as usize;
                self.decoder.decode(input, &mut skipped[..len])?
            } else {
                let (mut buffer, filled) = match self.open.take() {
                    Some(open) => open,
                    None => {
                        let mut buffer = self.buffers.take()?;
                        buffer.truncate((self.content.end - self.at).min(BUFFER as u64) as usize);
                        (buffer, 0)
                    }
                };
                let progress = self.decoder.decode(input, &mut buffer[filled..])?;
                if filled + progress.written == buffer.len() {
                    self.full.push(Unverified::new(buffer.freeze()));
                } else {
                    self.open = Some((buffer, filled + progress.written));
                }
                progress
            };
            self.at += progress.written as u64;
            input = &input[progress.read..];
            if progress.read == 0 && progress.written == 0 {
                break;
            }
        }
        Ok(())
    }
}
