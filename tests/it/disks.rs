//! Caches that are taken away, brought back and moved under a live mount.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lazy::{Indexed, Over, UNIT, read_at, roomy};
use crate::support::faults::{Content, Faults};
use crate::support::host;
use crate::support::kit::noise;
use crate::support::kitfs::Kitfs;
use crate::support::tree::Tree;

#[test]
fn a_cache_that_is_removed_or_read_only_under_a_mount_costs_no_errors() {
    if !host::can_mount() {
        return;
    }
    let kit = roomy();
    let indexed = Indexed::new(&kit);
    let cache = indexed.kitfs.path("cache");
    let mount = indexed.kitfs.mount(&indexed.reference);
    read_at(&mount.at("model/weights.bin"), 0, 1000).unwrap();
    let read_only = Over::read_only(&cache);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a cache that cannot be written");
    drop(read_only);
    mount.unmount();
    let mount = indexed.kitfs.mount(&indexed.reference);
    std::fs::remove_dir_all(&cache).unwrap();
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a cache that is gone");
    mount.unmount();
}

/// Whether a file of that size is below a folder, under whatever name.
fn holds(folder: &Path, size: u64) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| match std::fs::metadata(&path) {
        Ok(data) if data.is_dir() => holds(&path, size),
        Ok(data) => data.len() == size,
        Err(_) => false,
    })
}

#[test]
fn a_cache_that_is_made_again_under_a_mount_is_used_again() {
    if !host::can_mount() {
        return;
    }
    let kit = roomy();
    let indexed = Indexed::new(&kit);
    let cache = indexed.kitfs.path("cache");
    let mount = indexed.kitfs.mount(&indexed.reference);
    let path = mount.at("model/weights.bin");
    let expected = noise(3, 24 * UNIT as usize + 5);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let held = File::open(&path).unwrap();
            for place in (0..).map(|round| round * 5 * UNIT % (24 * UNIT)) {
                let mut read = vec![0; 4096];
                held.read_exact_at(&mut read, place).unwrap();
                assert!(read == expected[place as usize..][..4096], "wrong bytes at {place}");
                assert_eq!(std::fs::read_dir(mount.at("data")).unwrap().count(), 50);
                rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let makes_room = scope.spawn(|| {
            // Whoever writes there meanwhile makes it a little harder.
            assert!(host::soon(30, || !cache.exists() || std::fs::remove_dir_all(&cache).is_ok()));
            std::fs::create_dir(&cache).or_else(|error| if cache.is_dir() { Ok(()) } else { Err(error) }).unwrap();
            assert!(host::soon(60, || mount.try_status().is_some_and(|now| now["takeovers"] == 1)), "no other worker");
            // What nobody has read before is kept there.
            assert!(std::fs::read(mount.at("data/07")).unwrap() == noise(7, 9000));
            assert!(host::soon(60, || holds(&cache.join("v1/objects"), 9000)), "nothing is kept");
        });
        let done = makes_room.join();
        is_over.store(true, Ordering::SeqCst);
        reader.join().expect("a reader noticed");
        done.expect("it is used");
    });
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a cache that was made again");
    mount.unmount();
}

#[test]
fn a_worker_that_dies_while_the_cache_cannot_be_used_is_followed_by_another() {
    if !host::can_mount() {
        return;
    }
    let kit = roomy();
    let indexed = Indexed::new(&kit);
    let cache = indexed.kitfs.path("cache");
    let mount = indexed.kitfs.mount(&indexed.reference);
    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::create_dir(&cache).unwrap();
    let read_only = Over::read_only(&cache);
    let before = mount.process("pid");
    let id = rustix::process::Pid::from_raw(before).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with nothing to write to");
    assert_ne!(mount.status()["state"], "failed");
    drop(read_only);
    mount.unmount();
}

#[test]
fn a_folder_of_the_store_may_be_a_link() {
    if !host::can_mount() {
        return;
    }
    let kit = roomy();
    let server = Faults::honest(Content::of(&kit));
    let kitfs = Kitfs::new();
    let [store, large] = ["cache/v1", "large"].map(|name| kitfs.path(name));
    std::fs::create_dir_all(&store).unwrap();
    std::fs::create_dir(&large).unwrap();
    std::os::unix::fs::symlink(&large, store.join("objects")).unwrap();
    let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a link in the store");
    assert!(holds(&large, 9000) && holds(&large, 24 * UNIT + 5), "the store writes elsewhere");
    assert_ne!(mount.status()["privileges"]["landlock"], "helpers");
    mount.unmount();
}
