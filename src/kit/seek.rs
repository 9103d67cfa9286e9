//! Where the decoding of a compressed layer can begin, other than at its first byte.
//!
//! A seek point is a hint and needs no proof: what is decoded from it is proved unit by unit, and a false
//! one costs a fetch.

use std::ops::Range;

use bytes::Bytes;

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
    /// For gzip, the uncompressed bytes that the block may refer to: at most the 32 KiB before it.
    pub window: Bytes,
}

/// The seek points of one layer, by rising place. The start of the layer needs none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeekPoints(Vec<SeekPoint>);

impl SeekPoints {
    /// The points, if each lies behind the one before it.
    pub fn new(points: Vec<SeekPoint>) -> Option<Self> {
        let rise = points.windows(2).all(|two| two[0].content < two[1].content && two[0].blob < two[1].blob);
        (rise && points.iter().all(|point| point.bits < 8)).then_some(Self(points))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(content: u64, blob: u64) -> SeekPoint {
        SeekPoint { content, blob, bits: 0, window: Bytes::new() }
    }

    #[test]
    fn decoding_begins_at_the_last_point_that_is_not_behind() {
        let points = SeekPoints::new(vec![point(100, 10), point(200, 20), point(300, 30)]).unwrap();
        for (content, begin, end) in [
            (0..50, None, Some(10)),
            (0..100, None, Some(10)),
            (99..101, None, Some(20)),
            (100..200, Some(10), Some(20)),
            (150..300, Some(10), Some(30)),
            (299..301, Some(20), None),
            (500..501, Some(30), None),
        ] {
            let around = points.around(&content);
            assert_eq!((around.0.map(|point| point.blob), around.1), (begin, end), "{content:?}");
        }
    }

    #[test]
    fn points_rise() {
        assert!(SeekPoints::new(vec![point(100, 10), point(100, 20)]).is_none());
        assert!(SeekPoints::new(vec![point(100, 10), point(200, 10)]).is_none());
        assert!(SeekPoints::new(vec![SeekPoint { bits: 8, ..point(100, 10) }]).is_none());
    }
}
