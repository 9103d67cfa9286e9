//! What a worker gives up before it does anything: it reads what strangers wrote.
//!
//! Mounting, unmounting and registering files is the holder's. What is left to root's worker are files that belong
//! to somebody else: a cache, credentials or keys that another user lent. It reads them wherever they are, and where
//! the kernel has Landlock it writes to its own directories only.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

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

use crate::mounts::request::{LogTarget, MountRequest};

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
}

impl Privileges {
    /// Gives up what a worker of this mount does not need; what is left. Comes before any thread: each has its own.
    pub(super) fn drop_all_but_needed(request: &MountRequest) -> io::Result<Self> {
        rustix::thread::set_no_new_privs(true)?;
        let has = rustix::thread::capabilities(None)?;
        let kept = CapabilitySets {
            effective: has.effective & KEPT,
            permitted: has.permitted & KEPT,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, kept)?;
        let landlock = match request.source.helpers {
            true => Landlock::Helpers,
            false => confine(&directories(request))?,
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

/// Where a worker writes.
fn directories(request: &MountRequest) -> Vec<PathBuf> {
    let places: [&Path; 3] = [&request.cache_dir, &request.state_dir, &request.runtime_dir];
    let mut directories: Vec<_> = places.into_iter().map(Path::to_owned).collect();
    let mut files: Vec<&Path> = vec![&request.audit.file];
    if let LogTarget::File(path) = &request.log.target {
        files.push(path);
    }
    for file in files {
        // A log may be a link to one that lies elsewhere.
        let elsewhere = file.canonicalize().ok();
        let folders = [file.parent(), elsewhere.as_deref().and_then(Path::parent)];
        directories.extend(folders.into_iter().flatten().map(Path::to_owned));
    }
    directories
}

/// Keeps this thread, and all that come from it, from writing anywhere but below these directories.
fn confine(directories: &[PathBuf]) -> io::Result<Landlock> {
    let Ok(ruleset) = ruleset() else { return Ok(Landlock::Unsupported) };
    let writing = AccessFs::from_write(RIGHTS);
    let mut ruleset = ruleset.handle_access(writing).and_then(Ruleset::create).map_err(io::Error::other)?;
    for directory in directories {
        // A rule is for what is there.
        let _there_or_cannot_be_used = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        ruleset = allow(ruleset, directory, writing)?;
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

    #[test]
    fn who_is_confined_reads_everywhere_and_writes_at_home() {
        let folders = tempfile::tempdir().unwrap();
        let [home, new, away] = ["home", "home/new", "away"].map(|name| folders.path().join(name));
        fs::create_dir(&away).unwrap();
        fs::write(away.join("read"), "strange").unwrap();
        // What is given up is given up for one thread, and this one ends.
        let confined = std::thread::spawn(move || {
            let landlock = confine(std::slice::from_ref(&home)).unwrap();
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

    #[test]
    fn who_is_confined_too_often_stays_confined() {
        let folders = tempfile::tempdir().unwrap();
        let [home, away] = ["home", "away"].map(|name| folders.path().join(name));
        fs::create_dir(&away).unwrap();
        let confined = std::thread::spawn(move || {
            let layers: Vec<_> = (0..20).map(|_| confine(std::slice::from_ref(&home)).unwrap()).collect();
            fs::write(home.join("a"), "ours").unwrap();
            (layers, fs::write(away.join("new"), "").is_err())
        });
        let (layers, is_refused) = confined.join().unwrap();
        assert_eq!(layers.contains(&Landlock::Inherited), has_landlock(), "{layers:?}");
        assert_eq!(is_refused, has_landlock());
    }
}
