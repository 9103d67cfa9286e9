//! OpenSSF model signatures over the files of kits: checked by a command, and demanded by a policy.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::digest::Digest;
use serde_json::{Value, json};

use crate::support::host;
use crate::support::keys::{KeyKind, Pair};
use crate::support::kit::{Base, Kit, Layout, file};
use crate::support::kitfs::Kitfs;
use crate::support::sigstore::{Certified, Log, STATEMENT, Sigstore, pre_authentication};

/// Somebody who signs models.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap())
    }

    /// The public key, written to a file.
    fn public(&self, kitfs: &Kitfs, name: &str) -> String {
        let spki: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        let pem = STANDARD.encode(spki.as_ref());
        let path = kitfs.path(name);
        std::fs::write(&path, format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A bundle as model-signing writes it: an envelope by a key, and nothing else.
    fn sign(&self, parts: &[(&str, &[u8])], method: &str) -> Vec<u8> {
        let payload = statement(parts, method);
        let signed = pre_authentication(&payload);
        let signature = self.0.sign(&aws_lc_rs::rand::SystemRandom::new(), &signed).unwrap();
        let bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload), "payloadType": STATEMENT,
                "signatures": [{"sig": STANDARD.encode(signature.as_ref()), "keyid": null}],
            },
        });
        bundle.to_string().into_bytes()
    }
}

/// What signers of models say: the hash of each file, or of each part of one.
pub fn statement(parts: &[(&str, &[u8])], method: &str) -> String {
    let hash = |bytes: &[u8]| Digest::of(bytes).hex();
    let all: Vec<u8> = parts.iter().flat_map(|(_, bytes)| hex::decode(hash(bytes)).unwrap()).collect();
    let resources: Vec<_> =
        parts.iter().map(|(name, bytes)| json!({"name": name, "algorithm": "sha256", "digest": hash(bytes)})).collect();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://model_signing/signature/v1.0",
        "subject": [{"name": "m", "digest": {"sha256": hash(&all)}}],
        "predicate": {"serialization": {"method": method, "hash_type": "sha256", "shard_size": 200_000,
                                        "allow_symlinks": false}, "resources": resources},
    });
    statement.to_string()
}

pub fn weights() -> Vec<u8> {
    vec![7; 300_000]
}

pub const CODE: &[u8] = b"print()";

/// A kit with a model in `m`.
pub fn kit(kitfs: &Kitfs, name: &str, weights: &[u8], signature: &[u8]) -> String {
    let files = [file("m/run.py", CODE), file("m/weights.bin", weights), file("m/model.sig", signature)];
    Layout::of(kitfs.path(name), &Kit::named(name).with(Base::Model, "m", files).pack()).reference("v1")
}

