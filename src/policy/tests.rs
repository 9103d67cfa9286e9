use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::digest::Digest;
use crate::policy::evidence::Attestation;
use crate::policy::evidence::LogEntry;
use crate::policy::evidence::Seal;
use crate::policy::pattern::Pattern;

const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEFpYxy3ZfZfynG9eF8e5AxQp76fK8\n\
    M96G0SmdxmEhAEnjlWabcYZdg2lbKJHIrDocHq4e0hq3+3AdNdEYxwirhQ==\n-----END PUBLIC KEY-----\n";

fn key() -> Signer {
    Signer::Key { fingerprint: PublicKey::from_pem(KEY.as_bytes()).unwrap().fingerprint() }
}

fn person(identity: &str) -> Signer {
    let mut extensions = BTreeMap::new();
    extensions.insert("build_trigger".into(), "push".into());
    Signer::Certificate { identity: identity.into(), issuer: "https://accounts.example".into(), extensions }
}

fn seal(signer: Signer) -> Seal {
    Seal { signer, log: None, stamped_at: None, annotations: BTreeMap::new(), found: String::new() }
}

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Policies from one file beside `a.pub`.
fn read(text: &str) -> Result<Policies, PolicyError> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.pub", KEY);
    write(folder.path(), "no.pub", "no key");
    Policies::of_file(&write(folder.path(), "policy.toml", text))
}

fn request<'a>(reference: &'a str, version: &'a crate::reference::Version) -> Request<'a> {
    Request {
        reference,
        names: names(&reference.parse().unwrap()),
        tag: version.tag.as_deref(),
        named: Named::by(version),
        digest: Digest::of(b""),
        manifest: b"{\"layers\": []}",
        kitfile: Some(b"{\"package\": {\"name\": \"n\"}}"),
        parent: None,
        child: None,
    }
}

fn decide(policies: &Policies, reference: &str, evidence: &Evidence) -> Decision {
    let parsed: crate::reference::Reference = reference.parse().unwrap();
    policies.decide_at(&request(reference, parsed.version()), now(), &Limits::default(), |_, _| evidence.clone())
}

fn verdict(text: &str, evidence: &Evidence) -> Verdict {
    decide(&read(text).unwrap(), "ghcr.io/acme/llm:v1", evidence).verdict()
}

fn rule(rest: &str) -> String {
    format!("version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\n{rest}")
}

fn signed(seals: impl Into<Vec<Seal>>) -> Evidence {
    Evidence { signatures: seals.into(), ..Evidence::default() }
}

#[test]
fn without_a_policy_nobody_decides() {
    let decision = decide(&Policies::none(), "ghcr.io/acme/llm:v1", &Evidence::default());
    assert_eq!(decision.verdict(), Verdict::None);
    assert_eq!(decision.admit().unwrap().verdict(), Verdict::None);
}

#[test]
fn the_most_specific_rule_decides_alone() {
    let policies = read(
        "version = 1\ndefault = \"deny\"\n\
         [[rule]]\nmatch = \"ghcr.io/**\"\n\
         [[rule]]\nmatch = \"ghcr.io/acme/**\"\nreferences = \"digest\"\n\
         [[rule]]\nmatch = \"ghcr.io/acme/llm\"\nmode = \"warn\"\nreferences = \"digest\"\n",
    )
    .unwrap();
    for (reference, expected, rule) in [
        ("ghcr.io/other/llm:v1", Verdict::Allow, "rule ghcr.io/**"),
        ("ghcr.io/acme/other:v1", Verdict::Deny, "rule ghcr.io/acme/**"),
        ("ghcr.io/acme/llm:v1", Verdict::Warn, "rule ghcr.io/acme/llm"),
        ("quay.io/acme/llm:v1", Verdict::Deny, "default"),
    ] {
        let decision = decide(&policies, reference, &Evidence::default());
        assert_eq!(decision.verdict(), expected, "{reference}");
        assert!(decision.rules()[0].ends_with(rule), "{:?}", decision.rules());
        assert_eq!(decision.admit().is_none(), expected == Verdict::Deny);
        assert!(!decision.reasons().is_empty() || expected == Verdict::Allow);
    }
}

