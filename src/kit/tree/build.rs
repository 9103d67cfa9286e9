//! Merges layers into one tree.
//!
//! All entries are sorted by path, so that a directory comes right before what is in it, and swept once,
//! with the way to the last entry on a stack. Sorted by depth, what the sweep made is in canonical
//! order. Nothing recurses.

use std::iter;

use crate::kit::listing::Entry;
use crate::kit::listing::EntryKind;
use crate::kit::listing::Listing;
use crate::kit::name::EntryName;
use crate::kit::name::KitPath;
use crate::kit::tree::Assembly;
use crate::kit::tree::KITFILE;
use crate::kit::tree::LayerNumber;
use crate::kit::tree::NODE_LIMIT;
use crate::kit::tree::Slot;
use crate::kit::tree::SlotKind;
use crate::kit::tree::Tree;
use crate::kit::tree::TreeError;

/// Mode of the root, and of directories that no layer has.
const DIR_MODE: u16 = 0o755;

/// Mode of the Kitfile.
const KITFILE_MODE: u16 = 0o644;

/// An entry of a layer, or the Kitfile, which is in none.
struct Item<'a> {
    entry: &'a Entry,
    layer: Option<LayerNumber>,
    position: u32,
}

/// A node before it has its number.
struct Draft<'a, 'i> {
    name: Option<EntryName<'a>>,
    /// What it was made for; nothing for the root and for directories that no layer has.
    item: Option<&'i Item<'a>>,
    /// Position of its directory among the drafts.
    parent: u32,
    depth: u16,
}

pub(super) fn build<'a>(
    layers: impl IntoIterator<Item = (LayerNumber, &'a Listing)>,
    kitfile: Option<u64>,
) -> Result<Tree, TreeError> {
    let kitfile = kitfile.and_then(|size| {
        let path = KitPath::parse(KITFILE).ok()?;
        Some(Entry { path, mode: KITFILE_MODE, mtime: 0, kind: EntryKind::File { size } })
    });
    let mut items = Vec::from_iter(kitfile.iter().map(|entry| Item { entry, layer: None, position: 0 }));
    for (layer, listing) in layers {
        let entries = (0..).zip(listing.entries());
        items.extend(entries.map(|(position, entry)| Item { entry, layer: Some(layer), position }));
    }
    // Stable: of two entries with one path, that of the earlier layer stays the first.
    items.sort_by(|one, other| one.entry.path.cmp(&other.entry.path));
    let drafts = sweep(&items)?;
    number(&drafts).ok_or(TreeError::TooLarge)
}

/// Makes one draft of each path, each right after the directory that it is in or after others there.
fn sweep<'a, 'i>(items: &'i [Item<'a>]) -> Result<Vec<Draft<'a, 'i>>, TreeError> {
    let mut drafts = vec![Draft { name: None, item: None, parent: 0, depth: 0 }];
    // Positions of the drafts on the way to the last path, the root first.
    let mut way = vec![0u32];
    for item in items {
        let mut names = item.entry.path.components().peekable();
        let mut known = 1;
        while let Some(on_the_way) = way.get(known)
            && names.peek().is_some()
            && names.peek().copied() == drafts.get(*on_the_way as usize).and_then(|draft| draft.name)
        {
            names.next();
            known += 1;
        }
        way.truncate(known);
        let last = way.last().copied().unwrap_or_default();
        if let Some(there) = drafts.get(last as usize).and_then(|draft| draft.item) {
            refuse_collision(there, item)?;
        }
        let mut parent = last;
        while let Some(name) = names.next() {
            if drafts.len() >= NODE_LIMIT {
                return Err(TreeError::TooLarge);
            }
            let item = if names.peek().is_none() { Some(item) } else { None };
            // Both fit: there are fewer drafts than NODE_LIMIT, and fewer names in a path than bytes.
            let (number, depth) = (drafts.len() as u32, way.len() as u16);
            drafts.push(Draft { name: Some(name), item, parent, depth });
            way.push(number);
            parent = number;
        }
    }
    Ok(drafts)
}

/// Checks that `item`, which has the path of `there` or lies beneath it, can be there too.
fn refuse_collision(there: &Item<'_>, item: &Item<'_>) -> Result<(), TreeError> {
    let is_same = there.entry.path == item.entry.path;
    let path = || there.entry.path.clone();
    match (there.entry.kind, item.entry.kind) {
        (EntryKind::Dir, EntryKind::Dir) => Ok(()),
        (EntryKind::Dir, EntryKind::File { .. }) if !is_same => Ok(()),
        (here, kind) => {
            // The Kitfile is the first of its path, so what comes later is in a layer.
            let layer = item.layer.unwrap_or(LayerNumber(0));
            Err(match there.layer {
                None => TreeError::Kitfile { path: item.entry.path.clone(), layer },
                Some(other) if here == EntryKind::Dir => {
                    TreeError::FileAndDirectory { path: path(), file: layer, directory: other }
                }
                Some(other) if is_same && kind != EntryKind::Dir => {
                    TreeError::SameFile { path: path(), first: other, second: layer }
                }
                Some(other) => TreeError::FileAndDirectory { path: path(), file: other, directory: layer },
            })
        }
    }
}

/// Puts the drafts in canonical order. They are sorted within each directory, and so within each
/// depth; what is left to do is to sort them by depth, stably.
fn number(drafts: &[Draft<'_, '_>]) -> Option<Tree> {
    let mut starts = Vec::<u32>::new();
    for draft in drafts {
        let depth = usize::from(draft.depth) + 1;
        starts.resize(starts.len().max(depth + 1), 0);
        *starts.get_mut(depth)? += 1;
    }
    for depth in 1..starts.len() {
        let before = *starts.get(depth - 1)?;
        *starts.get_mut(depth)? += before;
    }
    let mut numbers = vec![0u32; drafts.len()];
    let mut order = vec![0u32; drafts.len()];
    for (position, (draft, number)) in (0..).zip(iter::zip(drafts, &mut numbers)) {
        let next = starts.get_mut(usize::from(draft.depth))?;
        *number = *next;
        *order.get_mut(*next as usize)? = position;
        *next += 1;
    }
    let mut assembly = Assembly::default();
    for position in order {
        let draft = drafts.get(position as usize)?;
        let parent = *numbers.get(draft.parent as usize)?;
        assembly.push(draft.name, draft.slot(parent))?;
    }
    Some(assembly.finish())
}

impl Draft<'_, '_> {
    fn slot(&self, parent: u32) -> Slot {
        let (mode, mtime) = self.item.map_or((DIR_MODE, 0), |item| (item.entry.mode, item.entry.mtime));
        let kind = match self.item.map(|item| (item, item.entry.kind)) {
            None | Some((_, EntryKind::Dir)) => SlotKind::Dir { first_child: 0, children: 0, directories: 0 },
            Some((Item { layer: None, .. }, EntryKind::File { size })) => SlotKind::Kitfile { size },
            Some((Item { layer: Some(layer), position, .. }, EntryKind::File { size })) => {
                SlotKind::File { size, layer: *layer, entry: *position }
            }
        };
        Slot { parent, name_start: 0, name_len: 0, mode, mtime, kind }
    }
}
