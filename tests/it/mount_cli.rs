//! `mount`, `umount` and `status` as scripts see them: what the mount table says, what readers may do, exit codes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::faults::{Answer, Content, Faults};
use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file, noise};
use crate::support::kitfs::{Kitfs, User};
use crate::support::mount::attribute;
use crate::support::registry::{Access, Registry};
use crate::support::tree::Tree;

const EROFS: i32 = 30;
const ENODATA: i32 = 61;
const EOPNOTSUPP: i32 = 95;

/// A kit in a layout, and a reference to it.
fn usual(kitfs: &Kitfs) -> (Packed, Layout, String) {
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    let reference = layout.reference("v1");
    (kit, layout, reference)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("tests use plain names")
}

/// Options and type of a line of the mount table.
fn table(line: &str) -> (Vec<&str>, &str, Vec<&str>) {
    let words: Vec<_> = line.split(' ').collect();
    let dash = words.iter().position(|word| *word == "-").expect("the table has a separator");
    (words[5].split(',').collect(), words[dash + 1], words[dash + 3].split(',').collect())
}

#[test]
fn the_mount_table_says_read_only_and_kitfs() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let cases: [(&[&str], bool, bool); 3] =
        [(&[], false, true), (&["-o", "noexec"], true, true), (&["-o", "noallow_other,noexec"], true, false)];
    for (arguments, noexec, allow_other) in cases {
        let mount = kitfs.mount_with(&reference, arguments);
        let entry = mount.table_entry();
        let (options, kind, of_file_system) = table(&entry);
        assert_eq!(kind, "fuse.kitfs", "{entry}");
        for option in ["ro", "nosuid", "nodev"] {
            assert!(options.contains(&option), "not {option}: {entry}");
        }
        assert_eq!(options.contains(&"noexec"), noexec, "{arguments:?}: {entry}");
        assert_eq!(of_file_system.contains(&"allow_other"), allow_other, "{arguments:?}: {entry}");
        mount.unmount();
    }
}

#[test]
fn a_name_that_is_too_long_for_the_mount_table_is_cut_there_only() {
    if !host::can_mount() {
        return;
    }
    let users = [User::Caller, User::Nobody];
    for user in users.into_iter().filter(|user| *user == User::Caller || host::ordinary_user_can_mount()) {
        let kitfs = Kitfs::of(user);
        let (kit, layout, _) = usual(&kitfs);
        let tag = format!("{}ü", r"a,\".repeat(1700));
        kit.write(&layout, Some(&tag));
        let mount = kitfs.mount(&layout.reference(&tag));
        assert!(mount.table_entry().len() < 4096);
        let status = kitfs.run(&["status", "--output", "json"]).expect(0).json();
        assert_eq!(status["mounts"][0]["reference"], layout.reference(&tag));
        mount.unmount();
    }
}

#[test]
fn code_in_a_kit_runs_from_the_mount() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    assert!(Command::new(mount.at("src/run.sh")).status().expect("it starts").success());
    mount.unmount();
    let mount = kitfs.mount_with(&reference, &["-o", "noexec"]);
    let error = Command::new(mount.at("src/run.sh")).status().expect_err("noexec");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    mount.unmount();
}

#[test]
fn the_directory_must_be_there_and_empty() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let missing = kitfs.path("missing");
    kitfs.run(&["mount", &reference, text(&missing)]).expect(3).says("missing");
    std::fs::write(kitfs.path("file"), "x").expect("our own directory");
    kitfs.run(&["mount", &reference, text(&kitfs.path("file"))]).expect(2);
    let full = kitfs.path("full");
    std::fs::create_dir_all(full.join("something")).expect("our own directory");
    kitfs.run(&["mount", &reference, text(&full)]).expect(2).says("empty");
}

#[test]
fn the_same_kit_again_is_0_and_another_is_2() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, layout, reference) = usual(&kitfs);
    Kit::named("other").with(Base::Model, "m", [file("m", *b"m")]).pack().write(&layout, Some("other"));
    let mount = kitfs.mount(&reference);
    kitfs.run(&["mount", &reference, text(mount.path())]).expect(0);
    assert_eq!(host::mounts_below(mount.path()).len(), 1, "one mount, not two");
    kitfs.run(&["mount", &layout.reference("other"), text(mount.path())]).expect(2);
    assert_eq!(host::mounts_below(mount.path()).len(), 1, "one mount, not two");
    mount.unmount();
}

