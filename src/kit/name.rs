//! Names and paths inside a kit: bytes that were checked once, where they came in.
//!
//! A path is read the way KitOps reads one (Go's `filepath.Clean`, then "is it inside?"), only stricter:
//! `..` is refused wherever it stands, and so is what no Linux path can be. Case and Unicode forms
//! are left alone: a name is its bytes.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes in the longest name: `NAME_MAX`. The kernel fails the listing of a whole directory over a
/// FUSE entry with a name above 1,024 bytes, and answers ENAMETOOLONG to every other system's above this.
pub const NAME_LIMIT: usize = 255;

/// Bytes in the longest path: `PATH_MAX` without its NUL. No longer one can be given to a system call.
pub const PATH_LIMIT: usize = 4095;

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, and neither `.` nor `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName<'a>(&'a [u8]);

impl<'a> EntryName<'a> {
    /// Checks one name.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, InvalidPath> {
        let invalid = |reason| Err(InvalidPath::new(bytes, reason));
        match bytes {
            [] => invalid("it is empty"),
            b"." => invalid("it is the directory itself"),
            b".." => invalid("it leaves its directory"),
            _ if bytes.len() > NAME_LIMIT => invalid("a name in it is longer than 255 bytes"),
            _ if bytes.contains(&b'/') => invalid("it has a slash"),
            _ if bytes.contains(&0) => invalid("it has a NUL byte"),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes of the name.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Display for EntryName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(self.0, f)
    }
}

impl fmt::Debug for EntryName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A clean relative path beneath the root of a kit: [`EntryName`]s with `/` between them, at most
/// [`PATH_LIMIT`] bytes. No component at all is the root.
///
/// Ordered component by component, so that what is in a directory follows it at once. Printed with
/// everything escaped that could move a terminal's cursor or turn text around.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KitPath(Box<[u8]>);

impl KitPath {
    /// The root of the kit.
    pub fn root() -> Self {
        Self(Box::default())
    }

    /// Reads a path as a tar, a Kitfile or an annotation has it: `./a`, `a//b` and `a/` are cleaned,
    /// `.` is the root; empty, absolute and over-long paths, NUL bytes and `..` are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidPath> {
        let invalid = |reason| Err(InvalidPath::new(bytes, reason));
        if bytes.is_empty() {
            return invalid("it is empty");
        }
        if bytes.starts_with(b"/") {
            return invalid("it is absolute");
        }
        // Most of what comes in is clean: then this is the only allocation.
        let mut clean = Vec::with_capacity(bytes.len().min(PATH_LIMIT));
        for component in bytes.split(|byte| *byte == b'/') {
            if component.is_empty() || component == b"." {
                continue;
            }
            let name = EntryName::parse(component).map_err(|error| InvalidPath::new(bytes, error.reason))?;
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name.as_bytes());
            if clean.len() > PATH_LIMIT {
                return invalid("it is longer than 4095 bytes");
            }
        }
        Ok(Self(clean.into()))
    }

    /// The path of these names, which lie in a tree: they were parsed, and so was their path.
    pub(super) fn of_names(names: &[&[u8]]) -> Self {
        Self(names.join(&b'/').into())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the path, without a slash at either end; none for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names that the path is made of, from the root downwards.
    pub fn components(&self) -> impl Iterator<Item = EntryName<'_>> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(EntryName)
    }

    /// The directory that holds it; the root is in none.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
        self.0.get(..end).map(|parent| Self(parent.into()))
    }

    /// Its last component; the root has none.
    pub fn name(&self) -> Option<EntryName<'_>> {
        self.0.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()).map(EntryName)
    }

    /// `path`, taken as relative to this directory.
    pub fn join(&self, path: &Self) -> Result<Self, InvalidPath> {
        if self.is_root() || path.is_root() {
            return Ok(if self.is_root() { path.clone() } else { self.clone() });
        }
        let joined = [&*self.0, &*path.0].join(&b'/');
        if joined.len() > PATH_LIMIT {
            return Err(InvalidPath::new(&joined, "it is longer than 4095 bytes"));
        }
        Ok(Self(joined.into()))
    }

    /// Whether this is `directory`, or lies beneath it.
    pub fn starts_with(&self, directory: &Self) -> bool {
        match self.0.strip_prefix(&*directory.0) {
            Some(rest) => directory.is_root() || rest.is_empty() || rest.starts_with(b"/"),
            None => false,
        }
    }
}

impl Ord for KitPath {
    fn cmp(&self, other: &Self) -> Ordering {
        let differ = self.0.iter().zip(&other.0).find(|(one, two)| one != two);
        // No name has a NUL in it, so the end of a name is less than every byte.
        let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        differ.map_or(self.0.len().cmp(&other.0.len()), |(one, two)| rank(one).cmp(&rank(two)))
    }
}

impl PartialOrd for KitPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for KitPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { write_escaped(&self.0, f) }
    }
}

impl fmt::Debug for KitPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KitPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for KitPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Clean;
        impl Visitor<'_> for Clean {
            type Value = KitPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a clean path")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<KitPath, E> {
                if bytes.is_empty() {
                    return Ok(KitPath::root());
                }
                let path = KitPath::parse(bytes).map_err(E::custom)?;
                if *path.0 != *bytes {
                    return Err(E::custom(format_args!("path {path} is not clean")));
                }
                Ok(path)
            }
        }
        deserializer.deserialize_bytes(Clean)
    }
}

