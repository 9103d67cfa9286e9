//! Kits that refer to another kit for their model.

use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file};
use crate::support::kitfs::Kitfs;
use crate::support::registry::{Access, Registry};
use crate::support::shared;
use crate::support::tree::Tree;

/// A kit with a model and a part, and with a document that a child does not inherit.
fn base() -> Packed {
    Kit::named("base")
        .with(Base::Model, "model", [file("model/base.bin", *b"base weights")])
        .with(Base::Part, "tokenizer.json", [file("tokenizer.json", *b"{}")])
        .with(Base::Docs, "BASE.md", [file("BASE.md", *b"of the base")])
        .pack()
}

/// A kit with an adapter, and the model of `parent`.
fn child(parent: &str) -> Packed {
    Kit::named("child")
        .parent(parent)
        .with(Base::Part, "adapter.bin", [file("adapter.bin", *b"adapter weights")])
        .with(Base::Code, "src", [file("src/run.py", *b"pass\n")])
        .pack()
}

/// What the mount of a child of [`base`] shows.
fn whole(child: &Packed) -> Tree {
    let mut tree = child.tree.clone();
    tree.put("model/base.bin", b"base weights", 0o644);
    tree.put("tokenizer.json", b"{}", 0o644);
    tree
}

#[test]
fn a_child_in_the_store_of_kitops_mounts_as_kit_unpacked_it() {
    let Some(home) = shared::shared("fixtures/kitops-home") else { return };
    let expected = Tree::of_json(&home.join("tree-child.json"));
    let kitfs = Kitfs::new().with("KITOPS_HOME", &home);
    let document = kitfs.run(&["verify", "kit:child:v1", "--output", "json"]).expect(0).json();
    let parents = document["parents"].as_array().expect("parents");
    assert_eq!(parents.len(), 1, "{document}");
    assert_eq!(parents[0]["digest"], "sha256:a84da57a319c5e3becf6fca47d14296246703484978b5491ad5fb3a888bae224");
    let folder = kitfs.next_directory();
    kitfs.run(&["export", "kit:child:v1", folder.to_str().expect("a plain name")]).expect(0);
    Tree::read(&folder).assert_is(&expected, "export kit:child:v1");
    if host::can_mount() {
        let mount = kitfs.mount("kit:child:v1");
        Tree::read(mount.path()).assert_is(&expected, "kit:child:v1");
        mount.unmount();
    }
}

#[test]
fn a_parent_in_the_same_layout_is_found_by_its_whole_reference() {
    let kitfs = Kitfs::new();
    let child = child("registry.invalid/org/base:v1");
    let layout = Layout::of(kitfs.path("layout"), &child);
    base().write(&layout, Some("registry.invalid/org/base:v1"));
    let document = kitfs.run(&["verify", &layout.reference("v1"), "--output", "json"]).expect(0).json();
    assert_eq!(document["parents"][0]["digest"], base().digest(), "{document}");
    let folder = kitfs.next_directory();
    kitfs.run(&["export", &layout.reference("v1"), folder.to_str().expect("a plain name")]).expect(0);
    Tree::read(&folder).without("Kitfile").assert_is(&whole(&child), "a child and its parent in one layout");
}

#[test]
fn a_parent_in_the_same_layout_is_never_found_by_its_tag_alone() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &child("127.0.0.1:1/org/base:v2"));
    base().write(&layout, Some("v2"));
    // The layout has a `v2`, but not of that repository; so its registry is asked, where nobody listens.
    kitfs.run(&["verify", &layout.reference("v1"), "--read-timeout", "2s"]).expect(7);
}

#[test]
fn a_parent_in_a_registry_is_fetched_and_pinned() {
    if !host::can_mount() {
        return;
    }
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let parent = registry.push(Layout::of(kitfs.path("base"), &base()).path(), "org/base", "v1");
    let child = child(&parent);
    let reference = registry.push(Layout::of(kitfs.path("child"), &child).path(), "org/child", "v1");
    let mount = kitfs.mount(&reference);
    // A tag that moves after the mount changes nothing of it.
    let other = Kit::named("other").with(Base::Model, "model", [file("model/base.bin", *b"other weights")]).pack();
    registry.push(Layout::of(kitfs.path("other"), &other).path(), "org/base", "v1");
    Tree::read(mount.path()).without("Kitfile").assert_is(&whole(&child), "a child and its parent in a registry");
    let digest = |path: &str| crate::support::mount::attribute(&mount.at(path), "user.kitfs.digest");
    assert_eq!(digest("model/base.bin"), Ok(base().digest()));
    assert_eq!(digest("adapter.bin"), Ok(child.digest()));
    mount.unmount();
}

#[test]
fn a_parent_that_is_not_there_is_3() {
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &child(&format!("{}/no/such:kit", registry.host())));
    kitfs.run(&["verify", &layout.reference("v1")]).expect(3).says("no/such");
}

#[test]
fn a_parent_may_not_be_a_local_path() {
    for parent in ["oci:/etc:v1", "kit:base:v1"] {
        let kitfs = Kitfs::new();
        let layout = Layout::of(kitfs.path("layout"), &child(parent));
        base().write(&layout, Some(parent));
        kitfs.run(&["verify", &layout.reference("v1")]).expect(1);
    }
}

#[test]
fn a_kit_that_is_its_own_ancestor_is_refused() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &child("registry.invalid/a:v1"));
    child("registry.invalid/b:v1").write(&layout, Some("registry.invalid/a:v1"));
    child("registry.invalid/a:v1").write(&layout, Some("registry.invalid/b:v1"));
    kitfs.command(&["verify", &layout.reference("v1")]).within(20).run().expect(1);
}

/// A layout with `links` kits that refer to the next, and [`base`] at the end.
fn chain(kitfs: &Kitfs, links: usize) -> Layout {
    let layout = Layout::create(kitfs.path(&format!("chain-{links}")));
    for link in 0..links {
        let name = format!("registry.invalid/link-{link}:v1");
        let kit = Kit::named("link").parent(&format!("registry.invalid/link-{}:v1", link + 1)).pack();
        kit.write(&layout, Some(if link == 0 { "v1" } else { &name }));
    }
    base().write(&layout, Some(&format!("registry.invalid/link-{links}:v1")));
    layout
}

#[test]
fn ten_links_are_followed_and_an_eleventh_is_not() {
    let kitfs = Kitfs::new();
    let document = kitfs.run(&["verify", &chain(&kitfs, 10).reference("v1"), "--output", "json"]).expect(0).json();
    assert_eq!(document["parents"].as_array().expect("parents").len(), 10, "{document}");
    kitfs.run(&["verify", &chain(&kitfs, 11).reference("v1")]).expect(1).says("10");
}
