//! The mount table as the kernel tells it (`/proc/PID/mountinfo`, proc_pid_mountinfo(5)), and which mount a
//! path leads to. Never touches a file system that is mounted: it may be dead.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The type that our mounts have.
pub(super) const FSTYPE: &str = "fuse.kitfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Unique among all mounts of all namespaces, for its life.
    pub id: u64,
    /// Major and minor number of the file system.
    pub device: (u32, u32),
    /// Where it is mounted, from this process' root.
    pub mount_point: PathBuf,
    /// Such as `fuse.kitfs`.
    pub fstype: String,
}

/// The table of this process' namespace.
pub(super) fn own() -> io::Result<Vec<Entry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The table of another process' namespace.
pub(super) fn of(pid: u32) -> io::Result<Vec<Entry>> {
    Ok(parse(&fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The mount whose root a path is, if it is one, and the path without links and dots.
///
/// Opens the path without access to what it leads to, which asks nothing of a FUSE file system whose root
/// it is. A path that leads *through* one of our mounts would, so that is not followed.
pub(super) fn at(path: &Path) -> io::Result<(PathBuf, Option<Entry>)> {
    let table = own()?;
    let written = std::path::absolute(path)?;
    let through = |entry: &&Entry| {
        entry.fstype == FSTYPE && written.starts_with(&entry.mount_point) && written != entry.mount_point
    };
    if let Some(entry) = table.iter().find(through) {
        let message = format!("it is inside of the mount {}", entry.mount_point.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    let number = opened.as_raw_fd();
    let real = fs::read_link(format!("/proc/self/fd/{number}"))?;
    let id = mount_id(&format!("/proc/self/fdinfo/{number}"))?;
    let entry = table.into_iter().find(|entry| Some(entry.id) == id && entry.mount_point == real);
    Ok((real, entry))
}

/// The mount that an open descriptor is on, from its fdinfo.
pub(super) fn mount_id(fdinfo: &str) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(fdinfo)?;
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok()))
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`, with any number of optional
/// fields before the dash.
fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let mount_point = unescape(fields.nth(1)?);
    let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Entry {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point: PathBuf::from(OsString::from_vec(mount_point)),
        fstype: String::from_utf8(unescape(fstype)).ok()?,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_optional_fields_is_read() {
        let line = b"36 35 0:41 / /mnt/kit rw,nosuid master:1 shared:7 - fuse.kitfs localhost:5000/a:b ro,user_id=0";
        let expected =
            Entry { id: 36, device: (0, 41), mount_point: PathBuf::from("/mnt/kit"), fstype: "fuse.kitfs".to_owned() };
        assert_eq!(entry(line), Some(expected));
    }

    #[test]
    fn escaped_mount_points_come_back_as_they_were() {
        assert_eq!(unescape(br"/a\040b\011c\012d\134e"), b"/a b\tc\nd\\e");
        assert_eq!(unescape(br"/odd\9\1"), br"/odd\9\1");
        assert_eq!(unescape("/ü\\040".as_bytes()), "/ü ".as_bytes());
    }

    #[test]
    fn malformed_lines_are_passed_over() {
        assert_eq!(parse(b"\n36\n36 35 x /\n36 35 0:1 / /m rw -\n"), []);
    }

    #[test]
    fn the_root_is_a_mount_and_a_file_in_it_is_not() {
        assert!(at(Path::new("/")).unwrap().1.is_some());
        assert!(at(Path::new("/proc")).unwrap().1.is_some_and(|entry| entry.fstype == "proc"));
        assert_eq!(at(Path::new("/proc/sys/kernel")).unwrap().1, None);
    }
}
