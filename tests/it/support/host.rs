//! What this machine allows: FUSE, root, other programs.
//!
//! A test that cannot run says so on standard error, past the capture of the test harness, and passes. Where `CI`
//! is set it fails instead: there the machine was made so that nothing has to be skipped.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Says that a test did not run. Fails where `CI` is set.
pub fn skip(why: &str) {
    note(why);
    assert!(std::env::var_os("CI").is_none(), "nothing may be skipped where CI is set: {why}");
}

/// Says that a test did not run, and lets that pass everywhere.
pub fn note(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not `eprintln!`, which the harness captures and drops when a test passes.
    writeln!(std::io::stderr(), "skipped {name}: {why}").ok();
}

/// Whether kernel mounts can be made here. If not, the reason has been given.
pub fn can_mount() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let why = WHY.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some("mount tests run as root".into());
        }
        match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(_) => None,
            Err(error) => Some(format!("/dev/fuse cannot be opened: {error}")),
        }
    });
    if let Some(why) = why {
        skip(why);
    }
    why.is_none()
}

/// Whether an ordinary user can mount here, through `fusermount3`. If not, the reason has been given.
///
/// A bare machine without udev has `/dev/fuse` with mode 0600; it is opened up the way udev does.
pub fn ordinary_user_can_mount() -> bool {
    if !can_mount() || !has("fusermount3") || !has("setpriv") {
        return false;
    }
    std::fs::set_permissions("/dev/fuse", std::fs::Permissions::from_mode(0o666)).expect("opening up /dev/fuse");
    true
}

/// Whether a program is there. If not, that has been said.
pub fn has(program: &str) -> bool {
    let found = find(program).is_some();
    if !found {
        skip(&format!("{program} is not installed; scripts/test installs it"));
    }
    found
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).map(|dir| Path::new(dir).join(program)).find(|file| file.is_file())
}

/// The lines of `/proc/self/mountinfo` of mounts at or below `dir`.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("tests use plain names");
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let is_below = |line: &str| {
        let at = line.split(' ').nth(4).unwrap_or_default();
        at == dir || at.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
    };
    table.lines().filter(|line| is_below(line)).map(str::to_owned).collect()
}

/// The processes, zombies aside, that were started with `text` in their environment or command line.
pub fn processes_with(text: &str) -> Vec<i32> {
    let has_text = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Ok(pid) = name.parse::<i32>() else { continue };
        if name == own {
            continue;
        }
        let names_it =
            ["environ", "cmdline"].iter().any(|part| std::fs::read(entry.path().join(part)).is_ok_and(has_text));
        if names_it && is_alive(pid) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The most memory that a process ever had resident, in KiB; `None` if it is no more.
pub fn peak_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Waits until `is_so`, for at most `seconds`. False if it never was.
pub fn soon(seconds: u64, mut is_so: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        if is_so() {
            return true;
        }
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
