//! Kits packed by the real `kit` and `modctl`: each is shown exactly as `kit unpack` or `modctl pull` wrote it, from
//! a layout, from a real registry, mounted and not.

use std::path::Path;

use serde_json::Value;

use crate::support::host;
use crate::support::kitfs::{Kitfs, Output};
use crate::support::registry::{Access, Registry};
use crate::support::shared;
use crate::support::tree::{Content, Node, Tree};

/// A tree as a fixture gives it, and whether that holds a Kitfile: kit writes one, modctl does not.
struct Expected(Tree);

impl Expected {
    fn of(kit: &Path) -> Self {
        Self(Tree::of_json(&kit.join("tree.json")))
    }

    #[track_caller]
    fn check(&self, found: Tree, what: &str) {
        let kitfile = found.0.get(b"Kitfile".as_slice()).cloned();
        assert!(kitfile.is_some(), "{what}: there is always a Kitfile");
        let found = if self.0.0.contains_key(b"Kitfile".as_slice()) { found } else { found.without("Kitfile") };
        found.assert_is(&self.0, what);
    }
}

/// What `ls -R --output json` tells, as a tree without contents.
fn listed(output: &Output) -> Tree {
    let mut tree = Tree::default();
    for entry in output.json()["entries"].as_array().expect("entries") {
        let path = entry["path"].as_str().expect("the fixtures have UTF-8 names");
        let mode = u32::from_str_radix(entry["mode"].as_str().expect("a mode"), 8).expect("octal");
        match entry["type"].as_str().expect("a type") {
            "dir" => tree.put_directory(path, mode),
            "file" => {
                tree.put(path, b"", mode);
                let size = entry["size"].as_u64().expect("a size");
                tree.0.get_mut(path.as_bytes()).expect("just put").node = Node::File(size, Content::Error(0));
            }
            other => panic!("{other}"),
        }
    }
    tree
}

fn without_contents(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for entry in tree.0.values_mut() {
        if let Node::File(_, content) = &mut entry.node {
            *content = Content::Error(0);
        }
    }
    tree
}

fn check_verify(kitfs: &Kitfs, reference: &str, arguments: &[&str]) -> Value {
    let document = kitfs.run(&[&["verify", reference, "--output", "json"], arguments].concat()).expect(0).json();
    assert_eq!(document["ok"], true, "{document}");
    assert_eq!(document["mountable"], true, "{document}");
    assert_eq!(document["error"], Value::Null, "{document}");
    for layer in document["layers"].as_array().expect("layers") {
        assert_eq!(layer["status"], "verified", "{document}");
    }
    document
}

/// All that the commands say of a kit without mounting it.
fn check_commands(kitfs: &Kitfs, reference: &str, arguments: &[&str], expected: &Expected) {
    check_verify(kitfs, reference, arguments);
    let list = [&["ls", "-R", reference, "--output", "json"], arguments].concat();
    expected_list(expected).check(listed(&kitfs.run(&list).expect(0)), &format!("ls -R {reference}"));
    let folder = kitfs.next_directory();
    let target = folder.to_str().expect("a plain name");
    kitfs.run(&[&["export", reference, target], arguments].concat()).expect(0);
    expected.check(Tree::read(&folder), &format!("export {reference}"));
    for file in expected.0.files() {
        let written = kitfs.run(&[&["cat", reference, &file], arguments].concat()).expect(0).stdout;
        let Node::File(_, content) = &expected.0.0[file.as_bytes()].node else { unreachable!("it is a file") };
        assert_eq!(&Content::Sha256(crate::support::tree::sha256(&written)), content, "cat {reference} {file}");
    }
}

fn expected_list(expected: &Expected) -> Expected {
    Expected(without_contents(&expected.0))
}

#[test]
fn from_a_layout_without_a_mount() {
    for (name, kit) in shared::kits() {
        let kitfs = Kitfs::new();
        let reference = format!("oci:{}:v1", kit.join("layout").display());
        check_commands(&kitfs, &reference, &[], &Expected::of(&kit));
        eprintln!("{name}: as packed");
    }
}

#[test]
fn mounted_from_a_layout() {
    if !host::can_mount() {
        return;
    }
    for (name, kit) in shared::kits() {
        let kitfs = Kitfs::new();
        let expected = Expected::of(&kit);
        let reference = format!("oci:{}:v1", kit.join("layout").display());
        for time in ["cold", "warm"] {
            let mount = kitfs.mount(&reference);
            expected.check(Tree::read(mount.path()), &format!("{name}, {time}"));
            expected.check(Tree::read(mount.path()), &format!("{name}, {time}, once more"));
            mount.unmount();
        }
    }
}

#[test]
fn mounted_with_all_metadata_verified_first() {
    if !host::can_mount() {
        return;
    }
    for (name, kit) in shared::kits() {
        let kitfs = Kitfs::new();
        let reference = format!("oci:{}:v1", kit.join("layout").display());
        let mount = kitfs.mount_with(&reference, &["--metadata", "verified"]);
        Expected::of(&kit).check(Tree::read(mount.path()), &name);
        mount.unmount();
    }
}

fn check_registry(access: Access) {
    let kits = shared::kits();
    if kits.is_empty() || !host::can_mount() {
        return;
    }
    let Some(registry) = Registry::start(access) else { return };
    let authority = registry.authority();
    let credentials = registry.credentials();
    let arguments: Vec<&str> = match access {
        Access::Plain => vec![],
        Access::Tls => vec!["--ca-cert", authority.to_str().expect("a plain name")],
        Access::Password => vec![
            "--ca-cert",
            authority.to_str().expect("a plain name"),
            "--registry-config",
            credentials.to_str().expect("a plain name"),
        ],
    };
    for (name, kit) in kits {
        let kitfs = Kitfs::new();
        let expected = Expected::of(&kit);
        let reference = registry.push(&kit.join("layout"), &format!("kits/{name}"), "v1");

        let mount = kitfs.mount_with(&reference, &arguments);
        expected.check(Tree::read(mount.path()), &format!("{name}, cold"));
        mount.unmount();

        let before = registry.requests().len();
        let mount = kitfs.mount_with(&reference, &arguments);
        expected.check(Tree::read(mount.path()), &format!("{name}, warm"));
        mount.unmount();
        let asked = registry.requests().split_off(before);
        let fetched: Vec<_> = asked.iter().filter(|line| line.contains("/blobs/")).collect();
        assert!(fetched.is_empty(), "{name}: a second mount fetched {fetched:#?}");

        check_commands(&Kitfs::new(), &reference, &arguments, &expected);
    }
}

#[test]
fn from_a_plain_registry() {
    check_registry(Access::Plain);
}

#[test]
fn from_a_registry_with_tls() {
    check_registry(Access::Tls);
}

#[test]
fn from_a_registry_with_tls_and_a_password() {
    check_registry(Access::Password);
}

#[test]
fn a_pulled_kit_mounts_with_the_registry_down() {
    let kits = shared::kits();
    if kits.is_empty() || !host::can_mount() {
        return;
    }
    let Some(mut registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let mut pulled = Vec::new();
    for (name, kit) in kits {
        let reference = registry.push(&kit.join("layout"), &name, "v1");
        let document = kitfs.run(&["pull", &reference, "--output", "json"]).expect(0).json();
        assert_eq!(document["ok"], true, "{document}");
        pulled.push((reference, Expected::of(&kit)));
    }
    registry.stop();
    for (reference, expected) in pulled {
        let mount = kitfs.mount_with(&reference, &["--offline"]);
        expected.check(Tree::read(mount.path()), &reference);
        mount.unmount();
    }
}
