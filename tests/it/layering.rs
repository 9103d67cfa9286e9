//! Modules depend downwards only: the list in `src/lib.rs` is the reading order, and each module uses what stands
//! below it. A single crate has no compiler for that.

use std::path::{Path, PathBuf};

/// The Rust files below `folder`, sorted.
pub fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the repository is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A path as people name it, from the root of the repository.
pub fn name(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("it is in the repository").display().to_string()
}

fn modules() -> Vec<String> {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("src/lib.rs");
    let module = |line: &str| {
        let line = line.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')).map(str::to_owned)
    };
    lib.lines().filter_map(module).collect()
}

/// The top-level module that a source file belongs to.
fn module_of(path: &Path) -> Option<String> {
    let name = name(path);
    let inner = name.strip_prefix("src/")?;
    let first = inner.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "lib" | "main")).then(|| module.to_owned())
}

/// What follows each `crate::` in code; comments may name what they like.
fn uses(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).flat_map(|(number, line)| {
        line.match_indices("crate::").map(move |(at, found)| {
            let rest = &line[at + found.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            (number + 1, if rest.starts_with('{') { "{" } else { &rest[..end] })
        })
    })
}

#[test]
fn a_module_uses_only_what_stands_below_it() {
    let modules = modules();
    let place = |module: &str| modules.iter().position(|other| other == module);
    let mut wrong = Vec::new();
    for path in sources("src") {
        let Some(own) = module_of(&path) else { continue };
        let Some(own_place) = place(&own) else {
            wrong.push(format!("{}: {own} is not in src/lib.rs", name(&path)));
            continue;
        };
        let text = std::fs::read_to_string(&path).expect("a source");
        for (line, used) in uses(&text) {
            match place(used) {
                _ if used == own => {}
                Some(used_place) if used_place > own_place => {}
                Some(_) => wrong.push(format!("{}:{line}: {own} uses {used}, which stands above it", name(&path))),
                None => wrong.push(format!("{}:{line}: crate::{used} is no module", name(&path))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_order_is_the_documented_one() {
    let documented = [
        "cli",
        "config",
        "mounts",
        "fuse",
        "fs",
        "resolve",
        "policy",
        "trust",
        "chunks",
        "layers",
        "source",
        "store",
        "kit",
        "audit",
        "ledger",
        "fault",
        "verify",
        "patience",
        "buffers",
        "verity",
        "reference",
        "digest",
        "sha256",
        "sync",
    ];
    let modules = modules();
    for module in &modules {
        assert!(documented.contains(&module.as_str()), "{module} has no place in the reading order");
    }
    let expected: Vec<_> =
        documented.into_iter().filter(|module| modules.iter().any(|other| other == module)).collect();
    assert_eq!(modules, expected);
}

#[test]
fn imports_name_one_module_each() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let text = std::fs::read_to_string(&path).expect("a source");
        let whole = format!("super::{}", "super");
        for (number, line) in text.lines().enumerate() {
            if line.contains("use crate::{") || line.contains("use crate::*") || line.contains(&whole) {
                wrong.push(format!("{}:{}: {}", name(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
