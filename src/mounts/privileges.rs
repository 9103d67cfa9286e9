//! What a worker gives up before it does anything: it reads what strangers wrote.
//!
//! Mounting, unmounting and registering files is the holder's. What is left to root's worker are files that belong
//! to somebody else: a cache, credentials or keys that another user lent. It reads them wherever they are, and where
//! the kernel has Landlock it writes to its own directories only.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use landlock::ABI;
use landlock::AccessFs;
use landlock::BitFlags;
use landlock::CompatLevel;
use landlock::Compatible as _;
use landlock::Errno;
use landlock::PathBeneath;
use landlock::PathFd;
use landlock::Ruleset;
use landlock::RulesetAttr as _;
use landlock::RulesetCreatedAttr as _;
use landlock::RulesetError;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::mounts::places::Places;

/// What a worker keeps, if it has it.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// The newest rights that are known to leave the sockets of log daemons alone.
const RIGHTS: ABI = ABI::V5;

/// What a worker may do beyond what any process of its user may, and what it may not although that could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Capabilities that it has left.
    pub capabilities: Vec<String>,
    /// Whether programs that it runs can give it none.
    pub no_new_privs: bool,
    /// Whether the kernel keeps it from writing elsewhere.
    pub landlock: Landlock,
}

/// What Landlock does for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// It writes below the directories of its mount, and nowhere else.
    Enforced,
    /// The kernel takes no more layers (16) over each other. Those that are there are of the workers of this mount
    /// that have started its holders, and hold this one to the same.
    Inherited,
    /// Nothing: the kernel is without it.
    Unsupported,
    /// Nothing: programs that hand out credentials write where they like, and would be held to the same.
    Helpers,
    /// Nothing: the kernel has it and refused, and the log says why.
    Failed,
}

/// Whether a worker runs programs that hand out credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helpers {
    /// It may have to.
    Expected,
    /// It does not.
    None,
}

impl Privileges {
    /// Gives up what a worker that writes to these places does not need; what is left. Of three things each is given
    /// up where the others cannot be. Comes before any thread: each has its own.
    pub(super) fn drop_all_but_needed(places: &Places, helpers: Helpers) -> io::Result<Self> {
        let tell = |error: &io::Error| tracing::warn!(%error, "this worker keeps privileges that it does not need");
        let drop_capabilities = || {
            let has = rustix::thread::capabilities(None)?;
            let kept = CapabilitySets {
                effective: has.effective & KEPT,
                permitted: has.permitted & KEPT,
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, kept)
        };
        let dropped = [rustix::thread::set_no_new_privs(true), drop_capabilities()];
        dropped.into_iter().filter_map(Result::err).for_each(|error| tell(&error.into()));
        let landlock = match helpers {
            Helpers::Expected => Landlock::Helpers,
            Helpers::None => confine(places).unwrap_or_else(|error| {
                tell(&error);
                Landlock::Failed
            }),
        };
        let left = rustix::thread::capabilities(None)?.permitted;
        Ok(Self {
            capabilities: left.iter_names().map(|(name, _)| format!("CAP_{name}")).collect(),
            no_new_privs: rustix::thread::no_new_privs()?,
            landlock,
        })
    }
}

/// Whether this kernel can keep a process from writing where it should not.
pub fn has_landlock() -> bool {
    ruleset().and_then(Ruleset::create).is_ok()
}

