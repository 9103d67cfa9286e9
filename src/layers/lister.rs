//! Lists a plain tar layer ahead of its proof, by the headers inside it.
//!
//! Headers form a chain: each one's size says where the next is. So the lister hops from header to
//! header by ranges while the files between them are large, and gives up where listing would cost more
//! than fetching the layer: then the layer is proved first, which is never dearer. What it says is
//! provisional. It is checked as far as it can be, and held against the proved layer later.

use std::time::Instant;

use crate::buffers::BUFFER;
use crate::kit::contents::KitLayer;
use crate::kit::listing::Certainty;
use crate::kit::listing::Lister;
use crate::kit::listing::Listing;
use crate::kit::name::KitPath;
use crate::kit::tar::Event;
use crate::kit::tar::TarReader;
use crate::source::Source;

/// A layer up to this size is fetched and proved rather than listed.
const SMALL_LAYER: u64 = 1024 * 1024;

/// What one look at a header fetches: the header, what may precede it, and the start of small files.
const WINDOW: u64 = 16 * 1024;

/// What a second of waiting is worth in bytes, for weighing hops against fetching: a link of 50 MB/s.
const BYTES_A_SECOND: f64 = 50e6;

/// A third of a second at that speed: no listing is given up before it has cost that much.
const PATIENCE: f64 = 16e6;

/// Lists the layer; `None` where only proving it will tell.
pub(super) async fn list(source: &Source, layer: &KitLayer) -> Option<Listing> {
    let size = layer.descriptor.size;
    if size <= SMALL_LAYER {
        return None;
    }
    let mut reader = TarReader::new(Some(size));
    let mut lister = Lister::default();
    let mut spent = 0.0;
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
        spent += (end - start) as f64 + asked.elapsed().as_secs_f64() * BYTES_A_SECOND;
        let ahead = reader.skippable();
        reader.skip(ahead);
        // Small files lie close together: then larger windows hold more of their headers.
        window = if ahead < window { (window * 2).min(BUFFER as u64) } else { WINDOW };
        if spent > PATIENCE && spent > reader.position() as f64 / 2.0 {
            return None;
        }
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
