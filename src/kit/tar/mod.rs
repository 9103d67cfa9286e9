//! Reads a tar layer that arrives in pieces of any size, or hops from header to header over the data.
//!
//! What counts as well formed is what Go's `archive/tar` takes, because that is what `kit unpack` reads
//! with; what counts as a member of a kit is a regular file or a directory, because everything else is
//! an error there too. Formats: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header",
//! and the GNU tar manual, "Basic Tar Format".
//!
//! No bytes are copied but headers: data is handed out as slices of the pieces. Rules between
//! members (the same file twice) are the listing's.

mod header;
mod pax;

use crate::kit::name::InvalidPath;
use crate::kit::name::KitPath;
use crate::kit::tar::header::Header;
use crate::kit::tar::header::Type;
use crate::kit::tar::pax::Records;

/// Bytes in a tar block: headers and data begin at multiples of it.
pub const BLOCK: usize = 512;

/// Bytes in the largest PAX header or GNU long name: the limit of Go's reader.
pub const EXTENSION_LIMIT: u64 = 1024 * 1024;

/// A member of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it lies, as the layer has it. Only a directory can be the root.
    pub path: KitPath,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of data; none for a directory.
    pub size: u64,
    /// Permission bits, never more than 0777.
    pub mode: u16,
    /// Seconds since 1970, between the years 0 and 9999.
    pub mtime: i64,
    /// Where its data begins in the uncompressed layer, in bytes.
    pub offset: u64,
}

/// The two kinds of members that a kit can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
}

/// What a [`TarReader`] found next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A member begins. A file's data follows, then [`Event::End`].
    Member(Member),
    /// The next bytes of the file's data; never none.
    Data(&'a [u8]),
    /// The file is complete.
    End,
}

/// The state between two pieces of a layer.
///
/// ```
/// # use kitfs::kit::tar::{Event, TarError, TarReader};
/// # fn read(pieces: &[&[u8]]) -> Result<(), TarError> {
/// let mut reader = TarReader::new(None);
/// for mut piece in pieces.iter().copied() {
///     while let Some(event) = reader.next(&mut piece)? {
///         if let Event::Data(bytes) = event { /* … */ }
///     }
/// }
/// reader.finish()
/// # }
/// # read(&[&[0; 1024]]).unwrap();
/// ```
#[derive(Debug)]
pub struct TarReader {
    size: Option<u64>,
    position: u64,
    state: State,
    /// A header or an extension of which only a part has arrived.
    partial: Vec<u8>,
    extensions: Extensions,
}

#[derive(Debug)]
enum State {
    Header,
    /// A PAX header or GNU long name that is being collected; `size` bytes are its content.
    Extension {
        kind: Type,
        at: u64,
        size: u64,
    },
    /// The data of a file and the padding after it.
    Data {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    /// After the first of the two zero blocks that end an archive.
    ZeroBlock,
    /// After the end of the archive; what follows means nothing (Go's reader never looks at it).
    Done,
}

/// What was said ahead of the member that it is about.
#[derive(Debug, Default)]
struct Extensions {
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    /// Whether anything was said: also a long link, whose content does not matter here.
    any: Option<u64>,
}

impl TarReader {
    /// A reader at the first byte of a layer of `size` uncompressed bytes, if that is known: then a
    /// member that claims more than there is, is refused at its header.
    pub fn new(size: Option<u64>) -> Self {
        Self { size, position: 0, state: State::Header, partial: Vec::new(), extensions: Extensions::default() }
    }

    /// Takes bytes from the front of `bytes` until there is something to tell. `None` says that they
    /// are used up. After an error nothing more can be read.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, TarError> {
        loop {
            match self.state {
                State::Header | State::ZeroBlock => {
                    let at = self.position - self.partial.len() as u64;
                    let Some(block) = self.collect(bytes, BLOCK) else { return Ok(None) };
                    let event = self.block(&block, at)?;
                    self.recycle(block);
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                State::Extension { kind, at, size } => {
                    let padded = size.next_multiple_of(BLOCK as u64) as usize;
                    let Some(mut content) = self.collect(bytes, padded) else { return Ok(None) };
                    content.truncate(size as usize);
                    self.extension(kind, at, &content)?;
                    self.recycle(content);
                    self.state = State::Header;
                }
                State::Data { left: 0, padding } => {
                    self.state = State::Padding { left: padding };
                    return Ok(Some(Event::End));
                }
                State::Data { left, padding } => {
                    let data = self.take(bytes, left);
                    if data.is_empty() {
                        return Ok(None);
                    }
                    self.state = State::Data { left: left - data.len() as u64, padding };
                    return Ok(Some(Event::Data(data)));
                }
                State::Padding { left: 0 } => self.state = State::Header,
                State::Padding { left } => {
                    let padding = self.take(bytes, left);
                    if padding.is_empty() {
                        return Ok(None);
                    }
                    self.state = State::Padding { left: left - padding.len() as u64 };
                }
                State::Done => {
                    self.take(bytes, u64::MAX);
                    return Ok(None);
                }
            }
        }
    }

