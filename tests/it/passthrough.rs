//! Files that the kernel reads by itself: which ones, what happens to them when the worker dies, and when somebody
//! writes to what they are read from.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::faults::{Answer, Content, Faults};
use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::mount::{Mount, attribute};

const SIZE: usize = 3_000_001;
const EIO: i32 = 5;

fn content() -> Vec<u8> {
    noise(3, SIZE)
}

/// A kit with a large file and a small one.
fn packed() -> Packed {
    let files = [file("model/large", content()), file("model/small", noise(4, 1000))];
    Kit::named("passthrough").with(Base::Model, "model", files).pack()
}

/// A reference to it.
fn kit(kitfs: &Kitfs) -> String {
    Layout::of(kitfs.path("layout"), &packed()).reference("v1")
}

/// A registry that has it, whose answers for the layer from its middle on pass through `manner`.
fn registry(manner: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> (Faults, String) {
    let content = Content::of(&packed());
    let server = Faults::start(move |asked, _| {
        let answer = content.answer(asked);
        // The headers of its files come at once, so that it can be listed.
        let is_for_a_file = asked.range().is_some_and(|(first, last)| last - first > SIZE / 2);
        if is_for_a_file { manner(answer) } else { answer }
    });
    let reference = format!("{}/kit:v1", server.host());
    (server, reference)
}

/// A mount of it, proved.
fn warm<'k>(kitfs: &'k Kitfs, arguments: &[&str]) -> Mount<'k> {
    let mount = kitfs.mount_with(&kit(kitfs), arguments);
    assert!(std::fs::read(mount.at("model/large")).expect("a good kit") == content());
    mount
}

fn send(pid: i32, signal: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", io::Error::last_os_error());
}

/// Reads the file through a descriptor while the worker is stopped: without passthrough nobody would answer.
#[track_caller]
fn check_without_worker(mount: &Mount<'_>, file: &File) {
    let mut bytes = vec![0; SIZE];
    mount.without_worker(|| file.read_exact_at(&mut bytes, 0)).expect("the kernel reads it");
    assert!(bytes == content());
}

fn object(kitfs: &Kitfs, mount: &Mount<'_>) -> PathBuf {
    let verity = attribute(&mount.at("model/large"), "user.kitfs.verity").expect("proved");
    let hex = verity.strip_prefix("sha256:").expect("a digest");
    kitfs.path("cache/v1/objects").join(&hex[..2]).join(hex)
}

#[test]
fn a_proved_file_is_read_by_the_kernel_itself() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mount = warm(&kitfs, &[]);
    assert_eq!(mount.status()["passthrough"], true);
    let file = File::open(mount.at("model/large")).expect("it is there");
    check_without_worker(&mount, &file);
    assert!(std::fs::read(mount.at("model/small")).expect("a good kit") == noise(4, 1000));
    drop(file);
    mount.unmount();
}

#[test]
fn a_file_that_is_opened_before_its_proof_is_read_by_the_kernel_as_well() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mount = kitfs.mount(&kit(&kitfs));
    assert_eq!(attribute(&mount.at("model/large"), "user.kitfs.state").expect("getxattr"), "provisional");
    check_without_worker(&mount, &File::open(mount.at("model/large")).expect("it is there"));
    mount.unmount();
}

/// Four seconds for the large file, for which it is worth waiting.
fn slow_registry() -> (Faults, String) {
    registry(|answer| answer.link(Duration::ZERO, SIZE as f64 / 4.0))
}

/// A process that waits for the large file to open before it reads it.
fn waiting_reader(mount: &Mount<'_>, output: Stdio) -> Child {
    let reader = Command::new("cat").arg(mount.at("model/large")).stdout(output).spawn().expect("cat(1)");
    let call = || std::fs::read_to_string(format!("/proc/{}/syscall", reader.id())).unwrap_or_default();
    let opens = format!("{} ", libc::SYS_openat);
    let waits = host::soon(30, || {
        let before = call();
        std::thread::sleep(Duration::from_millis(100));
        before.starts_with(&opens) && before == call()
    });
    assert!(waits, "it does not wait in openat(2)");
    reader
}

