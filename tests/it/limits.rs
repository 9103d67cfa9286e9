//! Long lives and tight limits: many mounts, many workers, few descriptors, little memory, a clock that went back. Nothing
//! leaks, and what cannot be done is a clear error.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Layout, Packed, Packing, file, noise};
use crate::support::kitfs::{Kitfs, Output, User, finish};
use crate::support::tree::Tree;

/// Cycles of mount and umount; `scripts/stress` asks for more.
fn cycles() -> usize {
    std::env::var("KITFS_TEST_CYCLES").ok().and_then(|number| number.parse().ok()).unwrap_or(60)
}

fn usual(kitfs: &Kitfs) -> (Packed, String) {
    let kit = Kit::usual("usual").pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    (kit, reference)
}

/// Every file and directory of an installation that should not grow.
fn names(kitfs: &Kitfs) -> BTreeSet<String> {
    let (mut names, mut open) = (BTreeSet::new(), vec![kitfs.path("cache"), kitfs.path("state"), kitfs.path("run")]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("our own directory").flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            names.insert(entry.path().display().to_string());
        }
    }
    names
}

#[test]
fn cycles_of_mount_and_umount_leave_nothing() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, reference) = usual(&kitfs);
    let mut before = None;
    let mut first = None;
    let cycles = cycles();
    for cycle in 0..cycles {
        let mount = kitfs.mount(&reference);
        std::fs::read(mount.at("README.md")).expect("a good kit");
        if cycle == 1 || cycle + 1 == cycles {
            let now = ["holder_pid", "pid"].map(|process| holds(mount.process(process)));
            let first = first.get_or_insert(now);
            for ((fds, threads, memory), (fds_now, threads_now, memory_now)) in first.iter().zip(now) {
                let shown = format!("{first:?} in the second cycle, {now:?} in the last");
                assert!(fds_now <= fds + 1 && threads_now <= threads + 4 && memory_now <= memory + 8192, "{shown}");
            }
        }
        if cycle == 0 {
            Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "first");
        }
        let directory = mount.path().to_owned();
        mount.unmount();
        std::fs::remove_dir(directory).expect("nothing is left in it");
        if cycle == 1 {
            assert!(host::soon(10, || kitfs.processes().is_empty()));
            before = Some(names(&kitfs));
        }
    }
    assert!(host::soon(10, || kitfs.processes().is_empty()), "processes are left");
    assert_eq!(before, Some(names(&kitfs)), "files are left");
}

/// What a process holds: descriptors, threads, and KiB of memory.
fn holds(pid: i32) -> (usize, usize, u64) {
    let count = |what: &str| count(Path::new(&format!("/proc/{pid}/{what}")));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    (count("fd"), count("task"), memory.trim().trim_end_matches(" kB").parse().unwrap_or(0))
}

#[test]
fn a_holder_that_has_seen_many_workers_and_a_worker_that_has_seen_many_readers_hold_no_more() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let holder = mount.process("holder_pid");
    let takeover = || {
        let worker = mount.process("pid");
        let id = rustix::process::Pid::from_raw(worker).expect("a process id");
        rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it runs");
        std::fs::read(mount.at("README.md")).expect("the next worker answers");
        assert!(host::soon(20, || mount.process("pid") != worker), "no other worker");
    };
    (0..3).for_each(|_| takeover());
    let (fds, threads, memory) = holds(holder);
    (0..15).for_each(|_| takeover());
    let (fds_now, threads_now, memory_now) = holds(holder);
    assert!(fds_now <= fds && threads_now <= threads, "{fds} to {fds_now} files, {threads} to {threads_now} threads");
    assert!(memory_now <= memory + 4096, "{memory} to {memory_now} KiB");
    let worker = mount.process("pid");
    let read = || Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "again");
    (0..20).for_each(|_| read());
    let (fds, _, memory) = holds(worker);
    (0..200).for_each(|_| read());
    let (fds_now, threads_now, memory_now) = holds(worker);
    assert!(fds_now <= fds && threads_now < 100, "{fds} to {fds_now} files, {threads_now} threads");
    assert!(memory_now <= memory + 16 * 1024, "{memory} to {memory_now} KiB");
    mount.unmount();
}