    /// How many bytes lie ahead that need not be seen to list the layer: the rest of a file's data
    /// and padding, and all that follows the end of the archive (`u64::MAX` if that is not known).
    pub fn skippable(&self) -> u64 {
        match self.state {
            State::Header | State::ZeroBlock | State::Extension { .. } => 0,
            State::Data { left, padding } => left.saturating_add(padding),
            State::Padding { left } => left,
            State::Done => self.size.map_or(u64::MAX, |size| size.saturating_sub(self.position)),
        }
    }

    /// Goes on as if `count` bytes had arrived; no more than [`TarReader::skippable`] are skipped.
    pub fn skip(&mut self, count: u64) {
        let count = count.min(self.skippable());
        self.position = self.position.saturating_add(count);
        match &mut self.state {
            State::Header | State::ZeroBlock | State::Extension { .. } | State::Done => {}
            State::Data { left, padding } => {
                let data = count.min(*left);
                *left -= data;
                *padding -= count - data;
            }
            State::Padding { left } => *left -= count,
        }
    }

    /// How many bytes of the layer have been taken or skipped.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the end of the archive has been seen, after which nothing in the layer matters.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Checks, after the last byte of the layer, that it did not end in the middle of something.
    ///
    /// As in Go, the blocks of zeros at the end may be missing, and the padding of the last member.
    pub fn finish(self) -> Result<(), TarError> {
        let complete = match self.state {
            State::Header => self.partial.is_empty() && self.extensions.any.is_none(),
            State::ZeroBlock => self.partial.is_empty(),
            State::Data { left, .. } => left == 0,
            State::Extension { .. } => false,
            State::Padding { .. } | State::Done => true,
        };
        match self.size {
            Some(size) if size != self.position => Err(TarError::Length { size, position: self.position }),
            _ if complete => Ok(()),
            _ => Err(TarError::Truncated { position: self.position }),
        }
    }

