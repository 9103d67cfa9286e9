//! Rules of this repository that no compiler holds. Each says why it is one.

use std::path::Path;

use crate::layering::{name, sources};

/// Source and tests, as (name, text).
fn texts(folders: &[&str]) -> Vec<(String, String)> {
    let read = |path: std::path::PathBuf| (name(&path), std::fs::read_to_string(&path).expect("a source"));
    folders.iter().flat_map(|folder| sources(folder)).map(read).collect()
}

/// The part of a source before its unit tests.
fn before_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Fails with every line of code, outside the files of `allowed`, that has `word` in it.
#[track_caller]
fn only_in(word: &str, allowed: &[&str], why: &str) {
    let mut wrong = Vec::new();
    for (name, text) in texts(&["src"]) {
        if allowed.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        for (number, line) in before_tests(&text).lines().enumerate().filter(|(_, line)| !is_comment(line)) {
            let begins_here = |(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric());
            if line.match_indices(word).any(begins_here) {
                wrong.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{word:?} outside {allowed:?}: {why}\n{}", wrong.join("\n"));
}

#[test]
fn a_file_has_at_most_600_lines_before_its_tests() {
    let mut wrong = Vec::new();
    for (name, text) in texts(&["src", "tests"]) {
        let lines = before_tests(&text).lines().count();
        if lines > 600 {
            wrong.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(wrong.is_empty(), "split by noun: {}", wrong.join(", "));
}

#[test]
fn every_file_starts_with_what_it_is() {
    let has_none = |(_, text): &(String, String)| !text.starts_with("//! ");
    let is_unit_tests = |name: &str| name.ends_with("/tests.rs");
    let mut wrong: Vec<_> = texts(&["src", "tests"]).into_iter().filter(has_none).map(|(name, _)| name).collect();
    wrong.retain(|name| !is_unit_tests(name));
    assert!(wrong.is_empty(), "no module documentation: {}", wrong.join(", "));
}

#[test]
fn modules_are_named_for_what_they_hold() {
    let forbidden = ["util", "utils", "helper", "helpers", "common", "misc", "types", "error", "errors", "manager"];
    let stem = |name: &str| Path::new(name).file_stem().expect("a file").to_string_lossy().into_owned();
    let mut wrong: Vec<_> = texts(&["src", "tests"]).into_iter().map(|(name, _)| name).collect();
    wrong.retain(|name| {
        forbidden.contains(&stem(name).as_str()) || name.split('/').any(|folder| forbidden.contains(&folder))
    });
    assert!(wrong.is_empty(), "if two modules need it, it has a noun: {}", wrong.join(", "));
}

#[test]
fn trust_is_made_in_one_file() {
    only_in("Verified(", &["src/verify.rs"], "only a checked hash makes a `Verified`");
    only_in("Verified {", &["src/verify.rs"], "only a checked hash makes a `Verified`");
    let parsers = ["src/verify.rs", "src/kit/", "src/store/", "src/audit/head.rs"];
    only_in("impl FromVerified", &parsers, "what may be parsed from proved bytes");
    only_in("ahead_of_proof", &["src/verify.rs", "src/layers"], "only layers are split before their digest is known");
}

#[test]
fn only_a_decision_admits() {
    only_in("Admitted {", &["src/policy/decision.rs"], "nothing of a kit is touched that no policy let through");
    only_in("IndexAdmitted {", &["src/policy/decision.rs"], "an index counts only where a policy says who signs one");
    let why = "an index that nobody vouches for is not looked into by those who use it";
    only_in("UsableIndex {", &["src/resolve/indexes.rs"], why);
    only_in("parse::<Published>", &["src/resolve/indexes.rs"], why);
    only_in("Endorsement {", &["src/trust/endorsement.rs"], "only a proof makes an endorsement");
}

#[test]
fn the_file_system_never_sees_unverified_bytes() {
    let why = "what answers readers works on proved bytes alone";
    for word in ["Unverified", "ahead_of_proof"] {
        for (name, text) in texts(&["src"]) {
            if !name.starts_with("src/fs/") && !name.starts_with("src/fuse/") {
                continue;
            }
            let code = before_tests(&text).lines().find(|line| !is_comment(line) && line.contains(word));
            assert!(code.is_none(), "{name}: {}: {why}", code.unwrap_or_default());
        }
    }
}

#[test]
fn only_the_fuse_module_knows_fuser() {
    only_in("fuser::", &["src/fuse/", "src/mounts"], "the file system is not tied to one library");
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file passes its own test.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["X", "XX:"], ["HA", "CK:"], ["to", "do!("], ["unimple", "mented!("]];
    let ignored = ["#[ign", "ore"].concat();
    let allow = ["#[al", "low("].concat();
    for (name, text) in texts(&["src", "tests"]) {
        for mark in marks.iter().map(|halves| halves.concat()) {
            assert!(!text.contains(&mark), "{name} has a {mark}: do it, or open an issue");
        }
        assert!(!text.contains(&ignored), "{name} has a test that never runs: skip at run time, with the reason");
        assert!(!text.contains(&allow), "{name}: #[expect(.., reason)] instead, which ends when its reason does");
    }
}

#[test]
fn no_flag_or_variable_skips_a_check() {
    // Put together here, so that this file passes its own test.
    let words = [["skip_", "verif"], ["no_", "verify"], ["skip-", "verif"], ["no-", "verify"], ["insecure_", "skip"]];
    for (name, text) in texts(&["src"]) {
        for word in words.iter().map(|halves| halves.concat()) {
            assert!(!text.to_lowercase().contains(&word), "{name} has {word}: a digest check cannot be turned off");
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    for (name, text) in texts(&["src", "tests"]) {
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_block = !is_comment(line) && line.contains(concat!("unsafe", " {"));
            let said = lines[number.saturating_sub(6)..number].iter().any(|line| line.contains("// SAFETY:"));
            assert!(!is_block || said, "{name}:{}: an unsafe block without // SAFETY:", number + 1);
        }
    }
}

#[test]
fn only_one_file_knows_where_the_shared_fixtures_are() {
    let outside = ["../", "shared"].concat();
    for (name, text) in texts(&["src", "tests"]) {
        let is_the_one = name == "tests/it/support/shared.rs";
        assert!(is_the_one || !text.contains(&outside), "{name} names what is outside the repository");
    }
}
