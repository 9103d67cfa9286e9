//! What this project stands on: licences it may use, crates it must not, where they come from.
//!
//! The same lists as in `scripts/deny.toml`, checked from `cargo metadata` alone, so that no other program has to be
//! built for it. Advisories are not checked here: their database needs a network.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates under another licence that we may use: MPL-2.0 asks for nothing beyond its own, unchanged files.
const EXCEPTIONS: &[(&str, &str)] = &[("option-ext", "MPL-2.0")];

/// A second TLS stack would be a second place to get certificates wrong.
const BANNED: &[&str] = &["openssl", "openssl-sys", "native-tls"];

/// Crates that only others may use: `anyhow` would flatten our errors, and regorus has it.
const NOT_OURS: &[&str] = &["anyhow"];

/// Crates of which two versions are built, each because its users have not moved yet.
const TWICE: &[&str] = &[
    "base64",
    "const-oid",
    "embedded-io",
    "getrandom",
    "lock_api",
    "parking_lot",
    "parking_lot_core",
    // The older one of each is shuttle's, and built for tests only.
    "rand",
    "rand_core",
    "rand_pcg",
    "syn",
    "synstructure",
    "untrusted",
];

/// The packages that are built here.
fn packages() -> Vec<Value> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let document: Value = serde_json::from_slice(&metadata.stdout).expect("cargo writes JSON");
    let nodes = document["resolve"]["nodes"].as_array().expect("a resolved graph");
    let built: BTreeSet<_> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = document["packages"].as_array().expect("packages");
    packages.iter().filter(|package| built.contains(package["id"].as_str().expect("an id"))).cloned().collect()
}

fn text<'p>(package: &'p Value, key: &str) -> &'p str {
    package[key].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met with the allowed licences. `AND` binds closer than `OR`; old crates write
/// `/` for `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let (allowed, rest) = any_of(&words);
    allowed && rest.is_empty()
}

fn any_of<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    let (mut allowed, mut rest) = all_of(words);
    while let ["OR", more @ ..] = rest {
        let (other, left) = all_of(more);
        allowed |= other;
        rest = left;
    }
    (allowed, rest)
}

fn all_of<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    let (mut allowed, mut rest) = one(words);
    while let ["AND", more @ ..] = rest {
        let (other, left) = one(more);
        allowed &= other;
        rest = left;
    }
    (allowed, rest)
}

fn one<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    match words {
        ["(", inner @ ..] => match any_of(inner) {
            (allowed, [")", rest @ ..]) => (allowed, rest),
            _ => (false, words),
        },
        [licence, "WITH", exception, rest @ ..] => {
            (LICENCES.contains(&format!("{licence} WITH {exception}").as_str()), rest)
        }
        [licence, rest @ ..] => (LICENCES.contains(licence), rest),
        [] => (false, words),
    }
}

#[test]
fn every_licence_is_one_we_may_use() {
    let mut wrong = Vec::new();
    for package in packages() {
        let licence = text(&package, "license");
        if !is_allowed(licence) && !EXCEPTIONS.contains(&(text(&package, "name"), licence)) {
            wrong.push(format!("{} {}: {}", package["name"], package["version"], package["license"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn licence_expressions_mean_what_spdx_says() {
    for (expression, allowed) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT AND (GPL-3.0-only OR ISC)", true),
        ("(MIT OR ISC) AND GPL-3.0-only", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH some-exception", false),
        ("Apache-2.0/MIT", true),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), allowed, "{expression:?}");
    }
}

#[test]
fn banned_crates_are_not_built_and_sources_are_the_registry() {
    for package in packages() {
        let name = text(&package, "name");
        assert!(!BANNED.contains(&name), "{name} is banned");
        let named =
            package["dependencies"].as_array().into_iter().flatten().filter_map(|wanted| wanted["name"].as_str());
        let ours: Vec<_> = named.filter(|wanted| name == "kitfs" && NOT_OURS.contains(wanted)).collect();
        assert!(ours.is_empty(), "{ours:?} is not for our own code");
        let source = text(&package, "source");
        assert!(name == "kitfs" || source.starts_with("registry+"), "{name} comes from {source:?}");
    }
}

#[test]
fn a_second_version_of_a_crate_is_a_decision() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(text(&package, "name").into()).or_default().insert(text(&package, "version").into());
    }
    versions.retain(|name, versions| versions.len() > 1 && !TWICE.contains(&name.as_str()));
    assert!(versions.is_empty(), "built twice: {versions:?}");
}
