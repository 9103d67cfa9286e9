//! What must be true of a mount's processes.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kitfs::mounts::{Busy, State, UmountError};
use rustix::process::Signal;

use crate::host;
use crate::host::{Host, check, eventually, signal};
use crate::toy;

/// Every case by its name.
pub const ALL: &[(&str, fn())] = &[
    ("a_mount_lists_reads_and_unmounts", a_mount_lists_reads_and_unmounts),
    ("readers_notice_nothing_of_fifty_killed_workers", readers_notice_nothing_of_fifty_killed_workers),
];

fn a_mount_lists_reads_and_unmounts() {
    let host = Host::mounted("toy:ok");
    assert_eq!(fs::read_dir(host.directory()).unwrap().count() as u64, toy::FILES);
    check(&host.directory(), 3);
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(host.folder().to_str().unwrap())).unwrap();
    assert!(line.starts_with("toy:ok ") && line.contains(" fuse.kitfs ro,nosuid,nodev,"), "{line}");
    assert!(line.contains("allow_other") && line.contains("default_permissions") && !line.contains("noexec"), "{line}");
    let status = host.status();
    assert_eq!((status.state, status.takeovers, status.bytes_fetched), (State::Ready, 0, 7));
    assert_eq!(host.umount(Busy::Keep).unwrap().used_by, Vec::<u32>::new());
    host.assert_nothing_left();
}

fn readers_notice_nothing_of_fifty_killed_workers() {
    let host = Host::mounted("toy:ok");
    let directory = host.directory();
    let stop = AtomicBool::new(false);
    let (reads, lists, maps) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let again = || !stop.load(Ordering::Relaxed);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut number = 0;
            while again() {
                number = (number + 7) % toy::FILES;
                let file = File::open(directory.join(format!("f{number}"))).unwrap();
                let mut part = vec![0; 100_000];
                for offset in [0, 1_000_000, toy::SIZE - 50_000] {
                    let length = file.read_at(&mut part, offset as u64).unwrap();
                    let expected = &toy::content(number)[offset..];
                    assert!(part[..length] == expected[..length.min(expected.len())]);
                    assert_eq!(length, part.len().min(expected.len()));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        threads.spawn(|| {
            while again() {
                assert_eq!(fs::read_dir(&directory).unwrap().map(Result::unwrap).count() as u64, toy::FILES);
                lists.fetch_add(1, Ordering::Relaxed);
            }
        });
        threads.spawn(|| {
            let mut number = 0;
            while again() {
                number = (number + 11) % toy::FILES;
                let file = File::open(directory.join(format!("f{number}"))).unwrap();
                assert!(mapped_equals(&file, toy::content(number)));
                maps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut pid = host.status().pid;
        for round in 0..50 {
            std::thread::sleep(Duration::from_millis(round % 5 * 11));
            signal(pid, Signal::KILL);
            pid = host.next_worker(pid).pid;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (reads, lists, maps) = (reads.into_inner(), lists.into_inner(), maps.into_inner());
    assert!(reads > 50 && lists > 10 && maps > 10, "{reads} {lists} {maps}");
    println!("  {reads} reads, {lists} listings, {maps} mappings");
    assert_eq!(host.status().takeovers, 50);
}

fn mapped_equals(file: &File, content: &[u8]) -> bool {
    // SAFETY: a new mapping of a file that does not change, unmapped before it is left.
    unsafe {
        let protection = rustix::mm::ProtFlags::READ;
        let flags = rustix::mm::MapFlags::SHARED;
        let map = rustix::mm::mmap(std::ptr::null_mut(), content.len(), protection, flags, file, 0).unwrap();
        let equal = std::slice::from_raw_parts(map.cast::<u8>(), content.len()) == content;
        rustix::mm::munmap(map, content.len()).unwrap();
        equal
    }
}
