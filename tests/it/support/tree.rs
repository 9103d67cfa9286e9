//! A directory tree as a value: read from a mount or a directory, or taken from a fixture, and compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What one name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file with its length in bytes and what reading it gave.
    File(u64, Content),
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A device, socket or FIFO.
    Special,
}

/// What reading a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes with this SHA-256, in hexadecimal.
    Sha256(String),
    /// An error with this number.
    Error(i32),
}

/// One name: what it stands for, and its permission bits (all twelve).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it stands for.
    pub node: Node,
    /// `st_mode & 0o7777`; 0 for symbolic links, where it says nothing.
    pub mode: u32,
}

/// All names below a root, without the root itself, as bytes relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

impl Tree {
    /// Reads all of a directory. An error of a read becomes part of the value; any other fails the test.
    pub fn read(root: &Path) -> Self {
        let mut tree = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(folder) = open.pop() {
            let listed = std::fs::read_dir(root.join(&folder))
                .unwrap_or_else(|error| panic!("listing {}: {error}", root.join(&folder).display()));
            for item in listed {
                let item = item.unwrap_or_else(|error| panic!("listing {}: {error}", folder.display()));
                let path = folder.join(item.file_name());
                let entry = Entry::read(&root.join(&path));
                if entry.node == Node::Dir {
                    open.push(path.clone());
                }
                let before = tree.insert(path.as_os_str().as_bytes().to_vec(), entry);
                assert!(before.is_none(), "{} is listed twice", path.display());
            }
        }
        Self(tree)
    }

    /// Takes the tree that a fixture describes: `{"path": {"type", "mode", "size", "sha256"}}`.
    pub fn of_json(file: &Path) -> Self {
        let text = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let document: Value = serde_json::from_slice(&text).expect("a fixture is JSON");
        let mut tree = Self::default();
        for (path, entry) in document.as_object().expect("an object by path") {
            let node = match entry["type"].as_str().expect("a type") {
                "dir" => Node::Dir,
                "file" => {
                    let sha256 = entry["sha256"].as_str().expect("a hash").to_owned();
                    Node::File(entry["size"].as_u64().expect("a size"), Content::Sha256(sha256))
                }
                other => panic!("{other} in {}", file.display()),
            };
            let mode = u32::from_str_radix(entry["mode"].as_str().expect("a mode"), 8).expect("octal");
            tree.0.insert(path.as_bytes().to_vec(), Entry { node, mode });
        }
        tree
    }

    /// Adds a file, and the directories above it as 0755 unless they are there.
    pub fn put(&mut self, path: &str, bytes: &[u8], mode: u32) {
        let node = Node::File(bytes.len() as u64, Content::Sha256(sha256(bytes)));
        self.put_parents(path);
        self.0.insert(path.into(), Entry { node, mode });
    }

    /// Adds a directory, and those above it as 0755 unless they are there.
    pub fn put_directory(&mut self, path: &str, mode: u32) {
        self.put_parents(path);
        self.0.insert(path.into(), Entry { node: Node::Dir, mode });
    }

    fn put_parents(&mut self, path: &str) {
        for (slash, _) in path.match_indices('/') {
            self.0.entry(path[..slash].into()).or_insert(Entry { node: Node::Dir, mode: 0o755 });
        }
    }

    /// The same without one name.
    pub fn without(mut self, path: &str) -> Self {
        self.0.remove(path.as_bytes());
        self
    }

    /// Only names for which `keep` holds.
    pub fn only(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|path, _| keep(&String::from_utf8_lossy(path)));
        self
    }

    /// The paths of all files, in order.
    pub fn files(&self) -> Vec<String> {
        let is_file = |(_, entry): &(&Vec<u8>, &Entry)| matches!(entry.node, Node::File(..));
        self.0.iter().filter(is_file).map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
    }

    /// Fails with every difference to `expected`.
    #[track_caller]
    pub fn assert_is(&self, expected: &Self, what: &str) {
        let mut differences = String::new();
        for (path, entry) in &expected.0 {
            let name = String::from_utf8_lossy(path);
            match self.0.get(path) {
                None => writeln!(differences, "  {name}: missing, should be {entry:?}").expect("a string"),
                Some(found) if found != entry => {
                    writeln!(differences, "  {name}: {found:?}, should be {entry:?}").expect("a string");
                }
                Some(_) => {}
            }
        }
        for (path, entry) in self.0.iter().filter(|(path, _)| !expected.0.contains_key(*path)) {
            writeln!(differences, "  {}: {entry:?}, should not be there", String::from_utf8_lossy(path))
                .expect("a string");
        }
        assert!(differences.is_empty(), "{what}:\n{differences}");
    }
}

impl Entry {
    /// Reads what one path stands for.
    pub fn read(path: &Path) -> Self {
        let data = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = data.file_type();
        let mode = data.permissions().mode() & 0o7777;
        if kind.is_symlink() {
            let target = std::fs::read_link(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            return Self { node: Node::Symlink(target.as_os_str().as_bytes().to_vec()), mode: 0 };
        }
        let is_special = kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device();
        let node = match kind {
            _ if is_special => Node::Special,
            kind if kind.is_dir() => Node::Dir,
            _ => Node::File(data.size(), Content::read(path)),
        };
        Self { node, mode }
    }
}

impl Content {
    /// Reads a whole file, piece by piece: a test must not need the memory that it forbids.
    pub fn read(path: &Path) -> Self {
        let number = |error: std::io::Error| Self::Error(error.raw_os_error().unwrap_or(0));
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) => return number(error),
        };
        let mut hasher = Sha256::new();
        let mut piece = vec![0; 1 << 17];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Self::Sha256(hex::encode(hasher.finalize())),
                Ok(len) => hasher.update(&piece[..len]),
                Err(error) => return number(error),
            }
        }
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A path of raw bytes below a root.
pub fn below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}
