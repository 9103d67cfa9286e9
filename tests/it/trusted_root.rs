//! Sigstore roots: which one is in use, and how another comes over TUF.

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::digest::Digest;
use kitfs::trust::TrustedRoot;
use serde_json::{Value, json};

use crate::support::kitfs::Kitfs;
use crate::trust::Script;

/// A TUF repository with one key for everything, and one target.
struct Repository {
    pair: EcdsaKeyPair,
    key: Value,
    files: BTreeMap<String, Vec<u8>>,
}

/// The form of JSON that is signed (securesystemslib): sorted, without white space, and with nothing escaped but
/// quotes and backslashes.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<_, _> = members.iter().collect();
            let members: Vec<_> =
                sorted.iter().map(|(name, value)| format!("\"{name}\":{}", canonical(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::String(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        other => other.to_string(),
    }
}

impl Repository {
    fn new(target: &[u8]) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let base64 = STANDARD.encode(spki.as_ref());
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        let key = json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": pem}});
        let mut repository = Self { pair, key, files: BTreeMap::new() };
        let named =
            json!({"trusted_root.json": {"length": target.len(), "hashes": {"sha256": Digest::of(target).hex()}}});
        let targets = repository.add("targets", "targets", named);
        let snapshot = repository.add("snapshot", "meta", json!({"targets.json": targets}));
        repository.add("timestamp", "meta", json!({"snapshot.json": snapshot}));
        repository.files.insert("/targets/trusted_root.json".into(), target.to_vec());
        repository
    }

    fn key_id(&self) -> String {
        Digest::of(canonical(&self.key).as_bytes()).hex()
    }

    fn signed(&self, signed: &Value) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), canonical(signed).as_bytes()).unwrap();
        let signature = json!({"keyid": self.key_id(), "sig": hex::encode(signature.as_ref())});
        json!({"signed": signed, "signatures": [signature]}).to_string().into_bytes()
    }

    /// Adds the metadata of a role; returns what another one says of it.
    fn add(&mut self, role: &str, about: &str, content: Value) -> Value {
        let mut document =
            json!({"_type": role, "spec_version": "1.0.0", "version": 1, "expires": "2099-01-01T00:00:00Z"});
        document[about] = content;
        let bytes = self.signed(&document);
        let said = json!({"version": 1, "length": bytes.len(), "hashes": {"sha256": Digest::of(&bytes).hex()}});
        self.files.insert(format!("/{role}.json"), bytes);
        said
    }

    /// The root to begin with.
    fn root(&self) -> Vec<u8> {
        let role = json!({"keyids": [self.key_id()], "threshold": 1});
        self.signed(&json!({
            "_type": "root", "spec_version": "1.0.0", "version": 1, "expires": "2099-01-01T00:00:00Z",
            "consistent_snapshot": false, "keys": {(self.key_id()): self.key},
            "roles": {"root": role, "timestamp": role, "snapshot": role, "targets": role},
        }))
    }

    fn serve(&self) -> Script {
        let files = self.files.clone();
        Script::run(move |path| match files.get(path) {
            Some(bytes) => (200, Vec::new(), bytes.clone()),
            None => (404, Vec::new(), Vec::new()),
        })
    }
}

/// The public root, with another log.
fn some_root() -> Vec<u8> {
    let mut root: Value = serde_json::from_str(TrustedRoot::embedded().unwrap().json()).unwrap();
    root["tlogs"][0]["baseUrl"] = "https://log.example".into();
    root.to_string().into_bytes()
}

#[test]
fn an_update_over_tuf_counts_from_then_on() {
    let kitfs = Kitfs::new();
    let repository = Repository::new(&some_root());
    let script = repository.serve();
    let (mirror, root) = (format!("http://{}", script.host), kitfs.path("root.json"));
    std::fs::write(&root, repository.root()).unwrap();
    let shows = || kitfs.run(&["trusted-root", "show"]).expect(0).text().to_owned();
    assert!(shows().contains("embedded") && !shows().contains("https://log.example"));
    kitfs.run(&["trusted-root", "update", "--mirror", &mirror, "--root", root.to_str().unwrap()]).expect(0);
    assert!(shows().contains("https://log.example"), "{}", shows());
}

#[test]
fn what_is_not_signed_by_the_first_root_changes_nothing() {
    let kitfs = Kitfs::new();
    let mut repository = Repository::new(&some_root());
    let (root, other) = (kitfs.path("root.json"), kitfs.path("other.json"));
    std::fs::write(&root, repository.root()).unwrap();
    std::fs::write(&other, Repository::new(b"{}").root()).unwrap();
    let update = |repository: &Repository, root: &[&str]| {
        let script = repository.serve();
        let mirror = format!("http://{}", script.host);
        kitfs.run(&[&["trusted-root", "update", "--mirror", &mirror][..], root].concat())
    };
    update(&repository, &["--root", other.to_str().unwrap()]).expect(7);
    update(&repository, &[]).expect(7);
    update(&repository, &["--root", kitfs.path("absent.json").to_str().unwrap()]).expect(2);
    update(&repository, &["--root", root.to_str().unwrap(), "--from", root.to_str().unwrap()]).expect(2);
    let target = repository.files.get_mut("/targets/trusted_root.json").unwrap();
    *target.last_mut().unwrap() ^= 1;
    update(&repository, &["--root", root.to_str().unwrap()]).expect(7);
    assert!(kitfs.run(&["trusted-root", "show"]).expect(0).text().contains("embedded"));
}
