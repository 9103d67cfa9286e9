//! Mounts that share a cache and want the same layer at once: one process proves it, the other waits.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::faults::{Content, Faults};
use crate::support::host;
use crate::support::kit::{Base, Kit, Packed, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::mount::Mount;

const SIZE: usize = 5_000_001;

fn packed() -> Packed {
    Kit::named("neighbours").with(Base::Model, "model", [file("model/large", noise(3, SIZE))]).pack()
}

/// A registry that takes so many seconds for the large file.
fn registry(seconds: f64) -> (Faults, String) {
    let content = Content::of(&packed());
    let server = Faults::start(move |asked, _| {
        let answer = content.answer(asked);
        let is_for_a_file = asked.range().is_some_and(|(first, last)| last - first > SIZE / 2);
        if is_for_a_file { answer.link(Duration::ZERO, SIZE as f64 / seconds) } else { answer }
    });
    let reference = format!("{}/kit:v1", server.host());
    (server, reference)
}

/// Reads the file in both mounts at once.
#[track_caller]
fn check_both(mounts: &[Mount<'_>; 2]) {
    let readers = mounts.each_ref().map(|mount| {
        let mut cat = Command::new("cat");
        cat.arg(mount.at("model/large")).stdout(Stdio::piped()).spawn().expect("cat(1)")
    });
    for reader in readers {
        let output = reader.wait_with_output().expect("our own child");
        assert!(output.status.success() && output.stdout == noise(3, SIZE), "{:?}", output.status);
    }
}

#[test]
fn who_waits_for_a_neighbour_has_all_the_time_that_it_takes() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", "3s");
    // The kernel asks twice for what it could not read ahead.
    let (server, reference) = registry(10.0);
    let mounts = [kitfs.mount(&reference), kitfs.mount(&reference)];
    check_both(&mounts);
    let whole = |(first, last): (usize, usize)| last - first > SIZE / 2;
    let fetched = server.asked().iter().filter(|asked| asked.range().is_some_and(whole)).count();
    assert_eq!(fetched, 1, "both have fetched it");
    mounts.into_iter().for_each(Mount::unmount);
}

#[test]
fn a_file_that_a_neighbour_proves_soon_is_read_by_the_kernel() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_server, reference) = registry(2.0);
    let mounts = [kitfs.mount(&reference), kitfs.mount(&reference)];
    let files = std::thread::scope(|scope| {
        let opens = mounts.each_ref().map(|mount| scope.spawn(|| File::open(mount.at("model/large"))));
        opens.map(|open| open.join().expect("it does not panic").expect("it is there"))
    });
    for (mount, file) in mounts.iter().zip(&files) {
        let mut bytes = vec![0; SIZE];
        mount.without_worker(|| file.read_exact_at(&mut bytes, 0)).expect("the kernel reads it");
        assert!(bytes == noise(3, SIZE));
    }
    drop(files);
    mounts.into_iter().for_each(Mount::unmount);
}
