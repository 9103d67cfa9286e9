//! Where the log ends, as this installation knows it: a small sealed file in the state directory.
//!
//! The chain in the log shows every change but one: lines cut off its end leave a chain that is whole. So
//! its end is kept apart, under the seal of this host's key. The file has two places of one sector each:
//! what the log ends with, and what it is about to end with. The second is durable before a line is
//! written, the first is written after it, so that at every instant a crash leaves a log that ends with
//! one of the two, or with a piece of what was about to be written.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::audit::line::NOTHING;
use crate::digest::Digest;
use crate::verify::FromVerified;
use crate::verify::LocalKey;
use crate::verify::Unverified;

/// Bytes of a place: what a disk writes whole or not at all.
const PLACE: usize = 512;

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The number of the last line; 0 where there is none.
    pub(super) sequence: u64,
    /// Its hash.
    pub(super) hash: Digest,
    /// How many files were rotated away before the one that is being written.
    pub(super) rotated: u32,
    /// Bytes in the file that is being written.
    pub(super) len: u64,
}

impl Mark {
    /// The end of a log in which there is nothing yet.
    pub(super) const START: Self = Self { sequence: 0, hash: NOTHING, rotated: 0, len: 0 };
}

impl FromVerified<bytes::Bytes> for Mark {
    type Error = postcard::Error;

    fn from_verified(content: &bytes::Bytes) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content)
    }
}

/// What the log is about to become. It says what it was too: the other place may be older after a power cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    from: Mark,
    to: Mark,
}

impl FromVerified<bytes::Bytes> for Intent {
    type Error = postcard::Error;

    fn from_verified(content: &bytes::Bytes) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content)
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    /// There is no file: this installation has not written to that log.
    None,
    /// What the log ends with, and what it may end with instead.
    Known(Mark, Option<Mark>),
    /// The seal is broken: the file was changed, or the key is another one.
    Broken,
}

/// The two places, by their purposes: one cannot stand in for the other.
const PURPOSES: [&str; 2] = ["audit head", "audit intent"];

/// Reads what is known of the end of a log.
pub(super) fn read(path: &Path, key: &LocalKey) -> io::Result<Heads> {
    let mut places = [[0u8; PLACE]; 2];
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Heads::None),
        Err(error) => return Err(error),
    };
    for (number, place) in places.iter_mut().enumerate() {
        match file.read_exact_at(place, (number * PLACE) as u64) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Heads::Broken),
            Err(error) => return Err(error),
        }
    }
    let [head, intent] = &places;
    let head = unseal::<Mark>(head, key, PURPOSES[0]);
    let intent = unseal::<Intent>(intent, key, PURPOSES[1]);
    let (Some(head), Some(Intent { from, to })) = (head, intent) else { return Ok(Heads::Broken) };
    let head = if (from.sequence, from.rotated) > (head.sequence, head.rotated) { from } else { head };
    let intended = (to.sequence > head.sequence).then_some(to);
    Ok(Heads::Known(head, intended))
}

fn unseal<T>(place: &[u8; PLACE], key: &LocalKey, purpose: &str) -> Option<T>
where
    T: FromVerified<bytes::Bytes> + Clone,
{
    let (len, rest) = place.split_first_chunk::<2>()?;
    let sealed = rest.get(..usize::from(u16::from_le_bytes(*len)))?;
    let read = Unverified::new(sealed.to_vec()).unseal(key, purpose).ok()?.parse::<T>().ok()?;
    Some((*read).clone())
}

fn seal(mark: &impl Serialize, key: &LocalKey, purpose: &str) -> io::Result<[u8; PLACE]> {
    let sealed = key.seal(&postcard::to_stdvec(mark).map_err(io::Error::other)?, purpose);
    let mut place = [0; PLACE];
    let too_long = || io::Error::other("a mark is too long");
    let len = u16::try_from(sealed.len()).map_err(|_| too_long())?;
    place.get_mut(..2).ok_or_else(too_long)?.copy_from_slice(&len.to_le_bytes());
    place.get_mut(2..2 + sealed.len()).ok_or_else(too_long)?.copy_from_slice(&sealed);
    Ok(place)
}

/// The file, open for writing. Whoever has it holds the lock of the log.
#[derive(Debug)]
pub(super) struct HeadFile<'k> {
    file: File,
    key: &'k LocalKey,
}

impl<'k> HeadFile<'k> {
    /// Opens the file; if it is not there or not whole, makes one that says `end`.
    pub(super) fn open(path: &Path, key: &'k LocalKey, heads: &Heads, end: &Mark) -> io::Result<Self> {
        if !matches!(heads, Heads::Known(..)) {
            let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            let mut temporary = tempfile::Builder::new().prefix(".audit-head-").tempfile_in(folder)?;
            let intent = Intent { from: end.clone(), to: end.clone() };
            io::Write::write_all(&mut temporary, &seal(end, key, PURPOSES[0])?)?;
            io::Write::write_all(&mut temporary, &seal(&intent, key, PURPOSES[1])?)?;
            temporary.as_file().sync_all()?;
            temporary.persist(path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()?;
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        Ok(Self { file, key })
    }

    /// Says durably what the log ends with and is about to end with.
    pub(super) fn intend(&self, from: &Mark, to: &Mark) -> io::Result<()> {
        let intent = Intent { from: from.clone(), to: to.clone() };
        self.file.write_all_at(&seal(&intent, self.key, PURPOSES[1])?, PLACE as u64)?;
        self.file.sync_data()
    }

    /// Says what the log ends with. Where a power cut takes that back, the log ends with what was intended.
    pub(super) fn commit(&self, end: &Mark) -> io::Result<()> {
        self.file.write_all_at(&seal(end, self.key, PURPOSES[0])?, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_and_one_place_cannot_stand_in_for_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head");
        let key = LocalKey::new([7; 32]);
        assert_eq!(read(&path, &key).unwrap(), Heads::None);
        let file = HeadFile::open(&path, &key, &Heads::None, &Mark::START).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Known(Mark::START, None));
        let [one, two] = [u64::MAX - 1, u64::MAX].map(|sequence| Mark {
            sequence,
            hash: Digest::of(b"x"),
            rotated: u32::MAX,
            len: u64::MAX,
        });
        file.intend(&Mark::START, &one).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Known(Mark::START, Some(one.clone())));
        file.commit(&one).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Known(one.clone(), None));
        assert_eq!(read(&path, &LocalKey::new([8; 32])).unwrap(), Heads::Broken);
        file.commit(&Mark::START).unwrap();
        file.intend(&one, &two).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Known(one, Some(two)), "the head was lost in a power cut");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.rotate_left(PLACE);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Broken);
        bytes.rotate_left(PLACE);
        bytes[9] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Heads::Broken);
    }
}