#[test]
fn one_kit_mounts_in_many_places() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    let mounts: Vec<_> = (0..3).map(|_| kitfs.mount(&reference)).collect();
    let listed = kitfs.run(&["status", "--output", "json"]).expect(0).json();
    assert_eq!(listed["mounts"].as_array().expect("mounts").len(), 3, "{listed}");
    for mount in mounts {
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "one of three");
        mount.unmount();
    }
}

#[test]
fn every_change_is_refused_as_on_a_read_only_file_system() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let (old, new, folder) = (mount.at("README.md"), mount.at("new"), mount.at("src"));
    let time = filetime::FileTime::from_unix_time(1, 0);
    let raw = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
    let changes: BTreeMap<&str, io::Result<()>> = BTreeMap::from([
        ("create", std::fs::File::create(&new).map(drop)),
        ("mkdir", std::fs::create_dir(&new)),
        ("unlink", std::fs::remove_file(&old)),
        ("rmdir", std::fs::remove_dir(&folder)),
        ("rename", std::fs::rename(&old, &new)),
        ("symlink", std::os::unix::fs::symlink("x", &new)),
        ("link", std::fs::hard_link(&old, &new)),
        ("chmod", std::fs::set_permissions(&old, PermissionsExt::from_mode(0o600))),
        ("chown", std::os::unix::fs::chown(&old, Some(1), Some(1))),
        ("open to write", OpenOptions::new().write(true).open(&old).map(drop)),
        ("open to append", OpenOptions::new().append(true).open(&old).map(drop)),
        ("truncate", OpenOptions::new().write(true).truncate(true).open(&old).map(drop)),
        ("utimes", filetime::set_file_times(&old, time, time)),
        ("setxattr", raw(rustix::fs::lsetxattr(&old, "user.x", b"x", rustix::fs::XattrFlags::empty()))),
        ("removexattr", raw(rustix::fs::lremovexattr(&old, "user.kitfs.layer"))),
    ]);
    for (what, result) in changes {
        assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(EROFS)), "{what}");
    }
    mount.unmount();
}

#[test]
fn attributes_tell_where_each_file_is_from() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, layout, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let weights = mount.at("model/weights.bin");
    assert_eq!(attribute(&weights, "user.kitfs.layer"), Ok(kit.layer("model.v1").digest.clone()));
    assert_eq!(attribute(&weights, "user.kitfs.digest"), Ok(kit.digest()));
    assert_eq!(attribute(&weights, "user.kitfs.reference"), Ok(reference.clone()));
    assert_eq!(attribute(&weights, "user.kitfs.source"), Ok(format!("oci:{}", layout.path().display())));
    let state = attribute(&weights, "user.kitfs.state").expect("a state");
    assert!(["absent", "partial", "provisional", "verified"].contains(&state.as_str()), "{state}");
    std::fs::read(&weights).expect("a good kit");
    assert_eq!(attribute(&weights, "user.kitfs.state").as_deref(), Ok("verified"));
    let verity = attribute(&weights, "user.kitfs.verity").expect("known once it is verified");
    assert!(verity.starts_with("sha256:") && verity.len() == 71, "{verity}");
    assert_eq!(attribute(&mount.at("Kitfile"), "user.kitfs.layer"), Ok(kit.config.digest.clone()));
    assert_eq!(attribute(&mount.at("src"), "user.kitfs.digest"), Ok(kit.digest()));
    assert_eq!(attribute(&mount.at("src"), "user.kitfs.layer"), Err(ENODATA));
    assert_eq!(attribute(&weights, "user.other"), Err(ENODATA));
    assert_eq!(attribute(&weights, "security.capability"), Err(ENODATA));
    assert_eq!(attribute(&weights, "security.selinux"), Err(EOPNOTSUPP), "ls -l would ask it of every file");
    mount.unmount();
}

