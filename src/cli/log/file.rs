//! A log file that is rotated by size, shared by any number of processes.
//!
//! Each line is one `write(2)` with O_APPEND, so lines of several processes do not mix. Whoever finds
//! the file full takes a lock, looks whether another one was faster, and renames: `kitfs.log` becomes
//! `kitfs.log.1`, that one `kitfs.log.2`, and the oldest goes. The others notice when their next line
//! finds the file that they have open full.

use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

/// A file is rotated when it has this many bytes.
const FULL: u64 = 10 << 20;

/// How many rotated files are kept beside the current one.
const KEPT: u32 = 2;

/// The log file as this process has it open.
#[derive(Debug)]
pub(in crate::cli) struct RotatedFile {
    path: PathBuf,
    file: File,
    full: u64,
}

impl RotatedFile {
    /// Opens the file, making it and its folder if they are not there.
    pub(in crate::cli) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FULL)
    }

    fn with_limit(path: &Path, full: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(Self { path: path.into(), file: open(path)?, full })
    }

    /// Adds a line. Where that fails the line is lost: there is nobody left to tell.
    pub(in crate::cli) fn write(&mut self, line: &[u8]) {
        if self.file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() >= self.full) {
            let _stays_too_long = self.rotate();
        }
        let _lost = self.file.write_all(line);
    }

    fn rotate(&mut self) -> io::Result<()> {
        let lock = self.file.try_clone()?;
        lock.lock()?;
        let current = open(&self.path)?;
        let same = |one: &File, other: &File| -> io::Result<bool> {
            let (one, other) = (one.metadata()?, other.metadata()?);
            Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        if same(&self.file, &current)? {
            for number in (1..=KEPT).rev() {
                let _first_ones_are_missing = std::fs::rename(self.numbered(number - 1), self.numbered(number));
            }
        }
        self.file = open(&self.path)?;
        lock.unlock()
    }

    /// The name of a rotated file; number 0 is the current one.
    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => {
                let mut name = OsString::from(self.path.as_os_str());
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_rotated_once_however_many_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kitfs.log");
        let mut writers = [0, 1].map(|_| RotatedFile::with_limit(&path, 20).unwrap());
        for number in 0..12 {
            writers[number % 2].write(format!("line {number:02}...\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("kitfs.log.2"), "line 06...\nline 07...\n");
        assert_eq!(read("kitfs.log.1"), "line 08...\nline 09...\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_eq!(read("kitfs.log"), "line 10...\nline 11...\n");
    }
}