#[test]
fn two_runs_of_one_workflow_are_one_signer() {
    let run = |number: &str| {
        let extensions = BTreeMap::from([("run_invocation_uri".to_owned(), number.to_owned())]);
        let (identity, issuer) = ("workflow".to_owned(), "https://accounts.example".to_owned());
        seal(Signer::Certificate { identity, issuer, extensions })
    };
    let workflow = "{ identity = \"workflow\", issuer = \"https://accounts.example\" }";
    let text = rule(&format!("[[rule.signature]]\nany = [{workflow}, {{ key = \"a.pub\" }}]\nat_least = 2\n"));
    assert_eq!(verdict(&text, &signed([run("1"), run("2")])), Verdict::Deny);
    assert_eq!(verdict(&text, &signed([run("1"), run("2"), seal(key())])), Verdict::Allow);
}

#[test]
fn who_must_have_signed() {
    let people = |names: &[&str]| signed(names.iter().map(|name| seal(person(name))).collect::<Vec<_>>());
    let regexp = "[[rule.signature]]\nany = [{ identity_regexp = \"[ab]\", issuer = \"https://accounts.example\" }]\n";
    for (text, evidence, allowed) in [
        (rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n"), signed([seal(key())]), true),
        (rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n"), people(&["a"]), false),
        (rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\nlog = true\n"), signed([seal(key())]), false),
        (
            rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\nlog = true\n"),
            signed([Seal { log: Some(LogEntry { at: None }), ..seal(key()) }]),
            true,
        ),
        (
            rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\ntimestamp = true\n"),
            signed([Seal { log: Some(LogEntry { at: Some(now()) }), ..seal(key()) }]),
            false,
        ),
        (
            rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\ntimestamp = true\n"),
            signed([Seal { stamped_at: Some(now()), ..seal(key()) }]),
            true,
        ),
        (rule(regexp), people(&["b"]), true),
        (rule(regexp), people(&["ab"]), false),
        (rule(&format!("{regexp}at_least = 2\n")), people(&["a", "a"]), false),
        (rule(&format!("{regexp}at_least = 2\n")), people(&["a", "b"]), true),
        (
            rule("[[rule.signature]]\nany = [{ identity = \"a\", issuer = \"https://other.example\" }]\n"),
            people(&["a"]),
            false,
        ),
        (
            rule(
                "[[rule.signature]]\nany = [{ identity = \"a\", issuer_regexp = \"https://.*\", extensions = { build_trigger = \"push\" } }]\n",
            ),
            people(&["a"]),
            true,
        ),
        (
            rule(
                "[[rule.signature]]\nany = [{ identity = \"a\", issuer_regexp = \"https://.*\", extensions = { build_trigger = \"pull_request\" } }]\n",
            ),
            people(&["a"]),
            false,
        ),
        (
            rule(
                "[[rule.signature]]\nall = [{ key = \"a.pub\" }, { identity = \"a\", issuer = \"https://accounts.example\" }]\n",
            ),
            signed([seal(key()), seal(person("a"))]),
            true,
        ),
        (
            rule(
                "[[rule.signature]]\nall = [{ key = \"a.pub\" }, { identity = \"a\", issuer = \"https://accounts.example\" }]\n",
            ),
            signed([seal(key())]),
            false,
        ),
        // Each block must hold.
        (
            rule(
                "[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n[[rule.signature]]\nany = [{ identity = \"a\", issuer = \"https://accounts.example\" }]\n",
            ),
            signed([seal(key())]),
            false,
        ),
        // An attestation is no signature.
        (
            rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n"),
            Evidence { attestations: vec![attestation("t", json!({}))], ..Evidence::default() },
            false,
        ),
        (rule(""), Evidence::default(), true),
    ] {
        let expected = if allowed { Verdict::Allow } else { Verdict::Deny };
        assert_eq!(verdict(&text, &evidence), expected, "{text}");
    }
}

#[test]
fn the_signers_are_those_who_satisfied_it() {
    let text = rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n");
    let decision = decide(&read(&text).unwrap(), "kit:llm", &signed([seal(key()), seal(person("a"))]));
    assert_eq!(decision.admit().unwrap().signers(), [key().to_string()]);
}

fn attestation(predicate_type: &str, predicate: serde_json::Value) -> Attestation {
    let statement = json!({"predicateType": predicate_type, "predicate": predicate});
    Attestation { seal: seal(key()), predicate_type: predicate_type.into(), statement }
}

#[test]
fn what_must_be_attested() {
    let vuln = "https://cosign.sigstore.dev/attestation/vuln/v1";
    let block = format!("[[rule.attestation]]\npredicate_type = \"{vuln}\"\nany = [{{ key = \"a.pub\" }}]\n");
    let scanned = |at: &str| attestation(vuln, json!({"metadata": {"scanFinishedOn": at}, "critical": 0}));
    let resigned = |at: &str| {
        let mut attestation = scanned(at);
        attestation.seal.log = Some(LogEntry { at: Some(now()) });
        attestation
    };
    for (rest, attestation, allowed) in [
        ("", scanned("2026-11-20T00:00:00Z"), true),
        ("max_age = \"30d\"\n", scanned("2026-11-20T00:00:00Z"), true),
        ("max_age = \"30d\"\n", scanned("2026-10-20T00:00:00Z"), false),
        ("max_age = \"30d\"\n", resigned("2026-10-20T00:00:00Z"), false),
        ("max_age = \"30d\"\n", scanned("2027-10-20T00:00:00Z"), false),
        ("max_age = \"30d\"\n", scanned("yesterday"), false),
        ("max_age = \"30d\"\n", attestation(vuln, json!({})), false),
        ("log = true\n", scanned("2026-11-20T00:00:00Z"), false),
        ("log = true\n", resigned("2026-11-20T00:00:00Z"), true),
        ("where = [{ pointer = \"/predicate/critical\", equals = 0 }]\n", scanned("2026-11-20T00:00:00Z"), true),
        ("where = [{ pointer = \"/predicate/critical\", equals = 1 }]\n", scanned("2026-11-20T00:00:00Z"), false),
        ("", attestation("https://spdx.dev/Document", json!({})), false),
    ] {
        let evidence = Evidence { attestations: vec![attestation], ..Evidence::default() };
        let expected = if allowed { Verdict::Allow } else { Verdict::Deny };
        assert_eq!(verdict(&rule(&format!("{block}{rest}")), &evidence), expected, "{rest}");
    }
}

#[test]
fn conditions_of_one_block_hold_for_one_attestation() {
    let text = rule(
        "[[rule.attestation]]\npredicate_type = \"t\"\nany = [{ key = \"a.pub\" }]\n\
         where = [{ pointer = \"/predicate/a\", equals = 1 }, { pointer = \"/predicate/b\", equals = 1 }]\n",
    );
    let attestations = vec![attestation("t", json!({"a": 1})), attestation("t", json!({"b": 1}))];
    let halves = Evidence { attestations, ..Evidence::default() };
    assert_eq!(verdict(&text, &halves), Verdict::Deny);
    let whole = Evidence { attestations: vec![attestation("t", json!({"a": 1, "b": 1}))], ..Evidence::default() };
    assert_eq!(verdict(&text, &whole), Verdict::Allow);
}

#[test]
fn rego_sees_what_the_documentation_says() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.pub", KEY);
    write(
        folder.path(),
        "kitfs.rego",
        "package kitfs\nallow if {\n\
         input.request.reference == \"ghcr.io/acme/llm:v1\"; input.request.name == \"ghcr.io/acme/llm\"\n\
         input.request.tag == \"v1\"; input.request.by_digest == false; input.request.parent == null\n\
         startswith(input.digest, \"sha256:\"); input.manifest.layers == []; input.kitfile.package.name == \"n\"\n\
         input.signatures[0].kind == \"key\"; startswith(input.signatures[0].identity, \"key:sha256:\")\n\
         input.signatures[0].logged == false; input.signatures[0].annotations.env == \"prod\"\n\
         input.signatures[1].issuer == \"https://accounts.example\"; input.signatures[1].extensions.build_trigger == \"push\"\n\
         input.attestations[0].predicate_type == \"t\"; input.attestations[0].statement.predicate.n == 1\n\
         time.parse_rfc3339_ns(input.now) > 0\n}\n",
    );
    let policies =
        Policies::of_file(&write(folder.path(), "policy.toml", &rule("[[rule.rego]]\nfile = \"kitfs.rego\"\n")))
            .unwrap();
    let first = Seal { annotations: BTreeMap::from([("env".into(), "prod".into())]), ..seal(key()) };
    let evidence = Evidence {
        signatures: vec![first, seal(person("a"))],
        attestations: vec![attestation("t", json!({"n": 1}))],
        rejected: Vec::new(),
    };
    let decision = decide(&policies, "ghcr.io/acme/llm:v1", &evidence);
    assert_eq!(decision.verdict(), Verdict::Allow, "{:?}", decision.reasons());
    assert_eq!(decide(&policies, "ghcr.io/acme/llm:v2", &evidence).verdict(), Verdict::Deny);
}

#[test]
fn the_strictest_policy_counts_and_a_satisfied_one_gives_no_reason() {
    let folder = tempfile::tempdir().unwrap();
    let allow = write(folder.path(), "allow.toml", "version = 1\ndefault = \"allow\"\n");
    let warn =
        write(folder.path(), "warn.toml", &rule("mode = \"warn\"\nreferences = \"digest\"\naudit = \"required\"\n"));
    let deny = write(folder.path(), "deny.toml", "version = 1\ndefault = \"deny\"\n");
    for (standing, file, expected) in [
        (vec![allow.clone()], &allow, Verdict::Allow),
        (vec![allow.clone()], &warn, Verdict::Warn),
        (vec![warn.clone()], &allow, Verdict::Warn),
        (vec![deny.clone(), allow.clone()], &warn, Verdict::Deny),
        (vec![allow.clone(), warn.clone()], &deny, Verdict::Deny),
    ] {
        let has_warn = standing.contains(&warn) || *file == warn;
        let options = Options { standing, file: Some(file.clone()), ..Options::default() };
        let decision = decide(&Policies::load(&options).unwrap(), "kit:llm", &Evidence::default());
        assert_eq!(decision.verdict(), expected);
        assert_eq!(decision.audit() == AuditDemand::Required, has_warn);
        if expected != Verdict::Allow {
            let name = if expected == Verdict::Warn { "warn.toml" } else { "deny.toml" };
            assert!(decision.reasons().iter().all(|reason| reason.contains(name)), "{:?}", decision.reasons());
        }
    }
}

#[test]
fn what_is_no_policy_names_file_and_key() {
    for (text, key) in [
        ("", "version"),
        ("version = 1", "default"),
        ("version = \"1\"\ndefault = \"deny\"", "version"),
        ("version = 3\ndefault = \"deny\"", "version"),
        ("version = 1\ndefault = \"deny\"\ndefault = \"allow\"", "line 3"),
        (&rule("signatures = []\n"), "signatures"),
        (&rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\nat_last = 1\n"), "at_last"),
        (&rule("[[rule.signature]]\nany = [{ key = \"a.pub\", issuer = \"x\" }]\n"), "not both"),
        (&rule("[[rule.signature]]\nany = [{ key = \"no.pub\" }]\n"), "no.pub"),
        (&rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\nat_least = 2\n"), "at_least"),
        (&rule("[[rule.signature]]\nany = [{ key = \"a.pub\" }]\nat_least = 0\n"), "at_least"),
        (&rule("[[rule.signature]]\nany = []\n"), "who"),
        (
            &rule("[[rule.signature]]\nany = [{ identity = \"x\", identity_regexp = \"x\", issuer = \"y\" }]\n"),
            "not both",
        ),
        (&rule("[[rule.signature]]\nany = [{ identity_regexp = \"(\", issuer = \"y\" }]\n"), "regular expression"),
        (&rule("[[rule.attestation]]\nany = [{ key = \"a.pub\" }]\n"), "predicate_type"),
        (
            &rule("[[rule.attestation]]\npredicate_type = \"t\"\nany = [{ key = \"a.pub\" }]\nmax_age = \"old\"\n"),
            "max_age",
        ),
        (
            &rule(
                "[[rule.attestation]]\npredicate_type = \"t\"\nany = [{ key = \"a.pub\" }]\nwhere = [{ pointer = \"/a\" }]\n",
            ),
            "/a",
        ),
        (&rule("[[rule.rego]]\nbundle = \"b.tar.gz\"\n"), "bundle_key"),
        (&rule("[[rule.rego]]\ndata = \"d.json\"\n"), "rego"),
        (&rule("parents = [\"a/b:v1\"]\n"), "parents"),
        (&rule("audit = \"maybe\"\n"), "audit"),
        (&rule("[[rule]]\nmatch = \"**\"\n"), "equally specific"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("policy.toml") && error.contains(key), "{key}: {error}");
    }
}

#[test]
fn flags_are_a_policy() {
    let folder = tempfile::tempdir().unwrap();
    let keys = vec![write(folder.path(), "a.pub", KEY)];
    let identity = |identity: Option<&str>, issuer: Option<&str>| Identity {
        identity: identity.map(str::to_owned),
        issuer: issuer.map(str::to_owned),
        ..Identity::default()
    };
    let by_key = Policies::load(&Options { keys: keys.clone(), ..Options::default() }).unwrap();
    assert_eq!(decide(&by_key, "kit:llm", &signed([seal(key())])).verdict(), Verdict::Allow);
    assert_eq!(decide(&by_key, "kit:llm", &Evidence::default()).verdict(), Verdict::Deny);
    let who = identity(Some("a"), Some("https://accounts.example"));
    let both = Policies::load(&Options { keys, identity: who, ..Options::default() }).unwrap();
    assert_eq!(decide(&both, "kit:llm", &signed([seal(key())])).verdict(), Verdict::Deny);
    assert_eq!(decide(&both, "kit:llm", &signed([seal(key()), seal(person("a"))])).verdict(), Verdict::Allow);
    for half in [identity(Some("a"), None), identity(None, Some("b"))] {
        let error = Policies::load(&Options { identity: half, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}

#[test]
fn a_policy_is_evaluated_in_no_time() {
    let mut text = "version = 1\ndefault = \"deny\"\n".to_owned();
    for number in 0..200 {
        text += &format!("[[rule]]\nmatch = \"ghcr.io/team-{number:03}/**\"\n");
    }
    text += "[[rule]]\nmatch = \"ghcr.io/acme/**\"\n[[rule.signature]]\nany = [{ key = \"a.pub\" }]\n\
             [[rule.attestation]]\npredicate_type = \"t\"\nany = [{ key = \"a.pub\" }]\nmax_age = \"30d\"\n";
    let policies = read(&text).unwrap();
    let evidence = signed((0..256).map(|number| seal(person(&format!("p{number}")))).collect::<Vec<_>>());
    let begun = Instant::now();
    assert_eq!(decide(&policies, "ghcr.io/acme/llm:v1", &evidence).verdict(), Verdict::Deny);
    // 20 ms on a machine of its own; tests share theirs, and are not optimised.
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn every_name_fits_the_pattern_of_flags() {
    assert!(Pattern::everything().matches("oci:/a/b") && Pattern::everything().matches("ghcr.io/a"));
}
