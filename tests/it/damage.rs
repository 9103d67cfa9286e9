//! What sources and caches do to a mount: bytes that rot, blobs that are swapped, registries that are down. Readers get
//! the true bytes or an error in time; a corrupt cache is fetched again, a corrupt source is EIO with both digests.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file, flip, noise};
use crate::support::kitfs::Kitfs;
use crate::support::registry::{Access, Registry};
use crate::support::tree::{Content, Tree};

const EIO: i32 = 5;

/// A kit in a layout, and a reference to it.
fn usual(kitfs: &Kitfs) -> (Packed, Layout, String) {
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    let reference = layout.reference("v1");
    (kit, layout, reference)
}

#[test]
fn a_moved_tag_or_a_swapped_blob_changes_nothing_of_a_mount() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, layout, reference) = usual(&kitfs);
    let mount = kitfs.mount_with(&reference, &["--metadata", "verified"]);
    let other = Kit::named("other").with(Base::Model, "model", [file("model/weights.bin", noise(1, 1000))]).pack();
    other.write(&layout, Some("v1"));
    for layer in &kit.layers {
        layout.flip(&layer.digest);
    }
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "after the tag moved and the blobs changed");
    mount.unmount();
}

#[test]
fn a_corrupt_source_is_eio_and_a_message_with_both_digests() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, layout, reference) = usual(&kitfs);
    let bad = kit.layer("model.v1").digest.clone();
    // In the middle, where no header is: the tree can be listed, and the layer cannot be proved.
    layout.flip(&bad);
    let mount = kitfs.mount(&reference);
    for name in ["model/weights.bin", "model/config.json"] {
        assert_eq!(Content::read(&mount.at(name)), Content::Error(EIO), "{name}");
    }
    assert_eq!(std::fs::read(mount.at("README.md")).expect("another layer"), b"# usual\n");
    let status = mount.status();
    let error = &status["last_error"];
    assert_eq!((&error["kind"], &error["expected"]), (&"mismatch".into(), &bad.as_str().into()), "{status}");
    let actual = error["actual"].as_str().expect("what it was instead");
    assert!(actual.starts_with("sha256:") && actual != bad, "{status}");
    assert_eq!(error["layer"], bad.as_str(), "{status}");
    let log = kitfs.log();
    assert!(log.contains(&bad) && log.contains(actual), "the log lacks a digest:\n{log}");
    mount.unmount();
}

#[test]
fn a_source_that_is_mended_is_read_after_all() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, layout, reference) = usual(&kitfs);
    let bad = kit.layer("model.v1");
    layout.flip(&bad.digest);
    let mount = kitfs.mount(&reference);
    assert_eq!(Content::read(&mount.at("model/weights.bin")), Content::Error(EIO));
    layout.put(&bad.digest, &bad.bytes);
    let mended = host::soon(30, || std::fs::read(mount.at("model/weights.bin")).is_ok());
    assert!(mended, "an error that has gone is remembered for ever");
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "mended");
    mount.unmount();
}

#[test]
fn a_layer_that_tells_another_story_than_its_headers_did_is_refused() {
    if !host::can_mount() {
        return;
    }
    const MIB: usize = 1 << 20;
    let kitfs = Kitfs::new();
    let sized = |a: usize, b: usize| {
        let files = [file("model/a.bin", noise(1, a)), file("model/b.bin", noise(2, b))];
        Kit::named("story").with(Base::Model, "model", files).pack()
    };
    let (kit, lie) = (sized(2 * MIB, MIB), sized(MIB, 2 * MIB));
    let (layer, told) = (kit.layer("model.v1"), lie.layer("model.v1"));
    let layout = Layout::of(kitfs.path("layout"), &kit);
    layout.put(&layer.digest, &told.bytes);
    let mount = kitfs.mount(&layout.reference("v1"));
    let size = || std::fs::metadata(mount.at("model/a.bin")).expect("it was listed").len();
    assert_eq!(size(), MIB as u64, "what the source said before anybody could check it");
    layout.put(&layer.digest, &layer.bytes);
    for name in ["model/a.bin", "model/b.bin"] {
        assert_eq!(Content::read(&mount.at(name)), Content::Error(EIO), "{name}");
    }
    let status = mount.status();
    let message = status["last_error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains(&layer.digest) && message.contains("mount it again"), "{status}");
    assert_eq!(size(), MIB as u64, "the kernel knows no other");
    mount.unmount();
    let mount = kitfs.mount(&layout.reference("v1"));
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "mounted again");
    mount.unmount();
}

