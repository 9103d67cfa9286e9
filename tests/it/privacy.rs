//! A cache that many share keeps private what is private: a kit that was had with credentials is shown to those whom its
//! source lets have it, and no secret is written anywhere.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use serde_json::Value;

use crate::support::faults::{Answer, Content, Faults};
use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file, noise};
use crate::support::kitfs::{Kitfs, Output};
use crate::support::tree::Tree;

/// In no other text.
const SECRET: &str = "TOPSECRET-sesame";
const OTHER: &str = "OTHERSECRET-sesame";

fn encoded(password: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("reader:{password}"))
}

/// A registry that lets `reader` in with either password, until it is told not to.
struct Private {
    kit: Packed,
    server: Faults,
    is_open: Arc<AtomicBool>,
    lets_nobody_in: Arc<AtomicBool>,
}

impl Private {
    fn new() -> Self {
        let kit = Kit::usual("usual").pack();
        let content = Content::of(&kit);
        let (is_open, lets_nobody_in) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (open, nobody) = (Arc::clone(&is_open), Arc::clone(&lets_nobody_in));
        let server = Faults::start(move |asked, _| {
            let sent = asked.header("authorization").unwrap_or_default();
            let is_known = [SECRET, OTHER].iter().any(|password| sent == format!("Basic {}", encoded(password)));
            match (nobody.load(Ordering::SeqCst), open.load(Ordering::SeqCst) || is_known) {
                (true, _) => Answer::new(403),
                (false, true) => content.answer(asked),
                (false, false) => Answer::new(401).header("WWW-Authenticate", r#"Basic realm="kits""#),
            }
        });
        Self { kit, server, is_open, lets_nobody_in }
    }

    fn by_tag(&self) -> String {
        format!("{}/kit:v1", self.server.host())
    }

    fn by_digest(&self) -> String {
        format!("{}/kit@{}", self.server.host(), self.kit.digest())
    }

    /// A credentials file in an installation.
    fn credentials(&self, kitfs: &Kitfs, password: &str) -> PathBuf {
        let file = kitfs.path(&format!("{}.json", &password[..5]));
        let config = format!(r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#, self.server.host(), encoded(password));
        std::fs::write(&file, config).expect("our own directory");
        file
    }
}

/// Reads a file of the kit with these credentials, or none.
fn cat(kitfs: &Kitfs, reference: &str, credentials: Option<&Path>, more: &[&str]) -> Output {
    let nobody = kitfs.path("nobody.json");
    std::fs::write(&nobody, "{}").expect("our own directory");
    let credentials = credentials.unwrap_or(&nobody).to_str().expect("a plain name");
    let mut words = vec!["cat", reference, "README.md", "--registry-config", credentials, "--read-timeout", "2s"];
    words.extend(more);
    kitfs.run(&words)
}

#[test]
fn what_was_had_with_credentials_is_not_shown_to_others() {
    let kitfs = Kitfs::new();
    let private = Private::new();
    let (one, other) = (private.credentials(&kitfs, SECRET), private.credentials(&kitfs, OTHER));
    let (tag, digest) = (private.by_tag(), private.by_digest());
    let config = one.to_str().expect("a plain name");
    kitfs.run(&["pull", &tag, "--registry-config", config]).expect(0);
    for reference in [&tag, &digest] {
        assert_eq!(cat(&kitfs, reference, Some(&one), &[]).expect(0).stdout, b"# usual\n");
        cat(&kitfs, reference, Some(&one), &["--offline"]).expect(0);
        // Not asked, nobody else is known; asked, the source decides.
        for more in [&["--offline"][..], &[]] {
            let output = cat(&kitfs, reference, None, more).expect(4);
            assert!(output.stdout.is_empty() && output.stderr.contains("denied"), "{output}");
        }
        cat(&kitfs, reference, Some(&one), &["--offline", "--access-ttl", "0s"]).expect(4).says("--access-ttl");
    }
    cat(&kitfs, &digest, Some(&other), &["--offline"]).expect(4);
    cat(&kitfs, &digest, Some(&other), &[]).expect(0);
    cat(&kitfs, &digest, Some(&other), &["--offline"]).expect(0);
    if host::can_mount() {
        let nobody = kitfs.path("nobody.json");
        let (mount, output) =
            kitfs.try_mount(&digest, &["--registry-config".as_ref(), nobody.as_os_str()], Path::new("/"));
        assert!(mount.is_none() && output.code == 4, "{output}");
    }
}

#[test]
fn leave_that_was_taken_back_is_gone_also_without_the_registry() {
    let kitfs = Kitfs::new();
    let private = Private::new();
    let one = private.credentials(&kitfs, SECRET);
    let digest = private.by_digest();
    cat(&kitfs, &digest, Some(&one), &[]).expect(0);
    private.lets_nobody_in.store(true, Ordering::SeqCst);
    cat(&kitfs, &digest, Some(&one), &[]).expect(4);
    cat(&kitfs, &digest, Some(&one), &["--offline"]).expect(4);
    private.server.close();
    cat(&kitfs, &digest, Some(&one), &[]).expect(4);
}

#[test]
fn what_anybody_may_have_needs_no_registry_and_no_credentials() {
    let kitfs = Kitfs::new();
    let private = Private::new();
    private.is_open.store(true, Ordering::SeqCst);
    let one = private.credentials(&kitfs, SECRET);
    let digest = private.by_digest();
    kitfs.run(&["pull", &digest, "--registry-config", one.to_str().expect("a plain name")]).expect(0);
    private.server.close();
    let asked = private.server.asked().len();
    for credentials in [Some(one.as_path()), None] {
        cat(&kitfs, &digest, credentials, &["--access-ttl", "0s"]).expect(0);
    }
    assert_eq!(private.server.asked().len(), asked);
}

#[test]
fn a_layout_that_does_not_have_a_kit_does_not_open_the_cache() {
    let kitfs = Kitfs::new();
    let private = Private::new();
    let one = private.credentials(&kitfs, SECRET);
    cat(&kitfs, &private.by_digest(), Some(&one), &[]).expect(0);
    let layout = Layout::create(kitfs.path("layout"));
    let reference = format!("oci:{}@{}", layout.path().display(), private.kit.digest());
    cat(&kitfs, &reference, None, &[]).expect(3);
    // Another registry that refuses, for the same digest.
    let other = Faults::start(|_, _| Answer::new(403));
    cat(&kitfs, &format!("{}/kit@{}", other.host(), private.kit.digest()), None, &[]).expect(4);
}

#[test]
fn a_mount_outlives_its_credentials() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let private = Private::new();
    let one = private.credentials(&kitfs, SECRET);
    let mount = kitfs.mount_with(&private.by_tag(), &["--registry-config".as_ref(), one.as_os_str()]);
    Tree::read(mount.path()).without("Kitfile").assert_is(&private.kit.tree, "cold");
    private.lets_nobody_in.store(true, Ordering::SeqCst);
    let pid = rustix::process::Pid::from_raw(mount.process("pid")).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    Tree::read(mount.path()).without("Kitfile").assert_is(&private.kit.tree, "after a takeover");
    mount.unmount();
}

#[test]
fn no_secret_is_written_and_files_are_private() {
    let kitfs = Kitfs::new().with("KITFS_LOG_LEVEL", "trace");
    let private = Private::new();
    let one = private.credentials(&kitfs, SECRET);
    let config = one.to_str().expect("a plain name");
    let secrets = [SECRET.to_owned(), encoded(SECRET)];
    let silent = |what: &str, bytes: &[u8]| {
        for secret in &secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{what} has a secret in it");
        }
    };
    let hear = |output: Output| {
        silent("standard output", &output.stdout);
        silent("standard error", output.stderr.as_bytes());
        output
    };
    hear(kitfs.run(&["pull", &private.by_tag(), "--registry-config", config])).expect(0);
    hear(kitfs.run(&["status", "--output", "json"])).expect(0);
    if host::can_mount() {
        let mount = kitfs.mount_with(&private.by_tag(), &["--registry-config", config]);
        Tree::read(mount.path()).without("Kitfile").assert_is(&private.kit.tree, "private");
        for key in ["pid", "holder_pid"] {
            let process = format!("/proc/{}", mount.process(key));
            for part in ["cmdline", "environ", "comm"] {
                silent(part, &std::fs::read(format!("{process}/{part}")).expect("it runs"));
            }
            let limits = std::fs::read_to_string(format!("{process}/limits")).expect("it runs");
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
            assert_eq!(core.split_whitespace().nth(4), Some("0"), "memory may hold a secret: {core}");
        }
        silent("the mount table", mount.table_entry().as_bytes());
        mount.unmount();
    }
    private.lets_nobody_in.store(true, Ordering::SeqCst);
    hear(kitfs.run(&["verify", &private.by_tag(), "--registry-config", config, "--require-fresh"])).expect(4);
    let mut open = vec![kitfs.path("cache"), kitfs.path("state")];
    while let Some(path) = open.pop() {
        let data = std::fs::symlink_metadata(&path).expect("it is there");
        let (mode, shown) = (data.mode() & 0o7777, path.display());
        if data.is_dir() {
            let is_given = [kitfs.path("cache"), kitfs.path("state")].contains(&path);
            assert!(is_given || mode == 0o700, "{shown} has mode {mode:o}");
            open.extend(
                std::fs::read_dir(&path).expect("our own directory").map(|entry| entry.expect("a name").path()),
            );
        } else if data.is_file() {
            let is_lock = path.parent().is_some_and(|parent| parent.ends_with("locks"));
            let is_of_cache = path.starts_with(kitfs.path("cache")) && !is_lock;
            assert!(mode == if is_of_cache { 0o400 } else { mode & 0o600 }, "{shown} has mode {mode:o}");
            silent(&shown.to_string(), &std::fs::read(&path).expect("our own file"));
        }
    }
    assert!(std::fs::metadata(kitfs.path("state/key")).expect("the key").permissions().mode() & 0o077 == 0);
}

