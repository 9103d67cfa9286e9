//! Fetches a layer whole: several ranges at once, handed on in order.

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
const LANES: usize = 8;

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
    let fetch = move |range| async move {
        let place = place(room).await;
        source.range(blob, range).await.map(|bytes| Piece { bytes, _room: place })
    };
    let ranged = stream::iter(ranges(blob.size)).map(fetch).buffered(LANES);
    stream::unfold(Pieces::Ranged { ranged: Box::pin(ranged), taken: 0 }, move |state| async move {
        match state {
            Pieces::Ranged { mut ranged, taken } => match ranged.next().await? {
                Err(SourceError::NoRanges { .. }) => {
                    drop(ranged);
                    streamed(source.stream(blob, taken), room).await
                }
                Ok(piece) => {
                    let taken = taken + piece.bytes.len() as u64;
                    Some((Ok(piece), Pieces::Ranged { ranged, taken }))
                }
                Err(error) => Some((Err(error), Pieces::Ended)),
            },
            Pieces::Streamed(stream) => streamed(stream, room).await,
            Pieces::Ended => None,
        }
    })
}

enum Pieces<R> {
    Ranged { ranged: R, taken: u64 },
    Streamed(ByteStream),
    Ended,
}

async fn streamed<R>(mut stream: ByteStream, room: &Arc<Semaphore>) -> Option<(Result<Piece, SourceError>, Pieces<R>)> {
    let place = place(room).await;
    let piece = stream.next().await?.map(|bytes| Piece { bytes, _room: place });
    let next = if piece.is_ok() { Pieces::Streamed(stream) } else { Pieces::Ended };
    Some((piece, next))
}

async fn place(room: &Arc<Semaphore>) -> Arc<OwnedSemaphorePermit> {
    // Nobody closes the semaphore: it lives as long as the workshop.
    Arc::new(Arc::clone(room).acquire_owned().await.expect("the room is never closed"))
}

/// The ranges that cover `size` bytes, each at most one buffer long.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let step = BUFFER as u64;
    (0..size.div_ceil(step)).map(move |number| number * step..((number + 1) * step).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tile_the_blob() {
        for size in [0, 1, BUFFER as u64, BUFFER as u64 + 1, 5 * BUFFER as u64 - 1] {
            let mut end = 0;
            for range in ranges(size) {
                assert!(range.start == end && range.end > range.start);
                end = range.end;
            }
            assert_eq!(end, size);
        }
    }
}
