//! The audit log: what happens is in it, whoever did it, and whatever is done to it afterwards shows.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::host;
use crate::support::kit::{Kit, Layout, Packed};
use crate::support::kitfs::{Kitfs, finish};
use crate::support::tree::{Content, sha256};

const EIO: i32 = 5;

/// A kit in a layout, and a reference to it.
fn usual(kitfs: &Kitfs) -> (Packed, Layout, String) {
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    let reference = layout.reference("v1");
    (kit, layout, reference)
}

fn log(kitfs: &Kitfs) -> PathBuf {
    kitfs.path("state/audit.log")
}

/// What `audit show` shows.
#[track_caller]
fn show(kitfs: &Kitfs, filters: &[&str]) -> Vec<Value> {
    let words = [&["audit", "show", "--output", "json"][..], filters].concat();
    let document = kitfs.run(&words).expect(0).json();
    document["events"].as_array().expect("events").clone()
}

/// The kinds of events in the log, in order.
#[track_caller]
fn events(kitfs: &Kitfs) -> Vec<String> {
    show(kitfs, &[]).iter().map(|line| line["event"].as_str().expect("an event").to_owned()).collect()
}

fn count(kitfs: &Kitfs, event: &str) -> usize {
    events(kitfs).iter().filter(|name| *name == event).count()
}

#[track_caller]
fn check_whole(kitfs: &Kitfs) -> Value {
    let document = kitfs.run(&["audit", "verify", "--output", "json"]).expect(0).json();
    assert_eq!((&document["ok"], &document["error"]), (&true.into(), &Value::Null), "{document}");
    document
}

#[track_caller]
fn check_broken(kitfs: &Kitfs, what: &str) {
    let output = kitfs.run(&["audit", "verify", "--output", "json"]);
    assert_eq!(output.code, 5, "{what}\n{output}");
    let document = output.json();
    assert_eq!(document["ok"], false, "{what}: {document}");
    assert!(document["error"].is_string() && document["lines"].is_u64(), "{what}: {document}");
    kitfs.run(&["audit", "verify"]).expect(5).says("is broken");
}

#[test]
fn a_mount_is_in_the_log_from_its_beginning_to_its_end() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let directory = mount.path().to_str().expect("a plain name").to_owned();
    let names = events(&kitfs);
    assert!(names[0] == "resolved" && names.contains(&"mounted".to_owned()), "before anything is read: {names:?}");
    fs::read(mount.at("model/weights.bin")).expect("a file");
    fs::read(mount.at("README.md")).expect("a file");
    mount.unmount();
    let lines = show(&kitfs, &[]);
    let names: Vec<_> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"resolved"), Some(&"unmounted")), "{names:?}");
    assert!(names.contains(&"layer-verified"), "{names:?}");
    let digest = &lines[0]["digest"];
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(line["sequence"], number + 1, "{line}");
        assert_eq!((&line["reference"], &line["digest"]), (&reference.as_str().into(), digest), "{line}");
        assert_eq!(line["directory"], directory.as_str(), "{line}");
        assert_eq!(line["uid"], rustix::process::getuid().as_raw(), "{line}");
        assert!(line["pid"].is_u64() && line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }
    assert_eq!((&lines[0]["by"], lines[0]["source"].is_string()), (&"registry".into(), true));
    // The chain as the documentation has it, followed without kitfs.
    let text = fs::read_to_string(log(&kitfs)).expect("the log");
    let mut previous = format!("sha256:{}", "0".repeat(64));
    for (line, read) in text.lines().zip(&lines) {
        assert_eq!(read["previous"], previous.as_str());
        previous = format!("sha256:{}", sha256(line.as_bytes()));
    }
    let document = check_whole(&kitfs);
    assert_eq!((&document["lines"], &document["head"]), (&lines.len().into(), &previous.as_str().into()));
    // A second mount of what is here: resolved, mounted, unmounted.
    kitfs.mount(&reference).unmount();
    assert_eq!(count(&kitfs, "mounted"), 2);
    assert_eq!(count(&kitfs, "unmounted"), 2);
}

