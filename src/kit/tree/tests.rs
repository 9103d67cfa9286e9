use proptest::prelude::*;

use super::*;
use crate::kit::listing::Certainty;
use crate::kit::listing::Entry;
use crate::kit::listing::EntryKind;

fn path(text: &str) -> KitPath {
    KitPath::parse(text.as_bytes()).unwrap()
}

/// A listing of `path` or `path=mode`, where a slash at the end of the path makes a directory. The
/// size of a file is the length of its path.
fn listing(entries: &[&str]) -> Listing {
    let entries = entries.iter().map(|entry| {
        let (name, mode) = entry.split_once('=').unwrap_or((entry, "640"));
        let kind = if name.ends_with('/') { EntryKind::Dir } else { EntryKind::File { size: name.len() as u64 } };
        Entry { path: path(name), mode: u16::from_str_radix(mode, 8).unwrap(), mtime: 7, kind }
    });
    Listing::new(entries.collect(), Certainty::Verified).unwrap()
}

fn build(layers: &[&[&str]], kitfile: Option<u64>) -> Result<Tree, TreeError> {
    let listings: Vec<Listing> = layers.iter().map(|entries| listing(entries)).collect();
    Tree::build((0..).map(LayerNumber).zip(&listings), kitfile)
}

/// The nodes, one a line, in the order of their numbers.
fn show(tree: &Tree) -> Vec<String> {
    let show = |inode| {
        let node = tree.node(inode).unwrap();
        let what = match node.kind {
            NodeKind::Dir { links, .. } => format!("dir {links}"),
            NodeKind::Kitfile => format!("kitfile {}", node.size),
            NodeKind::File { layer, entry } => format!("file {}:{entry} {}", layer.0, node.size),
        };
        format!("{} {} {:o} {what}", inode.0, tree.path(inode).unwrap(), node.mode)
    };
    tree.inodes().map(show).collect()
}

#[test]
fn layers_merge_in_canonical_order() {
    let tree = build(&[&["d/=750", "d/b", "z/y/x"], &["d/=700", "d/a=777", "d-/=711"], &["./=700"]], Some(98)).unwrap();
    assert_eq!(
        show(&tree),
        [
            "1 . 755 dir 5",
            "2 Kitfile 644 kitfile 98",
            "3 d 750 dir 2",
            "4 d- 711 dir 2",
            "5 z 755 dir 3",
            "6 d/a 777 file 1:1 3",
            "7 d/b 640 file 0:1 3",
            "8 z/y 755 dir 2",
            "9 z/y/x 640 file 0:2 5",
        ]
    );
    let walked: Vec<u64> = tree.walk(Inode::ROOT).map(|inode| inode.0).collect();
    assert_eq!(walked, [1, 2, 3, 6, 7, 4, 5, 8, 9]);
    assert_eq!(tree.walk(Inode(5)).map(|inode| inode.0).collect::<Vec<_>>(), [5, 8, 9]);
    assert_eq!(tree.walk(Inode(10)).count(), 0);
}

#[test]
fn every_node_is_found_by_name_and_by_path() {
    let tree = build(&[&["a", "b/c/d", "b/ca", "b/\u{e9}", "b/e\u{301}", "B/c"]], Some(1)).unwrap();
    for inode in tree.inodes().skip(1) {
        let node = tree.node(inode).unwrap();
        assert_eq!(tree.lookup(node.parent, tree.name(inode).unwrap()), Some(inode));
        assert!(tree.children(node.parent).contains(&inode.0));
        assert_eq!(tree.find(&tree.path(inode).unwrap()), Some(inode));
    }
    assert_eq!(tree.find(&KitPath::root()), Some(Inode::ROOT));
    assert_eq!(tree.path(Inode::ROOT), Some(KitPath::root()));
    assert_eq!(tree.node(Inode::ROOT).unwrap().parent, Inode::ROOT);
    for (inode, name) in [(1, "A"), (1, ""), (1, "."), (1, "b/c"), (2, "a"), (0, "a"), (99, "a"), (u64::MAX, "a")] {
        assert_eq!(tree.lookup(Inode(inode), name.as_bytes()), None, "{inode} {name}");
    }
    assert_eq!((tree.node(Inode(0)), tree.node(Inode(99)), tree.name(Inode(1))), (None, None, None));
}