#[test]
fn files_look_as_programs_expect() {
    use std::os::unix::fs::MetadataExt;
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let weights = std::fs::metadata(mount.at("model/weights.bin")).expect("it is there");
    assert_eq!((weights.size(), weights.nlink(), weights.mtime()), (1_300_007, 1, 0));
    assert!(weights.blocks() * 512 >= weights.size(), "fewer blocks than bytes means holes to tar and cp");
    assert_eq!((weights.uid(), weights.gid()), (0, 0), "the owner is who mounts");
    for entry in std::fs::read_dir(mount.at("model")).expect("it can be listed").flatten() {
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), entry.metadata().expect("it is there").ino(), "{:?}", entry.file_name());
    }
    let long = mount.at("x".repeat(256));
    assert_eq!(std::fs::metadata(long).expect_err("too long").raw_os_error(), Some(36), "ENAMETOOLONG");
    let whole = rustix::fs::statvfs(mount.path()).expect("it is mounted");
    assert_eq!((whole.f_bfree, whole.f_namemax), (0, 255));
    mount.unmount();
}

#[test]
fn inode_numbers_are_the_same_in_every_mount() {
    use std::os::unix::fs::MetadataExt;
    if !host::can_mount() {
        return;
    }
    let numbers = || {
        let kitfs = Kitfs::new();
        let (kit, _, reference) = usual(&kitfs);
        let mount = kitfs.mount(&reference);
        let number = |path: &Vec<u8>| {
            let path = crate::support::tree::below(mount.path(), path);
            std::fs::symlink_metadata(&path).expect("it is there").ino()
        };
        let numbers: Vec<_> = kit.tree.0.keys().map(number).collect();
        mount.unmount();
        numbers
    };
    assert_eq!(numbers(), numbers());
}

#[test]
fn status_tells_what_is_mounted() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (kit, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path());
    let status = mount.status();
    assert_eq!(status["directory"], text(mount.path()));
    assert_eq!(status["reference"], reference.as_str());
    assert_eq!(status["digest"], kit.digest());
    assert_eq!((&status["state"], &status["policy"]), (&"ready".into(), &"none".into()), "{status}");
    assert_eq!((&status["last_error"], &status["signers"]), (&Value::Null, &serde_json::json!([])), "{status}");
    let total: u64 = kit.layers.iter().map(|layer| layer.size).sum();
    assert_eq!((&status["bytes_total"], &status["bytes_verified"]), (&total.into(), &total.into()), "{status}");
    for key in ["pid", "holder_pid"] {
        let pid = i32::try_from(status[key].as_i64().expect("a process")).expect("a process id");
        assert!(host::is_alive(pid), "{key}: {status}");
    }
    assert_ne!(status["pid"], status["holder_pid"], "the holder outlives the worker: {status}");
    for key in ["bytes_fetched", "cache_hits", "takeovers"] {
        assert!(status[key].is_u64(), "{key}: {status}");
    }
    assert!(status["passthrough"].is_boolean(), "{status}");
    assert!(status["mounted_at"].as_str().is_some_and(|time| time.contains('T')), "{status}");
    let shown = kitfs.run(&["status"]).expect(0);
    assert!(shown.text().contains(text(mount.path())), "{shown}");
    kitfs.run(&["status", text(&kitfs.path("home"))]).expect(3);

    // `umount DIR` and `status DIR` need no option, whatever the mount was given.
    let other = Kitfs::new();
    let document = other.run(&["status", text(mount.path()), "--output", "json"]).expect(0).json();
    assert_eq!(document["mounts"][0]["digest"], kit.digest());
    other.run(&["umount", text(mount.path())]).expect(0);
    mount.gone();
    assert_eq!(kitfs.run(&["status", "--output", "json"]).expect(0).json(), serde_json::json!({"mounts": []}));
}

#[test]
fn the_background_leaves_the_caller_alone() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let field = |pid: i32, number: usize| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        stat.rsplit_once(") ").expect("a name").1.split(' ').nth(number).expect("a field").to_owned()
    };
    // SAFETY: a plain system call.
    let own_session = unsafe { libc::getsid(0) }.to_string();
    for key in ["pid", "holder_pid"] {
        let pid = mount.process(key);
        assert_ne!(field(pid, 3), own_session, "{key} is in the caller's session");
        let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).expect("it runs");
        assert!(!folder.starts_with(kitfs.path("home")), "{key} keeps {} busy", folder.display());
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let number = entry.file_name().into_string().expect("a number");
            let is_standard = ["0", "1", "2"].contains(&number.as_str());
            assert!(!is_standard || text(&target) == "/dev/null" || text(&target).contains("kitfs.log"), "{target:?}");
        }
    }
    mount.unmount();
}