#[test]
fn a_mismatch_is_in_the_log_with_both_digests_and_its_source_and_once() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, layout, reference) = usual(&kitfs);
    let bad = kit.layer("model.v1").digest.clone();
    layout.flip(&bad);
    let mount = kitfs.mount(&reference);
    for _ in 0..30 {
        assert_eq!(Content::read(&mount.at("model/weights.bin")), Content::Error(EIO));
    }
    mount.unmount();
    let lines = show(&kitfs, &["--event", "mismatch"]);
    assert_eq!(lines.len(), 1, "one line, however often it is read: {lines:?}");
    let line = &lines[0];
    assert_eq!((&line["expected"], &line["layer"]), (&bad.as_str().into(), &bad.as_str().into()), "{line}");
    let actual = line["actual"].as_str().expect("what it was instead");
    assert!(actual.starts_with("sha256:") && actual != bad, "{line}");
    assert!(line["source"].as_str().is_some_and(|source| source.starts_with("oci:")), "{line}");
    // The command that looks at everything says it too.
    kitfs.run(&["verify", &reference]).expect(5);
    assert_eq!(show(&kitfs, &["--digest", actual]).len(), 2);
    check_whole(&kitfs);
}

#[test]
fn every_change_of_the_log_shows() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    kitfs.run(&["pull", &reference]).expect(0);
    kitfs.run(&["inspect", &reference]).expect(0);
    let head = check_whole(&kitfs)["head"].as_str().expect("a head").to_owned();
    let text = fs::read_to_string(log(&kitfs)).expect("the log");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() >= 4, "{lines:?}");
    let write = |lines: &[&str]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(log(&kitfs), text).expect("our own directory");
    };
    let edited = lines[1].replace("sha256:", "sha256:0");
    let mut changes: Vec<(&str, Vec<&str>)> = vec![("edit", lines.clone()), ("reorder", lines.clone())];
    changes[0].1[1] = &edited;
    changes[1].1.swap(1, 2);
    changes.push(("truncation", lines[..lines.len() - 1].to_vec()));
    changes.push(("truncation to nothing", Vec::new()));
    changes.push(("repetition", [&lines[..], &lines[lines.len() - 1..]].concat()));
    for number in 0..lines.len() {
        let mut without = lines.clone();
        without.remove(number);
        changes.push(("deletion", without));
    }
    for (what, changed) in changes {
        write(&changed);
        check_broken(&kitfs, what);
    }
    fs::write(log(&kitfs), &text[..text.len() - 20]).expect("our own directory");
    check_broken(&kitfs, "a cut line");
    fs::remove_file(log(&kitfs)).expect("our own directory");
    check_broken(&kitfs, "a log that is gone");
    fs::write(log(&kitfs), &text).expect("our own directory");
    check_whole(&kitfs);
    // Against whoever has the key too: a head that was kept elsewhere.
    kitfs.run(&["inspect", &reference]).expect(0);
    kitfs.run(&["audit", "verify", "--head", &head]).expect(0);
    kitfs.run(&["audit", "verify", "--head", &head.replace("sha256:", "")]).expect(0);
    let other = format!("sha256:{}", "1".repeat(64));
    kitfs.run(&["audit", "verify", "--head", &other]).expect(5).says("is not in the log");
    // What is written after a change does not hide it.
    write(&lines[..2]);
    kitfs.run(&["inspect", &reference]).expect(0).says("kitfs audit verify");
    check_broken(&kitfs, "a truncation that was written over");
    assert_eq!(count(&kitfs, "broken"), 1);
}

#[test]
fn filters_choose_lines() {
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    kitfs.run(&["verify", &reference]).expect(0);
    let all = show(&kitfs, &[]).len();
    let verified = show(&kitfs, &["--event", "layer-verified"]);
    assert_eq!((verified.len(), all), (kit.layers.len(), kit.layers.len() + 1));
    let layer = &kit.layers[0].digest;
    assert_eq!(show(&kitfs, &["--digest", layer]).len(), 1);
    assert_eq!(show(&kitfs, &["--digest", &layer[..20]]).len(), 1);
    assert_eq!(show(&kitfs, &["--kit", &reference]).len(), all);
    let path = reference.strip_suffix(":v1").expect("its tag");
    assert_eq!(show(&kitfs, &["--kit", path, "--event", "resolved", "--event", "mounted"]).len(), 1);
    assert_eq!(show(&kitfs, &["--kit", "oci:/other"]).len(), 0);
    assert_eq!(show(&kitfs, &["--since", "1h", "--until", "2999-01-01"]).len(), all);
    assert_eq!(show(&kitfs, &["--until", "2000-01-01T00:00:00Z"]).len(), 0);
    let time = verified[0]["time"].as_str().expect("a time");
    let (from, before) = (show(&kitfs, &["--since", time]).len(), show(&kitfs, &["--until", time]).len());
    assert_eq!((from + before, before >= 1), (all, true));
    let text = kitfs.run(&["audit", "show", "--event", "layer-verified"]).expect(0);
    assert_eq!(text.text().lines().count(), kit.layers.len());
    assert!(text.text().contains(layer.as_str()), "{text}");
    for wrong in [&["--since", "yesterday"][..], &["--event", "index-refused"], &["--until", ""], &["--what", "x"]] {
        kitfs.run(&[&["audit", "show"][..], wrong].concat()).expect(2);
    }
    kitfs.run(&["audit"]).expect(2);
    kitfs.run(&["audit", "verify", "--head", "x"]).expect(2);
}

