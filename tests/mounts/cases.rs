//! What must be true of a mount's processes.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kitfs::mounts::{Busy, State, UmountError};
use rustix::process::Signal;

use crate::host;
use crate::host::{Host, check, eventually, signal};
use crate::toy;

/// Every case by its name.
pub const ALL: &[(&str, fn())] = cases![
    a_mount_lists_reads_and_unmounts,
    the_directory_must_be_there_and_empty,
    the_same_kit_again_is_no_second_mount,
    five_commands_at_once_make_one_mount,
    a_kit_that_cannot_be_prepared_leaves_nothing,
    a_mount_that_cannot_be_recorded_ends_before_anybody_reads,
    whoever_outlives_the_other_tells_that_a_mount_has_ended,
    an_interrupted_mount_leaves_nothing,
    the_background_keeps_nothing_of_the_caller,
    options_reach_the_mount_table,
    a_busy_mount_names_who_uses_it,
    a_detached_mount_lives_as_long_as_its_users,
    a_mount_namespace_that_keeps_the_mount_is_named,
    a_terminated_holder_takes_the_mount_along,
    the_foreground_ends_with_its_command,
    a_dead_mount_is_told_and_removed,
    records_of_dead_holders_are_cleaned_up,
    a_long_runtime_path_works,
    an_ordinary_user_mounts_through_fusermount,
    a_hundred_mounts_leave_nothing,
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
    assert_eq!(host.told_unmounted(), "toy:ok\n");
}

fn the_directory_must_be_there_and_empty() {
    let host = Host::new();
    let code = |directory: &Path| host::command("toy:ok", directory, &host.state()).output().unwrap().status.code();
    assert_eq!(code(&host.folder().join("nowhere")), Some(3));
    assert_eq!(code(&host.folder().join("nowhere/deep")), Some(3));
    fs::write(host.folder().join("file"), "x").unwrap();
    assert_eq!(code(&host.folder().join("file")), Some(2));
    fs::create_dir_all(host.folder().join("full/x")).unwrap();
    assert_eq!(code(&host.folder().join("full")), Some(2));
    host.assert_nothing_left();
}

fn the_same_kit_again_is_no_second_mount() {
    let host = Host::mounted("toy:ok");
    let again = host.mount("toy:ok");
    assert!(again.status.success() && String::from_utf8_lossy(&again.stdout).contains("Already"), "{again:?}");
    std::os::unix::fs::symlink(host.directory(), host.folder().join("link")).unwrap();
    let through_link = host::command("toy:ok", &host.folder().join("link/."), &host.state()).output().unwrap();
    assert!(through_link.status.success(), "{through_link:?}");
    let other = host.mount("toy:other");
    assert_eq!(other.status.code(), Some(2), "{other:?}");
    let inside = host::command("toy:ok", &host.directory().join("f0"), &host.state()).output().unwrap();
    assert_eq!(inside.status.code(), Some(2), "{inside:?}");
    assert_eq!(host.command("toy:ok").arg("noexec").status().unwrap().code(), Some(2));
    assert_eq!(host.mounts(), 1);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn five_commands_at_once_make_one_mount() {
    let host = Host::new();
    let commands = (0..5).map(|_| host::start(&mut host.command("toy:ok"))).collect::<Vec<_>>();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(host.mounts(), 1);
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn a_kit_that_cannot_be_prepared_leaves_nothing() {
    for (reference, code, message) in
        [("toy:refused", 5, "expected sha256:a, got sha256:b"), ("toy:stillborn", 1, "died before the mount was ready")]
    {
        let host = Host::new();
        let output = host.mount(reference);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(message), "{output:?}");
        host.assert_nothing_left();
    }
}

fn a_mount_that_cannot_be_recorded_ends_before_anybody_reads() {
    let host = Host::new();
    let output = host.mount("toy:unrecorded");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be recorded"), "{output:?}");
    host.assert_nothing_left();
    assert_eq!(host.told_unmounted(), "");
}

fn whoever_outlives_the_other_tells_that_a_mount_has_ended() {
    for kill_holder in [false, true] {
        let host = Host::mounted("toy:ok");
        let status = host.status();
        signal(if kill_holder { status.holder_pid } else { status.pid }, Signal::KILL);
        check(&host.directory(), 1);
        host.umount(Busy::Keep).unwrap();
        eventually("all end", || host.processes().is_empty());
        assert_eq!(host.told_unmounted(), "toy:ok\n");
    }
}

fn an_interrupted_mount_leaves_nothing() {
    for how in [Signal::INT, Signal::TERM, Signal::KILL] {
        let host = Host::new();
        let mut command = host::start(&mut host.command("toy:slow"));
        command.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        signal(command.id(), how);
        let status = command.wait().unwrap();
        if how == Signal::KILL {
            eventually("all end", || host.processes().is_empty());
        } else {
            assert_eq!(status.code(), Some(1));
        }
        host.assert_nothing_left();
    }
}

fn the_background_keeps_nothing_of_the_caller() {
    let host = Host::new();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut command = host.command("toy:ok");
    // `writer` is inherited: it has no CLOEXEC.
    assert!(command.current_dir(host.folder()).env("LEAK", writer.as_raw_fd().to_string()).status().unwrap().success());
    drop(writer);
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0, "somebody has the other end");
    let status = host.status();
    let own_session = session(0);
    for pid in [status.pid, status.holder_pid] {
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for number in 0..3 {
            assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap(), Path::new("/dev/null"));
        }
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(text.contains("Umask:\t0077") && text.contains("Name:\tkitfs"), "{text}");
        assert_ne!(session(pid), own_session);
    }
    let worker = fs::read_to_string(format!("/proc/{}/status", status.pid)).unwrap();
    assert!(worker.contains("SigBlk:\t0000000000000000"), "{worker}");
    // Of all that root may do, only DAC_OVERRIDE and DAC_READ_SEARCH, and nothing that a program could add.
    assert!(worker.contains("CapPrm:\t0000000000000006") && worker.contains("NoNewPrivs:\t1"), "{worker}");
    let score = |pid| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    let own = score(std::process::id());
    assert_eq!(score(status.pid), own);
    // Lowering it takes CAP_SYS_RESOURCE, which root in a container lacks.
    assert!(["-1000", &own].contains(&score(status.holder_pid).as_str()));
}

