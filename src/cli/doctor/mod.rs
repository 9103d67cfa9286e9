//! What this host can do, and what to change: the checks of `kitfs doctor`.
//!
//! Nothing is changed on the host and nothing is mounted; one empty file is made in the cache folder's
//! file system and removed, because there is no other way to ask for fs-verity.

mod host;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Access;

use crate::cli::doctor::host::Host;
use crate::cli::documents::Check;
use crate::cli::documents::Diagnosis;
use crate::config::Folders;
use crate::mounts;
use crate::store;

const DEVICE: &str = "/dev/fuse";
const UDEV_FIX: &str = "chmod 0666 /dev/fuse, as udev does; for good: \
                        echo 'KERNEL==\"fuse\", MODE=\"0666\"' > /etc/udev/rules.d/99-fuse.rules";

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAYFS: u32 = 0x794c_7630;

/// Looks at everything.
pub fn diagnose(folders: &Folders) -> Diagnosis {
    let host = Host::current();
    let needed = [
        device(&host),
        mounting(&host),
        folder("cache folder", "--cache-dir", &folders.cache),
        folder("state folder", "--state-dir", &folders.state),
        folder("runtime folder", "--runtime-dir", &folders.runtime),
    ];
    let ok = needed.iter().all(|check| check.ok);
    let helpful = [
        device_for_users(),
        allow_other(&host),
        takeover(&host),
        passthrough(&host, &folders.cache),
        privileges(&host),
        landlock(),
        sealing(&folders.cache),
        readahead(&host),
        kept_on_disk(&folders.cache),
    ];
    Diagnosis { ok, checks: needed.into_iter().chain(helpful).collect() }
}

/// Whether the content of files below `folder` can be sealed with fs-verity.
pub fn can_seal(folder: &Path) -> bool {
    store::probe_sealing(&existing(folder)).is_ok()
}

/// Whether a folder is on overlayfs, over which the kernel reads files by itself only if that was said at mount.
pub fn lies_on_overlay(folder: &Path) -> bool {
    rustix::fs::statfs(existing(folder)).is_ok_and(|stat| stat.f_type as u32 == OVERLAYFS)
}

fn good(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, ok: true, detail: detail.into(), fix: None }
}

fn bad(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, ok: false, detail: detail.into(), fix: Some(fix.into()) }
}

fn device(host: &Host) -> Check {
    let name = "fuse";
    let metadata = match fs::metadata(DEVICE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let fix = "modprobe fuse; in a container: --device /dev/fuse";
            return bad(name, "there is no /dev/fuse", fix);
        }
        Err(error) => return bad(name, format!("cannot look at /dev/fuse: {error}"), UDEV_FIX),
        Ok(metadata) => metadata,
    };
    if !metadata.file_type().is_char_device() {
        return bad(name, "/dev/fuse is not a device", "rm /dev/fuse && mknod /dev/fuse c 10 229");
    }
    match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => good(name, "/dev/fuse can be opened"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !host.is_root => {
            bad(name, format!("/dev/fuse has mode {:04o}", metadata.mode() & 0o7777), UDEV_FIX)
        }
        Err(error) => {
            bad(name, format!("cannot open /dev/fuse: {error}"), "modprobe fuse; in a container: --device /dev/fuse")
        }
    }
}

fn device_for_users() -> Check {
    let name = "fuse for users";
    match fs::metadata(DEVICE) {
        Ok(metadata) if metadata.mode() & 0o006 != 0o006 => {
            let detail = format!("/dev/fuse has mode {:04o}: only its owner can mount", metadata.mode() & 0o7777);
            bad(name, detail, UDEV_FIX)
        }
        Ok(_) => good(name, "every user can open /dev/fuse"),
        Err(error) => bad(name, format!("/dev/fuse: {error}"), "modprobe fuse"),
    }
}

fn mounting(host: &Host) -> Check {
    let name = "mounting";
    if host.is_root {
        return match host.may_administer {
            true => good(name, "root with CAP_SYS_ADMIN mounts without help"),
            false => bad(
                name,
                "root without CAP_SYS_ADMIN cannot mount",
                "in a container: --privileged or --cap-add SYS_ADMIN",
            ),
        };
    }
    let fix = "install the package fuse3";
    match host.program("fusermount3") {
        None => bad(name, "fusermount3 is not in PATH", fix),
        Some(path) => match fs::metadata(&path) {
            Ok(metadata) if metadata.permissions().mode() & 0o4000 != 0 && metadata.uid() == 0 => {
                good(name, format!("{} mounts for users", path.display()))
            }
            _ => bad(name, format!("{} is not setuid root", path.display()), format!("chmod u+s {}", path.display())),
        },
    }
}

fn allow_other(host: &Host) -> Check {
    let name = "allow_other";
    if host.is_root {
        return good(name, "root's mounts can be read by every user");
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        return good(name, "user_allow_other is set in /etc/fuse.conf");
    }
    let detail = "users cannot let others read their mounts: user_allow_other is not set in /etc/fuse.conf";
    bad(name, detail, "echo user_allow_other >> /etc/fuse.conf")
}

fn takeover(host: &Host) -> Check {
    let name = "takeover";
    // FUSE_NOTIFY_RESEND came with Linux 6.9.
    match host.kernel >= (6, 9) {
        true => good(name, format!("Linux {} lets a new worker answer what a dead one left", host.release)),
        false => {
            let detail = format!("Linux {}: when a worker dies, reads that it was answering fail", host.release);
            bad(name, detail, "Linux 6.9 or newer")
        }
    }
}