/// Keeps this thread, and all that come from it, from writing anywhere but to these places.
fn confine(places: &Places) -> io::Result<Landlock> {
    let Ok(ruleset) = ruleset() else { return Ok(Landlock::Unsupported) };
    let writing = AccessFs::from_write(RIGHTS);
    let mut ruleset = ruleset.handle_access(writing).and_then(Ruleset::create).map_err(io::Error::other)?;
    let files = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let directories = places.directories.iter().map(|directory| (directory, writing));
    for (directory, rights) in directories.chain(places.folders_of_logs.iter().map(|folder| (folder, files))) {
        // A rule is for what is there.
        let _there_or_cannot_be_used = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        ruleset = allow(ruleset, directory, rights)?;
    }
    for device in &places.devices {
        ruleset = allow(ruleset, device, AccessFs::WriteFile.into())?;
    }
    // Programs are started with it.
    ruleset = allow(ruleset, Path::new("/dev/null"), AccessFs::WriteFile.into())?;
    match ruleset.restrict_self() {
        Ok(_) => Ok(Landlock::Enforced),
        Err(error) if *Errno::from(&error) == libc::E2BIG => Ok(Landlock::Inherited),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Without the right to move files between directories (Linux 5.19) nobody could do so, and there is no use in it.
fn ruleset() -> Result<Ruleset, RulesetError> {
    Ok(Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort))
}

fn allow(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> io::Result<landlock::RulesetCreated> {
    let Ok(place) = PathFd::new(path) else { return Ok(ruleset) };
    ruleset.add_rule(PathBeneath::new(place, rights)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::fs::File;

    fn places(directory: &Path) -> Places {
        let mut places = Places::default();
        places.directories.push(directory.to_owned());
        places
    }

    #[test]
    fn who_is_confined_reads_everywhere_and_writes_at_home() {
        let folders = tempfile::tempdir().unwrap();
        let [home, new, away] = ["home", "home/new", "away"].map(|name| folders.path().join(name));
        fs::create_dir(&away).unwrap();
        fs::write(away.join("read"), "strange").unwrap();
        // What is given up is given up for one thread, and this one ends.
        let confined = std::thread::spawn(move || {
            let landlock = confine(&places(&home)).unwrap();
            assert_eq!(landlock == Landlock::Enforced, has_landlock());
            fs::create_dir(&new).unwrap();
            fs::write(home.join("a"), "ours").unwrap();
            fs::rename(home.join("a"), new.join("b")).unwrap();
            File::options().write(true).open("/dev/null").unwrap();
            assert_eq!(fs::read(away.join("read")).unwrap(), b"strange");
            let elsewhere = [
                fs::write(away.join("new"), "").map_err(|error| error.kind()),
                fs::write(away.join("read"), "").map_err(|error| error.kind()),
                fs::remove_file(away.join("read")).map_err(|error| error.kind()),
                fs::rename(away.join("read"), new.join("c")).map_err(|error| error.kind()),
            ];
            (landlock, elsewhere)
        });
        let (landlock, elsewhere) = confined.join().unwrap();
        match landlock {
            Landlock::Enforced => {
                let [made, written, removed, moved] = elsewhere;
                assert!([made, written, removed].iter().all(|result| *result == Err(io::ErrorKind::PermissionDenied)));
                assert!(moved.is_err());
            }
            other => assert_eq!((elsewhere[0], other), (Ok(()), Landlock::Unsupported)),
        }
    }

    /// Has the kernel refuse a system call to this thread.
    fn refuse(call: libc::c_long) {
        let step = |code: u32, jump_false: u8, value: u32| libc::sock_filter {
            code: code.try_into().unwrap(),
            jt: 0,
            jf: jump_false,
            k: value,
        };
        // `seccomp_data` begins with the number of the call.
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call.try_into().unwrap()),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EIO.unsigned_abs()),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        rustix::thread::set_no_new_privs(true).unwrap();
        // SAFETY: the kernel copies the program, which lives until it has.
        let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn beside_a_log_only_files_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().to_owned();
        let mut places = Places::default();
        places.folders_of_logs.push(logs.clone());
        places.devices.push("/dev/full".into());
        let confined = std::thread::spawn(move || {
            let landlock = confine(&places).unwrap();
            fs::write(logs.join("log"), "a line").unwrap();
            fs::rename(logs.join("log"), logs.join("log.1")).unwrap();
            fs::write(logs.join("log"), "a line").unwrap();
            fs::rename(logs.join("log.1"), logs.join("log")).unwrap();
            fs::remove_file(logs.join("log")).unwrap();
            File::options().write(true).open("/dev/full").unwrap();
            let others = [
                fs::create_dir(logs.join("folder")).is_err(),
                std::os::unix::fs::symlink("log", logs.join("link")).is_err(),
                File::options().write(true).open("/dev/zero").is_err(),
            ];
            (landlock, others)
        });
        let (landlock, others) = confined.join().unwrap();
        assert_eq!(others, [landlock == Landlock::Enforced; 3]);
    }

    #[test]
    fn what_cannot_be_given_up_is_told_and_all_else_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let left = |refused: libc::c_long| {
            let places = places(folder.path());
            let thread = std::thread::spawn(move || {
                refuse(refused);
                Privileges::drop_all_but_needed(&places, Helpers::None).unwrap()
            });
            thread.join().unwrap()
        };
        let without_landlock = left(libc::SYS_landlock_restrict_self);
        let expected = if has_landlock() { Landlock::Failed } else { Landlock::Unsupported };
        assert_eq!((without_landlock.landlock, without_landlock.no_new_privs), (expected, true));
        let needed = |name: &String| ["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"].contains(&name.as_str());
        assert!(without_landlock.capabilities.iter().all(needed), "{without_landlock:?}");
        let with_capabilities = left(libc::SYS_capset);
        let expected = if has_landlock() { Landlock::Enforced } else { Landlock::Unsupported };
        assert_eq!((with_capabilities.landlock, with_capabilities.no_new_privs), (expected, true));
        let has = rustix::thread::capabilities(None).unwrap().permitted;
        assert_eq!(with_capabilities.capabilities.len(), has.iter_names().count());
    }

    #[test]
    fn who_is_confined_too_often_stays_confined() {
        let folders = tempfile::tempdir().unwrap();
        let [home, away] = ["home", "away"].map(|name| folders.path().join(name));
        fs::create_dir(&away).unwrap();
        let confined = std::thread::spawn(move || {
            let layers: Vec<_> = (0..20).map(|_| confine(&places(&home)).unwrap()).collect();
            fs::write(home.join("a"), "ours").unwrap();
            (layers, fs::write(away.join("new"), "").is_err())
        });
        let (layers, is_refused) = confined.join().unwrap();
        assert_eq!(layers.contains(&Landlock::Inherited), has_landlock(), "{layers:?}");
        assert_eq!(is_refused, has_landlock());
    }
}