    /// Takes at most `limit` bytes off the front.
    fn take<'a>(&mut self, bytes: &mut &'a [u8], limit: u64) -> &'a [u8] {
        let count = usize::try_from(limit).unwrap_or(usize::MAX).min(bytes.len());
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        self.position = self.position.saturating_add(count as u64);
        taken
    }

    /// Collects `count` bytes, across pieces. Memory grows with what arrives, not with what was claimed.
    fn collect(&mut self, bytes: &mut &[u8], count: usize) -> Option<Vec<u8>> {
        let missing = count - self.partial.len();
        let taken = self.take(bytes, missing as u64);
        self.partial.extend_from_slice(taken);
        (taken.len() == missing).then(|| std::mem::take(&mut self.partial))
    }

    /// Keeps a small buffer for the next header.
    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= 16 * BLOCK {
            buffer.clear();
            self.partial = buffer;
        }
    }

    /// Reads the block at `at`, where a header has to be.
    fn block(&mut self, block: &[u8], at: u64) -> Result<Option<Event<'static>>, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            if let Some(at) = self.extensions.any {
                return Err(TarError::Extension { at, reason: "no member follows it" });
            }
            self.state = if matches!(self.state, State::ZeroBlock) { State::Done } else { State::ZeroBlock };
            return Ok(None);
        }
        if matches!(self.state, State::ZeroBlock) {
            return Err(TarError::Header { at, reason: "a single block of zeros precedes it" });
        }
        let header = Header::parse(block).map_err(|reason| TarError::Header { at, reason })?;
        match header.kind {
            Type::Pax | Type::PaxGlobal | Type::LongName | Type::LongLink => {
                let size = self.extent(header.size, || header.kind.to_string())?;
                if size > EXTENSION_LIMIT {
                    return Err(TarError::Extension { at, reason: "it is larger than 1 MiB" });
                }
                if header.kind == Type::PaxGlobal && self.extensions.any.is_some() {
                    return Err(TarError::Extension {
                        at,
                        reason: "it stands between a member and its extended header",
                    });
                }
                self.state = State::Extension { kind: header.kind, at, size };
                Ok(None)
            }
            _ => self.member(header).map(|member| Some(Event::Member(member))),
        }
    }

    /// Reads what an extension of the next member says.
    fn extension(&mut self, kind: Type, at: u64, content: &[u8]) -> Result<(), TarError> {
        let malformed = |reason| TarError::Extension { at, reason };
        match kind {
            Type::Pax => self.extensions.pax = Some(Records::parse(content).map_err(malformed)?),
            // Nothing in it applies to one member alone, so what it says must not matter.
            Type::PaxGlobal => {
                let records = Records::parse(content).map_err(malformed)?;
                return if records.describes_members() {
                    Err(malformed("it is global and describes members"))
                } else {
                    Ok(())
                };
            }
            Type::LongName => self.extensions.long_name = Some(header::text(content).to_vec()),
            _ => {}
        }
        self.extensions.any = Some(at);
        Ok(())
    }

    /// Makes a member of its header and of what was said ahead of it.
    fn member(&mut self, header: Header) -> Result<Member, TarError> {
        let extensions = std::mem::take(&mut self.extensions);
        let pax = extensions.pax.unwrap_or_default();
        let name = extensions.long_name.filter(|name| !name.is_empty()).or(pax.path).unwrap_or(header.name);
        let kind = match header.kind {
            Type::File => MemberKind::File,
            Type::Dir => MemberKind::Dir,
            // Archives older than ustar have no other way to say that something is a directory.
            Type::OldFile if name.ends_with(b"/") => MemberKind::Dir,
            Type::OldFile => MemberKind::File,
            other => return Err(TarError::Kind { path: escaped(&name), kind: other.to_string() }),
        };
        if pax.sparse {
            return Err(TarError::Kind { path: escaped(&name), kind: "a sparse file".into() });
        }
        let path = KitPath::parse(&name)?;
        if kind == MemberKind::File && path.is_root() {
            return Err(InvalidPath::new(&name, "it is the root and not a directory").into());
        }
        // A size on a directory means nothing; no data follows.
        let size = match kind {
            MemberKind::Dir => 0,
            MemberKind::File => self.extent(pax.size.unwrap_or(header.size), || path.to_string())?,
        };
        self.state = match kind {
            MemberKind::Dir => State::Header,
            MemberKind::File => State::Data { left: size, padding: size.next_multiple_of(BLOCK as u64) - size },
        };
        // Years that every consumer can take: beyond them `SystemTime` and friends overflow.
        let mtime = pax.mtime.unwrap_or(header.mtime).clamp(-62_167_219_200, 253_402_300_799);
        Ok(Member { path, kind, size, mode: header.mode, mtime, offset: self.position })
    }

    /// Checks that what has this size can lie between here and the end of the layer.
    fn extent(&self, size: i64, what: impl Fn() -> String) -> Result<u64, TarError> {
        // Where the layer's size is not known: so that no sum of an offset and a size overflows.
        let end = self.size.unwrap_or(i64::MAX as u64 / 2);
        let left = end.saturating_sub(self.position);
        match u64::try_from(size) {
            Ok(size) if size <= left => Ok(size),
            _ => Err(TarError::Size { what: what(), size, left }),
        }
    }
}

fn escaped(name: &[u8]) -> String {
    const SHOWN: usize = 400;
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = crate::kit::name::write_escaped(name.get(..SHOWN).unwrap_or(name), &mut text);
    text
}

/// Why a layer is not a tar that can be part of a kit. Offsets count in the uncompressed layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// No header where one has to be, or a damaged one.
    #[error("no valid tar header at byte {at}: {reason}")]
    Header {
        /// Where it begins.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A PAX header or a GNU long name that cannot be used.
    #[error("the extended tar header at byte {at} is refused: {reason}")]
    Extension {
        /// Where it begins.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name that cannot be in a kit.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// A member that is neither a file nor a directory.
    #[error("member {path} is {kind}: a kit has only files and directories")]
    Kind {
        /// The member, escaped.
        path: String,
        /// What it is.
        kind: String,
    },
    /// A member that claims more bytes than can follow, or less than none.
    #[error("{what} claims {size} bytes of data where {left} bytes of the layer are left")]
    Size {
        /// The member.
        what: String,
        /// The size that it claims.
        size: i64,
        /// How many bytes follow.
        left: u64,
    },
    /// The layer ends in the middle of something.
    #[error("the tar is truncated: it ends at byte {position} in the middle of a member")]
    Truncated {
        /// Where it ends.
        position: u64,
    },
    /// The layer is longer or shorter than it should be.
    #[error("the layer has {position} bytes where {size} were expected")]
    Length {
        /// The size that it should have.
        size: u64,
        /// The size that it has.
        position: u64,
    },
}

#[cfg(test)]
mod tests;