/// Every regular file below a directory.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("our own directory").flatten() {
            let kind = entry.file_type().expect("it is there");
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files
}

#[test]
fn a_corrupt_cache_is_fetched_again() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "cold");
    mount.unmount();
    let spoilt = files_below(&kitfs.path("cache"));
    assert!(!spoilt.is_empty(), "the cache holds something");
    for file in spoilt {
        flip(&file);
    }
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with every file of the cache spoilt");
    mount.unmount();
    let found = kitfs.run(&["cache", "verify", "--output", "json"]);
    assert!(matches!(found.code, 0 | 5), "{found}");
    kitfs.run(&["cache", "verify"]).expect(0);
}

#[test]
fn a_cache_that_is_spoilt_under_a_mount_is_never_shown() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    let first = kitfs.mount(&reference);
    Tree::read(first.path()).without("Kitfile").assert_is(&kit.tree, "cold");
    // In place, as a disk or an intruder does it: same file, same length.
    for path in files_below(&kitfs.path("cache")) {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("our own file");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("our own file");
        let middle = file.metadata().expect("our own file").len() / 2;
        let mut byte = [0];
        if file.read_at(&mut byte, middle).expect("our own file") == 1 {
            file.write_at(&[byte[0] ^ 1], middle).expect("our own file");
        }
    }
    // Another mount, because the kernel keeps the pages of the first.
    let second = kitfs.mount(&reference);
    Tree::read(second.path()).without("Kitfile").assert_is(&kit.tree, "with the cache spoilt under a mount");
    second.unmount();
    first.unmount();
}

#[test]
fn a_cache_that_is_emptied_is_filled_again() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    kitfs.run(&["pull", &reference]).expect(0);
    std::fs::remove_dir_all(kitfs.path("cache")).expect("our own directory");
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with an empty cache");
    mount.unmount();
}

#[test]
fn a_registry_that_is_down_leaves_what_the_cache_has() {
    if !host::can_mount() {
        return;
    }
    let Some(mut registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let (kit, layout, _) = usual(&kitfs);
    let reference = registry.push(layout.path(), "usual", "v1");
    let by_digest = format!("{}/usual@{}", registry.host(), kit.digest());
    let document = kitfs.run(&["pull", &reference, "--output", "json"]).expect(0).json();
    assert_eq!(document["resolved"], "registry", "{document}");
    registry.stop();
    let output = kitfs.run(&["pull", &reference, "--output", "json"]).expect(0);
    assert_eq!(output.json()["resolved"], "cache", "{output}");
    assert!(!output.stderr.is_empty(), "a digest that may be old is worth a warning\n{output}");
    let document = kitfs.run(&["pull", &reference, "--offline", "--output", "json"]).expect(0).json();
    assert_eq!(document["resolved"], "cache", "{document}");
    let document = kitfs.run(&["pull", &by_digest, "--output", "json"]).expect(0).json();
    assert_eq!(document["resolved"], "digest", "{document}");
    kitfs.run(&["pull", &reference, "--require-fresh"]).expect(7);
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with the registry down");
    mount.unmount();
    kitfs.command(&["verify", &format!("{}/unknown:v1", registry.host())]).within(45).run().expect(7);
    assert!(registry.resume(), "{}", registry.errors());
    kitfs.run(&["verify", &reference, "--require-fresh"]).expect(0);
}

#[test]
fn a_layer_that_is_not_there_yet_is_read_when_the_registry_is_back() {
    if !host::can_mount() {
        return;
    }
    let Some(mut registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let (kit, layout, _) = usual(&kitfs);
    let reference = registry.push(layout.path(), "usual", "v1");
    let mount = kitfs.mount_with(&reference, &["--read-timeout", "3s"]);
    registry.stop();
    let begun = std::time::Instant::now();
    // Already fetched beside the headers, or an error in time; never a hang and never a wrong byte.
    if let Err(error) = std::fs::read(mount.at("model/weights.bin")) {
        assert_eq!(error.raw_os_error(), Some(EIO));
    }
    assert!(begun.elapsed().as_secs() < 15, "a read waits {:?}", begun.elapsed());
    assert!(registry.resume(), "{}", registry.errors());
    assert!(host::soon(30, || std::fs::read(mount.at("model/weights.bin")).is_ok()), "it never comes back");
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with the registry back");
    mount.unmount();
}
