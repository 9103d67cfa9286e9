//! Appending to the log: one writer at a time, whole lines, durable before it returns.
//!
//! The order of things, all under the lock of the file that is written: look where the log ends, and put
//! right what a dead writer left; rotate if the file is full; say in the head what the log will end with;
//! write and sync the lines; say in the head that they are there. See `head` for why a crash between any
//! two of these is told from tampering.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::audit::event::Event;
use crate::audit::files;
use crate::audit::files::Sharing;
use crate::audit::head;
use crate::audit::head::HeadFile;
use crate::audit::head::Heads;
use crate::audit::head::Mark;
use crate::audit::line;
use crate::audit::line::Actor;
use crate::audit::line::Line;
use crate::digest::Digest;
use crate::verify::LocalKey;

/// A log on the disk, and what this installation knows of it.
#[derive(Debug)]
pub(super) struct Chain {
    /// The file that is written.
    pub(super) path: PathBuf,
    /// Where its end is kept.
    pub(super) head: PathBuf,
    /// What seals that.
    pub(super) key: LocalKey,
    /// A file is rotated when it has this many bytes.
    pub(super) full: u64,
}

/// Something to append.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// When it happened: RFC 3339.
    pub(super) time: String,
    /// What.
    pub(super) event: Event,
}

/// How a log ends, held against what this installation knows of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should.
    Whole(Mark),
    /// As it should, and behind that are bytes of lines that a writer had begun when it died.
    Torn(Mark, u64),
    /// Otherwise.
    Broken(String),
}

impl Chain {
    /// How the log ends. `file` is the one that is written, and locked, if it is there.
    pub(super) fn end(&self, heads: &Heads, file: Option<&File>) -> io::Result<End> {
        let len = file.map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let (head, intended) = match heads {
            Heads::Known(head, intended) => (head, intended.as_ref()),
            // Nothing was written, so that nothing is known of it is right.
            Heads::None if len == 0 && files::all(&self.path)?.len() <= 1 => return Ok(End::Whole(Mark::START)),
            Heads::None => return Ok(End::Broken("this installation knows no end of it".into())),
            Heads::Broken => {
                return Ok(End::Broken(format!("the seal of {} is broken", self.head.display())));
            }
        };
        let ends_with = |mark: &Mark| match file {
            Some(file) if mark.len > 0 => files::ends_with(file, mark.len, &mark.hash),
            _ => Ok(mark.len == 0),
        };
        if len == head.len && ends_with(head)? {
            return Ok(End::Whole(head.clone()));
        }
        if let Some(intended) = intended.filter(|intended| intended.len == len)
            && ends_with(intended)?
        {
            return Ok(End::Whole(intended.clone()));
        }
        if len == 0 && head.len > 0 && self.was_rotated(head)? {
            return Ok(End::Whole(Mark { rotated: head.rotated.saturating_add(1), len: 0, ..head.clone() }));
        }
        if intended.is_some() && len > head.len && ends_with(head)? {
            return Ok(End::Torn(head.clone(), len - head.len));
        }
        let Mark { sequence, hash, len: expected, .. } = head;
        Ok(End::Broken(format!(
            "it should end with line {sequence}, {hash}, at byte {expected}, and has {len} bytes that end otherwise"
        )))
    }

