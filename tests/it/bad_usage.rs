//! What is wrong before anything is fetched is 2, with a word that helps; and what belongs to later does not exist.

use crate::support::host;
use crate::support::kit::{Kit, Layout};
use crate::support::kitfs::{Kitfs, User};

fn reference(kitfs: &Kitfs) -> String {
    Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack()).reference("v1")
}

#[test]
fn references_that_cannot_be_read_are_2() {
    let kitfs = Kitfs::new();
    let digest = format!("sha256:{}", "0".repeat(64));
    for text in [
        "",
        "name",
        "name:tag",
        "org/name:tag",
        "registry.example/Upper/Case:v1",
        "registry.example/name:",
        "registry.example/name:a b",
        "registry.example/name@sha256:abc",
        "registry.example/name@md5:d41d8cd98f00b204e9800998ecf8427e",
        "registry.example/../name:v1",
        "registry.example//name:v1",
        "registry.example:99999/name:v1",
        "https://registry.example/name:v1",
        "oci:",
        "oci::v1",
        "kit:",
        "kit:UPPER:v1",
        &format!("registry.example/name@{digest}0"),
        &format!("registry.example/name:{}", "t".repeat(129)),
    ] {
        for command in ["verify", "ls", "inspect", "pull"] {
            let output = kitfs.run(&[command, text]).expect(2);
            assert!(!output.stderr.trim().is_empty(), "no word of why\n{output}");
        }
        kitfs.run(&["mount", text, "/nonexistent"]).expect(2);
    }
    kitfs.run(&["verify", "org/name:tag"]).expect(2).says("kit:");
}

#[test]
fn a_layout_without_a_tag_must_have_one_manifest() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack());
    let bare = format!("oci:{}", layout.path().display());
    kitfs.run(&["verify", &bare]).expect(0);
    Kit::named("second").pack().write(&layout, Some("second"));
    kitfs.run(&["verify", &bare]).expect(2);
    kitfs.run(&["verify", &layout.reference("third")]).expect(3).says("third");
    kitfs.run(&["verify", "oci:/nonexistent:v1"]).expect(3).says("/nonexistent");
    kitfs.run(&["verify", "kit:nothing:v1"]).expect(3).says("KitOps");
}

#[test]
fn unknown_words_are_2() {
    let kitfs = Kitfs::new();
    let reference = reference(&kitfs);
    let cases: &[&[&str]] = &[
        &[],
        &["fly"],
        &["verify"],
        &["verify", &reference, "more"],
        &["verify", &reference, "--loudly"],
        &["mount", &reference],
        &["mount", &reference, "/tmp", "-o", "exec_everything"],
        &["mount", &reference, "/tmp", "--metadata", "perhaps"],
        &["mount", &reference, "/tmp", "--read-timeout", "8 parsecs"],
        &["mount", &reference, "/tmp", "--read-timeout", "8"],
        &["mount", &reference, "/tmp", "--memory", "lots"],
        &["mount", &reference, "/tmp", "--cache-size", "-1GiB"],
        &["verify", &reference, "--output", "xml"],
        &["cat", &reference],
        &["cache"],
        &["cache", "melt"],
        &["ls", &reference, "--filter", ""],
        &["ls", &reference, "--filter", "everything"],
        &["verify", &reference, "--offline", "--require-fresh"],
        &["verify", &reference, "--config", "/nonexistent/config.toml"],
        &["verify", &reference, "--policy", "/nonexistent/policy.toml"],
        &["verify", &reference, "--key", "/nonexistent/key.pub"],
        &["verify", &reference, "--trusted-root", "/nonexistent/root.json"],
        &["verify", &reference, "--certificate-identity", "x"],
        &["verify", &reference, "--certificate-oidc-issuer", "x"],
        &["verify", &reference, "--certificate-identity-regexp", "(", "--certificate-oidc-issuer", "x"],
        &["umount", "/tmp", "--policy", "x"],
        &["policy"],
        &["policy", "melt", "x"],
        &["policy", "check", "/nonexistent/policy.toml"],
        &["policy", "test", "/nonexistent/tests.toml"],
    ];
    for words in cases {
        kitfs.run(words).expect(2);
    }
}

#[test]
fn what_is_not_built_yet_does_not_exist() {
    let kitfs = Kitfs::new();
    let reference = reference(&kitfs);
    kitfs.run(&["verify", &reference, "--hosts-dir", "x"]).expect(2).says("--hosts-dir");
    for command in ["serve", "upgrade", "generate"] {
        kitfs.run(&[command, "x"]).expect(2);
    }
}

