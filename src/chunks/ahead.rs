//! What is fetched before it is asked for, and given up when nobody will.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;
use tokio::task::AbortHandle;

use crate::buffers::BUFFER;
use crate::chunks::FileAt;
use crate::chunks::fetches::Fetches;
use crate::chunks::fetches::Flight;
use crate::chunks::fetches::Part;
use crate::chunks::lanes::Purpose;
use crate::chunks::loader;
use crate::chunks::lock;
use crate::chunks::readers::Readers;
use crate::chunks::shelf::units;
use crate::digest::Digest;
use crate::kit::index::Index;
use crate::kit::index::IndexKind;
use crate::layers::Layer;
use crate::layers::Prefetch;
use crate::verify::Verified;
use crate::verity;
use crate::verity::FileTree;
use crate::verity::UNIT;
use crate::verity::VerityDigest;

/// Bytes in one request that reads ahead. On a link of 20 ms and 50 MB/s two thirds of its time are
/// transfer; a larger one would leave less of the memory to the others.
pub(super) const SEGMENT: u64 = 2 * BUFFER as u64;

/// Files whose readers are remembered.
const FILES: NonZeroUsize = NonZeroUsize::new(1024).expect("is not zero");

/// How far the first small file reaches out to those behind it.
const FIRST_GROUP: u64 = UNIT / 2;

/// How far it does once files have been read in the layer's order for a while.
const LARGEST_GROUP: u64 = 4 * BUFFER as u64;

/// Reads ahead for one mount.
#[derive(Debug)]
pub(super) struct Ahead {
    fetches: Arc<Fetches>,
    files: Mutex<LruCache<VerityDigest, File>>,
    groups: Mutex<HashMap<Digest, Group>>,
    background: Mutex<Option<Task>>,
}

/// A file that is being read.
#[derive(Debug, Default)]
struct File {
    readers: Readers,
    /// What its windows hold.
    ahead: Vec<Arc<Flight>>,
    /// Where a loader is done with the header, if this is a file that loaders read whole.
    header: Option<u64>,
    whole: Option<Task>,
}

/// Small files of one layer that were fetched together last.
#[derive(Debug)]
struct Group {
    /// The entry behind the last of them.
    next: u32,
    reach: u64,
}

/// A task that ends with this value.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ahead {
    pub(super) fn new(fetches: Arc<Fetches>) -> Self {
        Self {
            fetches,
            files: Mutex::new(LruCache::new(FILES)),
            groups: Mutex::default(),
            background: Mutex::default(),
        }
    }

    /// Notes that `range` of a file was read, and fetches what will be read next.
    pub(super) fn note(
        &self,
        file: FileAt<'_>,
        tree: &Verified<FileTree>,
        offset: u64,
        range: &Range<u64>,
        bytes: &Bytes,
    ) {
        if tree.size <= UNIT || !file.layer.has_spans() || self.prefetch() == Prefetch::None {
            return;
        }
        let places = u64::from(self.fetches.shelf.warm.places());
        let widest = (self.fetches.lanes.limit() as u64 * SEGMENT).min(places * BUFFER as u64 / 2).max(SEGMENT);
        let mut files = lock(&self.files);
        let known = files.get_or_insert_mut(tree.verity, File::default);
        if range.start == 0 {
            known.header = loader::header_end(bytes, tree.size);
        }
        if known.whole.is_none() && known.header.is_some_and(|end| range.end >= end) {
            let (fetches, layer, tree) = (Arc::clone(&self.fetches), Arc::clone(file.layer), tree.clone());
            let units = units(&(range.end..tree.size));
            let task = self.fetches.runtime.spawn(async move {
                let parts = units.map(|unit| part(&tree, offset, unit));
                fetch_in_order(&fetches, &layer, parts, Purpose::Ahead).await;
            });
            known.whole = Some(Task(task.abort_handle()));
        }
        if known.whole.is_some() {
            return;
        }
        known.ahead.retain(|flight| flight.is_under_way());
        for next in known.readers.note(range, widest) {
            let next = next.start..next.end.min(tree.size);
            if next.is_empty() {
                continue;
            }
            let parts = missing(&self.fetches, file.layer, tree, offset, units(&next));
            known.ahead.extend(self.fetches.of(file.layer, parts, Purpose::Ahead, SEGMENT));
        }
    }

    /// The small files that are fetched together with the one at `entry`, itself first: those behind it
    /// in the layer, the more the longer files have been asked for in that order.
    pub(super) fn group(&self, layer: &Arc<Layer>, index: &Verified<Index>, entry: u32) -> Vec<Part> {
        let mut groups = lock(&self.groups);
        let reach = match groups.get(layer.digest()) {
            Some(group) if (group.next..group.next.saturating_add(8)).contains(&entry) => {
                (group.reach * 2).min(LARGEST_GROUP)
            }
            _ if self.prefetch() == Prefetch::None => 0,
            _ => FIRST_GROUP,
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut next = entry;
        for number in entry..index.entries().len() as u32 {
            if let Some((offset, tree)) = file_at(index, number) {
                let start = parts.first().map_or(offset, |first| first.content.start);
                let is_near = offset >= start && offset + tree.size - start <= reach;
                if number > entry && (tree.size > UNIT || !is_near) {
                    break;
                }
                if number == entry || tree.size > 0 && !self.fetches.shelf.has(&tree, 0) {
                    parts.push(part(&tree, offset, 0));
                }
            }
            next = number + 1;
        }
        groups.insert(*layer.digest(), Group { next, reach });
        parts
    }

    /// Fetches all that these layers hold, behind everything else, if that was asked for.
    pub(super) fn fetch_all(&self, layers: &[Arc<Layer>]) {
        if self.prefetch() != Prefetch::All {
            return;
        }
        let (fetches, layers) = (Arc::clone(&self.fetches), layers.to_vec());
        let task = self.fetches.runtime.spawn(async move {
            for layer in &layers {
                // What cannot be had now is asked for again when somebody reads it.
                let known = if layer.has_spans() { layer.index() } else { layer.proved() };
                let Some(index) = (match known {
                    Some(index) => Some(index),
                    None => layer.prove().await.ok(),
                }) else {
                    continue;
                };
                let files = (0..index.entries().len() as u32).filter_map(|entry| file_at(&index, entry));
                let parts = files.flat_map(|(offset, tree)| {
                    (0..verity::unit_count(tree.size)).map(move |unit| part(&tree, offset, unit))
                });
                fetch_in_order(&fetches, layer, parts, Purpose::Background).await;
            }
        });
        *lock(&self.background) = Some(Task(task.abort_handle()));
    }

    fn prefetch(&self) -> Prefetch {
        self.fetches.shelf.workshop.prefetch
    }

    /// Nobody has the file open any more.
    pub(super) fn close(&self, tree: &Verified<FileTree>) {
        lock(&self.files).pop(&tree.verity);
    }
}