#[test]
fn in_the_foreground_it_stays_until_it_is_asked_to_end() {
    if !host::can_mount() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let kitfs = Kitfs::new();
        let (kit, _, reference) = usual(&kitfs);
        let folder = kitfs.next_directory();
        kitfs.own(&folder);
        let mut running = kitfs
            .other(env!("CARGO_BIN_EXE_kitfs"))
            .args(["mount", "--foreground", &reference, text(&folder)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        assert!(host::soon(60, || !host::mounts_below(&folder).is_empty()), "not mounted");
        Tree::read(&folder).without("Kitfile").assert_is(&kit.tree, "in the foreground");
        // SAFETY: a plain system call on a child of ours that has not been waited for.
        unsafe { libc::kill(running.id().cast_signed(), signal) };
        let mut ended = None;
        host::soon(60, || {
            ended = running.try_wait().expect("our own child");
            ended.is_some()
        });
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "signal {signal}");
        assert!(host::mounts_below(&folder).is_empty(), "it left its mount");
    }
}

#[test]
fn umount_of_what_is_not_ours_is_3() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    kitfs.run(&["umount", text(&kitfs.path("home"))]).expect(3);
    kitfs.run(&["umount", text(&kitfs.path("missing"))]).expect(3);
    kitfs.run(&["umount", "/proc"]).expect(3);
}

#[test]
fn umount_of_a_busy_mount_names_who_uses_it() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let mut user = Command::new("sleep").arg("60").current_dir(mount.at("src")).spawn().expect("sleep");
    let pid = user.id().to_string();
    kitfs.run(&["umount", text(mount.path())]).expect(1).says(&pid);
    assert!(!host::mounts_below(mount.path()).is_empty(), "a refused umount leaves it mounted");
    kitfs.run(&["umount", "--lazy", text(mount.path())]).expect(0);
    user.kill().expect("our own child");
    user.wait().expect("our own child");
    mount.gone();
}

#[test]
fn umount_ends_with_the_source_dead() {
    if !host::can_mount() {
        return;
    }
    let Some(mut registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let (_, layout, _) = usual(&kitfs);
    let reference = registry.push(layout.path(), "usual", "v1");
    let mount = kitfs.mount_with(&reference, &["--read-timeout", "120s"]);
    registry.stop();
    let path = mount.at("model/weights.bin");
    // A reader that waits for a dead registry.
    let reader = std::thread::spawn(move || std::fs::read(path).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let output = kitfs.command(&["umount", "--lazy", text(mount.path())]).within(50).run().expect(0);
    assert!(output.took.as_secs() < 45, "{output}");
    reader.join().expect("the reader does not panic").ok();
    mount.gone();
}

#[test]
fn a_direct_reader_of_a_dead_source_can_be_killed() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let mut content = Content::default();
    content.add_kit(&Kit::usual("usual").pack());
    let is_dead = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&is_dead);
    let registry = Faults::start(move |asked, _| match dead.load(Ordering::Relaxed) {
        true => Answer::silence(),
        false => content.answer(asked),
    });
    let reference = format!("{}/kit:v1", registry.host());
    let mount = kitfs.mount_with(&reference, &["--read-timeout", "300s", "--prefetch", "none"]);
    is_dead.store(true, Ordering::Relaxed);
    let before = registry.asked().len();
    let mut reader = Command::new("dd")
        .arg(format!("if={}", text(&mount.at("model/weights.bin"))))
        .args(["of=/dev/null", "bs=64k", "iflag=direct"])
        .stderr(Stdio::null())
        .spawn()
        .expect("dd");
    assert!(host::soon(60, || registry.asked().len() > before), "it reads what is there already");
    // Nobody but its own request sees that it is being killed.
    reader.kill().expect("our own child");
    assert!(host::soon(60, || reader.try_wait().is_ok_and(|ended| ended.is_some())), "it cannot be killed");
    mount.unmount();
}