#[test]
fn help_and_version_are_0_and_on_standard_output() {
    let kitfs = Kitfs::new();
    for words in [&["--help"][..], &["--version"], &["help"], &["mount", "--help"], &["cache", "verify", "--help"]] {
        let output = kitfs.run(words).expect(0);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{output}");
    }
    for command in ["mount", "umount", "status", "ls", "cat", "export", "inspect", "verify", "pull", "cache", "doctor"]
    {
        kitfs.run(&[command, "--help"]).expect(0);
    }
}

#[test]
fn settings_come_from_flags_then_variables_then_the_file() {
    let kitfs = Kitfs::new();
    let reference = reference(&kitfs);
    let config = kitfs.path("config.toml");
    let path = config.to_str().expect("a plain name");
    let write = |text: &str| std::fs::write(&config, text).expect("our own directory");

    write("memory = \"64MiB\"\nread-timeout = \"8s\"\n");
    kitfs.run(&["verify", &reference, "--config", path]).expect(0);
    for (text, word) in [
        ("memroy = \"64MiB\"\n", "memroy"),
        ("memory = \"lots\"\n", "memory"),
        ("read-timeout = \"8 parsecs\"\n", "read-timeout"),
        ("prefetch = \"x\"\n", "prefetch"),
        ("memory = \n", "config.toml"),
    ] {
        write(text);
        kitfs.run(&["verify", &reference, "--config", path]).expect(2).says(word);
    }
    let other = Kitfs::new().with("KITFS_CONFIG", path);
    write("memroy = 1\n");
    other.run(&["verify", &reference]).expect(2).says("memroy");

    let wrong = Kitfs::new().with("KITFS_READ_TIMEOUT", "8 parsecs");
    wrong.run(&["verify", &reference]).expect(2);
    wrong.run(&["verify", &reference, "--read-timeout", "8s"]).expect(0);
}

#[test]
fn the_file_of_an_ordinary_user_is_in_their_home() {
    // Root's is in /etc, which a test leaves alone.
    if !rustix::process::geteuid().is_root() || !host::has("setpriv") {
        return;
    }
    let kitfs = Kitfs::of(User::Nobody);
    let reference = reference(&kitfs);
    let folder = kitfs.path("home/.config/kitfs");
    std::fs::create_dir_all(&folder).expect("our own directory");
    std::fs::write(folder.join("config.toml"), "memroy = 1\n").expect("our own directory");
    kitfs.run(&["verify", &reference]).expect(2).says("memroy");
    std::fs::write(folder.join("config.toml"), "memory = \"64MiB\"\n").expect("our own directory");
    kitfs.run(&["verify", &reference]).expect(0);
}

#[test]
fn json_is_one_document_and_messages_are_elsewhere() {
    let kitfs = Kitfs::new();
    let reference = reference(&kitfs);
    for words in [
        &["verify", &reference, "--output", "json"][..],
        &["pull", &reference, "--output", "json"],
        &["ls", &reference, "--output", "json"],
        &["inspect", &reference, "-o", "json"],
        &["status", "--output", "json"],
        &["cache", "info", "--output", "json"],
        &["cache", "list", "--output", "json"],
        &["cache", "verify", "--output", "json"],
    ] {
        let output = kitfs.run(words).expect(0);
        output.json();
        assert!(!output.stderr.contains("\u{1b}["), "colours without a terminal\n{output}");
    }
    let info = kitfs.run(&["cache", "info", "--output", "json"]).expect(0).json();
    for key in ["bytes", "objects", "limit", "pinned", "fs_verity"] {
        assert!(!info[key].is_null(), "{key}: {info}");
    }
    assert!(info["objects"].as_u64().is_some_and(|objects| objects > 0), "{info}");
    let doctor = kitfs.run(&["doctor", "--output", "json"]);
    assert!(matches!(doctor.code, 0 | 1), "{doctor}");
    let checks = doctor.json();
    assert!(checks["checks"].as_array().is_some_and(|checks| !checks.is_empty()), "{doctor}");
    for check in checks["checks"].as_array().into_iter().flatten() {
        assert!(check["name"].is_string() && check["ok"].is_boolean(), "{doctor}");
    }
}

#[test]
fn pruning_empties_the_cache_and_leaves_it_usable() {
    let kitfs = Kitfs::new();
    let reference = reference(&kitfs);
    kitfs.run(&["pull", &reference]).expect(0);
    kitfs.run(&["cache", "verify"]).expect(0);
    kitfs.run(&["cache", "prune", "--help"]).expect(0);
    kitfs.run(&["cache", "prune"]).expect(0);
    kitfs.run(&["verify", &reference]).expect(0);
    kitfs.run(&["cache", "verify"]).expect(0);
}