#[test]
fn sixty_four_mounts_at_once_are_read_at_once() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, reference) = usual(&kitfs);
    let mounts: Vec<_> = std::thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..8).map(|_| kitfs.mount(&reference)).collect::<Vec<_>>())).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("eight mounts")).collect()
    });
    let listed = kitfs.run(&["status", "--output", "json"]).expect(0).json();
    assert_eq!(listed["mounts"].as_array().map(Vec::len), Some(64), "{listed}");
    std::thread::scope(|scope| {
        for lane in mounts.chunks(16) {
            let kit = &kit;
            scope.spawn(move || {
                for mount in lane {
                    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "one of 64");
                }
            });
        }
    });
    std::thread::scope(|scope| {
        let mut rest = mounts;
        while !rest.is_empty() {
            let lane = rest.split_off(rest.len().saturating_sub(16));
            scope.spawn(move || lane.into_iter().for_each(|mount| mount.unmount()));
        }
    });
}

/// Runs a command of `kitfs` behind what a shell does first. It ends by itself, and says why if it fails.
fn limited<A: AsRef<OsStr>>(kitfs: &Kitfs, first: &str, arguments: &[A]) -> Output {
    let output = run_limited(kitfs, first, arguments);
    assert!((0..=7).contains(&output.code), "neither done nor an error\n{output}");
    assert!(output.code == 0 || output.stderr.starts_with("kitfs: "), "no message\n{output}");
    output
}

fn run_limited<A: AsRef<OsStr>>(kitfs: &Kitfs, first: &str, arguments: &[A]) -> Output {
    let mut command = kitfs.other("sh");
    command.arg("-c").arg(format!("{first}; exec \"$0\" \"$@\"")).arg(kitfs.program()).args(arguments);
    finish(command, first, Duration::from_secs(60))
}

#[test]
fn few_descriptors_and_little_memory_are_enough_or_a_clear_error() {
    // Who waits for a thread that cannot be had waits like for a source.
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", "5s");
    let (_, reference) = usual(&kitfs);
    for descriptors in [8, 10, 12, 14, 16, 20, 32] {
        let output = limited(&kitfs, &format!("ulimit -n {descriptors}"), &["verify", &reference]);
        assert!(output.code == 0 || output.stderr.contains("Too many open files"), "{output}");
    }
    limited(&kitfs, "ulimit -n 64", &["verify", &reference]).expect(0);
    // Where a thread or a few bytes cannot be had there may be no way to go on; then that is said, and nothing is spoilt.
    for kib in [100_000, 150_000, 250_000, 300_000, 350_000, 500_000] {
        let output = run_limited(&kitfs, &format!("ulimit -v {kib}"), &["verify", &reference]);
        assert!((0..=7).contains(&output.code) || output.code == -libc::SIGABRT, "{output}");
        assert!(output.code == 0 || !output.stderr.is_empty(), "no message\n{output}");
    }
    limited(&kitfs, "ulimit -v 4000000", &["verify", &reference]).expect(0);
}

#[test]
fn few_threads_are_enough_or_a_clear_error() {
    if !host::can_mount() || !host::has("setpriv") || !host::has("prlimit") {
        return;
    }
    // The limit is one of ordinary users, and for all that they run.
    let kitfs = Kitfs::of(User::Nobody).with("KITFS_READ_TIMEOUT", "1s");
    let kit = Kit::usual("usual").packing(Packing::Tar(Compression::Gzip)).pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    for threads in [1, 2, 3, 4, 6, 8] {
        // Not every shell has a limit for it.
        let first = format!("exec prlimit --nproc={} \"$0\" \"$@\"", threads_of_nobody() + threads);
        let output = limited(&kitfs, &first, &["verify", &reference]);
        assert!([0, 1, 7].contains(&output.code), "{output}");
    }
    kitfs.run(&["verify", &reference]).expect(0);
}

fn threads_of_nobody() -> usize {
    let of_nobody = |process: &Path| std::fs::metadata(process).is_ok_and(|process| process.uid() == 65534);
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().map(|process| process.path());
    processes.filter(|process| of_nobody(process)).map(|process| count(&process.join("task"))).sum()
}

