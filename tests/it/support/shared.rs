//! Fixtures that live beside the repository and not in it: kits packed by the real tools.
//!
//! They are in the directory that `KITFS_SHARED` names, `../shared` by default. A clone without them runs all other
//! tests; those that need them say that they were skipped, and never fail for it.

use std::path::{Path, PathBuf};

use super::host;

/// `path` among the shared files, or `None` after saying that it is not there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("KITFS_SHARED") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    let Ok(found) = root.join(path).canonicalize() else {
        host::note(&format!(
            "there is no {}; KITFS_SHARED names the directory of the fixtures",
            root.join(path).display()
        ));
        return None;
    };
    Some(found)
}

/// The kits of the shared fixtures, by name, each with a `layout` and a `tree.json`.
pub fn kits() -> Vec<(String, PathBuf)> {
    let Some(folder) = shared("fixtures/kits") else { return Vec::new() };
    let mut kits: Vec<_> = std::fs::read_dir(folder)
        .expect("the kits can be listed")
        .flatten()
        .map(|entry| (entry.file_name().into_string().expect("kits have plain names"), entry.path()))
        .collect();
    kits.sort();
    assert!(!kits.is_empty(), "the fixtures are there and hold no kit");
    kits
}
