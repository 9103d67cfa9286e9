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
use crate::chunks::fetches::Part;
use crate::chunks::fetches::SEGMENT;
use crate::chunks::flight::Flight;
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

/// Bytes in one request that reads ahead, at most. Each request costs a registry some megabytes of reading, whatever it
/// asks for.
const LONG_SEGMENT: u64 = 64 * BUFFER as u64;

/// Files whose readers are remembered.
const FILES: NonZeroUsize = NonZeroUsize::new(1024).expect("is not zero");

/// How far the first small file reaches out to those behind it.
const FIRST_GROUP: u64 = UNIT / 2;

/// How far it does once files have been read in the layer's order for a while, in one request.
const LARGEST_GROUP: u64 = 4 * BUFFER as u64;

/// How far apart, in entries, those are who read a layer's files in its order together.
const BESIDE: u32 = 8;

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
    entries: Range<u32>,
    /// Where they end in the uncompressed layer.
    end: u64,
    /// How far a reader of them is fetched ahead of.
    reach: u64,
    /// What brings them, if nobody had asked for them.
    ahead: Vec<Arc<Flight>>,
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
        if !file.layer.has_spans() || self.prefetch() == Prefetch::None {
            return;
        }
        if tree.size <= UNIT {
            return self.note_small(file.layer, file.entry, offset);
        }
        let segment = segment(&self.fetches, file.layer);
        let places = u64::from(self.fetches.shelf.warm.places());
        // As much again as the lanes carry: what one of them has brought is read while the next is on its way.
        let widest = match 2 * self.fetches.lanes.limit() as u64 * segment {
            ahead if segment == SEGMENT => ahead.min(places * BUFFER as u64 / 2).max(SEGMENT),
            ahead => ahead,
        };
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
            known.ahead.extend(self.fetches.of(file.layer, parts, Purpose::Ahead, segment));
        }
    }

    /// Notes that a small file was read. Where the layer's files are read in its order the next ones are fetched
    /// while these are read, as many of them as the lanes carry.
    fn note_small(&self, layer: &Arc<Layer>, entry: u32, offset: u64) {
        let widest = (self.fetches.lanes.limit() as u64 * LARGEST_GROUP / 2).max(LARGEST_GROUP);
        let mut groups = lock(&self.groups);
        let follows = |group: &&mut Group| {
            let is_far_enough = group.end.saturating_sub(offset) > group.reach / 2;
            group.reach > FIRST_GROUP && group.entries.contains(&entry) && !is_far_enough
        };
        let Some(group) = groups.get_mut(layer.digest()).filter(follows) else { return };
        let Some(index) = layer.index() else { return };
        group.reach = (group.reach * 2).min(widest);
        let (parts, entries, end) = self.small_from(&index, group.entries.end, offset + group.reach);
        // The first files of a fetch are at hand before its last: it goes on.
        group.ahead.retain(|flight| flight.is_under_way());
        group.ahead.extend(self.fetches.of(layer, parts, Purpose::Ahead, LARGEST_GROUP));
        let first = group.entries.start.max(entry.saturating_sub(BESIDE));
        (group.entries, group.end) = (first..entries.end, end.max(group.end));
    }

    /// The small files that are fetched together with the one at `entry`, itself first: those behind it
    /// in the layer, the more the longer files have been asked for in that order.
    pub(super) fn group(&self, layer: &Arc<Layer>, index: &Verified<Index>, entry: u32) -> Vec<Part> {
        let Some((offset, tree)) = file_at(index, entry) else { return Vec::new() };
        let alone = part(&tree, offset, 0);
        // In this order: what has landed since is on the shelf.
        if self.fetches.brings(&alone.key()) || self.fetches.shelf.has(&tree, 0) {
            return vec![alone];
        }
        let mut groups = lock(&self.groups);
        let (reach, mut ahead) = match groups.remove(layer.digest()) {
            Some(Group { entries, reach, ahead, .. }) => {
                let reach = match entry {
                    // Another reader is first.
                    entry if entries.contains(&entry) => reach,
                    entry if (entries.end..entries.end.saturating_add(BESIDE)).contains(&entry) => reach * 2,
                    _ => FIRST_GROUP,
                };
                (reach.min(LARGEST_GROUP), ahead)
            }
            None => (FIRST_GROUP, Vec::new()),
        };
        let reach = if self.prefetch() == Prefetch::None { 0 } else { reach };
        let (parts, entries, end) = self.small_from(index, entry, offset + reach);
        // Somebody reads elsewhere in the layer, and what is on its way is wanted there.
        ahead.retain(|flight| flight.is_under_way());
        groups.insert(*layer.digest(), Group { entries, end, reach, ahead });
        parts
    }

    /// Lets fetches go on that were begun for files beside the one that a reader waits for.
    pub(super) fn hold(&self, layer: &Layer, flights: impl IntoIterator<Item = Arc<Flight>>) {
        if let Some(group) = lock(&self.groups).get_mut(layer.digest()) {
            group.ahead.retain(|flight| flight.is_under_way());
            group.ahead.extend(flights);
        }
    }

    /// Those of the small file at `entry` and of those behind it, up to `until` in the uncompressed layer, that are not
    /// at hand; which entries were looked at, and where they end.
    fn small_from(&self, index: &Verified<Index>, entry: u32, until: u64) -> (Vec<Part>, Range<u32>, u64) {
        let (mut parts, mut next, mut end) = (Vec::new(), entry, 0);
        for number in entry..index.entries().len() as u32 {
            if let Some((offset, tree)) = file_at(index, number) {
                if tree.size > UNIT || number > entry && offset + tree.size > until {
                    break;
                }
                if tree.size > 0 && !self.fetches.shelf.has(&tree, 0) {
                    parts.push(part(&tree, offset, 0));
                }
                end = offset + tree.size;
            }
            next = number + 1;
        }
        (parts, entry..next, end)
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
    while let Some(first) = parts.next() {
        // Several files arrive all at once, and one of them as it comes.
        let most = if first.tree.size > UNIT { segment(fetches, layer) } else { SEGMENT };
        let (start, verity) = (first.content.start, first.tree.verity);
        let mut segment = vec![first];
        while let Some(part) = parts.next_if(|part| {
            let is_of_file = part.tree.verity == verity || most == SEGMENT;
            is_of_file && part.content.end <= start.saturating_add(most)
        }) {
            segment.push(part);
        }
        segment.retain(|part| !fetches.shelf.has(&part.tree, part.unit));
        flights.extend(fetches.of(layer, segment, purpose, most));
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

/// Bytes in one request that reads ahead now. It is long only where they are kept as they come: all else has to
/// be in memory at once.
fn segment(fetches: &Fetches, layer: &Layer) -> u64 {
    let is_kept_in_turn = layer.flows() && !fetches.shelf.disk_rests();
    let longest = if is_kept_in_turn { LONG_SEGMENT } else { SEGMENT };
    fetches.lanes.reach().clamp(SEGMENT, longest) / BUFFER as u64 * BUFFER as u64
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
