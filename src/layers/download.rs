//! Fetches a layer whole and hands it on in order: over one connection where one is fast, else over several.
//!
//! A connection to a registry on this machine or next door brings more than a core can hash, and one long
//! answer costs the registry least. A connection over a longer way brings the little that its round trip
//! time and the other side allow, and many together bring many times as much. The first request tells
//! which it is.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffers::BUFFER;
use crate::kit::descriptor::Descriptor;
use crate::source::ByteStream;
use crate::source::FAST;
use crate::source::Source;
use crate::source::SourceError;
use crate::verify::Unverified;

/// Bytes in the first request. Its time says what one connection brings.
const PROBE: u64 = 4 * BUFFER as u64;

/// Bytes in each request over several connections.
const SPAN: u64 = 3 * BUFFER as u64;

/// Bytes of a stream after which it is asked again whether it is fast.
const STRETCH: u64 = 64 * BUFFER as u64;

/// How many connections there are at first where one is not enough, and at most.
const FEW: usize = 8;
const MANY: usize = 16;

/// So much faster must it have become for more connections to be tried, or for the first few to be kept.
const GAIN: f64 = 1.2;

/// A piece of a layer on its way, and the right to keep it in memory. Clones share both.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The bytes.
    pub(super) bytes: Unverified,
    _room: Arc<OwnedSemaphorePermit>,
}

/// The pieces of a blob in order. A source that ignores ranges is read as one stream. Each piece takes a
/// place in `room` before it is fetched and gives it back when its last user drops it, so that any number
/// of layers on their way take no more memory than that.
pub(super) fn pieces<'a>(
    source: &'a Source,
    blob: &'a Descriptor,
    room: &'a Arc<Semaphore>,
) -> impl Stream<Item = Result<Piece, SourceError>> + 'a {
    let begin = Download { source, blob, room, asked: 0, ready: VecDeque::new(), way: Way::Probe };
    stream::unfold(begin, |mut download| async move { download.next().await.map(|piece| (piece, download)) })
}

struct Download<'a> {
    source: &'a Source,
    blob: &'a Descriptor,
    room: &'a Arc<Semaphore>,
    /// The first byte that nobody was asked for yet.
    asked: u64,
    /// What has come and was not handed on yet.
    ready: VecDeque<Piece>,
    way: Way<'a>,
}

enum Way<'a> {
    /// Nothing has been asked for.
    Probe,
    /// One connection. `stretch` is `None` where more of them are known to bring no more.
    Stream {
        stream: ByteStream,
        stretch: Option<Stretch>,
    },
    /// Several.
    Spans {
        spans: FuturesOrdered<BoxFuture<'a, Result<VecDeque<Piece>, SourceError>>>,
        pace: Pace,
    },
    Ended,
}

impl<'a> Download<'a> {
    async fn next(&mut self) -> Option<Result<Piece, SourceError>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            match self.advance().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.way = Way::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Waits for what comes next; false at the end.
    async fn advance(&mut self) -> Result<bool, SourceError> {
        match &mut self.way {
            Way::Ended => return Ok(false),
            Way::Probe if self.blob.size == 0 => return Ok(false),
            Way::Probe => {
                let start = Instant::now();
                let range = 0..self.blob.size.min(PROBE);
                match fetch(self.source, self.blob, self.room, range.clone()).await {
                    Ok(pieces) => self.ready = pieces,
                    Err(SourceError::NoRanges { .. }) => {
                        self.stream(None);
                        return Ok(true);
                    }
                    Err(error) => return Err(error),
                }
                self.asked = range.end;
                let rate = rate(range.end, start.elapsed());
                if rate < FAST { self.split_up(rate) } else { self.stream(Some(Stretch::default())) }
            }
            Way::Stream { stream, stretch } => {
                let place = place(self.room, BUFFER as u64).await;
                let start = Instant::now();
                let Some(piece) = stream.next().await else { return Ok(false) };
                let bytes = piece?;
                self.asked += bytes.len() as u64;
                let len = bytes.len() as u64;
                let slow = stretch.as_mut().and_then(|stretch| stretch.passed(len, start.elapsed()));
                self.ready.push_back(Piece { bytes, _room: place });
                if let Some(rate) = slow {
                    self.split_up(rate);
                }
            }
            Way::Spans { spans, pace } => {
                while spans.len() < pace.connections && self.asked < self.blob.size {
                    let range = self.asked..self.blob.size.min(self.asked + SPAN);
                    self.asked = range.end;
                    spans.push_back(fetch(self.source, self.blob, self.room, range).boxed());
                }
                let Some(pieces) = spans.next().await else {
                    self.stream(None);
                    return Ok(true);
                };
                self.ready = pieces?;
                pace.passed(self.ready.iter().map(|piece| piece.bytes.len() as u64).sum());
            }
        }
        Ok(true)
    }