/// Writes bytes that came from outside so that they stay one harmless piece of one line: controls,
/// line separators, what reorders text, and bytes that are no UTF-8 are escaped, and `\` with them.
pub fn write_escaped(bytes: &[u8], f: &mut impl fmt::Write) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}' => {
                    write!(f, "{}", char.escape_unicode())?;
                }
                '\\' => f.write_str("\\\\")?,
                _ if char.is_control() => write!(f, "{}", char.escape_default())?,
                _ => f.write_char(char)?,
            }
        }
        write!(f, "{}", chunk.invalid().escape_ascii())?;
    }
    Ok(())
}

/// A path or a name that cannot be in a kit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path} is refused: {reason}")]
pub struct InvalidPath {
    /// The path, escaped, and cut if it is long.
    path: String,
    reason: &'static str,
}

impl InvalidPath {
    /// Says why `path` is refused.
    pub(crate) fn new(path: &[u8], reason: &'static str) -> Self {
        const SHOWN: usize = 200;
        let mut text = String::from("\"");
        // Writing into a String does not fail.
        let _ = write_escaped(path.get(..SHOWN).unwrap_or(path), &mut text);
        text.push('"');
        if path.len() > SHOWN {
            text.push('…');
        }
        Self { path: text, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KitPath {
        KitPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn cleans_as_go_does() {
        for (given, clean) in [
            ("a", "a"),
            ("./a", "a"),
            ("a//b", "a/b"),
            ("a/./b/", "a/b"),
            (".", "."),
            ("./", "."),
            ("a..b/..c/d..", "a..b/..c/d.."),
            ("...", "..."),
            ("a\\b", "a\\\\b"),
        ] {
            assert_eq!(path(given).to_string(), clean, "{given}");
        }
        assert!(path("./").is_root());
    }

    #[test]
    fn refuses_what_leaves_or_cannot_be() {
        let long_name = "n".repeat(256);
        let long_path = "d/".repeat(2048) + "f";
        let deep = "d/".repeat(120_000);
        for text in
            ["", "/", "/a", "//a", "..", "../a", "a/..", "a/../b", "./..", "a\0b", "\0", &long_name, &long_path, &deep]
        {
            let error = KitPath::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.len() < 300, "{error}");
        }
        assert!(KitPath::parse(&b"n".repeat(255)).is_ok());
        assert!(KitPath::parse(&[b"d/".repeat(2047), b"f".to_vec()].concat()).is_ok());
    }

    #[test]
    fn a_name_is_one_component() {
        for bytes in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'n'; 256]] {
            assert!(EntryName::parse(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&b"a"[..], b"...", b"a..b", b"\xff\n", &[b'n'; 255]] {
            assert_eq!(EntryName::parse(bytes).unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn takes_paths_apart_and_together() {
        let deep = path("a/b/c");
        assert_eq!(deep.parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), Some(KitPath::root()));
        assert_eq!(KitPath::root().parent(), None);
        assert_eq!(deep.components().map(|name| name.to_string()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(KitPath::root().components().count(), 0);
        assert_eq!(deep.name().unwrap().as_bytes(), b"c");
        assert_eq!(KitPath::root().name(), None);
        assert_eq!(path("a").join(&path("b/c")).unwrap(), deep);
        assert_eq!(KitPath::root().join(&deep).unwrap(), deep);
        assert_eq!(deep.join(&KitPath::root()).unwrap(), deep);
        assert!(path(&"d/".repeat(1500)).join(&path(&"d/".repeat(1500))).is_err());
        assert!(deep.starts_with(&path("a/b")) && deep.starts_with(&deep) && deep.starts_with(&KitPath::root()));
        assert!(!path("a/bc").starts_with(&path("a/b")) && !path("a").starts_with(&path("a/b")));
    }

    #[test]
    fn a_directory_is_followed_by_what_is_in_it() {
        let mut paths = ["b", "a-b", "a/b", "a", ".", "a/b/c", "a b"].map(path);
        paths.sort();
        assert_eq!(paths.map(|path| path.to_string()), [".", "a", "a/b", "a/b/c", "a b", "a-b", "b"]);
    }

    #[test]
    fn prints_nothing_that_a_terminal_obeys() {
        for (bytes, shown) in [
            (&b"x\x1b]0;pwned\x07"[..], "x\\u{1b}]0;pwned\\u{7}"),
            (b"line\nbreak", "line\\nbreak"),
            ("caf\u{e9} \u{202e}gpj.exe".as_bytes(), "caf\u{e9} \\u{202e}gpj.exe"),
            (b"\xff\xc2\x9b1m", "\\xff\\u{9b}1m"),
        ] {
            assert_eq!(KitPath::parse(bytes).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn survives_a_round_trip_and_refuses_an_unclean_one() {
        for path in [KitPath::root(), path("a/b"), KitPath::parse(b"\xff\n").unwrap()] {
            let bytes = postcard::to_stdvec(&path).unwrap();
            assert_eq!(postcard::from_bytes::<KitPath>(&bytes).unwrap(), path);
        }
        for bytes in [&b"\x04./ab"[..], b"\x02..", b"\x02a/", b"\x05abc"] {
            assert!(postcard::from_bytes::<KitPath>(bytes).is_err());
        }
    }
}