/// The session of a process; 0 where its leader lies outside of this PID namespace, as in a container, which
/// rustix takes to be impossible.
fn session(pid: u32) -> libc::pid_t {
    // SAFETY: getsid(2) takes a number and touches no memory.
    unsafe { libc::getsid(libc::pid_t::try_from(pid).unwrap()) }
}

fn options_reach_the_mount_table() {
    let host = Host::new();
    assert!(host.command("toy:a b\\c,d").args(["noexec", "noallow_other"]).status().unwrap().success());
    let line = host.table_line();
    assert!(line.starts_with("toy:a\\040b\\134c,d ") && line.contains(",noexec"), "{line}");
    assert!(!line.contains("allow_other"), "{line}");
    check(&host.directory(), 1);
    let program = Command::new(host.directory().join("f1")).status().unwrap_err();
    assert_eq!(program.kind(), std::io::ErrorKind::PermissionDenied);
    let readahead = fs::read_to_string(format!("/sys/class/bdi/{}/read_ahead_kb", host.device())).unwrap();
    assert_eq!(readahead.trim(), "1024");
}

fn a_busy_mount_names_who_uses_it() {
    let host = Host::mounted("toy:ok");
    let f1 = host.directory().join("f1");
    let python = |code: &str| -> Child {
        let mut child = Command::new("python3")
            .args(["-c", &format!("{code}\nprint(1, flush=True)\nimport time; time.sleep(100)")])
            .arg(&f1)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
        child
    };
    let users = [
        python("import sys; f = open(sys.argv[1])"),
        python(
            "import sys, mmap; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
        ),
        python("import sys, os; os.chdir(os.path.dirname(sys.argv[1]))"),
    ];
    for mut user in users {
        let error = host.umount(Busy::Keep).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains(&user.id().to_string()), "{error}");
        let UmountError::Busy { pids, .. } = error else { panic!("{error}") };
        assert!(pids.contains(&user.id()), "{pids:?} {}", user.id());
        user.kill().unwrap();
        user.wait().unwrap();
    }
    host.umount(Busy::Keep).unwrap();
    host.assert_nothing_left();
}

fn a_detached_mount_lives_as_long_as_its_users() {
    let host = Host::mounted("toy:ok");
    let file = File::open(host.directory().join("f2")).unwrap();
    assert!(host.umount(Busy::Detach).is_ok());
    assert_eq!(fs::read_dir(host.directory()).unwrap().count(), 0);
    let mut part = [0; 4096];
    file.read_exact_at(&mut part, 2_000_000).unwrap();
    assert_eq!(part, toy::content(2)[2_000_000..][..4096]);
    assert_eq!(host.umount(Busy::Keep).unwrap_err().exit_code(), 3);
    drop(file);
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();
}

fn a_mount_namespace_that_keeps_the_mount_is_named() {
    let host = Host::mounted("toy:ok");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", "echo ok; exec sleep 100"]);
    let mut keeper = command.stdout(Stdio::piped()).spawn().unwrap();
    keeper.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    let unmounted = host.umount(Busy::Keep).unwrap();
    // Others on this machine may have made a namespace of their own meanwhile.
    assert!(unmounted.used_by.contains(&keeper.id()), "{unmounted:?}");
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();
}

