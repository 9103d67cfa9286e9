//! Hostile and odd kits by the truth table of the shared fixtures: what `verify`, `mount` and `cat` may do with each,
//! and what holds for all of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base64::Engine as _;
use serde_json::Value;

use crate::support::host;
use crate::support::kitfs::{Kitfs, Output};
use crate::support::shared;
use crate::support::tree::{Content, Entry, Node, Tree, sha256};

/// The most memory that a command may have resident, in KiB.
const MEMORY_KIB: u64 = 300 * 1024;
/// EIO, which is what a reader gets in place of bytes that were not proved.
const EIO: i32 = 5;

/// Runs of one case: complaints, each with the command it is about.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn add(&mut self, what: impl std::fmt::Display) {
        self.0.push(what.to_string());
    }
}

/// A path of a case. JSON cannot hold every name: `path_b64` does, and lone surrogates stand for raw bytes; these were
/// moved to U+F7xx when the table was read, because a Rust string cannot hold them.
fn path_of(entry: &Value) -> Vec<u8> {
    if let Some(encoded) = entry["path_b64"].as_str() {
        return base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64");
    }
    bytes_of(entry["path"].as_str().expect("a path"))
}

fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for character in text.chars() {
        match u32::from(character) {
            code @ 0xf780..=0xf7ff => bytes.push(code.to_le_bytes()[0]),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn codes(list: &Value) -> Vec<i64> {
    list.as_array().expect("exit codes").iter().map(|code| code.as_i64().expect("an exit code")).collect()
}

/// What must hold for every command on every case.
fn check_output(case: &Value, output: &Output, complaints: &mut Complaints) {
    if output.peak_kib > MEMORY_KIB {
        complaints.add(format!("{} MiB of memory\n{output}", output.peak_kib / 1024));
    }
    for text in case["never"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let shown = String::from_utf8_lossy(&output.stdout);
        if shown.contains(text) || output.stderr.contains(text) {
            complaints.add(format!("shows {text:?}\n{output}"));
        }
    }
    if output.code != 0 && output.stderr.trim().is_empty() {
        complaints.add(format!("fails without a word\n{output}"));
    }
    if let Some(pattern) = case["says"].as_str().filter(|_| output.code != 0) {
        let pattern = regex::Regex::new(pattern).expect("the table has regular expressions");
        if !pattern.is_match(&output.stderr) {
            complaints.add(format!("does not say {pattern}\n{output}"));
        }
    }
}

fn check_verify(case: &Value, kitfs: &Kitfs, folder: &Path, reference: &str, complaints: &mut Complaints) {
    let output = kitfs.command(&["verify", reference, "--output", "json"]).current_directory(folder).within(20).run();
    check_output(case, &output, complaints);
    let accepted = codes(&case["verify"]["exit"]);
    if !accepted.contains(&output.code.into()) {
        complaints.add(format!("verify: {} is none of {accepted:?}\n{output}", output.code));
    }
    let Ok(document) = serde_json::from_slice::<Value>(&output.stdout) else {
        if output.code != 2 {
            complaints.add(format!("verify: no JSON document\n{output}"));
        }
        return;
    };
    if document["ok"] != (output.code == 0) {
        complaints.add(format!("verify: `ok` and the exit code disagree\n{output}"));
    }
    if output.code == 5 && output.stderr.matches("sha256:").count() + output.stderr.matches("sha512:").count() < 2 {
        complaints.add(format!("verify: 5 without both digests\n{output}"));
    }
    let layers = document["layers"].as_array().cloned().unwrap_or_default();
    for (digest, accepted) in case["verify"]["layers"].as_object().into_iter().flatten() {
        for layer in layers.iter().filter(|layer| layer["digest"] == digest.as_str()) {
            if !accepted.as_array().expect("statuses").contains(&layer["status"]) {
                complaints.add(format!("verify: {digest} is {}, not one of {accepted}", layer["status"]));
            }
        }
        if !layers.iter().any(|layer| layer["digest"] == digest.as_str()) {
            complaints.add(format!("verify: tells nothing of {digest}\n{output}"));
        }
    }
}

/// Whether an entry of a mount is what the table says it is.
fn is_as_told(found: &Entry, told: &Value, root: &Path) -> bool {
    let modes = told["mode"].as_array();
    let has_mode = modes.is_none_or(|modes| {
        modes.iter().any(|mode| u32::from_str_radix(mode.as_str().expect("a mode"), 8) == Ok(found.mode))
    });
    let is_same = match (&found.node, told["type"].as_str().expect("a type")) {
        (Node::Dir, "dir") => true,
        (Node::Symlink(target), "symlink") => told["target"].as_str().is_none_or(|told| target == told.as_bytes()),
        (Node::File(..), "file") if told["any"] == true => true,
        (Node::File(size, content), "file") => {
            told["size"].as_u64().is_none_or(|told| told == *size)
                && match (told["sha256"].as_str(), told["ranges"].as_array()) {
                    (Some(hash), _) => *content == Content::Sha256(hash.into()),
                    (None, Some(ranges)) => ranges.iter().all(|range| has_range(&path_below(root, told), range)),
                    (None, None) => true,
                }
        }
        _ => false,
    };
    has_mode && is_same
}

fn path_below(root: &Path, told: &Value) -> PathBuf {
    root.join(OsString::from_vec(path_of(told)))
}

/// Whether a part of a big file has the hash that the table gives: `{"offset", "size" or "length", "sha256"}`.
fn has_range(file: &Path, range: &Value) -> bool {
    use std::os::unix::fs::FileExt;
    let number = |key: &str| range[key].as_u64();
    let (Some(offset), Some(len)) = (number("offset"), number("size").or(number("length"))) else { return false };
    let mut bytes = vec![0; usize::try_from(len).expect("a range in memory")];
    let read = std::fs::File::open(file).and_then(|file| file.read_exact_at(&mut bytes, offset));
    read.is_ok() && range["sha256"] == sha256(&bytes)
}

/// What is wrong with a mounted tree by one of the acceptable outcomes; empty if nothing is.
fn differences(found: &Tree, outcome: &Value, root: &Path) -> Vec<String> {
    let list = |key: &str| outcome[key].as_array().cloned().unwrap_or_default();
    let names = |key: &str| list(key).iter().filter_map(Value::as_str).map(bytes_of).collect::<Vec<_>>();
    let by_path = |key: &str| list(key).into_iter().map(|told| (path_of(&told), told)).collect::<BTreeMap<_, _>>();
    let (required, optional) = (by_path("tree"), by_path("optional"));
    let (eio, true_or_eio) = (names("eio"), names("true_or_eio"));
    let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let fails = |entry: &Entry| matches!(entry.node, Node::File(_, Content::Error(EIO)));
    let mut wrong = Vec::new();
    if outcome["unchecked"] == true {
        return wrong;
    }
    for (path, told) in &required {
        match found.0.get(path) {
            Some(entry) if true_or_eio.contains(path) && fails(entry) => {}
            Some(entry) if is_as_told(entry, told, root) => {}
            Some(entry) => wrong.push(format!("{} is {entry:?}, not {told}", show(path))),
            None => wrong.push(format!("{} is missing", show(path))),
        }
    }
    for path in &eio {
        match found.0.get(path) {
            Some(entry) if fails(entry) => {}
            other => wrong.push(format!("{} is {other:?}, and every read of it should fail", show(path))),
        }
    }
    for (path, entry) in &found.0 {
        if required.contains_key(path) || eio.contains(path) {
            continue;
        }
        let is_optional = optional.get(path).is_some_and(|told| is_as_told(entry, told, root));
        let is_refused = outcome["any_eio"] == true && (fails(entry) || entry.node == Node::Dir);
        let is_empty = outcome["any_eio"] == true
            && matches!(&entry.node, Node::File(0, Content::Sha256(hash)) if *hash == sha256(b""));
        if !is_optional && !is_refused && !is_empty && !true_or_eio.contains(path) {
            wrong.push(format!("{} is {entry:?}, and should not be there", show(path)));
        }
    }
    wrong
}

/// What holds for every mounted tree, whatever the kit.
fn check_safe(found: &Tree, root: &Path, complaints: &mut Complaints) {
    for (path, entry) in &found.0 {
        let shown = String::from_utf8_lossy(path);
        if entry.node == Node::Special || entry.mode & 0o7000 != 0 {
            complaints.add(format!("mount: {shown} is {entry:?}"));
        }
        if let Node::Symlink(_) = entry.node {
            let target = root.join(OsString::from_vec(path.clone())).canonicalize();
            if target.as_ref().is_ok_and(|target| !target.starts_with(root)) {
                complaints.add(format!("mount: {shown} leaves the mount for {target:?}"));
            }
        }
    }
}

fn check_mount(case: &Value, kitfs: &Kitfs, folder: &Path, reference: &str, complaints: &mut Complaints) {
    let (mount, output) = kitfs.try_mount::<&str>(reference, &[], folder);
    check_output(case, &output, complaints);
    if output.took.as_secs() > 20 {
        complaints.add(format!("mount: took {:?}", output.took));
    }
    let outcomes = case["mount"].as_array().expect("outcomes");
    let Some(mount) = mount else {
        let accepted: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.get("refused")).flat_map(codes).collect();
        if !accepted.contains(&output.code.into()) {
            complaints.add(format!("mount: refused with {}, accepted are {accepted:?}\n{output}", output.code));
        }
        return;
    };
    let table = mount.table_entry();
    for option in ["ro", "nosuid", "nodev"] {
        if !table.split([' ', ',']).any(|word| word == option) {
            complaints.add(format!("mount: not {option}: {table}"));
        }
    }
    let mounted: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.get("mounted")).collect();
    let is_shape_judged = mounted.iter().all(|outcome| outcome["unchecked"] != true);
    if is_shape_judged {
        let found = Tree::read(mount.path());
        check_safe(&found, mount.path(), complaints);
        let wrong: Vec<_> = mounted.iter().map(|outcome| differences(&found, outcome, mount.path())).collect();
        if !wrong.iter().any(Vec::is_empty) {
            let closest = wrong.into_iter().min_by_key(Vec::len);
            complaints.add(match closest {
                Some(wrong) => format!("mount: {}", wrong.join("; ")),
                None => format!("mount: it was not refused: {:?}", found.0.keys().collect::<Vec<_>>()),
            });
        }
    }
    for pid in kitfs.processes() {
        if let Some(peak) = host::peak_memory(pid).filter(|peak| *peak > MEMORY_KIB) {
            complaints.add(format!("mount: process {pid} has had {} MiB", peak / 1024));
        }
    }
    mount.unmount();
}

