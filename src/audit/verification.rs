//! Reading the log: is it whole, and what does it say.

use std::io;
use std::iter;
use std::path::Path;
use std::path::PathBuf;

use crate::audit::chain;
use crate::audit::chain::Chain;
use crate::audit::chain::End;
use crate::audit::files;
use crate::audit::files::Piece;
use crate::audit::files::Sharing;
use crate::audit::head;
use crate::audit::head::Heads;
use crate::audit::head::Mark;
use crate::audit::line::Line;
use crate::audit::line::NOTHING;
use crate::digest::Digest;
use crate::verify::LocalKey;

/// What is known of a log from outside of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// A head that the log had once: it must still be in it.
    pub head: Option<Digest>,
    /// The head of what was taken away from the front of the log: it must begin behind that.
    pub start: Option<Digest>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Lines that hold.
    pub lines: u64,
    /// The number of the last of them.
    pub sequence: u64,
    /// The hash of the last of them.
    pub head: Option<Digest>,
    /// What does not hold.
    pub error: Option<String>,
    /// What somebody should know, although it holds.
    pub notes: Vec<String>,
}

impl Verification {
    /// What is signed of it: a JSON object with `type`, `head`, `sequence`, `lines` and `time`.
    pub fn statement(&self) -> String {
        let statement = serde_json::json!({
            "type": "kitfs audit head 1",
            "head": self.head,
            "sequence": self.sequence,
            "lines": self.lines,
            "time": format!("{:.6}", jiff::Timestamp::now()),
        });
        statement.to_string()
    }
}

/// Checks every line of a log, in all of its files, and its end, of which the state directory knows.
pub fn verify(path: &Path, state: &Path, key: LocalKey, anchor: &Anchor) -> io::Result<Verification> {
    let is_default = path == super::default_file(state);
    let chain = Chain { head: chain::head_path(state, path), path: path.into(), key, full: u64::MAX };
    // The lock is held to the end: nobody rotates or writes meanwhile.
    let current = open_locked(&chain.path)?;
    let heads = head::read(&chain.head, &chain.key)?;
    let end = chain.end(&heads, current.as_ref())?;

    let mut walk = Walk::new(anchor);
    let mut files = files::all(&chain.path)?;
    let last = current.is_some().then(|| files.pop()).flatten();
    let readable = match &end {
        End::Torn(mark, _) => Some(mark.len),
        End::Whole(_) | End::Broken(_) => None,
    };
    let files = files.into_iter().map(|file| (file, None)).chain(last.map(|file| (file, readable)));
    for (file, end) in files {
        walk.file(&file, end)?;
        if walk.result.error.is_some() {
            return Ok(walk.result);
        }
    }
    let mut result = walk.result;
    match (&end, &heads) {
        (_, Heads::None) if result.lines == 0 => {}
        (_, Heads::None) if !is_default || anchor.head.is_some() => {
            let told = "this state directory has not written it and knows no end of it: lines that were cut off its \
                        end would not be missed";
            result.notes.push(told.into());
        }
        (End::Whole(mark) | End::Torn(mark, _), _) => {
            result.error = other_end(mark, &result);
            if let End::Torn(_, bytes) = end {
                result.notes.push(format!(
                    "{bytes} bytes of unfinished lines are at its end: a process died while it wrote, and what it \
                     wrote was not recorded yet; the next one moves them aside"
                ));
            }
        }
        (End::Broken(reason), _) => {
            result.error = Some(format!("{}: {reason}: lines are missing, or were added", chain.path.display()));
        }
    }
    if let (None, Some(head)) = (&result.error, anchor.head)
        && !walk.seen_anchor
        && !(head == NOTHING && result.lines == 0)
    {
        let last = result.head.unwrap_or(NOTHING);
        result.error =
            Some(format!("{head} is not in the log, which ends with {last}: it was cut off or written anew"));
    }
    Ok(result)
}

/// What is wrong if the last line is not the one that was written last.
fn other_end(mark: &Mark, result: &Verification) -> Option<String> {
    let found = result.head.unwrap_or(NOTHING);
    (mark.sequence != result.sequence || mark.hash != found).then(|| {
        format!(
            "line {}, {}, was written last, and line {}, {found}, is the last one there",
            mark.sequence, mark.hash, result.sequence
        )
    })
}

fn open_locked(path: &Path) -> io::Result<Option<std::fs::File>> {
    loop {
        let file = match files::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        files::lock(&file, Sharing::Readers)?;
        if files::is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// The way through the lines of a log.
struct Walk {
    anchor: Anchor,
    seen_anchor: bool,
    previous: Digest,
    result: Verification,
}

impl Walk {
    fn new(anchor: &Anchor) -> Self {
        let previous = anchor.start.unwrap_or(NOTHING);
        let seen_anchor = anchor.head.is_none() || anchor.head == anchor.start;
        let result = Verification { lines: 0, sequence: 0, head: anchor.start, error: None, notes: Vec::new() };
        Self { anchor: *anchor, seen_anchor, previous, result }
    }

    fn file(&mut self, path: &Path, end: Option<u64>) -> io::Result<()> {
        for (number, piece) in (1u64..).zip(files::pieces(files::open(path)?, end)) {
            let wrong = match piece? {
                Piece::Line(line) => self.line(&line),
                Piece::Unfinished(bytes) => Err(format!("{bytes} bytes at the end are no whole line")),
                Piece::TooLong => Err("the line is longer than any that is written".into()),
            };
            if let Err(why) = wrong {
                self.result.error = Some(format!("{}:{number}: {why}", path.display()));
                return Ok(());
            }
        }
        Ok(())
    }

    fn line(&mut self, bytes: &[u8]) -> Result<(), String> {
        let line = Line::parse(bytes).map_err(|why| format!("no line of an audit log: {why}"))?;
        let first = self.result.lines == 0;
        let expected = self.result.sequence.saturating_add(1);
        if line.sequence != expected && !(first && self.anchor.start.is_some()) {
            return Err(format!("line {expected} is expected here, and this is line {}", line.sequence));
        }
        if line.previous != self.previous {
            return Err(format!(
                "this line was written behind {}, and what stands before it is {}: one of the two was changed",
                line.previous, self.previous
            ));
        }
        if line.event == "broken" {
            return Err(format!("the log was found broken when this was written: {}", line.reason.unwrap_or_default()));
        }
        self.previous = Digest::of(bytes);
        self.seen_anchor |= self.anchor.head == Some(self.previous);
        self.result.lines += 1;
        self.result.sequence = line.sequence;
        self.result.head = Some(self.previous);
        Ok(())
    }
}

/// The lines of a log from the first to the last, each with its text: what can be read of it, whole or not.
pub fn lines(path: &Path) -> io::Result<impl Iterator<Item = io::Result<(Line, String)>>> {
    let files = files::all(path)?.into_iter();
    let pieces = files.flat_map(|path: PathBuf| match files::open(&path) {
        Ok(file) => Box::new(files::pieces(file, None)) as Box<dyn Iterator<Item = io::Result<Piece>>>,
        Err(error) => Box::new(iter::once(Err(error))),
    });
    Ok(pieces.filter_map(|piece| match piece {
        Ok(Piece::Line(bytes)) => {
            let line = Line::parse(&bytes).ok()?;
            Some(Ok((line, String::from_utf8(bytes).ok()?)))
        }
        Ok(Piece::Unfinished(_) | Piece::TooLong) => None,
        Err(error) => Some(Err(error)),
    }))
}