#[test]
fn nothing_is_nothing_and_whole() {
    let kitfs = Kitfs::new();
    let document = check_whole(&kitfs);
    assert_eq!((&document["lines"], &document["head"]), (&0.into(), &Value::Null));
    assert!(show(&kitfs, &[]).is_empty());
}

#[test]
fn many_processes_write_one_chain() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    kitfs.run(&["pull", &reference]).expect(0);
    let before = events(&kitfs).len();
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..6).for_each(|_| drop(kitfs.run(&["inspect", &reference]).expect(0))));
        }
    });
    assert_eq!(check_whole(&kitfs)["lines"], before + 24);
}

#[test]
fn a_process_that_is_killed_leaves_a_whole_log() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    kitfs.run(&["inspect", &reference]).expect(0);
    for millis in 0..40 {
        let mut command = kitfs.other(env!("CARGO_BIN_EXE_kitfs"));
        command.args(["inspect", &reference]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("our own program");
        std::thread::sleep(Duration::from_micros(millis * 500));
        child.kill().ok();
        child.wait().expect("a child");
        check_whole(&kitfs);
    }
    kitfs.run(&["inspect", &reference]).expect(0);
    check_whole(&kitfs);
    assert_eq!(count(&kitfs, "broken"), 0);
}

#[test]
fn a_log_that_cannot_be_written_is_a_loud_warning() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let folder = kitfs.path("home");
    for file in ["/dev/full", folder.to_str().expect("a plain name"), "/proc/audit.log"] {
        let output = kitfs.run(&["inspect", &reference, "--audit-log", file]).expect(0);
        output.says("events are missing from the audit log").says(file);
    }
    if host::can_mount() {
        let (mount, output) = kitfs.try_mount(&reference, &["--audit-log", "/dev/full"], &folder);
        output.says("events are missing from the audit log");
        fs::read(mount.expect("mounted all the same").at("README.md")).expect("a file");
        assert!(kitfs.log().contains("audit log"), "the log of the mount says it too");
    }
}

#[test]
fn a_file_that_is_full_of_disk_loses_no_line_that_was_written() {
    // A disk of 64 KiB.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let disk = kitfs.path("disk");
    fs::create_dir(&disk).expect("our own directory");
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, Some(c"size=64k")).is_err() {
        host::skip("no tmpfs can be mounted");
        return;
    }
    let file = disk.join("audit.log");
    let file = file.to_str().expect("a plain name");
    kitfs.run(&["inspect", &reference, "--audit-log", file]).expect(0);
    fs::write(disk.join("ballast"), vec![0; 1 << 20]).expect_err("the disk is small");
    let long = ["inspect", &reference, "--audit-log", file];
    let mut failed = false;
    for _ in 0..30 {
        failed |= kitfs.run(&long).expect(0).stderr.contains("events are missing");
    }
    assert!(failed, "the disk is full");
    fs::remove_file(disk.join("ballast")).expect("our own file");
    kitfs.run(&long).expect(0);
    let result = kitfs.run(&["audit", "verify", "--audit-log", file]);
    rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).expect("our own mount");
    result.expect(0);
}

#[test]
fn a_file_elsewhere_has_its_own_end() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let file = kitfs.path("logs/deep/kits.log");
    let file = file.to_str().expect("a plain name");
    kitfs.run(&["inspect", &reference]).expect(0);
    kitfs.run(&["inspect", &reference, "--audit-log", file]).expect(0);
    kitfs.run(&["inspect", &reference, "--audit-log", file]).expect(0);
    kitfs.run(&["audit", "verify", "--audit-log", file]).expect(0);
    assert_eq!(check_whole(&kitfs)["lines"], 1);
    let text = fs::read_to_string(file).expect("the log");
    fs::write(file, text.lines().next().expect("a line").to_owned() + "\n").expect("our own directory");
    kitfs.run(&["audit", "verify", "--audit-log", file]).expect(5);
    for wrong in ["fd:99", "fd:x", "fd:-1", "fd:"] {
        kitfs.run(&["inspect", &reference, "--audit-log", wrong]).expect(2).says(wrong);
    }
    kitfs.run(&["inspect", &reference, "--audit-log", "/a", "--audit-log", "/b"]).expect(2);
}