fn check_cat(case: &Value, kitfs: &Kitfs, folder: &Path, reference: &str, complaints: &mut Complaints) {
    for asked in case["cat"].as_array().into_iter().flatten() {
        let path = OsString::from_vec(path_of(asked));
        let words = [OsString::from("cat"), reference.into(), path];
        let output = kitfs.command(&words).current_directory(folder).within(20).run();
        check_output(case, &output, complaints);
        if !codes(&asked["exit"]).contains(&output.code.into()) {
            complaints.add(format!("cat: {} is none of {}\n{output}", output.code, asked["exit"]));
        }
        if asked["empty"] == true && !output.stdout.is_empty() {
            complaints.add(format!("cat: wrote bytes of it\n{output}"));
        }
        if asked["sha256"].is_string() && asked["sha256"] != sha256(&output.stdout) {
            complaints.add(format!("cat: wrote something else\n{output}"));
        }
    }
}

/// Everything about one case; the complaints.
fn check_case(case: &Value, folder: &Path) -> Vec<String> {
    let reference = String::from_utf8(bytes_of(case["ref"].as_str().expect("a reference"))).expect("UTF-8");
    let mut complaints = Complaints::default();
    let check: [fn(&Value, &Kitfs, &Path, &str, &mut Complaints); 3] = [check_verify, check_mount, check_cat];
    for part in check {
        // Each with a cache of its own: what one has proved must not help the next.
        let kitfs = Kitfs::new();
        part(case, &kitfs, folder, &reference, &mut complaints);
        kitfs.check_nothing_is_left();
    }
    complaints.0
}