fn count(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// A control group of one process, which can be kept from having more threads.
struct Group(PathBuf);

impl Group {
    /// `None` where there are no such groups to be had, which has been said.
    fn of(pid: i32) -> Option<Self> {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().find(|root| Path::new(root).is_dir());
        let group = Self(Path::new(root.unwrap_or("/sys/fs/cgroup")).join(format!("kitfs-test-{pid}")));
        let made = std::fs::create_dir(&group.0).and_then(|()| std::fs::metadata(group.0.join("pids.max")));
        let made = made.and_then(|_| std::fs::write(group.0.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = &made {
            host::note(&format!("no control group for the number of threads: {error}"));
        }
        made.is_ok().then_some(group)
    }

    fn allow(&self, threads: &str) {
        std::fs::write(self.0.join("pids.max"), threads).expect("our own control group");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        host::soon(10, || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_worker_that_can_have_no_more_threads_goes_on_and_reads_when_it_can() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", "3s");
    let (kit, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let worker = mount.process("pid");
    let Some(group) = Group::of(worker) else { return };
    group.allow("1");
    for path in ["model/weights.bin", "data/rows.csv", "README.md"] {
        if let Err(error) = std::fs::read(mount.at(path)) {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{path}");
        }
        std::fs::read_dir(mount.at("model")).expect("what is listed is listed");
    }
    group.allow("max");
    let all = || ["model/weights.bin", "data/rows.csv", "README.md"].map(|path| std::fs::read(mount.at(path)));
    assert!(host::soon(60, || all().iter().all(Result::is_ok)), "it never comes back");
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with threads");
    assert_eq!(mount.process("pid"), worker, "it died of it");
    mount.unmount();
}

#[test]
fn a_mount_with_64_descriptors_reads_hundreds_of_files() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let files: Vec<_> = (0..300).map(|n| file(&format!("d/{n}"), noise(n, 2000))).collect();
    let kit = Kit::named("many").with(Base::Dataset, "d", files).pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let directory = kitfs.next_directory();
    std::fs::create_dir(&directory).expect("our own directory");
    let words = [OsStr::new("mount"), reference.as_ref(), directory.as_os_str()];
    limited(&kitfs, "ulimit -n 64", &words).expect(0);
    // All open at once: a reader's descriptors are its own, and the worker has few.
    let open: Vec<_> = (0..300).map(|n| std::fs::File::open(directory.join(format!("d/{n}"))).expect("open")).collect();
    for time in ["cold", "warm"] {
        Tree::read(&directory).without("Kitfile").assert_is(&kit.tree, time);
    }
    drop(open);
    kitfs.run(&[OsStr::new("umount"), directory.as_os_str()]).expect(0);
}

#[test]
fn a_clock_that_is_set_back_changes_nothing() {
    if !host::can_mount() || !host::has("faketime") {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, reference) = usual(&kitfs);
    kitfs.run(&["pull", &reference]).expect(0);
    let in_the_past = |arguments: &[&OsStr]| {
        let mut command: Command = kitfs.other("faketime");
        command.args(["-f", "-3y", env!("CARGO_BIN_EXE_kitfs")]).args(arguments);
        finish(command, "kitfs, three years ago", Duration::from_secs(60))
    };
    let directory = kitfs.next_directory();
    std::fs::create_dir(&directory).expect("our own directory");
    in_the_past(&["mount".as_ref(), reference.as_ref(), directory.as_os_str()]).expect(0);
    Tree::read(&directory).without("Kitfile").assert_is(&kit.tree, "mounted three years ago");
    for arguments in [&["cache", "prune"][..], &["cache", "verify"], &["audit", "verify"], &["verify", &reference]] {
        in_the_past(&arguments.iter().map(OsStr::new).collect::<Vec<_>>()).expect(0);
    }
    Tree::read(&directory).without("Kitfile").assert_is(&kit.tree, "mounted three years ago");
    kitfs.run(&[Path::new("umount"), &directory]).expect(0);
    kitfs.run(&["audit", "verify"]).expect(0);
}
