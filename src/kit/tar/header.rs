//! The fields of one header block, read as Go's `archive/tar` reads them.
//!
//! The `tar` crate's `Header` would nearly do, but not for hostile bytes: it drops the high bytes of a
//! base-256 number, takes negative ones for huge ones, and has no check of the checksum.

use std::fmt;
use std::ops::Range;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) kind: Type,
    /// As it stands there: negative sizes and modes can be written down.
    pub(super) size: i64,
    /// Permission bits only.
    pub(super) mode: u16,
    pub(super) mtime: i64,
}

/// The type flag of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    File,
    /// A NUL: a file, or a directory if the name ends in a slash.
    OldFile,
    Dir,
    Pax,
    PaxGlobal,
    LongName,
    LongLink,
    Other(u8),
}

// Places of fields: POSIX.1-2017, pax, "ustar Header Block"; GNU tar manual, "Basic Tar Format".
const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;

impl Header {
    /// Reads a block; what is wrong with it is said in words.
    pub(super) fn parse(block: &[u8]) -> Result<Self, &'static str> {
        if !checksum_matches(block) {
            return Err("its checksum is wrong");
        }
        let number = |range| numeric(field(block, range));
        let (prefix, name) = (prefix(block), text(field(block, NAME)));
        let header = Self {
            name: if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') },
            kind: Type::from_flag(block.get(TYPE).copied().unwrap_or_default()),
            size: number(SIZE).ok_or("its size is not a number")?,
            // The mask leaves nine bits.
            mode: (number(MODE).ok_or("its mode is not a number")? & 0o777) as u16,
            mtime: number(MTIME).ok_or("its time is not a number")?,
        };
        // Nobody needs these, but Go refuses the member, and so a layer that kit refuses.
        number(UID).ok_or("its user is not a number")?;
        number(GID).ok_or("its group is not a number")?;
        if Dialect::of(block) != Dialect::V7 {
            number(DEVICE_MAJOR).ok_or("its device is not a number")?;
            number(DEVICE_MINOR).ok_or("its device is not a number")?;
        }
        Ok(header)
    }
}

impl Type {
    fn from_flag(flag: u8) -> Self {
        match flag {
            b'0' => Self::File,
            0 => Self::OldFile,
            b'5' => Self::Dir,
            b'x' => Self::Pax,
            b'g' => Self::PaxGlobal,
            b'L' => Self::LongName,
            b'K' => Self::LongLink,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File | Self::OldFile => "a file",
            Self::Dir => "a directory",
            Self::Pax => "an extended header",
            Self::PaxGlobal => "a global extended header",
            Self::LongName => "a long name",
            Self::LongLink => "a long link name",
            Self::Other(b'1') => "a hard link",
            Self::Other(b'2') => "a symbolic link",
            Self::Other(b'3') => "a character device",
            Self::Other(b'4') => "a block device",
            Self::Other(b'6') => "a FIFO",
            Self::Other(b'7') => "a contiguous file",
            Self::Other(b'S') => "a sparse file",
            Self::Other(b'M') => "a part of a file from another volume",
            Self::Other(b'V') => "a volume label",
            Self::Other(b'D' | b'N') => "an entry of a GNU incremental dump",
            Self::Other(flag) => return write!(f, "of unknown type 0x{flag:02x}"),
        })
    }
}

/// Which fields there are behind the first 257 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Dialect {
    fn of(block: &[u8]) -> Self {
        match (field(block, MAGIC), field(block, VERSION), field(block, STAR_TRAILER)) {
            (b"ustar\0", _, b"tar\0") => Self::Star,
            (b"ustar\0", _, _) => Self::Ustar,
            (b"ustar ", b" \0", _) => Self::Gnu,
            _ => Self::V7,
        }
    }
}

/// The part of the path that stands apart from the name, before it.
fn prefix(block: &[u8]) -> &[u8] {
    match Dialect::of(block) {
        Dialect::V7 => &[],
        Dialect::Ustar => text(field(block, PREFIX)),
        Dialect::Star => text(field(block, STAR_PREFIX)),
        // GNU has times there. But Go before 1.8 wrote a prefix all the same, and Go still reads it.
        Dialect::Gnu => {
            let is_time = |range| {
                let time = field(block, range);
                time.first() == Some(&0) || numeric(time).is_some()
            };
            let prefix = text(field(block, PREFIX));
            if (is_time(GNU_ATIME) && is_time(GNU_CTIME)) || !prefix.is_ascii() { &[] } else { prefix }
        }
    }
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal, or in base 256 where the first bit says so; `None` if it is neither, or has no
/// place in 64 bits. Nothing at all is 0.
fn numeric(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Two's complement, of which the first bit is the marker.
            let sign = if first & 0x40 != 0 { -1 } else { 0 };
            let first = i128::from(first & 0x3f) | (sign << 6);
            let rest = field.get(1..).unwrap_or_default();
            // 11 bytes and 6 bits: no field is longer.
            let value = rest.iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
            i64::try_from(value).ok()
        }
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_filler = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_filler(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_filler(byte)).map_or(start, |last| last + 1);
    let digits = text(field.get(start..end)?);
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'7')) {
        return None;
    }
    // At most 12 digits of 3 bits.
    Some(digits.iter().fold(0, |value, digit| (value << 3) | i64::from(digit - b'0')))
}

/// Whether the sum over the block is what the header says: over unsigned bytes as POSIX has it, or
/// over signed ones, as Sun's tar did.
fn checksum_matches(block: &[u8]) -> bool {
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (place, byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&place) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    octal(field(block, CHECKSUM)).is_some_and(|sum| sum == unsigned || sum == signed)
}

fn field(block: &[u8], range: Range<usize>) -> &[u8] {
    block.get(range).unwrap_or_default()
}