fn a_terminated_holder_takes_the_mount_along() {
    let host = Host::mounted("toy:ok");
    signal(host.status().holder_pid, Signal::TERM);
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();

    let host = Host::mounted("toy:stuck");
    let file = File::open(host.directory().join("f0")).unwrap();
    let reader = Command::new("cat").arg(host.directory().join("f66")).stdout(Stdio::null()).spawn().unwrap();
    signal(host.status().holder_pid, Signal::TERM);
    eventually("all end", || host.processes().is_empty());
    assert!(file.read_at(&mut [0; 1], 0).is_err());
    assert!(!reader.wait_with_output().unwrap().status.success());
    host.assert_nothing_left();
}

fn the_foreground_ends_with_its_command() {
    for how in [Signal::INT, Signal::TERM, Signal::KILL] {
        let host = Host::new();
        let mut command = host::start(host.command("toy:ok").args(["--foreground", "quiet"]));
        command.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        check(&host.directory(), 4);
        signal(command.id(), how);
        let status = command.wait().unwrap();
        if how == Signal::KILL {
            eventually("all end", || host.processes().is_empty());
        } else {
            assert!(status.success(), "{status:?}");
        }
        host.assert_nothing_left();
    }
}

fn a_dead_mount_is_told_and_removed() {
    let host = Host::mounted("toy:ok");
    host.kill_both();
    // A request that meets the end of the connection is ECONNABORTED, every later one ENOTCONN.
    let error = || fs::metadata(host.directory().join("f0")).unwrap_err().raw_os_error();
    eventually("the connection ends", || error() == Some(libc::ENOTCONN));
    let output = host.mount("toy:ok");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("kitfs umount"), "{output:?}");
    assert_eq!(kitfs::mounts::status(&host.directory()).unwrap_err().exit_code(), 1);
    host.umount(Busy::Keep).unwrap();
    assert_eq!(kitfs::mounts::status(&host.directory()).unwrap_err().exit_code(), 3);
    assert_eq!(host.umount(Busy::Keep).unwrap_err().exit_code(), 3);
}

fn records_of_dead_holders_are_cleaned_up() {
    let host = Host::mounted("toy:ok");
    host.kill_both();
    // A process that dies is out of sight a moment before it has closed its files.
    eventually("nobody is told of", || kitfs::mounts::status_of_all(&host.state()).unwrap().is_empty());
    host.umount(Busy::Keep).unwrap();
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();
}

fn a_long_runtime_path_works() {
    let host = Host::new();
    let state = host.folder().join("s".repeat(150));
    let output = host::command("toy:ok", &host.directory(), &state).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(kitfs::mounts::status_of_all(&state).unwrap(), [host.status()]);
    host.umount(Busy::Keep).unwrap();
}

fn an_ordinary_user_mounts_through_fusermount() {
    if !Path::new("/usr/bin/fusermount3").exists() {
        println!("  skipped: there is no fusermount3");
        return;
    }
    // As udev does it.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let host = Host::new();
    let nobody = 65534;
    for path in [host.folder().to_owned(), host.directory()] {
        std::os::unix::fs::chown(&path, Some(nobody), Some(nobody)).unwrap();
    }
    // The test program may lie where nobody can go.
    let program = host.folder().join("kitfs");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).args(arguments).current_dir("/");
        command.output().unwrap()
    };
    let (directory, state) = (host.directory(), host.state());
    let mount = [program.as_os_str(), "mount".as_ref(), "toy:a,b".as_ref(), directory.as_os_str(), state.as_os_str()];
    let output = as_nobody(&mount);
    assert!(output.status.success(), "{output:?}\n{}", host.log());
    let line = host.table_line();
    assert!(line.starts_with("toy:a,b ") && line.contains(" fuse.kitfs ro,nosuid,nodev,"), "{line}");
    let read = as_nobody(&["sha256sum".as_ref(), directory.join("f1").as_os_str()]);
    assert!(read.status.success(), "{read:?}");
    assert!(fs::read(directory.join("f1")).is_err(), "others may not");
    let before = host.status();
    assert_eq!(fs::metadata(format!("/proc/{}", before.pid)).unwrap().uid(), nobody);
    signal(before.pid, Signal::KILL);
    host.next_worker(before.pid);
    let read = as_nobody(&["cat".as_ref(), directory.join("f2").as_os_str()]);
    assert!(read.stdout == toy::content(2));
    let umount = as_nobody(&[program.as_os_str(), "umount".as_ref(), directory.as_os_str()]);
    assert!(umount.status.success(), "{umount:?}");
    host.assert_nothing_left();
    assert!(as_nobody(&mount).status.success());
    signal(host.status().holder_pid, Signal::TERM);
    eventually("all end", || host.processes().is_empty());
    host.assert_nothing_left();
}

fn a_hundred_mounts_leave_nothing() {
    let host = Host::new();
    for round in 0..100 {
        let output = host.mount("toy:ok");
        assert!(output.status.success(), "{round}: {output:?}");
        host.umount(Busy::Keep).unwrap();
    }
    host.assert_nothing_left();
}
