//! Policies: their places and their precedence, what makes one none, and that a kit which is refused is refused
//! everywhere. What they say of the shared truth table is tested in `signed`.

use std::path::Path;

use serde_json::Value;

use crate::signed::quoted;
use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, file};
use crate::support::kitfs::{Kitfs, User};
use crate::support::shared;

fn write(kitfs: &Kitfs, name: &str, text: &str) -> String {
    let path = kitfs.path(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A policy that demands a signature by one of the table's keys.
fn signed_by(folder: &Path, key: &str, mode: &str) -> String {
    let key = folder.join("keys").join(key);
    format!(
        "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"oci:**\"\nmode = \"{mode}\"\n\
         [[rule.signature]]\nany = [{{ key = {} }}]\n",
        quoted(key.to_str().unwrap())
    )
}

#[test]
fn a_kit_that_is_refused_is_refused_by_every_command_and_nothing_of_it_is_left() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:1.0", folder.join("layouts/unsigned").display());
    let policy = write(&kitfs, "policy.toml", &signed_by(&folder, "p256.pub", "enforce"));
    let target = kitfs.path("target");
    let directory = kitfs.next_directory();
    std::fs::create_dir(&directory).unwrap();
    let (target, directory) = (target.to_str().unwrap(), directory.to_str().unwrap());
    for command in [
        &["verify", &reference][..],
        &["pull", &reference],
        &["ls", &reference],
        &["cat", &reference, "Kitfile"],
        &["export", &reference, target],
        &["mount", &reference, directory],
    ] {
        let arguments = [command, &["--policy", &policy]].concat();
        kitfs.run(&arguments).expect(6).says("refused by policy").says("not signed");
    }
    assert!(!Path::new(target).exists() || std::fs::read_dir(target).unwrap().next().is_none());
    assert!(std::fs::read_dir(kitfs.path("cache/v1/objects")).unwrap().next().is_none(), "something was fetched");
    let shown = kitfs.run(&["inspect", &reference, "--policy", &policy, "-o", "json"]).expect(0).json();
    assert_eq!(shown["signatures"], serde_json::json!([]));
}

#[test]
fn a_policy_that_only_warns_lets_the_kit_through_and_says_so() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:1.0", folder.join("layouts/unsigned").display());
    let policy = write(&kitfs, "policy.toml", &signed_by(&folder, "p256.pub", "warn"));
    let output = kitfs.run(&["verify", &reference, "--policy", &policy, "-o", "json"]).expect(0).says("not signed");
    assert_eq!(output.json()["policy"]["decision"], "warn");
    if host::can_mount() {
        let mount = kitfs.mount_with(&reference, &["--policy", &policy]);
        assert_eq!(mount.status()["policy"], "warn");
        mount.unmount();
    }
}