#[test]
fn who_waits_for_a_file_to_open_outlives_the_worker() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_server, reference) = slow_registry();
    let mount = kitfs.mount(&reference);
    let reader = waiting_reader(&mount, Stdio::piped());
    send(mount.process("pid"), libc::SIGKILL);
    let output = reader.wait_with_output().expect("our own child");
    assert!(output.status.success() && output.stdout == content(), "{:?}", output.status);
    assert_eq!(mount.status()["takeovers"], 1);
    check_without_worker(&mount, &File::open(mount.at("model/large")).expect("it is there"));
    mount.unmount();
}

#[test]
fn who_waits_for_a_file_to_open_can_be_killed() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_server, reference) = slow_registry();
    let mount = kitfs.mount(&reference);
    let mut reader = waiting_reader(&mount, Stdio::null());
    reader.kill().expect("our own child");
    reader.wait().expect("our own child");
    let state = attribute(&mount.at("model/large"), "user.kitfs.state").expect("getxattr");
    assert_eq!(state, "provisional", "it ended when its file was there");
    mount.unmount();
}

#[test]
fn small_files_are_opened_and_read_again_without_a_worker() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let content = |number: u64| noise(number, 1000 * number as usize);
    let files: Vec<_> = (1..=40).map(|number| file(&format!("data/{number}"), content(number))).collect();
    let kit = Kit::named("small").with(Base::Dataset, "data", files).pack();
    let mount = kitfs.mount(&Layout::of(kitfs.path("layout"), &kit).reference("v1"));
    let is_right = || (1..=40).all(|n| std::fs::read(mount.at(format!("data/{n}"))).is_ok_and(|b| b == content(n)));
    assert!(is_right(), "a wrong byte, or none");
    // A holder that runs would have another worker answer.
    let pids = ["holder_pid", "pid"].map(|key| mount.process(key));
    pids.iter().for_each(|pid| send(*pid, libc::SIGSTOP));
    let was_right = std::thread::scope(|scope| {
        let reader = scope.spawn(is_right);
        let ended = host::soon(30, || reader.is_finished());
        pids.iter().for_each(|pid| send(*pid, libc::SIGCONT));
        ended && reader.join().expect("it does not panic")
    });
    assert!(was_right, "somebody was asked");
    mount.unmount();
}

#[test]
fn it_can_be_turned_off() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mount = warm(&kitfs, &["--passthrough", "off"]);
    assert_eq!(mount.status()["passthrough"], false);
    assert!(std::fs::read(mount.at("model/large")).expect("a good kit") == content());
    mount.unmount();
    kitfs.run(&["mount", "oci:x", "/nowhere", "--passthrough", "some"]).expect(2).says("auto, sealed, off");
}

#[test]
fn what_is_open_keeps_its_mode_when_workers_die() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let (_server, reference) = registry(move |answer| {
        while silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        answer
    });
    let mount = kitfs.mount(&reference);
    // Opened while nobody could tell when it would be here: asked for, until its last close.
    let cold = File::open(mount.at("model/large")).expect("it is there");
    assert_eq!(attribute(&mount.at("model/large"), "user.kitfs.state").expect("getxattr"), "provisional");
    is_silent.store(false, Ordering::SeqCst);
    for round in 1..=6 {
        let mut bytes = vec![0; SIZE];
        cold.read_exact_at(&mut bytes, 0).expect("a good kit");
        assert!(bytes == content() && std::fs::read(mount.at("model/large")).expect("a good kit") == content());
        send(mount.process("pid"), libc::SIGKILL);
        assert!(host::soon(60, || mount.status()["takeovers"] == round), "nobody took over");
    }
    drop(cold);
    let open = || File::open(mount.at("model/large")).expect("the mode is the one that it has");
    let held = open();
    for round in 7..=12 {
        send(mount.process("pid"), libc::SIGKILL);
        assert!(host::soon(60, || mount.status()["takeovers"] == round), "nobody took over");
        check_without_worker(&mount, &open());
    }
    check_without_worker(&mount, &held);
    drop(held);
    mount.unmount();
}

