//! The files of a log on the disk: the one that is written, `audit.log`, and those that were rotated away,
//! `audit.log.1` (the oldest), `audit.log.2`, and so on. A rotated file keeps its name for ever.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::FlockOperation;
use rustix::fs::flock;

use crate::audit::line::LONGEST;
use crate::digest::Digest;

/// Who has to wait longer for the lock than this gives up: somebody was stopped while holding it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is tried.
const AGAIN: Duration = Duration::from_millis(2);

/// Beside `path`, the name that ends so.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(ending);
    name.into()
}

/// The name of the rotated file with this number.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    beside(path, &format!(".{number}"))
}

/// The files of a log, the oldest first, the one that is written last. Only those that are there.
pub(super) fn all(path: &Path) -> io::Result<Vec<PathBuf>> {
    let current = match fs::metadata(path) {
        Ok(metadata) => Some((metadata.dev(), metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?.file_name();
        let number = entry.as_encoded_bytes().strip_prefix(name).and_then(|rest| rest.strip_prefix(b"."));
        let number = number
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse::<u32>().ok().filter(|number| number.to_string() == digits && *number > 0));
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let mut files = Vec::new();
    for file in numbers.into_iter().map(|number| rotated(path, number)) {
        let metadata = fs::metadata(&file)?;
        // A writer died between the two steps of a rotation: the file has two names.
        if Some((metadata.dev(), metadata.ino())) != current {
            files.push(file);
        }
    }
    files.extend(current.map(|_| path.to_owned()));
    Ok(files)
}

/// Opens a file of a log for reading; never waits, whatever somebody put in its place.
pub(super) fn open(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?)
}

/// Opens the file that is written, making it and its folder if they are not there.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let file = options.create(true).open(path)?;
            sync_folder(path)?;
            regular(file)
        }
        opened => regular(opened?),
    }
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Makes durable that a file has its name.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

/// Locks a file of which others may hold a lock for a moment.
pub(super) fn lock(file: &File, shared: Sharing) -> io::Result<()> {
    let operation = match shared {
        Sharing::Readers => FlockOperation::NonBlockingLockShared,
        Sharing::Nobody => FlockOperation::NonBlockingLockExclusive,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process keeps it locked"));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Who may have a lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Others who read.
    Readers,
    /// Nobody.
    Nobody,
}

/// Whether an open file is the one that has this name.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The line that ends, with its line break, at byte `end` of a file. `None` if no line of ours ends there.
pub(super) fn line_before(file: &File, end: u64) -> io::Result<Option<Vec<u8>>> {
    let len = end.min(LONGEST as u64 + 2);
    let mut bytes = vec![0; len as usize];
    match file.read_exact_at(&mut bytes, end - len) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    if bytes.pop() != Some(b'\n') {
        return Ok(None);
    }
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(before) => Ok(Some(bytes.split_off(before + 1))),
        None if len == end && bytes.len() <= LONGEST => Ok(Some(bytes)),
        None => Ok(None),
    }
}

/// Whether the line that ends at `end` has this hash.
pub(super) fn ends_with(file: &File, end: u64, hash: &Digest) -> io::Result<bool> {
    Ok(line_before(file, end)?.is_some_and(|line| Digest::of(&line) == *hash))
}

/// Where the last line break of a file is, and behind it: bytes that are no whole line follow.
pub(super) fn end_of_lines(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut part = vec![0; 64 * 1024];
    while end > 0 {
        let len = end.min(part.len() as u64);
        let part = part.get_mut(..len as usize).unwrap_or_default();
        file.read_exact_at(part, end - len)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - len + at as u64 + 1);
        }
        end -= len;
    }
    Ok(0)
}

/// What a file of a log holds, one after the other.
#[derive(Debug)]
pub(super) enum Piece {
    /// A line, without its line break.
    Line(Vec<u8>),
    /// Bytes at the end that no line break follows.
    Unfinished(u64),
    /// A line that is longer than any that we write.
    TooLong,
}

/// Reads a file piece by piece, to byte `end` of it or all of it.
pub(super) fn pieces(file: File, end: Option<u64>) -> impl Iterator<Item = io::Result<Piece>> {
    let mut reader = BufReader::with_capacity(64 * 1024, file.take(end.unwrap_or(u64::MAX)));
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut line = Vec::new();
        let read = reader.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut line);
        match read {
            Err(error) => {
                done = true;
                Some(Err(error))
            }
            Ok(0) => None,
            Ok(_) if line.last() == Some(&b'\n') => {
                line.pop();
                Some(Ok(Piece::Line(line)))
            }
            Ok(len) => {
                done = true;
                Some(Ok(if len > LONGEST { Piece::TooLong } else { Piece::Unfinished(len as u64) }))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_from_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        assert_eq!(all(&path).unwrap(), Vec::<PathBuf>::new());
        for name in ["audit.log", "audit.log.2", "audit.log.10", "audit.log.1", "audit.log.01", "audit.log.torn-3", "b"]
        {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<_> = all(&path).unwrap().into_iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["audit.log.1", "audit.log.2", "audit.log.10", "audit.log"]);
        std::fs::hard_link(&path, folder.path().join("audit.log.11")).unwrap();
        assert_eq!(all(&path).unwrap().len(), 4, "the second name of a file is not a second file");
    }

    #[test]
    fn lines_are_found_from_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        let file = File::open(&path).unwrap();
        for (end, line) in [(0, None), (3, None), (4, Some("one")), (8, Some("two")), (11, None), (90, None)] {
            let found = line_before(&file, end).unwrap();
            assert_eq!(found.as_deref(), line.map(str::as_bytes), "{end}");
        }
        assert_eq!(end_of_lines(&file).unwrap(), 8);
        assert!(ends_with(&file, 8, &Digest::of(b"two")).unwrap());
        let found: Vec<_> = pieces(File::open(&path).unwrap(), Some(10)).map(Result::unwrap).collect();
        assert!(
            matches!(&found[..], [Piece::Line(one), Piece::Line(_), Piece::Unfinished(2)] if one == b"one"),
            "{found:?}"
        );
    }
}