    /// Whether a writer died when it had rotated the file that ends with `head`, and not yet said so.
    fn was_rotated(&self, head: &Mark) -> io::Result<bool> {
        match files::open(&files::rotated(&self.path, head.rotated.saturating_add(1))) {
            Ok(file) => Ok(file.metadata()?.len() == head.len && files::ends_with(&file, head.len, &head.hash)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Appends, durably, and returns the lines as they were written.
    pub(super) fn append(&self, entries: &[Entry], actor: &Actor) -> io::Result<Vec<String>> {
        let mut file = self.open_locked()?;
        let heads = head::read(&self.head, &self.key)?;
        let mut before = Vec::new();
        let mut end = match self.end(&heads, Some(&file))? {
            End::Whole(end) => end,
            End::Torn(end, bytes) => {
                let moved_to = self.move_aside(&file, &end)?;
                before.push(Event::Repaired { bytes, moved_to });
                end
            }
            End::Broken(reason) => {
                before.push(Event::Broken { reason });
                self.go_on_after(&file, &heads)?
            }
        };
        let head = HeadFile::open(&self.head, &self.key, &heads, &end)?;
        if !matches!(&heads, Heads::Known(known, _) if *known == end) {
            head.commit(&end)?;
        }
        if end.len >= self.full {
            self.rotate(&mut file, &mut end, &head)?;
        }

        let now = entries.last().map(|entry| entry.time.clone()).unwrap_or_default();
        let before = before.into_iter().map(|event| Entry { time: now.clone(), event }).collect::<Vec<_>>();
        let mut to = end.clone();
        let mut lines = Vec::new();
        let mut bytes = Vec::new();
        for Entry { time, event } in before.iter().chain(entries) {
            to.sequence = to.sequence.checked_add(1).ok_or_else(|| io::Error::other("no number is left for a line"))?;
            let line = line::write(to.sequence, to.hash, time, actor, event).map_err(io::Error::other)?;
            to.hash = Digest::of(line.as_bytes());
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
            lines.push(line);
        }
        to.len += bytes.len() as u64;
        head.intend(&end, &to)?;
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // What stays is found and moved aside by the next writer.
            let _unfinished = file.set_len(end.len);
            return Err(error);
        }
        // The lines are there, and the head says that they were intended: whoever comes next finds out.
        let _behind = head.commit(&to);
        Ok(lines)
    }

    fn open_locked(&self) -> io::Result<File> {
        loop {
            let file = files::open_to_write(&self.path)?;
            files::lock(&file, Sharing::Nobody)?;
            // Whoever had the lock before may have rotated the file.
            if files::is_at(&file, &self.path)? {
                return Ok(file);
            }
        }
    }

    /// Moves what follows the end of the log into a file of its own.
    fn move_aside(&self, file: &File, end: &Mark) -> io::Result<String> {
        let len = file.metadata()?.len();
        let mut torn = vec![0; usize::try_from(len - end.len).map_err(io::Error::other)?];
        file.read_exact_at(&mut torn, end.len)?;
        let path = files::beside(&self.path, &format!(".torn-{}", end.sequence + 1));
        let mut aside = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        aside.write_all(&torn)?;
        aside.sync_all()?;
        files::sync_folder(&path)?;
        file.set_len(end.len)?;
        Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Where a log goes on that does not end as it should: behind the last whole line that is there, with
    /// a number that was not used.
    fn go_on_after(&self, file: &File, heads: &Heads) -> io::Result<Mark> {
        let mut end = Mark { len: files::end_of_lines(file)?, ..Mark::START };
        if let Some(last) = files::line_before(file, end.len)? {
            end.hash = Digest::of(&last);
            // Whoever broke the log may have written any number there; some have to be left.
            end.sequence = Line::parse(&last).map_or(0, |line| line.sequence).min(u64::MAX / 2);
        }
        if let Heads::Known(head, intended) = heads {
            end.rotated = head.rotated;
            end.sequence = intended.as_ref().map_or(head.sequence, |intended| intended.sequence);
        }
        if file.metadata()?.len() > end.len {
            self.move_aside(file, &end)?;
        }
        Ok(end)
    }

    /// Starts the next file. The log has its name all the time: another writer would make an empty one.
    fn rotate(&self, file: &mut File, end: &mut Mark, head: &HeadFile<'_>) -> io::Result<()> {
        let folder = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let next = tempfile::Builder::new().prefix(".audit-next-").append(true).tempfile_in(folder)?;
        files::lock(next.as_file(), Sharing::Nobody)?;
        let number = self.link_rotated(file, end.rotated.saturating_add(1))?;
        *file = next.persist(&self.path).map_err(|error| error.error)?;
        files::sync_folder(&self.path)?;
        (end.rotated, end.len) = (number, 0);
        head.commit(end)
    }

    /// Gives the full file its second name, and returns the number in it.
    fn link_rotated(&self, file: &File, first: u32) -> io::Result<u32> {
        let mut number = first;
        loop {
            let name = files::rotated(&self.path, number);
            match fs::hard_link(&self.path, &name) {
                // By a writer that died then.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && files::is_at(file, &name)? => {
                    return Ok(number);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number = number.checked_add(1).ok_or_else(|| io::Error::other("no number is left to rotate to"))?;
                }
                linked => return linked.map(|()| number),
            }
        }
    }
}

/// The file that keeps the end of the log at `path`, which need not lie in the state directory itself.
pub(super) fn head_path(state: &Path, path: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    if path == super::default_file(state) {
        return state.join("audit.head");
    }
    let of_path = Digest::of(path.as_os_str().as_bytes()).hex();
    state.join(format!("audit-{}.head", of_path.get(..16).unwrap_or_default()))
}