/// A command of `kitfs` that has `file` open as descriptor 7.
fn with_descriptor(kitfs: &Kitfs, words: &[&str], file: &fs::File) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = kitfs.other(env!("CARGO_BIN_EXE_kitfs"));
    command.args(words).args(["--audit-log", "fd:7"]);
    let number = file.as_raw_fd();
    // SAFETY: a system call, no memory is touched: what fork allows before exec.
    unsafe {
        command
            .pre_exec(move || if libc::dup2(number, 7) == 7 { Ok(()) } else { Err(std::io::Error::last_os_error()) });
    }
    command
}

#[test]
fn a_descriptor_gets_a_copy_of_every_line_and_from_a_mount_too() {
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let path = kitfs.path("copy");
    let copy = fs::File::options().append(true).create(true).open(&path).expect("our own directory");
    let run = |words: &[&str]| {
        let output = finish(with_descriptor(&kitfs, words, &copy), "kitfs with fd:7", Duration::from_secs(60));
        output.expect(0);
    };
    let same = || fs::read(&path).expect("the copy") == fs::read(log(&kitfs)).expect("the log");
    run(&["verify", &reference]);
    assert!(same());
    if host::can_mount() {
        let directory = kitfs.next_directory();
        fs::create_dir(&directory).expect("our own directory");
        let text = directory.to_str().expect("a plain name");
        run(&["mount", &reference, text]);
        fs::read(directory.join("README.md")).expect("a file");
        let status = kitfs.run(&["status", text, "--output", "json"]).expect(0).json();
        let worker = status["mounts"][0]["pid"].as_i64().expect("a pid");
        let pid = rustix::process::Pid::from_raw(worker.try_into().expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("our own process");
        fs::read(directory.join("model/weights.bin")).expect("a file, from the next worker");
        kitfs.run(&["umount", text]).expect(0);
        assert!(same(), "the processes of a mount write to it, also those that take over");
        assert_eq!((count(&kitfs, "mounted"), count(&kitfs, "unmounted")), (1, 1));
    }
}

#[test]
fn a_mount_whose_holder_died_has_an_end_too() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let holder = rustix::process::Pid::from_raw(mount.process("holder_pid")).expect("a pid");
    rustix::process::kill_process(holder, rustix::process::Signal::KILL).expect("our own process");
    fs::read(mount.at("README.md")).expect("a file");
    mount.unmount();
    assert!(host::soon(60, || count(&kitfs, "unmounted") == 1), "{:?}", events(&kitfs));
    check_whole(&kitfs);
}

#[test]
fn the_head_can_be_signed_and_openssl_believes_it() {
    if !host::has("openssl") {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    kitfs.run(&["inspect", &reference]).expect(0);
    let openssl = |words: &[&str]| {
        let output = finish(
            {
                let mut command = Command::new("openssl");
                command.args(words).current_dir(kitfs.path("home")).stdin(Stdio::null());
                command
            },
            "openssl",
            Duration::from_secs(60),
        );
        output.expect(0);
    };
    let kinds: [(&[&str], &str); 3] = [
        (&["EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "-sha256"),
        (&["EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "-sha384"),
        (&["ED25519"], ""),
    ];
    for (kind, hash) in kinds {
        openssl(&[&["genpkey", "-out", "key.pem", "-algorithm"], kind].concat());
        let words = ["audit", "verify", "--sign-key", "key.pem", "--output", "json"];
        let document = kitfs.run(&words).expect(0).json();
        let signed = &document["signed_head"];
        let text = |name: &str| signed[name].as_str().expect("a text").to_owned();
        let payload: Value = serde_json::from_str(&text("payload")).expect("JSON");
        assert_eq!((&payload["head"], &payload["lines"]), (&document["head"], &document["lines"]));
        let write =
            |name: &str, text: String| fs::write(kitfs.path("home").join(name), text).expect("our own directory");
        write("payload", text("payload"));
        write("signature.b64", text("signature"));
        write("public.pem", text("public_key"));
        openssl(&["base64", "-d", "-A", "-in", "signature.b64", "-out", "signature"]);
        if hash.is_empty() {
            openssl(&[
                "pkeyutl",
                "-verify",
                "-rawin",
                "-pubin",
                "-inkey",
                "public.pem",
                "-in",
                "payload",
                "-sigfile",
                "signature",
            ]);
        } else {
            openssl(&["dgst", hash, "-verify", "public.pem", "-signature", "signature", "payload"]);
        }
    }
    fs::write(kitfs.path("home/key.pem"), "no key").expect("our own directory");
    kitfs.run(&["audit", "verify", "--sign-key", "key.pem"]).expect(2).says("key.pem");
}
