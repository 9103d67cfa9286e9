//! Finds the members of a tar without reading them: one hop from header to header.
//!
//! Names may start with `./`. Long names and sizes come from GNU and PAX extensions; a hard link stands
//! for the member it names; everything that is no file is left out. Sizes are checked against the file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::ops::Range;

use tar::EntryType;
use tar::Header;

const BLOCK: u64 = 512;

/// What one extension header may hold.
const EXTENSION_LIMIT: u64 = 1024 * 1024;

/// How many headers are looked at before a tar counts as hostile.
const HEADER_LIMIT: usize = 1_000_000;

/// Where the content of each file lies, by name without a leading `./`; the last of one name counts,
/// as in unpacking.
pub(super) fn members(file: &File, len: u64) -> Result<HashMap<String, Range<u64>>, InvalidTar> {
    let mut reader = BufReader::new(file);
    let mut members = HashMap::new();
    let mut extension = Extension::default();
    let mut at = 0;
    for _ in 0..HEADER_LIMIT {
        let mut header = Header::new_old();
        match reader.read_exact(header.as_mut_bytes()) {
            Ok(()) => {}
            // Some writers leave out the two empty blocks that mark the end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && at > 0 && at == len => return Ok(members),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(InvalidTar::Header(at)),
            Err(error) => return Err(InvalidTar::Io(error)),
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return if at == 0 { Err(InvalidTar::Header(at)) } else { Ok(members) };
        }
        if !has_checksum(&header) {
            return Err(InvalidTar::Header(at));
        }
        let kind = header.entry_type();
        let size = extension.size.unwrap_or(header.entry_size().map_err(|_| InvalidTar::Header(at))?);
        let start = at + BLOCK;
        let end = start.checked_add(size).filter(|end| *end <= len).ok_or(InvalidTar::Size { at, size })?;
        at = end.checked_next_multiple_of(BLOCK).ok_or(InvalidTar::Size { at, size })?;
        let mut unread = at - start;
        match kind {
            EntryType::XHeader | EntryType::GNULongName => {
                if size > EXTENSION_LIMIT {
                    return Err(InvalidTar::Size { at: start - BLOCK, size });
                }
                let mut content = vec![0; size as usize];
                reader.read_exact(&mut content).map_err(InvalidTar::Io)?;
                unread -= size;
                extension.read(kind, &content);
            }
            // They say something about what follows, but nothing that decides where a file is.
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            _ => {
                let name = extension.take_name().unwrap_or_else(|| header.path_bytes().into_owned());
                let found = match kind {
                    EntryType::Regular | EntryType::Continuous => Some(start..end),
                    EntryType::Link => header.link_name_bytes().and_then(|to| members.get(&normal(&to)?).cloned()),
                    _ => None,
                };
                if let (Some(name), Some(range)) = (normal(&name), found) {
                    members.insert(name, range);
                }
                extension = Extension::default();
            }
        }
        reader.seek_relative(i64::try_from(unread).unwrap_or(i64::MAX)).map_err(InvalidTar::Io)?;
    }
    Err(InvalidTar::Members)
}

/// What an extension header says about the member that follows it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extension {
    fn read(&mut self, kind: EntryType, content: &[u8]) {
        if kind == EntryType::GNULongName {
            self.name = Some(content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec());
            return;
        }
        for record in tar::PaxExtensions::new(content).flatten() {
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"size" => self.size = record.value().ok().and_then(|size| size.parse().ok()),
                _ => {}
            }
        }
    }

    fn take_name(&mut self) -> Option<Vec<u8>> {
        self.name.take()
    }
}

/// A member's name as lookups ask for it. Names that are not UTF-8 are nobody's.
fn normal(name: &[u8]) -> Option<String> {
    let mut name = std::str::from_utf8(name).ok()?;
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.trim_start_matches('/');
    }
    Some(name.to_owned())
}

/// POSIX ustar: the sum of all bytes of the header, with the checksum's own eight taken as blanks.
fn has_checksum(header: &Header) -> bool {
    let sum = header.as_bytes().iter().enumerate().map(|(at, byte)| match at {
        148..156 => u32::from(b' '),
        _ => u32::from(*byte),
    });
    header.cksum().is_ok_and(|expected| expected == sum.sum::<u32>())
}

/// Why a file cannot be read as a tar.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidTar {
    /// There is no tar header where one should be.
    #[error("it is no tar: no header at byte {0}")]
    Header(u64),
    /// A member says that it ends behind the end of the file.
    #[error("its member at byte {at} claims {size} bytes, more than there are")]
    Size {
        /// Where its header is.
        at: u64,
        /// What it claims.
        size: u64,
    },
    /// There are more members than any layout has.
    #[error("it has more than {HEADER_LIMIT} members")]
    Members,
    /// The disk failed.
    #[error(transparent)]
    Io(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> (File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        (file, bytes.len() as u64)
    }

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn finds_members_by_their_plain_names() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("./blobs/sha512/{}", "ab".repeat(64));
        for (name, content) in [("./index.json", "{}"), (long.as_str(), "long"), ("oci-layout", "x")] {
            let mut header = header("x", EntryType::Regular, content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let mut link = header("x", EntryType::Link, 0);
        builder.append_link(&mut link, "blobs/sha256/link", "./oci-layout").unwrap();
        let (file, len) = file(&builder.into_inner().unwrap());
        let members = members(&file, len).unwrap();
        for (name, content) in [("index.json", "{}"), (&long[2..], "long"), ("blobs/sha256/link", "x")] {
            let range = members.get(name).unwrap_or_else(|| panic!("{name} in {members:?}"));
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).unwrap();
            assert_eq!(bytes, content.as_bytes());
        }
    }

    #[test]
    fn a_size_in_a_pax_header_counts() {
        let record = b"16 size=0000100\n";
        let mut bytes = header("pax", EntryType::XHeader, record.len() as u64).as_bytes().to_vec();
        bytes.extend(record);
        bytes.resize(1024, 0);
        bytes.extend(header("index.json", EntryType::Regular, 0).as_bytes());
        bytes.resize(1536 + 512 + 1024, 0);
        let (file, len) = file(&bytes);
        assert_eq!(members(&file, len).unwrap()["index.json"], 1536..1636);
    }

    #[test]
    fn refuses_what_is_no_tar_and_what_claims_too_much() {
        let huge = header("index.json", EntryType::Regular, 1 << 60).as_bytes().to_vec();
        let mut bad_sum = header("index.json", EntryType::Regular, 0).as_bytes().to_vec();
        bad_sum[0] ^= 1;
        for (bytes, why) in [
            (Vec::new(), "no tar"),
            (b"plain text".to_vec(), "no tar"),
            (vec![0; 2048], "no tar"),
            (vec![0x1f; 2048], "no tar"),
            (huge, "claims"),
            (bad_sum, "no tar"),
        ] {
            let (file, len) = file(&bytes);
            let error = members(&file, len).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