#[test]
fn a_refused_kit_is_let_through_only_by_its_digest_and_only_if_that_is_written_down() {
    let kitfs = Kitfs::new();
    let packed = Kit::usual("mine").pack();
    let layout = Layout::of(kitfs.path("layout"), &packed);
    let reference = layout.reference("v1");
    let policy = write(&kitfs, "policy.toml", "version = 1\ndefault = \"deny\"\n");
    let other = format!("sha256:{}", "0".repeat(64));
    let verify = |digest: &str, more: &[&str]| {
        let words = ["verify", &reference, "--policy", &policy, "--danger-allow-refused", digest, "-o", "json"];
        kitfs.run(&[&words[..], more].concat())
    };
    verify(&other, &[]).expect(6).says("no rule matches");
    let used = || kitfs.run(&["audit", "show", "--event", "danger-used", "-o", "json"]).expect(0).json();
    assert_eq!(used()["events"].as_array().unwrap().len(), 0);
    let output = verify(&packed.digest(), &[]).expect(0);
    let decided = &output.json()["policy"];
    assert_eq!(decided["decision"], "warn", "{output}");
    assert!(decided["reasons"].to_string().contains("no rule matches"), "{output}");
    let events = used()["events"].as_array().unwrap().clone();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0]["option"], &events[0]["digest"]),
        (&"--danger-allow-refused".into(), &packed.digest().into())
    );
    assert!(events[0]["detail"].as_str().unwrap().contains("policy.toml"), "{events:?}");
    // A log that cannot be written.
    std::fs::create_dir_all(kitfs.path("log/inner")).unwrap();
    verify(&packed.digest(), &["--audit-log", kitfs.path("log").to_str().unwrap()]).expect(1).says("audit log");
    verify("latest", &[]).expect(2).says("--danger-allow-refused");
    // Where nothing is refused, nothing is let through.
    kitfs.run(&["verify", &reference, "--danger-allow-refused", &packed.digest()]).expect(0);
    assert_eq!(used()["events"].as_array().unwrap().len(), 1);
    // What is damaged is damaged, whoever lets it through.
    let layer = packed.layers[0].digest.clone();
    let blob = kitfs.path("layout/blobs").join(layer.replace(':', "/"));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    verify(&packed.digest(), &[]).expect(5);
    if host::can_mount() {
        let whole = Kit::usual("whole").pack();
        let reference = Layout::of(kitfs.path("whole"), &whole).reference("v1");
        let mount = kitfs.mount_with(&reference, &["--policy", &policy, "--danger-allow-refused", &whole.digest()]);
        assert_eq!(mount.status()["policy"], "warn");
        mount.unmount();
    }
}

#[test]
fn status_says_who_signed_and_a_new_worker_does_not_ask_again() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:1.0", folder.join("layouts/sig-p256").display());
    let policy = write(&kitfs, "policy.toml", &signed_by(&folder, "p256.pub", "enforce"));
    let mount = kitfs.mount_with(&reference, &["--policy", &policy]);
    let before = mount.status();
    assert_eq!(before["policy"], "allow");
    let signer = before["signers"][0].as_str().unwrap();
    assert!(signer.starts_with("key:sha256:") && signer.len() == 11 + 64, "{signer}");
    // A policy that refuses everything now is for the next mount.
    std::fs::write(&policy, "version = 1\ndefault = \"deny\"\n").unwrap();
    let worker = mount.process("pid");
    // SAFETY: a plain system call on a process of this test's mount.
    unsafe { libc::kill(worker, libc::SIGKILL) };
    assert!(host::soon(60, || mount.status()["takeovers"] == 1), "nobody took over");
    let after = mount.status();
    assert_eq!((&after["policy"], &after["signers"]), (&before["policy"], &before["signers"]));
    std::fs::read(mount.at("Kitfile")).expect("it is served on");
    mount.unmount();
    kitfs.run(&["ls", &reference, "--policy", &policy]).expect(6);
}

