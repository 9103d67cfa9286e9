//! What must be true when workers die, are stopped, or make others die.

use std::fs;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kitfs::mounts::{Busy, State, Status};
use rustix::process::Signal;

use crate::host::{Host, check, eventually, signal};
use crate::toy;

/// Every case by its name.
pub const ALL: &[(&str, fn())] = cases![
    readers_notice_nothing_of_killed_workers,
    what_the_kernel_reads_by_itself_stays_so_over_deaths,
    a_file_that_somebody_can_write_to_is_not_handed_over,
    a_backing_file_that_is_written_to_is_not_opened_again,
    a_status_in_the_middle_of_a_takeover_names_the_new_worker,
    a_stopped_worker_holds_nobody_up,
    a_worker_without_a_sign_of_life_is_replaced,
    a_worker_that_cannot_die_holds_nobody_up,
    a_request_that_kills_workers_is_refused_alone,
    heirs_that_cannot_take_over_fail_the_mount,
    a_worker_whose_holder_dies_finds_another,
    readers_notice_nothing_of_an_upgrade,
    a_program_that_cannot_serve_the_mount_leaves_it_to_the_old_one,
];

/// Workers that are killed under each kind of mount; `scripts/stress` asks for more.
fn kills() -> u64 {
    std::env::var("KITFS_TEST_KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(50)
}

fn readers_notice_nothing_of_killed_workers() {
    for reference in ["toy:ok", "toy:passing"] {
        check_killed_workers(reference, kills());
    }
}

fn check_killed_workers(reference: &str, kills: u64) {
    let host = Host::mounted(reference);
    let directory = host.directory();
    let stop = AtomicBool::new(false);
    let [reads, lists, maps, direct] = [const { AtomicU64::new(0) }; 4];
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
            // One descriptor stays open, and keeps its inode's mode for all others.
            let held = File::open(directory.join("f3")).unwrap();
            while again() {
                for file in [&held, &File::open(directory.join("f3")).unwrap()] {
                    let mut part = [0; 5000];
                    file.read_exact_at(&mut part, 1_234_567).unwrap();
                    assert!(part == toy::content(3)[1_234_567..][..5000]);
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
        threads.spawn(|| {
            // Direct reads have no page cache to fall back on.
            let mut aligned = Aligned::new();
            let part = aligned.bytes();
            while again() {
                let file =
                    fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(directory.join("f5")).unwrap();
                for block in 0..20 {
                    let offset = block * part.len();
                    assert_eq!(file.read_at(part, offset as u64).unwrap(), part.len());
                    assert!(*part == toy::content(5)[offset..][..part.len()]);
                    direct.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut pid = host.status().pid;
        for round in 0..kills {
            std::thread::sleep(Duration::from_millis(round % 5 * 11));
            signal(pid, Signal::KILL);
            pid = host.next_worker(pid).pid;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = [reads, lists, maps, direct].map(AtomicU64::into_inner);
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    assert_eq!(host.status().takeovers, kills);
    let [reads, lists, maps, direct] = counts;
    println!("{reference}: {kills} kills, {reads} reads, {lists} listings, {maps} mapped files, {direct} direct reads");
}

/// The mount reads without its worker.
fn check_without_worker(host: &Host, read: impl FnOnce()) {
    let pid = host.status().pid;
    signal(pid, Signal::STOP);
    read();
    signal(pid, Signal::CONT);
}

fn what_the_kernel_reads_by_itself_stays_so_over_deaths() {
    let host = Host::mounted("toy:passing");
    assert!(host.status().passthrough);
    let file = File::open(host.directory().join("f1")).unwrap();
    for _ in 0..3 {
        check_without_worker(&host, || assert!(mapped_equals(&file, toy::content(1))));
        let pid = host.status().pid;
        signal(pid, Signal::KILL);
        host.next_worker(pid);
        // EIO if it had another mode or file than the first one.
        let again = File::open(host.directory().join("f1")).unwrap();
        check_without_worker(&host, || assert!(mapped_equals(&again, toy::content(1))));
    }
    check(&host.directory(), toy::BACKED);
    drop(file);
    check(&host.directory(), 1);
    assert!(host.status().passthrough);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn writer(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

fn a_file_that_somebody_can_write_to_is_not_handed_over() {
    let host = Host::mounted("toy:passing");
    let writer = writer(&toy::backing_path(&host.state(), 2));
    // Answered by the worker, which has another copy of it.
    writer.write_all_at(b"wrong", 1_000_000).unwrap();
    check(&host.directory(), 2);
    drop(writer);
}

fn a_backing_file_that_is_written_to_is_not_opened_again() {
    let host = Host::mounted("toy:passing");
    let path = host.directory().join("f1");
    let open = File::open(&path).unwrap();
    // Whoever opens it to write waits for the lease, and gets it.
    drop(writer(&toy::backing_path(&host.state(), 1)));
    let refused = || File::open(&path).is_err_and(|error| error.raw_os_error() == Some(libc::EIO));
    eventually("it is not opened any more", refused);
    let pid = host.status().pid;
    signal(pid, Signal::KILL);
    host.next_worker(pid);
    eventually("by the next worker neither", refused);
    assert!(host.log().contains("opened for writing"), "{}", host.log());
    drop(open);
    eventually("it is opened again after its last close", || File::open(&path).is_ok());
    check(&host.directory(), 1);
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

/// 64 KiB that direct reads may go to.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0; 65536 + 4096])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(4096);
        &mut self.0[skip..][..65536]
    }
}

fn a_status_in_the_middle_of_a_takeover_names_the_new_worker() {
    let host = Host::mounted("toy:ok");
    for round in 1..=10 {
        let before = host.status();
        signal(before.pid, Signal::KILL);
        let after = host.status();
        assert!(after.pid != before.pid && after.pid != 0, "{before:?} {after:?}\n{}", host.log());
        assert_eq!((after.state, after.takeovers, after.holder_pid), (State::Ready, round, before.holder_pid));
    }
    assert_eq!(kitfs::mounts::status_of_all(&host.state()).unwrap().len(), 1);
}

fn a_stopped_worker_holds_nobody_up() {
    let host = Host::mounted("toy:ok");
    signal(host.status().pid, Signal::STOP);
    assert_eq!(host.status().state, State::Degraded);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn a_worker_without_a_sign_of_life_is_replaced() {
    let host = Host::mounted("toy:ok");
    let pid = host.status().pid;
    signal(pid, Signal::STOP);
    // Read by nobody before: waits for the next worker.
    check(&host.directory(), 123);
    assert_ne!(host.next_worker(pid).pid, pid);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

/// A thread that waits for an answer to a lookup which its own process has taken is not killed before there is one,
/// and only the next worker can give it.
fn a_worker_that_cannot_die_holds_nobody_up() {
    let host = Host::mounted("toy:tangled");
    let before = host.status().pid;
    check(&host.directory(), 66);
    eventually("it asks itself", || toy::tangled(&host.state()).exists());
    signal(before, Signal::KILL);
    check(&host.directory(), 98);
    assert_ne!(host.next_worker(before).pid, before);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn a_request_that_kills_workers_is_refused_alone() {
    let host = Host::mounted("toy:poison");
    let held = File::open(host.directory().join("f1")).unwrap();
    let error = fs::read(host.directory().join("f66")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let status = host.status();
    assert!(status.state == State::Ready && status.takeovers >= 2, "{status:?}");
    held.read_exact_at(&mut [0; 4096], 2_000_000).unwrap();
    check(&host.directory(), 2);
    drop(held);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn heirs_that_cannot_take_over_fail_the_mount() {
    for reference in ["toy:sterile", "toy:fickle"] {
        let host = Host::mounted(reference);
        check(&host.directory(), 1);
        signal(host.status().pid, Signal::KILL);
        eventually(reference, || host.status().state == State::Failed);
        assert_eq!(fs::read(host.directory().join("f7")).unwrap_err().raw_os_error(), Some(libc::EIO));
        host.umount(Busy::Keep).unwrap();
        host.assert_nothing_left();
    }
}

fn a_worker_whose_holder_dies_finds_another() {
    let host = Host::mounted("toy:passing");
    let held = File::open(host.directory().join("f1")).unwrap();
    for _ in 0..3 {
        let before = host.status();
        signal(before.holder_pid, Signal::KILL);
        let another = || kitfs::mounts::status(&host.directory()).is_ok_and(|now| is_other(&now, &before));
        eventually("there is another holder, and a worker of its own", another);
        let again = File::open(host.directory().join("f1")).unwrap();
        check_without_worker(&host, || assert!(mapped_equals(&held, toy::content(1))));
        assert!(mapped_equals(&again, toy::content(1)));
        assert_eq!(kitfs::mounts::status_of_all(&host.state()).unwrap().len(), 1);
        assert_eq!(host.status().mounted_at, before.mounted_at);
    }
    // The leases have moved too.
    drop(writer(&toy::backing_path(&host.state(), 1)));
    eventually("it is noticed", || File::open(host.directory().join("f1")).is_err());
    drop(held);
    host.umount(Busy::Keep).unwrap();
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();
    assert_eq!(host.told_unmounted(), "toy:passing\n");
}

fn is_other(now: &Status, before: &Status) -> bool {
    now.state == State::Ready && now.holder_pid != before.holder_pid && now.pid != before.pid && now.pid != 0
}

/// A copy of this program, for a mount to move to.
fn another_program(host: &Host) -> std::process::Command {
    let program = host.folder().join("newer");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = std::process::Command::new(program);
    command.arg("upgrade").arg(host.state());
    command
}

fn program_of(pid: u32) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

fn readers_notice_nothing_of_an_upgrade() {
    let host = Host::mounted("toy:passing");
    let held = File::open(host.directory().join("f1")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number = (number + 7) % toy::FILES;
                check(&host.directory(), number);
            }
        });
        let before = host.status();
        let output = another_program(&host).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", host.log());
        let after = host.next_worker(before.pid);
        assert!(is_other(&after, &before), "{before:?} {after:?}");
        for pid in [after.pid, after.holder_pid] {
            assert_eq!(program_of(pid), host.folder().join("newer"));
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    check_without_worker(&host, || assert!(mapped_equals(&held, toy::content(1))));
    drop(held);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn a_program_that_cannot_serve_the_mount_leaves_it_to_the_old_one() {
    let host = Host::mounted("toy:ok");
    let held = File::open(host.directory().join("f1")).unwrap();
    let before = host.status();
    let script = host.folder().join("newer");
    // Starts, and does not get ready.
    fs::write(&script, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(kitfs::mounts::upgrade_to(&host.state(), &File::open(&script).unwrap()).unwrap()[0].result.is_err());
    let after = host.next_worker(before.pid);
    assert_eq!(after.holder_pid, before.holder_pid);
    assert_eq!(program_of(after.pid), program_of(after.holder_pid));
    held.read_exact_at(&mut [0; 4096], 2_000_000).unwrap();
    check(&host.directory(), 2);
    drop(held);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}
