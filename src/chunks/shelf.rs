//! What is at hand of the files of a mount: objects of the store, whole or in progress, and what is still
//! in memory. And where proved units go.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use rustix::process::{Resource, getrlimit};

use crate::audit::Event;
use crate::buffers;
use crate::chunks::warm::Place;
use crate::chunks::warm::Warm;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::ledger::Trouble;
use crate::ledger::TroubleKind;
use crate::store::Partial;
use crate::verify::UnitMismatch;
use crate::verify::Unverified;
use crate::verify::Verified;
use crate::verify::Witness;
use crate::verify::WitnessError;
use crate::verity::FileTree;
use crate::verity::UNIT;
use crate::verity::VerityDigest;

/// Objects that stay open between two reads, where this process may open so many files.
const OPEN_OBJECTS: usize = 256;

/// How long the disk is left alone after it took nothing: it is full, read-only or gone.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// What is at hand.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) workshop: Arc<Workshop>,
    pub(super) warm: Warm,
    /// A std mutex: nothing is awaited while it is held.
    open: Mutex<LruCache<VerityDigest, Object>>,
    disk_failed: Mutex<Option<Instant>>,
}

/// At most a quarter of the files that this process may open: sources and the store need some too.
fn open_objects() -> NonZeroUsize {
    let may_open = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let quarter = usize::try_from(may_open / 4).unwrap_or(usize::MAX);
    NonZeroUsize::new(quarter.min(OPEN_OBJECTS)).unwrap_or(NonZeroUsize::MIN)
}

/// A unit that was proved.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: Verified<Bytes>,
    /// Whether it can be had from the disk from now on.
    pub(super) is_on_disk: bool,
}

#[derive(Clone, Debug)]
enum Object {
    Whole(Arc<Witness>),
    Growing(Arc<Partial>),
}

impl Shelf {
    pub(super) fn new(workshop: Arc<Workshop>) -> Self {
        let places = buffers::count_in(workshop.memory / 4);
        let warm = Warm::new(u32::try_from(places).unwrap_or(u32::MAX / 2));
        Self { workshop, warm, open: Mutex::new(LruCache::new(open_objects())), disk_failed: Mutex::default() }
    }

    /// The bytes of `range`, at most a buffer, if nothing but memory and the local disk is needed.
    pub(super) fn read(&self, layer: &Layer, tree: &Verified<FileTree>, range: &Range<u64>) -> Option<Verified<Bytes>> {
        let object = self.object(tree);
        if let Some(Object::Whole(witness)) = &object {
            return witness
                .read(range.clone(), &self.workshop.buffers)
                .map_err(|error| self.tell_damage(layer, tree, &error))
                .ok();
        }
        let mut parts = Vec::new();
        for unit in units(range) {
            let share = Share::of(tree, unit, range);
            let bytes = match (self.warm.unit(&(tree.verity, unit)), &object) {
                (Some(bytes), _) => bytes.slice(share.in_unit),
                (None, Some(Object::Growing(partial))) if partial.has(unit) => partial
                    .read(share.in_file, &self.workshop.buffers)
                    .map_err(|error| self.tell_damage(layer, tree, &error))
                    .ok()?,
                (None, _) => return None,
            };
            parts.push(bytes);
        }
        Verified::join(&parts, &self.workshop.buffers).ok()
    }

    /// The object of a file, if it is not one in progress.
    pub(super) fn whole(&self, tree: &Verified<FileTree>) -> Option<Arc<Witness>> {
        match self.object(tree)? {
            Object::Whole(witness) => Some(witness),
            Object::Growing(_) => None,
        }
    }

    /// Whether a unit is at hand, as far as that is known without reading it.
    pub(super) fn has(&self, tree: &Verified<FileTree>, unit: u64) -> bool {
        if self.warm.unit(&(tree.verity, unit)).is_some() {
            return true;
        }
        match self.object(tree) {
            Some(Object::Whole(_)) => true,
            Some(Object::Growing(partial)) => partial.has(unit),
            None => false,
        }
    }

    /// Proves bytes as a unit, and keeps it on the disk if the disk takes it, in memory for a while in any
    /// case.
    pub(super) fn keep(
        &self,
        layer: &Layer,
        tree: &Verified<FileTree>,
        unit: u64,
        bytes: Unverified,
        place: Place,
    ) -> Result<Kept, UnitMismatch> {
        let mut complete = None;
        let (bytes, kept) = match self.growing(tree) {
            Some(Ok(partial)) => {
                let (bytes, kept) = partial.put(unit, bytes)?;
                complete = partial.is_complete().then_some(partial);
                (bytes, kept.map(|()| true))
            }
            Some(Err(error)) => (bytes.verify_unit(tree, unit)?, Err(error)),
            None => {
                let bytes = bytes.verify_unit(tree, unit)?;
                let is_small = tree.size <= UNIT && !self.disk_rests();
                let kept =
                    if is_small { self.workshop.store.keep_small(tree, &bytes).map(|()| true) } else { Ok(false) };
                (bytes, kept)
            }
        };
        let is_on_disk = kept.unwrap_or_else(|error| {
            self.tell_disk(&error);
            false
        });
        if is_on_disk {
            layer.note_here(bytes.len() as u64);
            self.workshop.store.note_added(bytes.len() as u64);
            complete.iter().for_each(|partial| self.finish(tree, partial));
        }
        self.warm.keep((tree.verity, unit), bytes.clone(), place);
        Ok(Kept { bytes, is_on_disk })
    }