#[test]
fn an_upgrade_moves_mounts_and_what_is_open() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mount = warm(&kitfs, &[]);
    let held = File::open(mount.at("model/large")).expect("it is there");
    let newer = kitfs.path("newer");
    std::fs::copy(env!("CARGO_BIN_EXE_kitfs"), &newer).expect("our own directory");
    let output = kitfs.other(&newer).args(["upgrade", "--output", "json"]).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(list["mounts"][0]["error"], serde_json::Value::Null, "{said}");
    for key in ["pid", "holder_pid"] {
        let program = std::fs::read_link(format!("/proc/{}/exe", mount.process(key))).expect("it runs");
        assert_eq!(program, newer, "{key}");
    }
    check_without_worker(&mount, &held);
    drop(held);
    mount.unmount();
    let none = kitfs.run(&["upgrade", "--output", "json"]).expect(0).json();
    assert_eq!(none, serde_json::json!({"mounts": []}));
}

#[test]
fn a_hangup_moves_a_mount_to_the_program_in_the_place_of_its_own() {
    if !host::can_mount() {
        return;
    }
    let built = Path::new(env!("CARGO_BIN_EXE_kitfs"));
    let kitfs = Kitfs::new();
    let program = kitfs.path("program");
    std::fs::copy(built, &program).expect("our own directory");
    let kitfs = kitfs.run_as(&program);
    let mount = warm(&kitfs, &[]);
    let held = File::open(mount.at("model/large")).expect("it is there");
    let before = mount.status();
    let program_of = |key: &str| std::fs::metadata(format!("/proc/{}/exe", mount.process(key))).expect("it runs").ino();
    let old = program_of("pid");
    // As a package manager does it.
    std::fs::copy(built, kitfs.path("newer")).expect("our own directory");
    std::fs::rename(kitfs.path("newer"), &program).expect("our own directory");
    send(mount.process("holder_pid"), libc::SIGHUP);
    let is_another = |now: Value| now["pid"] != before["pid"] && now["holder_pid"] != before["holder_pid"];
    assert!(host::soon(60, || mount.try_status().is_some_and(is_another)), "it did not move");
    let new = std::fs::metadata(&program).expect("our own file").ino();
    assert!(old != new && program_of("pid") == new && program_of("holder_pid") == new);
    check_without_worker(&mount, &held);
    check_without_worker(&mount, &File::open(mount.at("model/large")).expect("it is there"));
    drop(held);
    mount.unmount();
}

#[test]
fn a_cached_file_that_is_written_to_is_not_handed_out_again() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mount = warm(&kitfs, &[]);
    let (path, object) = (mount.at("model/large"), object(&kitfs, &mount));
    let held = File::open(&path).expect("it is there");
    std::fs::set_permissions(&object, PermissionsExt::from_mode(0o600)).expect("our own directory");
    // Waits until the lease is given back.
    let writer = OpenOptions::new().write(true).open(&object).expect("our own directory");
    writer.write_all_at(b"not what was proved", 1_000_000).expect("our own directory");
    let refused = || File::open(&path).is_err_and(|error| error.raw_os_error() == Some(EIO));
    assert!(host::soon(60, refused), "it is handed out although it was written to");
    let status = mount.status();
    assert_eq!(status["last_error"]["kind"], "store", "{status}");
    assert_eq!(status["last_error"]["path"], "model/large", "{status}");
    drop((writer, held));
    // From the source again, for the object is not what it should be.
    let healed = || std::fs::read(&path).is_ok_and(|bytes| bytes == content());
    assert!(host::soon(60, || File::open(&path).is_ok()), "its last close does not count");
    assert!(healed(), "a wrong byte, or none");
    mount.unmount();
}