/// Fetches those of the parts that are not at hand, in order, as many requests at once as there are lanes.
async fn fetch_in_order(
    fetches: &Arc<Fetches>,
    layer: &Arc<Layer>,
    parts: impl Iterator<Item = Part>,
    purpose: Purpose,
) {
    let mut flights: VecDeque<Arc<Flight>> = VecDeque::new();
    let mut parts = parts.peekable();
    while parts.peek().is_some() {
        let mut segment: Vec<Part> = Vec::new();
        while let Some(part) = parts.next_if(|part| {
            segment.first().is_none_or(|first| part.content.end <= first.content.start.saturating_add(SEGMENT))
        }) {
            segment.push(part);
        }
        segment.retain(|part| !fetches.shelf.has(&part.tree, part.unit));
        flights.extend(fetches.of(layer, segment, purpose, SEGMENT));
        while flights.len() > fetches.lanes.limit() {
            if let Some(first) = flights.pop_front() {
                first.settled().await;
            }
        }
    }
    for flight in flights {
        flight.settled().await;
    }
}

/// Those of the units of a file that are not at hand, and what comes with them at no further cost.
pub(super) fn missing<'t>(
    fetches: &'t Fetches,
    layer: &Layer,
    tree: &'t Verified<FileTree>,
    offset: u64,
    units: Range<u64>,
) -> impl Iterator<Item = Part> + 't {
    let content = offset + tree.unit_range(units.start).start..offset + tree.unit_range(units.end - 1).end;
    let around = layer.around(&content);
    // Only units that lie there whole.
    let first = around.start.saturating_sub(offset).div_ceil(UNIT).min(units.start);
    let last = match around.end.saturating_sub(offset) {
        end if end >= tree.size => verity::unit_count(tree.size),
        end => (end / UNIT).max(units.end),
    };
    (first..last).filter(move |unit| !fetches.shelf.has(tree, *unit)).map(move |unit| part(tree, offset, unit))
}

/// A unit of a file that begins at `offset` of the uncompressed layer.
pub(super) fn part(tree: &Verified<FileTree>, offset: u64, unit: u64) -> Part {
    let range = tree.unit_range(unit);
    Part { tree: tree.clone(), unit, content: offset + range.start..offset + range.end }
}

/// Where a file begins in the uncompressed layer, and its tree; `None` if the entry is no file.
pub(super) fn file_at(index: &Verified<Index>, entry: u32) -> Option<(u64, Verified<FileTree>)> {
    let IndexKind::File { offset, .. } = index.entries().get(entry as usize)?.kind else { return None };
    Some((offset, index.part(|index| index.tree(entry))?))
}