#[test]
fn what_a_registry_refuses_is_3_4_or_7() {
    let Some(registry) = Registry::start(Access::Password) else { return };
    let kitfs = Kitfs::new();
    let (_, layout, _) = usual(&kitfs);
    let reference = registry.push(layout.path(), "usual", "v1");
    let (authority, credentials) = (registry.authority(), registry.credentials());
    let trusted = ["--ca-cert", text(&authority)];
    let known = ["--registry-config", text(&credentials)];
    let verify =
        |reference: &str, more: &[&[&str]]| kitfs.run(&[&["verify", reference], more.concat().as_slice()].concat());
    verify(&reference, &[&trusted, &known]).expect(0);
    verify(&reference, &[&trusted]).expect(4);
    verify(&format!("{}/usual:none", registry.host()), &[&trusted, &known]).expect(3).says("none");
    verify(&format!("{}/none:v1", registry.host()), &[&trusted, &known]).expect(3);
    // A certificate that is not trusted: never plain HTTP instead, on loopback either.
    let output = verify(&reference, &[&known]);
    assert!(matches!(output.code, 1 | 7), "{output}");
    assert!(output.stderr.to_lowercase().contains("certificate"), "{output}");
    let wrong = kitfs.path("wrong.json");
    let text_of = r#"{"auths": {"HOST": {"auth": "cmVhZGVyOndyb25n"}}}"#.replace("HOST", &registry.host());
    std::fs::write(&wrong, text_of).expect("our own directory");
    verify(&reference, &[&trusted, &["--registry-config", text(&wrong)]]).expect(4);
    let nobody = format!("127.0.0.1:{}/x/y:z", crate::support::registry::free_port());
    kitfs.command(&["verify", &nobody]).within(45).run().expect(7);
}

#[test]
fn credentials_come_from_kitops_and_then_from_docker() {
    let Some(registry) = Registry::start(Access::Password) else { return };
    let authority = registry.authority();
    let good = std::fs::read(registry.credentials()).expect("just written");
    for place in ["kitops/credentials.json", "home/.docker/config.json"] {
        let kitfs = Kitfs::new();
        let (_, layout, _) = usual(&kitfs);
        let reference = registry.push(layout.path(), "usual", "v1");
        let file = kitfs.path(place);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("our own directory");
        std::fs::write(file, &good).expect("our own directory");
        kitfs.run(&["verify", &reference, "--ca-cert", text(&authority)]).expect(0);
    }
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if !host::ordinary_user_can_mount() {
        return;
    }
    let kitfs = Kitfs::of(User::Nobody);
    let (kit, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let entry = mount.table_entry();
    let (options, kind, _) = table(&entry);
    assert_eq!(kind, "fuse.kitfs", "{entry}");
    assert!(["ro", "nosuid", "nodev"].iter().all(|option| options.contains(option)), "{entry}");
    // Without allow_other root itself cannot look, so the user does.
    let listing = kitfs.other("sha256sum").arg(mount.at("model/weights.bin")).output().expect("sha256sum");
    assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
    let wanted = crate::support::tree::sha256(&noise(7, 1_300_007));
    assert!(String::from_utf8_lossy(&listing.stdout).starts_with(&wanted));
    let names = kitfs.other("find").arg(mount.path()).output().expect("find").stdout;
    assert_eq!(String::from_utf8_lossy(&names).lines().count(), kit.tree.0.len() + 2, "the root and the Kitfile too");
    mount.unmount();
}

#[test]
fn many_readers_at_once_read_the_same_bytes() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let (_, _, reference) = usual(&kitfs);
    let mount = kitfs.mount(&reference);
    let wanted = noise(7, 1_300_007);
    std::thread::scope(|scope| {
        for reader in 0..16_usize {
            let (mount, wanted) = (&mount, &wanted);
            scope.spawn(move || {
                let file = std::fs::File::open(mount.at("model/weights.bin")).expect("it is there");
                for step in 0..40_usize {
                    let offset = (reader * 81_799 + step * 32_452_843) % wanted.len();
                    let len = (1 + step * 7919).min(wanted.len() - offset);
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, offset as u64).expect("a good kit");
                    assert!(bytes == wanted[offset..offset + len], "reader {reader}, step {step}");
                }
            });
        }
    });
    mount.unmount();
}