    /// Somebody has closed a file: what other processes fetched of it may have completed it.
    pub(super) fn close(&self, tree: &Verified<FileTree>) {
        let open = self.lock().get(&tree.verity).cloned();
        if let Some(Object::Growing(partial)) = open {
            partial.refresh();
            if partial.is_complete() {
                self.finish(tree, &partial);
            }
        }
    }

    /// Whether proved layers and units are kept at all, just now.
    pub(super) fn disk_rests(&self) -> bool {
        !self.workshop.store.has_room() || self.disk_failed().is_some_and(|when| when.elapsed() < DISK_PAUSE)
    }

    fn finish(&self, tree: &Verified<FileTree>, partial: &Partial) {
        match partial.finish(&self.workshop.buffers) {
            Ok(true) => {
                self.lock().pop(&tree.verity);
                let tree = tree.clone();
                self.workshop.store.when_settled(move |store| store.settle(&tree));
            }
            Ok(false) => {}
            // Evicted, or another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(self.lock().pop(&tree.verity)),
            Err(error) => self.tell_disk(&error),
        }
    }

    fn object(&self, tree: &Verified<FileTree>) -> Option<Object> {
        if let Some(object) = self.lock().get(&tree.verity) {
            return Some(object.clone());
        }
        let store = &self.workshop.store;
        let object = match store.object(tree) {
            Some(witness) => {
                store.touch_object(tree);
                Object::Whole(Arc::new(witness))
            }
            None if store.has_partial(&tree.verity) => Object::Growing(Arc::new(store.partial(tree).ok()?)),
            None => return None,
        };
        Some(self.lock().get_or_insert(tree.verity, || object).clone())
    }

    /// The object in progress that a file of several units is written to; `None` where there is none to write to.
    fn growing(&self, tree: &Verified<FileTree>) -> Option<io::Result<Arc<Partial>>> {
        if tree.size <= UNIT || self.disk_rests() {
            return None;
        }
        match self.object(tree) {
            Some(Object::Growing(partial)) => Some(Ok(partial)),
            Some(Object::Whole(_)) => None,
            None => Some(self.workshop.store.partial(tree).map(|partial| {
                let partial = Arc::new(partial);
                match self.lock().get_or_insert(tree.verity, || Object::Growing(Arc::clone(&partial))) {
                    Object::Growing(first) => Arc::clone(first),
                    // Whole since a moment ago: what is written beside it goes away with it.
                    Object::Whole(_) => partial,
                }
            })),
        }
    }

    fn tell_damage(&self, layer: &Layer, tree: &Verified<FileTree>, error: &WitnessError) {
        let mut trouble = Trouble::new(TroubleKind::Store, error);
        if let WitnessError::Mismatch(mismatch) = error {
            trouble.expected = Some(mismatch.expected.clone());
            trouble.actual = Some(mismatch.actual.clone());
            self.workshop.audit.record_soon(mismatch_event(layer, mismatch, "cache".into()));
        }
        trouble.layer = Some(layer.digest().to_string());
        trouble.source = Some("cache".into());
        trouble.message = format!("a cached file is damaged and is fetched again: {}", trouble.message);
        self.workshop.ledger.report(trouble);
        if let Some(Object::Whole(_)) = self.lock().pop(&tree.verity) {
            self.workshop.store.discard_object(&tree.verity);
        }
    }

    fn tell_disk(&self, error: &io::Error) {
        let rested = self.disk_rests();
        *self.disk_failed() = Some(Instant::now());
        if !rested {
            let mut trouble = Trouble::new(TroubleKind::Store, error);
            trouble.message = format!("the store keeps nothing now, and files are verified in memory: {error}");
            self.workshop.ledger.report(trouble);
            self.workshop.store.look();
        }
    }

    fn disk_failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.disk_failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<VerityDigest, Object>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The units that a range of a file touches.
pub(super) fn units(range: &Range<u64>) -> Range<u64> {
    range.start / UNIT..range.end.div_ceil(UNIT)
}

/// What one unit of a file has of a range.
pub(super) struct Share {
    pub(super) in_file: Range<u64>,
    pub(super) in_unit: Range<usize>,
}

impl Share {
    /// The unit is one of those that the range touches.
    pub(super) fn of(tree: &FileTree, unit: u64, range: &Range<u64>) -> Self {
        let place = tree.unit_range(unit);
        let in_file = range.start.max(place.start)..range.end.min(place.end);
        let in_unit = (in_file.start - place.start) as usize..(in_file.end - place.start) as usize;
        Self { in_file, in_unit }
    }
}

/// A unit that is not what its tree says, for the audit log.
pub(super) fn mismatch_event(layer: &Layer, mismatch: &UnitMismatch, source: String) -> Event {
    Event::mismatch(&layer.kit, Some(layer.digest()), &mismatch.expected, &mismatch.actual, source)
}