    /// Goes on over one connection, unless all was asked for.
    fn stream(&mut self, stretch: Option<Stretch>) {
        self.way = match self.asked < self.blob.size {
            true => Way::Stream { stream: self.source.stream(self.blob, self.asked), stretch },
            false => Way::Ended,
        };
    }

    /// Goes on over several connections, after one has brought `rate` bytes a second.
    fn split_up(&mut self, rate: f64) {
        let pace = Pace { connections: FEW, best: rate, bytes: 0, since: Instant::now() };
        self.way = Way::Spans { spans: FuturesOrdered::new(), pace };
    }
}

/// How fast a stream is, by what is waited for it: what others do meanwhile does not count.
#[derive(Default)]
struct Stretch {
    bytes: u64,
    waited: Duration,
}

impl Stretch {
    /// Notes what came. After a slow stretch it says how many bytes a second that brought.
    fn passed(&mut self, bytes: u64, waited: Duration) -> Option<f64> {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes < STRETCH {
            return None;
        }
        let Self { bytes, waited } = std::mem::take(self);
        // A stream was fast before, so it gets the benefit of the doubt.
        Some(rate(bytes, waited)).filter(|&rate| rate < FAST / 2.0)
    }
}

/// How many connections there should be: more, as long as that brings more; and none of its own, only the one
/// stream, where the first few bring no more than that did.
struct Pace {
    /// 0 where one alone does as well.
    connections: usize,
    /// Bytes a second with fewer connections.
    best: f64,
    /// What came since there are so many.
    bytes: u64,
    since: Instant,
}

impl Pace {
    /// Notes what came. Two spans of each connection show what they bring together.
    fn passed(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes < 2 * SPAN * self.connections as u64 {
            return;
        }
        let rate = rate(self.bytes, self.since.elapsed());
        if rate > self.best * GAIN {
            self.connections = (self.connections * 2).min(MANY);
            self.best = rate;
        } else if self.connections == FEW {
            self.connections = 0;
        }
        self.bytes = 0;
        self.since = Instant::now();
    }
}

/// Bytes a second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

async fn fetch(
    source: &Source,
    blob: &Descriptor,
    room: &Arc<Semaphore>,
    range: Range<u64>,
) -> Result<VecDeque<Piece>, SourceError> {
    let place = place(room, range.end - range.start).await;
    let pieces = source.range(blob, range).await?;
    Ok(pieces.into_iter().map(move |bytes| Piece { bytes, _room: Arc::clone(&place) }).collect())
}

/// Room for that many bytes, all of it at once: who had part of it and waited for the rest could wait for
/// somebody who does the same.
async fn place(room: &Arc<Semaphore>, bytes: u64) -> Arc<OwnedSemaphorePermit> {
    let buffers = bytes.div_ceil(BUFFER as u64) as u32;
    // Nobody closes the semaphore: it lives as long as the workshop.
    Arc::new(Arc::clone(room).acquire_many_owned(buffers).await.expect("the room is never closed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_added_while_they_help() {
        let second = Duration::from_secs(1);
        let mut pace = Pace { connections: FEW, best: 1.0, bytes: 0, since: Instant::now() - second };
        pace.passed(SPAN);
        assert_eq!(pace.connections, FEW, "too early to tell");
        pace.passed(2 * FEW as u64 * SPAN);
        assert_eq!(pace.connections, 2 * FEW);
        pace.since -= 100 * second;
        pace.passed(4 * FEW as u64 * SPAN);
        assert_eq!(pace.connections, 2 * FEW, "no faster than with half as many");
        let mut pace = Pace { connections: FEW, best: 1e6, bytes: 0, since: Instant::now() - 100 * second };
        pace.passed(2 * FEW as u64 * SPAN);
        assert_eq!(pace.connections, 0, "no faster than one");
    }

    #[test]
    fn a_stream_counts_as_slow_by_what_is_waited_for_it() {
        let mut stretch = Stretch::default();
        assert_eq!(stretch.passed(STRETCH, Duration::from_millis(1)), None);
        assert_eq!(stretch.passed(STRETCH / 2, Duration::from_secs(9)), None);
        let slow = stretch.passed(STRETCH / 2, Duration::from_secs(1)).unwrap();
        assert!((slow - STRETCH as f64 / 10.0).abs() < 1.0, "{slow}");
    }
}