#[test]
fn a_model_signature_is_checked_against_the_files_of_the_kit() {
    let (kitfs, signer) = (Kitfs::new(), Signer::new());
    let (key, weights) = (signer.public(&kitfs, "model.pub"), weights());
    let good = signer.sign(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    let shards = [
        ("run.py:0:7", CODE),
        ("weights.bin:0:200000", &weights[..200_000]),
        ("weights.bin:200000:300000", &weights[200_000..]),
    ];
    let shards = signer.sign(&shards, "shards");
    let kit = |name: &str, weights: &[u8], signature: &[u8]| kit(&kitfs, name, weights, signature);
    let verify = |reference: &str, signature: &str| {
        kitfs.run(&["verify", reference, "--key", &key, "--model-signature", signature])
    };
    let reference = kit("good", &weights, &good);
    verify(&reference, "m/model.sig").expect(0);
    verify(&reference, "m/absent.sig").expect(3);
    verify(&kit("shards", &weights, &shards), "m/model.sig").expect(0);
    let mut other = weights.clone();
    other[250_000] ^= 1;
    verify(&kit("other", &other, &good), "m/model.sig").expect(5).says("got sha256:");
    verify(&kit("other-shards", &other, &shards), "m/model.sig").expect(5);
    verify(&kit("longer", &[&weights[..], b"x"].concat(), &shards), "m/model.sig").expect(5);
    verify(&kit("more", &weights, &signer.sign(&[("weights.bin", &weights)], "files")), "m/model.sig").expect(6);
    let outside = kitfs.path("model.sig");
    std::fs::write(&outside, &good).unwrap();
    verify(&reference, outside.to_str().unwrap()).expect(0);
    kitfs.run(&["verify", &reference, "--model-signature", "m/model.sig"]).expect(2);
}

/// A policy that demands that the model is signed.
pub fn policy(kitfs: &Kitfs, name: &str, block: &str, rest: &str) -> String {
    let path = kitfs.path(name);
    let text = format!(
        "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"oci:**\"\n{rest}\n[[rule.model_signature]]\n{block}\n"
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_policy_can_demand_that_the_model_is_signed() {
    let (kitfs, signer, other) = (Kitfs::new(), Signer::new(), Signer::new());
    signer.public(&kitfs, "model.pub");
    other.public(&kitfs, "other.pub");
    let weights = weights();
    let by = |signer: &Signer| signer.sign(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    let mut changed = weights.clone();
    changed[123_456] ^= 1;
    let good = kit(&kitfs, "good", &weights, &by(&signer));
    let changed = kit(&kitfs, "changed", &changed, &by(&signer));
    let foreign = kit(&kitfs, "foreign", &weights, &by(&other));
    let unsigned = kit(&kitfs, "unsigned", &weights, b"{}");
    // A model that was signed, as a screen before one that was not.
    let files = [file("a/run.py", CODE), file("a/weights.bin", &*weights), file("a/model.sig", by(&signer))];
    let screened = Kit::named("screened").with(Base::Model, "m", [file("m/weights.bin", *b"evil")]);
    let screened = screened.with(Base::Part, "a", files).pack();
    let screened = Layout::of(kitfs.path("screened"), &screened).reference("v1");
    let code = Kit::named("code").with(Base::Code, "c", [file("c/run.py", CODE)]).pack();
    let code = Layout::of(kitfs.path("code"), &code).reference("v1");
    let any = policy(&kitfs, "any.toml", "any = [{ key = \"model.pub\" }]", "");
    for (reference, exit, why) in [
        (&good, 0, ""),
        (&changed, 6, "got sha256:"),
        (&foreign, 6, "none of the keys"),
        (&unsigned, 6, "bundle is malformed"),
        (&screened, 6, "m/weights.bin is a file of the model that"),
        (&code, 6, "no file of a model"),
    ] {
        let output = kitfs.run(&["verify", reference, "--policy", &any, "-o", "json"]).expect(exit).says(why);
        let decided = &output.json()["policy"];
        assert_eq!(decided["decision"], if exit == 0 { "allow" } else { "deny" }, "{output}");
        assert!(!decided["reasons"].as_array().unwrap().is_empty(), "{output}");
        kitfs.run(&["cat", reference, "Kitfile", "--policy", &any]).expect(exit).says(why);
        let explained = kitfs.run(&["policy", "explain", reference, "--policy", &any, "-o", "json"]).expect(0).json();
        assert_eq!(explained["decision"], if exit == 0 { "allow" } else { "deny" }, "{explained}");
        assert_eq!(explained["conditions"][0]["ok"], exit == 0, "{explained}");
    }
    let filtered = kitfs.run(&["ls", &good, "--policy", &any, "--filter", "docs"]);
    filtered.expect(6).says("no file of a model");
    for (block, exit) in [
        ("all = [{ key = \"model.pub\" }, { key = \"other.pub\" }]", 6),
        ("any = [{ key = \"model.pub\" }]\nlog = true", 6),
        ("any = [{ key = \"model.pub\" }]\nfile = \"m/model.sig\"", 0),
        ("any = [{ key = \"model.pub\" }]\nfile = \"other/model.sig\"", 6),
        ("any = [{ key = \"model.pub\" }]\nfile = \"../model.sig\"", 2),
        ("file = \"model.sig\"", 2),
    ] {
        let policy = policy(&kitfs, "block.toml", block, "");
        kitfs.run(&["ls", &good, "--policy", &policy]).expect(exit);
    }
    let warn = policy(&kitfs, "warn.toml", "any = [{ key = \"model.pub\" }]", "mode = \"warn\"");
    let output = kitfs.run(&["verify", &changed, "--policy", &warn, "-o", "json"]).expect(0);
    assert_eq!(output.json()["policy"]["decision"], "warn", "{output}");
    let decided = kitfs.run(&["audit", "show", "--event", "decision", "-o", "json"]).expect(0).json();
    let verdicts: Vec<&Value> = decided["events"].as_array().unwrap().iter().map(|event| &event["verdict"]).collect();
    for verdict in ["allow", "warn", "deny"] {
        assert!(verdicts.contains(&&Value::from(verdict)), "{verdicts:?}");
    }
    if !host::can_mount() {
        return;
    }
    let mount = kitfs.mount_with(&good, &["--policy", &any]);
    let status = mount.status();
    assert_eq!((&status["policy"], status["signers"].as_array().unwrap().len()), (&Value::from("allow"), 1));
    mount.unmount();
    let mount = kitfs.mount_with(&changed, &["--policy", &warn]);
    assert_eq!(mount.status()["policy"], "warn");
    mount.unmount();
    let directory = kitfs.next_directory();
    std::fs::create_dir(&directory).unwrap();
    kitfs.run(&["mount", &changed, directory.to_str().unwrap(), "--policy", &any]).expect(6).says("got sha256:");
}

#[test]
fn a_policy_for_models_can_be_tested() {
    let (kitfs, signer) = (Kitfs::new(), Signer::new());
    signer.public(&kitfs, "model.pub");
    Signer::new().public(&kitfs, "other.pub");
    let weights = weights();
    let signature = signer.sign(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    kit(&kitfs, "good", &weights, &signature);
    kit(&kitfs, "changed", &weights[1..], &signature);
    policy(&kitfs, "policy.toml", "any = [{ key = \"model.pub\" }]", "");
    let test = |cases: &str, exit: i32| {
        let path = kitfs.path("cases.toml");
        std::fs::write(&path, format!("version = 1\npolicy = \"policy.toml\"\n{cases}")).unwrap();
        kitfs.run(&["policy", "test", path.to_str().unwrap()]).expect(exit)
    };
    let case =
        |expect: &str, rest: &str| format!("[[case]]\nreference = \"oci:/kits/a:v1\"\nexpect = \"{expect}\"\n{rest}\n");
    let cases = [
        case("allow", "layout = \"good:v1\"\nbecause = \"signed by key:sha256:\""),
        case("deny", "layout = \"changed:v1\"\nbecause = \"is not the file that was signed\""),
        case("allow", "model_signature = [{ key = \"model.pub\" }]"),
        case("deny", "model_signature = [{ key = \"other.pub\" }]\nbecause = \"by none of them\""),
        case("deny", "because = \"the model signed by\""),
    ];
    test(&cases.concat(), 0);
    test(&case("allow", "layout = \"changed:v1\""), 1);
    test(&case("allow", "layout = \"good:v1\"\nmodel_signature = [{ key = \"model.pub\" }]"), 2);
    test(&case("allow", "model_signature = [{ key = \"model.pub\", annotations = { a = \"b\" } }]"), 2);
    // A test is no decision.
    let decided = kitfs.run(&["audit", "show", "--event", "decision", "-o", "json"]).expect(0).json();
    assert_eq!(decided["events"], json!([]), "{decided}");
}

/// What model_signing 1.1.1 wrote about four files in `m`, in each of its methods but Sigstore's.
#[test]
fn signatures_of_the_real_tool_hold() {
    let kitfs = Kitfs::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let key = |name: &str| data.join(name).to_str().unwrap().to_owned();
    let (by_key, by_certificate) = (key("key.pub"), key("certified.pub"));
    let kit = |name: &str, weights: &[u8], signature: &[u8]| {
        let files = [
            file("m/run.py", CODE),
            file("m/sub/weights.bin", weights),
            file("m/empty", *b""),
            file("m/.gitattributes", *b"*.bin binary\n"),
            file("m/model.sig", signature),
        ];
        Layout::of(kitfs.path(name), &Kit::named(name).with(Base::Model, "m", files).pack()).reference("v1")
    };
    let weights = weights();
    let mut changed = weights.clone();
    changed[250_000] ^= 1;
    for (name, key, other) in [
        ("files", &by_key, &by_certificate),
        ("shards", &by_key, &by_certificate),
        ("blake2", &by_key, &by_certificate),
        ("blake2-shards", &by_key, &by_certificate),
        ("blake3", &by_key, &by_certificate),
        ("certificate", &by_certificate, &by_key),
    ] {
        let signature = std::fs::read(data.join(format!("{name}.sig"))).unwrap();
        let verify = |reference: &str, key: &str| {
            kitfs.run(&["verify", reference, "--key", key, "--model-signature", "m/model.sig"])
        };
        let good = kit(name, &weights, &signature);
        verify(&good, key).expect(0);
        verify(&good, other).expect(6);
        verify(&kit(&format!("{name}-changed"), &changed, &signature), key).expect(5);
    }
}

/// As `model_signing sign sigstore` writes it: an envelope by a certificate, with an entry in a log.
#[test]
fn a_model_can_be_signed_by_an_identity() {
    let (kitfs, sigstore, stranger) = (Kitfs::new(), Sigstore::new(), Sigstore::new());
    sigstore.root_file(kitfs.path("root.json"));
    let root = kitfs.path("root.json").to_str().unwrap().to_owned();
    let weights = weights();
    let mut changed = weights.clone();
    changed[123_456] ^= 1;
    let said = statement(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    let policy = |identity: &str| {
        let block = format!("any = [{{ identity = \"{identity}\", issuer = \"{}\" }}]", Certified::ISSUER);
        policy(&kitfs, &format!("{}.toml", &identity[..4]), &block, "trusted_root = \"root.json\"")
    };
    let (ours, others) = (policy(Certified::IDENTITY), policy("somebody@acme.example"));
    let check = |name: &str, weights: &[u8], bundle: &Value, exits: [i32; 2]| {
        let reference = kit(&kitfs, name, weights, bundle.to_string().as_bytes());
        let verify = |identity: &str| {
            let words = ["verify", &reference, "--model-signature", "m/model.sig", "--trusted-root", &root];
            let who = ["--certificate-identity", identity, "--certificate-oidc-issuer", Certified::ISSUER];
            kitfs.run(&[&words[..], &who].concat())
        };
        verify(Certified::IDENTITY).expect(exits[0]);
        verify("somebody@acme.example").expect(6);
        kitfs.run(&["ls", &reference, "--policy", &ours]).expect(exits[1]);
        kitfs.run(&["ls", &reference, "--policy", &others]).expect(6);
    };
    for kind in [KeyKind::P256, KeyKind::P384] {
        let maker = sigstore.certify(&Pair::new(kind), &Certified::new());
        for log in [Log::V1, Log::V2] {
            let name = format!("{kind:?}-{log:?}");
            let good = sigstore.sign_statement(&maker, &said, log);
            check(&name, &weights, &good, [0, 0]);
            check(&format!("{name}-changed"), &changed, &good, [5, 6]);
            let mut unlogged = good.clone();
            unlogged["verificationMaterial"]["tlogEntries"] = json!([]);
            check(&format!("{name}-unlogged"), &weights, &unlogged, [6, 6]);
            let mut of_other = sigstore.sign_statement(&maker, &said.replace("\"m\"", "\"n\""), log);
            of_other["dsseEnvelope"] = good["dsseEnvelope"].clone();
            check(&format!("{name}-of-other"), &weights, &of_other, [6, 6]);
            let foreign = stranger.certify(&maker.pair, &Certified::new());
            check(&format!("{name}-foreign"), &weights, &stranger.sign_statement(&foreign, &said, log), [6, 6]);
        }
    }
}
