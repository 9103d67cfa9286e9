//! Fetches a layer whole: several ranges at once, handed on in order.

use std::ops::Range;

use futures_util::{Stream, StreamExt, stream};

use crate::buffers::BUFFER;
use crate::kit::descriptor::Descriptor;
use crate::source::Source;
use crate::source::SourceError;
use crate::verify::Unverified;

/// How many ranges of a layer are under way at once. It bounds the memory of a fetch, with the pieces
/// that wait for the hash, to some tens of buffers.
const LANES: usize = 8;

/// The pieces of a blob in order. A source that ignores ranges is read as one stream instead.
pub(super) fn pieces<'a>(
    source: &'a Source,
    blob: &'a Descriptor,
) -> impl Stream<Item = Result<Unverified, SourceError>> + 'a {
    let ranged = stream::iter(ranges(blob.size)).map(|range| source.range(blob, range)).buffered(LANES);
    let state = Pieces::Ranged { ranged, taken: 0 };
    stream::unfold(state, move |state| async move {
        match state {
            Pieces::Ranged { mut ranged, taken } => match ranged.next().await? {
                Err(SourceError::NoRanges { .. }) => {
                    drop(ranged);
                    streamed(source.stream(blob, taken)).await
                }
                Ok(piece) => {
                    let taken = taken + piece.len() as u64;
                    Some((Ok(piece), Pieces::Ranged { ranged, taken }))
                }
                Err(error) => Some((Err(error), Pieces::Ended)),
            },
            Pieces::Streamed(stream) => streamed(stream).await,
            Pieces::Ended => None,
        }
    })
}

enum Pieces<R> {
    Ranged { ranged: R, taken: u64 },
    Streamed(crate::source::ByteStream),
    Ended,
}

async fn streamed<R>(
    mut stream: crate::source::ByteStream,
) -> Option<(Result<Unverified, SourceError>, Pieces<R>)> {
    let piece = stream.next().await?;
    let next = if piece.is_ok() { Pieces::Streamed(stream) } else { Pieces::Ended };
    Some((piece, next))
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
