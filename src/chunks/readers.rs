//! What the readers of one file do, and what they will therefore want next.
//!
//! Nobody says who reads: threads share a descriptor, the kernel reads ahead in an order of its own, a
//! mapping faults wherever it is touched. So reads are matched by place. Those that follow each other are
//! a stream, and a stream that has come far enough is read ahead of, in a window that doubles while it is
//! used. Reads at equal distances are a stride. Everything else is random, and gets what it asked for.

use std::collections::VecDeque;
use std::ops::Range;

/// Streams of one file that are told apart; the one that was silent longest gives way.
const STREAMS: usize = 16;

/// A run of reads shorter than this may be one large read, which the kernel cuts into pieces.
const SURE: u64 = 1024 * 1024;

/// How far behind the end of a stream a read may begin and still belong to it: the kernel has several
/// requests under way and they arrive in any order.
const SLACK: u64 = 512 * 1024;

/// The first window.
const FIRST_WINDOW: u64 = 2 * 1024 * 1024;

/// Reads at equal distances that make a stride.
const STRIDES: u32 = 3;

/// The most places that a stride is followed ahead.
const STRIDES_AHEAD: u32 = 8;

/// The readers of one file.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// The one that was heard of last is the last.
    streams: VecDeque<Stream>,
    stride: Stride,
}

#[derive(Debug)]
struct Stream {
    start: u64,
    /// Where the next read is expected.
    next: u64,
    /// How far it has been read ahead of.
    ahead: u64,
    window: u64,
}

/// The last read that belonged to no stream, and how it lay to those before.
#[derive(Debug, Default)]
struct Stride {
    last: u64,
    distance: u64,
    /// Reads in a row at that distance.
    count: u32,
    /// How many places ahead have been named, counted from `last`.
    named: u32,
}

impl Readers {
    /// Notes that `read` was asked for, and says what is worth having next: ranges in the order in which
    /// they will be wanted, none of them named before, of a file of any size. `widest` bounds a window.
    pub(super) fn note(&mut self, read: &Range<u64>, widest: u64) -> Vec<Range<u64>> {
        let belongs = |stream: &Stream| {
            (stream.next.saturating_sub(SLACK)..=stream.next.max(stream.ahead)).contains(&read.start)
                && read.start >= stream.start
        };
        let Some(place) = self.streams.iter().position(belongs) else {
            if self.streams.len() == STREAMS {
                self.streams.pop_front();
            }
            let (start, next) = (read.start, read.end);
            self.streams.push_back(Stream { start, next, ahead: next, window: FIRST_WINDOW / 2 });
            return self.stride.note(read);
        };
        // The place is one of the queue's.
        let Some(mut stream) = self.streams.remove(place) else { return Vec::new() };
        let ahead = stream.advance(read, widest);
        self.streams.push_back(stream);
        ahead.into_iter().collect()
    }
}

impl Stream {
    fn advance(&mut self, read: &Range<u64>, widest: u64) -> Option<Range<u64>> {
        self.next = self.next.max(read.end);
        if self.next - self.start <= SURE || self.ahead.saturating_sub(self.next) > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).min(widest);
        let begin = self.ahead.max(self.next);
        self.ahead = begin.max(self.next + self.window);
        (begin < self.ahead).then_some(begin..self.ahead)
    }
}

impl Stride {
    fn note(&mut self, read: &Range<u64>) -> Vec<Range<u64>> {
        let distance = read.start.saturating_sub(self.last);
        if distance == 0 || distance != self.distance {
            *self = Self { last: read.start, distance, count: 2, named: 0 };
            return Vec::new();
        }
        self.last = read.start;
        self.count += 1;
        self.named = self.named.saturating_sub(1);
        if self.count < STRIDES {
            return Vec::new();
        }
        let wanted = (self.count - STRIDES + 1).min(STRIDES_AHEAD);
        let places = self.named + 1..=wanted;
        self.named = self.named.max(wanted);
        let at = |place: u32| {
            let step = distance.saturating_mul(u64::from(place));
            read.start.saturating_add(step)..read.end.saturating_add(step)
        };
        places.map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    const WIDEST: u64 = 16 * MIB;

    /// Reads these places, `len` bytes each, and says what was named ahead.
    fn ahead(len: u64, starts: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
        let mut readers = Readers::default();
        starts.into_iter().flat_map(|start| readers.note(&(start..start + len), WIDEST)).collect()
    }

    #[test]
    fn windows_of_a_sequential_reader_double_and_tile() {
        let named = ahead(128 * KIB, (0..800).map(|number| number * 128 * KIB));
        assert_eq!(named[0], 1152 * KIB..1152 * KIB + 2 * MIB, "not before a megabyte was read");
        assert!(named.windows(2).all(|two| two[0].end == two[1].start), "{named:?}");
        assert!(named.iter().any(|range| range.end - range.start >= 8 * MIB), "{named:?}");
        let end = named.last().unwrap().end;
        assert!((100 * MIB..=100 * MIB + WIDEST).contains(&end), "{end}");
    }

    #[test]
    fn a_stream_is_one_whatever_the_order_inside_it() {
        let swapped = (0..100).map(|number: u64| (number ^ 1) * 256 * KIB);
        assert!(!ahead(256 * KIB, swapped).is_empty());
    }

    #[test]
    fn random_reads_name_nothing() {
        let mut state = 1u64;
        let random = (0..1000).map(move |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 24) / 4096 * 4096
        });
        assert_eq!(ahead(4 * KIB, random), []);
    }

    /// A read of 512 KiB arrives as requests of 128 KiB.
    #[test]
    fn a_large_random_read_is_no_stream() {
        let places = [70 * MIB, 3 * MIB, 900 * MIB, 41 * MIB, 500 * MIB];
        let requests = places.into_iter().flat_map(|place| (0..4).map(move |piece| place + piece * 128 * KIB));
        assert_eq!(ahead(128 * KIB, requests), []);
    }

    #[test]
    fn several_streams_of_one_file_are_told_apart() {
        let mut readers = Readers::default();
        let mut named = [0; 8];
        for step in 0..100 {
            for (stream, named) in named.iter_mut().enumerate() {
                let start = stream as u64 * 1000 * MIB + step * 128 * KIB;
                *named += readers.note(&(start..start + 128 * KIB), WIDEST).len();
            }
        }
        assert!(named.iter().all(|&named| named > 2), "{named:?}");
    }

    #[test]
    fn strides_are_followed_further_and_further() {
        let named = ahead(4 * KIB, (0..20).map(|row| row * 10 * MIB));
        assert_eq!(named[0], 30 * MIB..30 * MIB + 4 * KIB);
        assert!(named.windows(2).all(|two| two[0].start + 10 * MIB == two[1].start), "{named:?}");
        assert!(named.last().unwrap().start >= 240 * MIB, "{named:?}");
        assert_eq!(ahead(4 * KIB, [0, 10 * MIB, 25 * MIB, 31 * MIB, 90 * MIB]), []);
    }
}