/// The cases of the table.
fn cases(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("cases.json")).expect("the table");
    let document: Value = serde_json::from_str(&text.replace("\\udc", "\\uf7")).expect("the table is JSON");
    document["cases"].as_array().expect("cases").clone()
}

#[test]
fn every_case_of_the_truth_table_ends_as_it_says() {
    let Some(folder) = shared::shared("fixtures/hostile") else { return };
    if !host::can_mount() {
        return;
    }
    let only = std::env::var("KITFS_CASE").unwrap_or_default();
    let cases: Vec<_> = cases(&folder)
        .into_iter()
        .filter(|case| case["name"].as_str().is_some_and(|name| name.contains(&only)))
        .collect();
    assert!(only.is_empty() || !cases.is_empty(), "no case is called {only}");
    let next = Mutex::new(cases.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().expect("no panic while it is held").next() else { break };
                    let name = case["name"].as_str().expect("a name");
                    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_case(case, &folder)));
                    let complaints = checked.unwrap_or_else(|panic| vec![reason(panic.as_ref())]);
                    if !complaints.is_empty() {
                        let text = format!("== {name}: {}\n{}", case["what"], complaints.join("\n"));
                        wrong.lock().expect("no panic while it is held").push(text);
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().expect("the threads are done");
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {} cases\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".into())
}