#[test]
fn what_is_there_twice_is_refused_with_both_layers() {
    let (first, second) = (LayerNumber(0), LayerNumber(1));
    let same = |text| TreeError::SameFile { path: path(text), first, second };
    let mixed = |text, file, directory| TreeError::FileAndDirectory { path: path(text), file, directory };
    let kitfile = |text| TreeError::Kitfile { path: path(text), layer: second };
    for (layers, error) in [
        ([&["d/a"][..], &["d/", "d/a"]], same("d/a")),
        ([&["d/a"], &["d"]], mixed("d", second, first)),
        ([&["d"], &["d/a"]], mixed("d", first, second)),
        ([&["d"], &["d/"]], mixed("d", first, second)),
        ([&["d/"], &["d"]], mixed("d", second, first)),
        ([&["d"], &["d b", "d/x/y"]], mixed("d", first, second)),
        ([&["d"], &["Kitfile"]], kitfile("Kitfile")),
        ([&["d"], &["Kitfile/"]], kitfile("Kitfile")),
        ([&["d"], &["Kitfile/x"]], kitfile("Kitfile/x")),
    ] {
        assert_eq!(build(&layers, Some(5)).unwrap_err(), error, "{layers:?}");
    }
    assert!(build(&[&["Kitfile"]], None).is_ok(), "a filter left the kit's own out");
    assert!(build(&[&["d/Kitfile", "kitfile"]], Some(5)).is_ok());
}

#[test]
fn a_kit_without_layers_has_a_root() {
    assert_eq!(show(&build(&[], None).unwrap()), ["1 . 755 dir 2"]);
    assert!(build(&[], None).unwrap().is_empty());
}

#[test]
fn the_deepest_path_is_no_danger() {
    let deep = "d/".repeat(2047) + "f";
    let tree = build(&[&[&deep]], None).unwrap();
    assert_eq!(tree.len(), 2049);
    assert_eq!(tree.path(Inode(2049)).unwrap().to_string(), deep);
}

#[test]
fn a_tree_cannot_fill_the_memory() {
    let entries = (0..NODE_LIMIT / 1000).map(|number| Entry {
        path: path(&format!("{number}/{}", "d/".repeat(1000))),
        mode: 0,
        mtime: 0,
        kind: EntryKind::Dir,
    });
    let listing = Listing::new(entries.collect(), Certainty::Verified).unwrap();
    assert_eq!(Tree::build([(LayerNumber(0), &listing)], None), Err(TreeError::TooLarge));
}

/// Numbers outlive the binary that gave them: another digest here needs another [`NUMBERING`].
#[test]
fn the_numbering_is_frozen() {
    let tree = build(&[&["d/b", "z/y/x"], &["d/a", "d-/"]], Some(98)).unwrap();
    assert_eq!(tree.digest().to_string(), "sha256:d790f7c35e27193c52b4915120a903a18b9fc96350f57ceb90a1047aefd54316");
    let other = |layers: &[&[&str]], kitfile| build(layers, kitfile).unwrap().digest();
    assert_eq!(other(&[&["d-/", "d/a"], &["z/y/x", "d/b=777"]], Some(98)), tree.digest(), "same paths and sizes");
    assert_ne!(other(&[&["d/b", "z/y/x"], &["d/a", "d-/"]], Some(99)), tree.digest(), "another size");
    assert_ne!(other(&[&["d/b", "z/y/x"], &["d/a", "d-"]], Some(98)), tree.digest(), "another kind");
    assert_ne!(other(&[&["d/b", "z/y/x"], &["d/c", "d-/"]], Some(98)), tree.digest(), "another name");
}

proptest! {
    #[test]
    fn numbers_do_not_depend_on_the_order_of_layers(
        paths in proptest::collection::btree_set("[a-c]{1,2}(/[a-c]{1,2}){0,3}/", 0..20), cut: prop::sample::Index,
    ) {
        let entries: Vec<&str> = paths.iter().map(String::as_str).collect();
        let (one, other) = entries.split_at(cut.index(entries.len() + 1));
        let tree = build(&[one, other], Some(1)).unwrap();
        prop_assert_eq!(build(&[other, one], Some(1)).unwrap().digest(), tree.digest());
        let by_depth: Vec<_> = tree.inodes().map(|inode| {
            let path = tree.path(inode).unwrap();
            (path.components().count(), path)
        }).collect();
        prop_assert!(by_depth.is_sorted());
    }
}
