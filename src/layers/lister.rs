//! Lists a plain tar layer ahead of its proof, by the headers inside it.
//!
//! Headers form a chain: each one's size says where the next is. So the lister hops from header to
//! header by ranges while the files between them are large, and gives up where listing would cost more
//! than fetching the layer: then the layer is proved first, which is never dearer. What it says is
//! provisional. It is checked as far as it can be, and held against the proved layer later.

use std::time::{Duration, Instant};

use crate::buffers::BUFFER;
use crate::kit::contents::KitLayer;
use crate::kit::listing::Certainty;
use crate::kit::listing::Lister;
use crate::kit::listing::Listing;
use crate::kit::name::KitPath;
use crate::kit::tar::Event;
use crate::kit::tar::TarReader;
use crate::source::FAST;
use crate::source::Source;

/// A layer up to this size is fetched and proved rather than listed.
const SMALL_LAYER: u64 = 1024 * 1024;

/// What one look at a header fetches: the header, what may precede it, and the start of small files.
const WINDOW: u64 = 16 * 1024;

/// Bytes that a listing may cost, whatever part of the layer they are.
const MODEST: u64 = 16 * 1024 * 1024;

/// Looks after which a listing that goes on for long has to show that it is quicker than fetching the layer.
const LOOKS: u32 = 8;

/// So many times as long as fetching all the rest must listing it take to be given up: a layer that is proved is
/// also written.
const DEARER: f64 = 2.0;

/// So many times what one slow connection brings do those together that fetch a layer. Hops go one after the other.
const TOGETHER: f64 = 4.0;

/// Lists the layer; `None` where only proving it will tell.
pub(super) async fn list(source: &Source, layer: &KitLayer) -> Option<Listing> {
    let size = layer.descriptor.size;
    if size <= SMALL_LAYER {
        return None;
    }
    let mut reader = TarReader::new(Some(size));
    let mut lister = Lister::default();
    let mut cost = Cost::default();
    let mut window = WINDOW;
    while reader.position() < size {
        let start = reader.position();
        let end = size.min(start + window);
        let asked = Instant::now();
        for piece in source.range(&layer.descriptor, start..end).await.ok()? {
            let mut bytes = &piece.ahead_of_proof()[..];
            while let Some(event) = reader.next(&mut bytes).ok()? {
                if let Event::Member(member) = event {
                    lister.add(member).ok()?;
                }
            }
        }
        cost.add(end - start, asked.elapsed());
        let ahead = reader.skippable();
        reader.skip(ahead);
        if cost.is_excessive(reader.position(), size) {
            return None;
        }
        window = match () {
            () if cost.wants_rate() => BUFFER as u64,
            // Small files lie close together: then larger windows hold more of their headers.
            () if ahead < window => (window * 2).min(BUFFER as u64),
            () => WINDOW,
        };
    }
    reader.finish().ok()?;
    let listing = lister.finish(Certainty::Provisional).ok()?;
    let listing = match &layer.base {
        Some(base) => listing.under(base).ok()?,
        None => listing,
    };
    let path = KitPath::parse(layer.path.as_bytes()).ok()?;
    listing.agrees_with(&path).is_ok().then_some(listing)
}

/// What a listing has cost so far.
#[derive(Default)]
struct Cost {
    bytes: u64,
    looks: u32,
    time: Duration,
    /// Bytes a second of the fastest full buffer.
    rate: f64,
}

impl Cost {
    fn add(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.looks += 1;
        self.time += time;
        if bytes >= BUFFER as u64 {
            self.rate = self.rate.max(bytes as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE));
        }
    }

    /// Whether it is time to learn how fast bytes come that lie side by side.
    fn wants_rate(&self) -> bool {
        self.looks >= LOOKS && self.rate == 0.0
    }

    /// Whether fetching the layer is cheaper than going on, when `position` of its `size` bytes are behind.
    fn is_excessive(&self, position: u64, size: u64) -> bool {
        let rest = size.saturating_sub(position) as f64;
        let listing = self.time.as_secs_f64() * rest / position.max(1) as f64;
        let rate = if self.rate < FAST { self.rate * TOGETHER } else { self.rate };
        self.bytes > MODEST && self.bytes > position / 2
            || self.rate > 0.0 && self.looks > LOOKS && listing > DEARER * size as f64 / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(2);

    #[test]
    fn hopping_over_large_files_goes_on() {
        let mut cost = Cost::default();
        for look in 1..100 {
            cost.add(WINDOW, LOOK);
            assert!(!cost.is_excessive(look << 30, 100 << 30), "{look}");
        }
    }

    #[test]
    fn many_hops_are_weighed_against_the_link() {
        let after = |buffer: Duration| {
            let mut cost = Cost::default();
            for _ in 0..LOOKS {
                assert!(!cost.wants_rate());
                cost.add(WINDOW, LOOK);
            }
            assert!(cost.wants_rate());
            cost.add(BUFFER as u64, buffer);
            cost.is_excessive((LOOKS as u64 + 8) << 18, 64 << 20)
        };
        assert!(after(LOOK), "a quarter of a second of hops, or 128 ms for all");
        assert!(!after(100 * LOOK), "three seconds of hops, or as many for all over four connections");
    }

    #[test]
    fn what_is_read_nearly_whole_is_fetched() {
        let mut cost = Cost::default();
        let mut looks = 0;
        while !cost.is_excessive(cost.bytes, 1 << 30) {
            cost.add(BUFFER as u64, LOOK);
            looks += 1;
        }
        assert_eq!(looks, 17);
    }
}