/// A field of what the kernel says of a process.
fn of_process(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("Linux has it").trim().to_owned()
}

#[test]
fn who_reads_kits_has_few_privileges_and_status_says_which() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let mount = kitfs.mount(&reference);
    let left = || {
        // CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in capabilities(7).
        let worker = mount.process("pid");
        for (field, expected) in [("CapEff", 0b110), ("CapPrm", 0b110), ("CapInh", 0)] {
            assert_eq!(of_process(worker, field), format!("{expected:016x}"), "{field}");
        }
        assert_eq!(of_process(worker, "NoNewPrivs"), "1");
        let left = mount.status()["privileges"].clone();
        assert_eq!(left["capabilities"], serde_json::json!(["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]), "{left}");
        assert_eq!(left["no_new_privs"], true, "{left}");
        left["landlock"].clone()
    };
    let doctor = kitfs.run(&["doctor", "--output", "json"]).expect(0).json();
    let checks = doctor["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "landlock").expect("it is looked at");
    let expected = if check["ok"] == true { "enforced" } else { "unsupported" };
    assert_eq!(left(), expected);
    // With what it may not, it does all that it has to, and so do those after it: of a worker, and of a holder.
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "few privileges");
    for process in ["pid", "holder_pid"] {
        let (before, worker) = (mount.process(process), mount.process("pid"));
        let id = rustix::process::Pid::from_raw(before).expect("a process id");
        rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it runs");
        let is_another = |now: Value| now[process] != before && now["pid"] != worker && now["privileges"].is_object();
        assert!(host::soon(60, || mount.try_status().is_some_and(is_another)), "nobody took over");
        std::fs::remove_dir_all(kitfs.path("cache/v1/objects")).ok();
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "after a death");
        assert_eq!(left(), expected, "after the death of {process}");
    }
    mount.unmount();
}

/// An installation with a helper that must write to hand out the password of [`Private`], where it writes, and the
/// credentials file that names it for these registries.
fn with_helper(config: impl Fn(&str) -> String) -> (Kitfs, PathBuf) {
    let kitfs = Kitfs::new();
    let [helpers, diary, credentials] = ["helpers", "diary", "credentials.json"].map(|name| kitfs.path(name));
    std::fs::create_dir(&helpers).expect("our own directory");
    let helper = helpers.join("docker-credential-diary");
    let answer = format!(r#"{{"Username":"reader","Secret":"{SECRET}"}}"#);
    std::fs::write(
        &helper,
        format!("#!/bin/sh\nls -l /proc/$$/fd >> {} || exit 1\necho '{answer}'\n", diary.display()),
    )
    .expect("our own directory");
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("our own file");
    std::fs::write(&credentials, config("diary")).expect("our own directory");
    let path = format!("{}:{}", helpers.display(), std::env::var("PATH").unwrap_or_default());
    (kitfs.with("PATH", path).with("KITFS_REGISTRY_CONFIG", credentials), diary)
}

#[test]
fn credential_helpers_may_write_what_they_need() {
    if !host::can_mount() {
        return;
    }
    let private = Private::new();
    let (kitfs, diary) = with_helper(|helper| format!(r#"{{"credsStore":"{helper}"}}"#));
    let mount = kitfs.mount(&private.by_tag());
    assert!(diary.exists(), "the helper was not asked");
    // Of a worker that has the connection already.
    std::fs::remove_file(&diary).expect("our own file");
    let id = rustix::process::Pid::from_raw(mount.process("pid")).expect("a process id");
    rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it runs");
    Tree::read(mount.path()).without("Kitfile").assert_is(&private.kit.tree, "with a helper");
    let open = std::fs::read_to_string(&diary).expect("the helper was not asked again");
    assert!(open.contains("pipe:") && !open.contains("/dev/fuse"), "it has the mount open: {open}");
    assert_eq!(mount.status()["privileges"]["landlock"], "helpers");
    mount.unmount();
}

#[test]
fn a_helper_for_another_registry_frees_nobody() {
    if !host::can_mount() {
        return;
    }
    let private = Private::new();
    private.is_open.store(true, Ordering::SeqCst);
    let (kitfs, diary) = with_helper(|helper| format!(r#"{{"credHelpers":{{"other.example":"{helper}"}}}}"#));
    let mount = kitfs.mount(&private.by_tag());
    Tree::read(mount.path()).without("Kitfile").assert_is(&private.kit.tree, "without a helper");
    assert_ne!(mount.status()["privileges"]["landlock"], "helpers");
    assert!(!diary.exists(), "the helper was asked");
    mount.unmount();
}

#[test]
fn a_helper_for_the_registry_of_a_parent_may_write() {
    if !host::can_mount() {
        return;
    }
    let private = Private::new();
    let server = private.server.host();
    let (kitfs, diary) = with_helper(|helper| format!(r#"{{"credHelpers":{{"{server}":"{helper}"}}}}"#));
    let child = Kit::named("child").parent(&private.by_tag()).with(Base::Docs, "OWN.md", [file("OWN.md", *b"own")]);
    let layout = Layout::of(kitfs.path("layout"), &child.pack());
    let mount = kitfs.mount(&layout.reference("v1"));
    assert!(diary.exists(), "the helper was not asked");
    assert_eq!(mount.status()["privileges"]["landlock"], "helpers");
    assert_eq!(std::fs::read(mount.at("OWN.md")).expect("of the child"), b"own");
    let weights = std::fs::read(mount.at("model/weights.bin")).expect("of the parent");
    assert!(weights == noise(7, 1_300_007), "wrong bytes of the parent");
    // The next worker knows.
    let before = mount.process("pid");
    let id = rustix::process::Pid::from_raw(before).expect("a process id");
    rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it runs");
    assert!(host::soon(60, || mount.try_status().is_some_and(|now| now["pid"] != before && now["pid"] != 0)));
    assert_eq!(mount.status()["privileges"]["landlock"], "helpers");
    mount.unmount();
}
