//! Fetches a layer whole: several ranges at once, handed on in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffers::BUFFER;
use crate::kit::descriptor::Descriptor;
use crate::source::ByteStream;
use crate::source::Source;
use crate::source::SourceError;
use crate::verify::Unverified;

/// How many ranges of a layer are under way at once.
const LANES: usize = 3;

/// Buffers in one range. A registry may open and search its blob for each request: many small ones cost
/// it more than the bytes.
const SPAN: u32 = 8;

/// A piece of a layer on its way, and the right to keep it in memory. Clones share both.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The bytes.
    pub(super) bytes: Unverified,
    _room: Arc<OwnedSemaphorePermit>,
}

/// The pieces of a blob in order. A source that ignores ranges is read as one stream instead. Each piece
/// takes a place in `room` before it is fetched and gives it back when its last user drops it, so that
/// any number of layers on their way take no more memory than that.
pub(super) fn pieces<'a>(
    source: &'a Source,
    blob: &'a Descriptor,
    room: &'a Arc<Semaphore>,
) -> impl Stream<Item = Result<Piece, SourceError>> + 'a {
    let fetch = move |range: Range<u64>| async move {
        let place = place(room, range.end - range.start).await;
        let pieces = source.range(blob, range).await?;
        Ok(pieces.into_iter().map(move |bytes| Piece { bytes, _room: Arc::clone(&place) }).collect::<VecDeque<_>>())
    };
    let ranged = stream::iter(ranges(blob.size)).map(fetch).buffered(LANES);
    let begin = Pieces::Ranged { ranged: Box::pin(ranged), ready: VecDeque::new(), taken: 0 };
    stream::unfold(begin, move |state| async move {
        match state {
            Pieces::Ranged { mut ranged, mut ready, taken } => {
                if ready.is_empty() {
                    ready = match ranged.next().await? {
                        Ok(pieces) => pieces,
                        Err(SourceError::NoRanges { .. }) => {
                            drop(ranged);
                            return streamed(source.stream(blob, taken), room).await;
                        }
                        Err(error) => return Some((Err(error), Pieces::Ended)),
                    };
                }
                let piece = ready.pop_front()?;
                let taken = taken + piece.bytes.len() as u64;
                Some((Ok(piece), Pieces::Ranged { ranged, ready, taken }))
            }
            Pieces::Streamed(stream) => streamed(stream, room).await,
            Pieces::Ended => None,
        }
    })
}

enum Pieces<R> {
    Ranged { ranged: R, ready: VecDeque<Piece>, taken: u64 },
    Streamed(ByteStream),
    Ended,
}

async fn streamed<R>(mut stream: ByteStream, room: &Arc<Semaphore>) -> Option<(Result<Piece, SourceError>, Pieces<R>)> {
    let place = place(room, BUFFER as u64).await;
    let piece = stream.next().await?.map(|bytes| Piece { bytes, _room: place });
    let next = if piece.is_ok() { Pieces::Streamed(stream) } else { Pieces::Ended };
    Some((piece, next))
}

/// Room for that many bytes, all of it at once: who had part of it and waited for the rest could wait for
/// somebody who does the same.
async fn place(room: &Arc<Semaphore>, bytes: u64) -> Arc<OwnedSemaphorePermit> {
    let buffers = u32::try_from(bytes.div_ceil(BUFFER as u64)).unwrap_or(SPAN);
    // Nobody closes the semaphore: it lives as long as the workshop.
    Arc::new(Arc::clone(room).acquire_many_owned(buffers).await.expect("the room is never closed"))
}

/// The ranges that cover `size` bytes, each at most one span long.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let step = u64::from(SPAN) * BUFFER as u64;
    (0..size.div_ceil(step)).map(move |number| number * step..((number + 1) * step).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tile_the_blob() {
        for size in [0, 1, SPAN as u64 * BUFFER as u64, SPAN as u64 * BUFFER as u64 + 1, 50 * BUFFER as u64 - 1] {
            let mut end = 0;
            for range in ranges(size) {
                assert!(range.start == end && range.end > range.start);
                end = range.end;
            }
            assert_eq!(end, size);
        }
    }
}
