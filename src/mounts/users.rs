//! Who uses a mount: the processes that have something of it open, mapped, or for a directory.
//!
//! Reads /proc only, and compares mount ids and device numbers: to ask the files themselves would be to ask
//! a mount that may be dead.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::mounts::mountinfo;
use crate::mounts::mountinfo::Entry;
use crate::mounts::process;

/// How a process can be in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// It uses the mount, or a copy of it in another namespace.
    Use,
    /// It does, or it lives in a mount namespace with a copy, used or not.
    UseOrNamespace,
}

/// The processes that hold a mount, as far as they can be seen within that time.
pub(super) fn of(mount: &Entry, hold: Hold, longest: Duration) -> Vec<u32> {
    let deadline = Instant::now() + longest;
    let (found, users) = mpsc::channel();
    let mount = mount.clone();
    // A thread, for a process that waits inside of a dead mount can make whoever reads its maps wait too. Without one
    // nobody is found.
    let _scanning = thread::Builder::new().spawn(move || scan(&mount, hold, &found));
    let mut pids = BTreeSet::new();
    while let Ok(pid) = users.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        pids.insert(pid);
    }
    pids.into_iter().collect()
}

fn scan(mount: &Entry, hold: Hold, found: &mpsc::Sender<u32>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let mut namespaces = HashMap::<PathBuf, HashSet<u64>>::new();
    let own = std::process::id();
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| *pid != own) else { continue };
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        let ids = namespaces.entry(namespace).or_insert_with(|| {
            let table = mountinfo::of(pid).unwrap_or_default();
            let copies = table.iter().filter(|entry| entry.device == mount.device).map(|entry| entry.id);
            // One that was detached is in no table any more.
            copies.chain([mount.id]).collect()
        });
        let lives_with_it = hold == Hold::UseOrNamespace && ids.iter().any(|id| *id != mount.id);
        if lives_with_it || has_open(pid, ids) || stands_on(pid, ids) || has_mapped(pid, mount.device) {
            // Nobody listens any more once the time is up.
            if found.send(pid).is_err() {
                return;
            }
        }
    }
}

fn has_open(pid: u32, ids: &HashSet<u64>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let info = descriptor.path();
        info.to_str().and_then(|info| mountinfo::mount_id(info).ok().flatten()).is_some_and(|id| ids.contains(&id))
    })
}

/// Working directory, root and program. Opened as paths, which asks nothing of the file system they are on.
fn stands_on(pid: u32, ids: &HashSet<u64>) -> bool {
    ["cwd", "root", "exe"].iter().any(|link| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(place) = rustix::fs::open(format!("/proc/{pid}/{link}"), flags, Mode::empty()) else { return false };
        let info = process::proc_path(&place).to_string_lossy().replace("/fd/", "/fdinfo/");
        mountinfo::mount_id(&info).ok().flatten().is_some_and(|id| ids.contains(&id))
    })
}

/// `7f00-7f01 r--p 00000000 00:29 12  /path`: the fourth field is the device, in hexadecimal.
fn has_mapped(pid: u32, (major, minor): (u32, u32)) -> bool {
    let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else { return false };
    let device = format!("{major:02x}:{minor:02x}");
    maps.split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b' ').nth(3).is_some_and(|field| field == device.as_bytes()))
}