#[test]
fn every_policy_must_allow_and_none_replaces_another() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:1.0", folder.join("layouts/sig-p256").display());
    let key = |name: &str| folder.join("keys").join(name).to_str().unwrap().to_owned();
    let good = write(&kitfs, "good.toml", &signed_by(&folder, "p256.pub", "enforce"));
    let other = write(&kitfs, "other.toml", &signed_by(&folder, "p256-other.pub", "enforce"));
    let lax = write(&kitfs, "lax.toml", "version = 1\ndefault = \"allow\"\n");
    for (arguments, exit) in [
        (&["--policy", &good, "--key", &key("p256.pub")][..], 0),
        (&["--policy", &good, "--key", &key("p256-other.pub")], 6),
        (&["--policy", &other, "--key", &key("p256.pub")], 6),
        (&["--policy", &lax, "--key", &key("p256-other.pub")], 6),
        (&["--policy", &lax], 0),
    ] {
        let output = kitfs.run(&[&["verify", &reference][..], arguments].concat());
        assert_eq!(output.code, exit, "{output}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_refuses_everything() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:1.0", folder.join("layouts/sig-p256").display());
    let directory = kitfs.next_directory();
    std::fs::create_dir(&directory).unwrap();
    for (text, why) in [
        ("version = 1\n", "default"),
        ("version = 2\ndefault = \"allow\"\n", "version"),
        ("version = 1\ndefault = \"allow\"\nextra = 1\n", "extra"),
        ("version = 1\ndefault = \"perhaps\"\n", "default"),
        (
            "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"a/**\"\n[[rule]]\nmatch = \"a/**\"\n",
            "equally specific",
        ),
        ("version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"a/b:v1\"\n", "without tag"),
        (
            "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"**\"\n[[rule.signature]]\nany = [{ key = \"absent.pub\" }]\n",
            "absent.pub",
        ),
        (
            "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"**\"\n[[rule.signature]]\nany = [{ identity = \"x\" }]\n",
            "issuer",
        ),
        ("version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"**\"\n[[rule.signature]]\nlog = true\n", "who"),
        (
            "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"**\"\ntrusted_root = \"absent.json\"\n",
            "trusted_root",
        ),
        (
            "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"**\"\n[[rule.rego]]\nfile = \"absent.rego\"\n",
            "absent.rego",
        ),
        ("not TOML", "line 1"),
    ] {
        let policy = write(&kitfs, "policy.toml", text);
        kitfs.run(&["policy", "check", &policy]).expect(2).says(why).says("policy.toml");
        for command in [&["verify", &reference][..], &["mount", &reference, directory.to_str().unwrap()]] {
            kitfs.run(&[command, &["--policy", &policy]].concat()).expect(2).says(why);
        }
    }
    let absent = kitfs.path("absent.toml");
    kitfs.run(&["ls", &reference, "--policy", absent.to_str().unwrap()]).expect(2).says("absent.toml");
}

#[test]
fn explain_says_which_rule_and_which_condition() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    let kitfs = Kitfs::new();
    let policy = write(&kitfs, "policy.toml", &signed_by(&folder, "p256.pub", "enforce"));
    for (layout, decision, ok) in
        [("sig-p256", "allow", true), ("sig-rsa2048", "deny", false), ("unsigned", "deny", false)]
    {
        let reference = format!("oci:{}:1.0", folder.join("layouts").join(layout).display());
        let explained =
            kitfs.run(&["policy", "explain", &reference, "--policy", &policy, "-o", "json"]).expect(0).json();
        assert_eq!(explained["decision"], decision, "{explained}");
        assert!(explained["rule"].as_str().unwrap().ends_with("rule oci:**"), "{explained}");
        assert_eq!(explained["conditions"][0]["ok"], ok, "{explained}");
        assert!(explained["conditions"][0]["what"].as_str().unwrap().contains("p256.pub"), "{explained}");
        assert!(!explained["conditions"][0]["why"].as_str().unwrap().is_empty(), "{explained}");
    }
    let reference = format!("oci:{}:1.0", folder.join("layouts/unsigned").display());
    let without = kitfs.run(&["policy", "explain", &reference, "-o", "json"]).expect(0).json();
    assert_eq!(without, serde_json::json!({"decision": "none", "rule": null, "conditions": []}));
}

#[test]
fn every_link_of_a_chain_is_admitted_by_its_own_rule() {
    let kitfs = Kitfs::new();
    let child =
        Kit::named("child").parent("registry.invalid/org/base:v1").with(Base::Part, "a", [file("a", *b"a")]).pack();
    let base = Kit::named("base").with(Base::Model, "m", [file("m", *b"m")]).pack();
    let layout = Layout::of(kitfs.path("layout"), &child);
    base.write(&layout, Some("registry.invalid/org/base:v1"));
    let reference = layout.reference("v1");
    write(&kitfs, "some.pub", SOME_KEY);
    let signed = "[[rule.signature]]\nany = [{ key = \"some.pub\" }]\n";
    for (rules, exit, why) in [
        ("[[rule]]\nmatch = \"oci:**\"\n".to_owned(), 6, "no rule matches registry.invalid/org/base"),
        ("[[rule]]\nmatch = \"oci:**\"\n[[rule]]\nmatch = \"registry.invalid/**\"\n".to_owned(), 0, ""),
        (format!("[[rule]]\nmatch = \"oci:**\"\n[[rule]]\nmatch = \"registry.invalid/**\"\n{signed}"), 6, "not signed"),
        (
            "[[rule]]\nmatch = \"oci:**\"\nparents = []\n[[rule]]\nmatch = \"registry.invalid/**\"\n".to_owned(),
            6,
            "builds on no other",
        ),
        (
            "[[rule]]\nmatch = \"oci:**\"\nparents = [\"registry.invalid/org/*\"]\n\
             [[rule]]\nmatch = \"registry.invalid/**\"\n"
                .to_owned(),
            0,
            "",
        ),
        (
            "[[rule]]\nmatch = \"oci:**\"\n[[rule]]\nmatch = \"registry.invalid/**\"\nreferences = \"digest\"\n"
                .to_owned(),
            6,
            "is a tag",
        ),
    ] {
        let policy = write(&kitfs, "policy.toml", &format!("version = 1\ndefault = \"deny\"\n{rules}"));
        let output = kitfs.run(&["verify", &reference, "--policy", &policy, "-o", "json"]).expect(exit).says(why);
        let document = output.json();
        assert_eq!(document["policy"]["decision"], if exit == 0 { "allow" } else { "deny" }, "{output}");
        assert_eq!(document["digest"], child.digest(), "{output}");
    }
}

#[test]
fn the_policy_of_an_ordinary_user_counts_whatever_is_named() {
    // Root's is in /etc, which a test leaves alone.
    if !rustix::process::geteuid().is_root() || !host::has("setpriv") {
        return;
    }
    let kitfs = Kitfs::of(User::Nobody);
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("mine").pack());
    let reference = layout.reference("v1");
    let folder = kitfs.path("home/.config/kitfs");
    std::fs::create_dir_all(&folder).unwrap();
    let lax = write(&kitfs, "lax.toml", "version = 1\ndefault = \"allow\"\n");
    for (text, exit) in [
        ("version = 1\ndefault = \"deny\"\n", 6),
        ("version = 1\ndefault = \"allow\"\n", 0),
        ("version = 1\n", 2),
        ("", 2),
    ] {
        std::fs::write(folder.join("policy.toml"), text).unwrap();
        kitfs.run(&["verify", &reference]).expect(exit);
        kitfs.run(&["verify", &reference, "--policy", &lax]).expect(exit);
    }
    std::fs::remove_file(folder.join("policy.toml")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", folder.join("policy.toml")).unwrap();
    kitfs.run(&["verify", &reference]).expect(2);
}

#[test]
fn an_audit_log_that_is_demanded_and_cannot_be_written_stops_the_mount() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("mine").pack());
    let reference = layout.reference("v1");
    // A folder in the place of the log.
    std::fs::create_dir_all(kitfs.path("log/inner")).unwrap();
    let log = kitfs.path("log");
    let policy = |demand: &str| {
        let text = format!("version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"oci:**\"\naudit = \"{demand}\"\n");
        write(&kitfs, &format!("{demand}.toml"), &text)
    };
    let run = |demand: &str| {
        kitfs.run(&["ls", &reference, "--policy", &policy(demand), "--audit-log", log.to_str().unwrap()])
    };
    run("required").expect(1).says("audit log");
    run("best-effort").expect(0);
    kitfs.run(&["ls", &reference, "--policy", &policy("required")]).expect(0);
}

/// A public key that nobody has the private half of: examples need one to name.
const SOME_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEFpYxy3ZfZfynG9eF8e5AxQp76fK8\n\
    M96G0SmdxmEhAEnjlWabcYZdg2lbKJHIrDocHq4e0hq3+3AdNdEYxwirhQ==\n-----END PUBLIC KEY-----\n";
/// Another.
const OTHER_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEJiG6/yGsBk/1+q3tHQT5tIBcfC47\n\
    5pm6sYE2bAlBVhcxjzCuyM9uEEewycHUIa6N9xUsi6D9bvxqRT1/6UyEwg==\n-----END PUBLIC KEY-----\n";

#[test]
fn every_example_of_the_documentation_is_what_it_says() {
    let kitfs = Kitfs::new();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md")).unwrap();
    let folder = kitfs.path("examples");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("release.pub"), SOME_KEY).unwrap();
    std::fs::write(folder.join("scanner.pub"), OTHER_KEY).unwrap();
    std::fs::write(folder.join("root.json"), kitfs::trust::TrustedRoot::embedded().unwrap().json()).unwrap();
    let mut names = Vec::new();
    for block in text.split("```").skip(1).step_by(2) {
        let (_, block) = block.split_once("\n# ").expect("an example starts with the name of its file");
        let (name, content) = block.split_once('\n').unwrap();
        std::fs::write(folder.join(name), content).unwrap();
        names.push(name.to_owned());
    }
    assert!(names.len() >= 6, "{names:?}");
    for name in names.iter().filter(|name| name.ends_with(".toml")) {
        let path = folder.join(name);
        let command = if name == "tests.toml" { "test" } else { "check" };
        kitfs.run(&["policy", command, path.to_str().unwrap()]).expect(0);
    }
}

#[test]
fn cases_that_do_not_hold_are_told() {
    let kitfs = Kitfs::new();
    write(&kitfs, "some.pub", SOME_KEY);
    write(&kitfs, "other.pub", OTHER_KEY);
    write(
        &kitfs,
        "policy.toml",
        "version = 1\ndefault = \"allow\"\n[[rule]]\nmatch = \"ghcr.io/**\"\nparents = [\"ghcr.io/base/*\"]\nreferences = \"digest\"\n\
         [[rule.signature]]\nany = [{ key = \"some.pub\" }, { key = \"other.pub\" }]\nat_least = 2\n\
         [[rule.signature]]\nall = [{ key = \"some.pub\" }]\nlog = true\n",
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    let signed = "signature = [{ key = \"some.pub\", logged_at = \"2026-01-01T00:00:00Z\" }, { key = \"other.pub\" }]";
    let cases = write(
        &kitfs,
        "cases.toml",
        &format!(
            "version = 1\npolicy = \"policy.toml\"\n\
             [[case]]\nname = \"good\"\nreference = \"ghcr.io/a@{digest}\"\nexpect = \"allow\"\n{signed}\n\
             [[case]]\nname = \"by tag\"\nreference = \"ghcr.io/a:v1\"\nexpect = \"deny\"\nbecause = \"is a tag\"\n{signed}\n\
             [[case]]\nname = \"base\"\nreference = \"ghcr.io/a@{digest}\"\nexpect = \"deny\"\nparent = \"docker.io/x:v1\"\n{signed}\n\
             [[case]]\nname = \"one\"\nreference = \"ghcr.io/a@{digest}\"\nexpect = \"deny\"\nbecause = \"by 1 of them\"\nsignature = [{{ key = \"other.pub\" }}]\n\
             [[case]]\nname = \"elsewhere\"\nreference = \"quay.io/a:v1\"\nexpect = \"allow\"\n\
             [[case]]\nname = \"wrong\"\nreference = \"ghcr.io/a:v1\"\nexpect = \"allow\"\n"
        ),
    );
    let output = kitfs.run(&["policy", "test", &cases, "-o", "json"]).expect(1).says("1 of 6 cases");
    let document = output.json();
    assert_eq!(document["ok"], false);
    let bad: Vec<_> = document["cases"].as_array().unwrap().iter().filter(|case| case["ok"] == false).collect();
    assert_eq!(bad.len(), 1, "{document}");
    assert_eq!((&bad[0]["name"], &bad[0]["decision"]), (&Value::from("wrong"), &Value::from("deny")));
}