fn passthrough(host: &Host, cache: &Path) -> Check {
    let name = "passthrough";
    let fix = "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH, and CAP_SYS_ADMIN";
    if host.kernel < (6, 9) {
        return bad(name, format!("Linux {} has none", host.release), fix);
    }
    if host.kernel_option("CONFIG_FUSE_PASSTHROUGH").is_some_and(|value| value != "y") {
        return bad(name, "this kernel is built without CONFIG_FUSE_PASSTHROUGH", fix);
    }
    if !(host.may_administer && host.is_initial_namespace) {
        return bad(name, "needs CAP_SYS_ADMIN outside of user namespaces", "mount as root");
    }
    let sealed = match store::probe_sealing(&existing(cache)) {
        Ok(()) => "those that are sealed with fs-verity it checks by itself",
        Err(_) => {
            "without fs-verity it trusts the disk from open to close: writing to a cached file stops that and is \
             told, damage to the disk under it is not (--passthrough off has every read checked)"
        }
    };
    good(name, format!("Linux {} can read verified files without asking kitfs; {sealed}", host.release))
}

fn sealing(cache: &Path) -> Check {
    let name = "fs-verity";
    let folder = existing(cache);
    match store::probe_sealing(&folder) {
        Ok(()) => good(name, format!("the file system of {} has it", folder.display())),
        Err(error) => {
            let detail = format!("not on the file system of {}: {error}", folder.display());
            bad(name, detail, "a kernel with CONFIG_FS_VERITY, and ext4, f2fs (made with -O verity) or btrfs")
        }
    }
}

fn privileges(host: &Host) -> Check {
    let name = "privileges";
    let detail = match host.is_root {
        true => {
            "the process that reads kits keeps DAC_OVERRIDE and DAC_READ_SEARCH of root's capabilities, and \
             no_new_privs; the one that holds the mount keeps all, and reads nothing"
        }
        false => "the process that reads kits has no capability, and no_new_privs",
    };
    good(name, detail)
}

fn landlock() -> Check {
    let name = "landlock";
    match mounts::has_landlock() {
        true => good(
            name,
            "the process that reads kits writes below cache, state, runtime and log directories only, unless there are \
             credential helpers for a registry that it asks (`kitfs status` says what became of each mount)",
        ),
        false => bad(
            name,
            "the process that reads kits can write where its user may",
            "Linux 5.19 or newer with CONFIG_SECURITY_LANDLOCK, and landlock among the LSMs that it starts with (lsm=)",
        ),
    }
}

fn readahead(host: &Host) -> Check {
    let name = "readahead";
    let control = fs::read_dir("/sys/class/bdi")
        .ok()
        .and_then(|mut devices| devices.find_map(Result::ok))
        .map(|device| device.path().join("read_ahead_kb"));
    match control.map(|path| rustix::fs::access(&path, Access::WRITE_OK)) {
        Some(Ok(())) if host.is_root => good(name, "kitfs can raise it for its mounts"),
        _ => bad(name, "stays at 128 KiB: raising it takes root and a writable /sys", "mount as root"),
    }
}

fn folder(name: &'static str, option: &str, path: &Path) -> Check {
    let place = existing(path);
    let fix = format!("name a folder that you can write with {option}");
    match rustix::fs::access(&place, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if place.is_dir() => good(name, format!("{} can be written", path.display())),
        Ok(()) => bad(name, format!("{} is not a folder", place.display()), fix),
        Err(error) => bad(name, format!("cannot write {}: {error}", place.display()), fix),
    }
}

fn kept_on_disk(cache: &Path) -> Check {
    let name = "cache on disk";
    let folder = existing(cache);
    // `statfs(2)` lists these numbers.
    let kind = rustix::fs::statfs(&folder).map(|stat| stat.f_type as u32);
    let fix = "name a folder on a local disk with --cache-dir";
    match kind {
        Ok(0x0102_1994 | 0x8584_58f6) => bad(name, format!("{} is in memory", folder.display()), fix),
        Ok(0x6969 | 0xff53_4d42 | 0x0102_1997) => {
            bad(name, format!("{} is on a network file system", folder.display()), fix)
        }
        Ok(OVERLAYFS) => bad(name, format!("{} is on overlayfs, as the root of a container is", folder.display()), fix),
        Ok(_) => good(name, format!("{} is on a local file system", folder.display())),
        Err(error) => bad(name, format!("{}: {error}", folder.display()), fix),
    }
}

/// The folder itself or the nearest one above it that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_cannot_be_written_are_told_with_the_option_to_change() {
        let folder_path = tempfile::tempdir().unwrap();
        let file = folder_path.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(folder("cache folder", "--cache-dir", &folder_path.path().join("not/yet")).ok);
        let check = folder("cache folder", "--cache-dir", &file.join("below"));
        assert!(!check.ok && check.fix.unwrap().contains("--cache-dir"), "{}", check.detail);
    }

    #[test]
    fn every_check_has_a_detail_and_every_bad_one_a_fix() {
        let path = tempfile::tempdir().unwrap().keep();
        let folders = Folders { cache: path.clone(), state: path.clone(), runtime: path.clone() };
        let diagnosis = diagnose(&folders);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        for check in diagnosis.checks {
            assert!(!check.detail.is_empty() && check.ok == check.fix.is_none(), "{check:?}");
        }
        fs::remove_dir(path).unwrap();
    }
}
