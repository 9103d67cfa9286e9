//! What comes along with a signature and is no part of it: times, certificates, other signatures.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kitfs::digest::Digest;
use kitfs::policy::{Named, Policies, Request, Verdict};
use kitfs::trust::{Limits, Material};
use serde_json::{Value, json};

use crate::support::keys::{KeyKind, Pair};
use crate::support::kit::{Base, Kit, Layout, Packed, file};
use crate::support::kitfs::Kitfs;
use crate::support::sigstore::{Certified, Log, NOW, STATEMENT, Sigstore, base64, pem, pre_authentication};

fn kit() -> Digest {
    Digest::of(b"a kit")
}

fn statement(about: &str, predicate_type: &str) -> String {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": about}}],
        "predicateType": predicate_type, "predicate": {"x": 1},
    })
    .to_string()
}

/// What a policy says of a kit with one bundle beside it.
fn decide(policies: &Policies, bundle: &Value) -> Verdict {
    let request = Request {
        reference: "ghcr.io/acme/llm:v1",
        names: vec!["ghcr.io/acme/llm".into()],
        tag: Some("v1"),
        named: Named::Tag,
        digest: kit(),
        manifest: b"{}",
        kitfile: None,
        parent: None,
        child: None,
    };
    policies.decide(&request, &Material::of_bundle(bundle.to_string(), "here"), &Limits::default()).verdict()
}

#[test]
fn the_time_of_a_log_is_no_timestamp() {
    let (kitfs, sigstore) = (Kitfs::new(), Sigstore::new());
    sigstore.root_file(kitfs.path("root.json"));
    let pair = Pair::new(KeyKind::P256);
    std::fs::write(kitfs.path("key.pub"), pem("PUBLIC KEY", &pair.spki)).unwrap();
    let certified = sigstore.certify(&pair, &Certified::new());
    let said = statement(&kit().hex(), "https://sigstore.dev/cosign/sign/v1");
    let policy = |signer: &str, timestamp: bool| {
        let text = format!(
            "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\ntrusted_root = \"root.json\"\n\
             [[rule.signature]]\nany = [{signer}]\nlog = true\ntimestamp = {timestamp}\n"
        );
        let path = kitfs.path("policy.toml");
        std::fs::write(&path, text).unwrap();
        Policies::of_file(&path).unwrap()
    };
    let identity = format!("{{ identity = \"{}\", issuer = \"{}\" }}", Certified::IDENTITY, Certified::ISSUER);
    let uncertified = crate::support::sigstore::Signer { certificate: None, ..certified.clone() };
    for (signer, maker) in [(identity.as_str(), &certified), ("{ key = \"key.pub\" }", &uncertified)] {
        let logged = sigstore.sign_statement(maker, &said, Log::V1);
        let mut stamped = logged.clone();
        let signature = logged["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap();
        let signature = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, signature).unwrap();
        stamped["verificationMaterial"]["timestampVerificationData"] = sigstore.stamped(&signature, NOW);
        for (bundle, timestamp, verdict) in [
            (&logged, false, Verdict::Allow),
            (&logged, true, Verdict::Deny),
            (&stamped, true, Verdict::Allow),
            (&sigstore.sign_statement(maker, &said, Log::V2), true, Verdict::Allow),
        ] {
            assert_eq!(decide(&policy(signer, timestamp), bundle), verdict, "{signer} {timestamp}");
        }
    }
}

/// A chain that leads nowhere and has no end would cost whoever follows it.
#[test]
fn of_certificates_that_come_along_only_a_few_are_looked_at() {
    let (kitfs, sigstore) = (Kitfs::new(), Sigstore::new());
    sigstore.root_file(kitfs.path("root.json"));
    let said = statement(&kit().hex(), "https://sigstore.dev/cosign/sign/v1");
    let text = format!(
        "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\ntrusted_root = \"root.json\"\n\
         [[rule.signature]]\nany = [{{ identity = \"{}\", issuer = \"{}\" }}]\n",
        Certified::IDENTITY,
        Certified::ISSUER
    );
    std::fs::write(kitfs.path("policy.toml"), text).unwrap();
    let policies = Policies::of_file(&kitfs.path("policy.toml")).unwrap();
    for kind in [KeyKind::P256, KeyKind::P384] {
        let maker = sigstore.certify(&Pair::new(kind), &Certified::new());
        let mut bundle = sigstore.sign_statement(&maker, &said, Log::V1);
        bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2".into();
        let material = bundle["verificationMaterial"].as_object_mut().unwrap();
        let leaf = material.remove("certificate").unwrap();
        for (more, verdict) in [(0, Verdict::Allow), (8, Verdict::Allow), (9, Verdict::Deny), (3_000, Verdict::Deny)] {
            let between = json!({"rawBytes": base64(&sigstore.authority.chain[0])});
            let chain: Vec<_> = [leaf.clone()].into_iter().chain(std::iter::repeat_n(between, more)).collect();
            bundle["verificationMaterial"]["x509CertificateChain"] = json!({"certificates": chain});
            assert_eq!(decide(&policies, &bundle), verdict, "{kind:?} {more}");
        }
    }
}

const PREDICATE: &str = "https://acme.example/reviewed/v1";

/// A layout of a kit with one attestation in the form of tags: an envelope by these.
fn attested(kitfs: &Kitfs, name: &str, kit: &Packed, signatures: &[Value]) -> String {
    let layout = Layout::of(kitfs.path(name), kit);
    let said = statement(kit.digest().strip_prefix("sha256:").unwrap(), PREDICATE);
    let envelope = json!({"payloadType": STATEMENT, "payload": base64(&said), "signatures": signatures}).to_string();
    let digest = Digest::of(envelope.as_bytes()).to_string();
    layout.put(&digest, envelope.as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "layers": [{
        "mediaType": "application/vnd.dsse.envelope.v1+json", "digest": digest, "size": envelope.len(),
        "annotations": {"dev.cosignproject.cosign/signature": "", "predicateType": PREDICATE},
    }]});
    layout.add(kind, manifest.to_string().as_bytes(), Some(&format!("{}.att", kit.digest().replace(':', "-"))));
    layout.reference("v1")
}

/// DSSE lets several sign one envelope. Each counts for itself, as with cosign; in a bundle there is one.
#[test]
fn each_signature_in_an_envelope_counts_by_itself() {
    let kitfs = Kitfs::new();
    let packed = Kit::named("k").with(Base::Model, "m", [file("m/weights.bin", *b"weights")]).pack();
    let [a, b, c] = [KeyKind::P256, KeyKind::Ed25519, KeyKind::P384].map(Pair::new);
    for (name, pair) in [("a", &a), ("b", &b), ("c", &c)] {
        std::fs::write(kitfs.path(&format!("{name}.pub")), pem("PUBLIC KEY", &pair.spki)).unwrap();
    }
    let said = statement(packed.digest().strip_prefix("sha256:").unwrap(), PREDICATE);
    let by = |pair: &Pair| json!({"sig": base64(pair.sign(&pre_authentication(&said))), "keyid": "whoever"});
    let wrong = json!({"sig": base64(a.sign(b"something else")), "keyid": ""});
    let many: Vec<_> = std::iter::repeat_n(wrong.clone(), 16).chain([by(&a)]).collect();
    let broken = json!({"sig": "%%%", "keyid": ""});
    for (name, signatures, satisfied) in [
        ("one", vec![by(&a)], "a"),
        ("two", vec![by(&a), by(&b)], "a b ab"),
        ("three", vec![by(&c), by(&b), by(&a)], "a b c ab ac bc"),
        ("one-of-two", vec![wrong.clone(), by(&b)], "b"),
        ("twice", vec![by(&a), by(&a)], "a"),
        ("none", vec![], ""),
        ("wrong", vec![wrong], ""),
        // Anything malformed counts as absent, here with all that it is a part of.
        ("broken", vec![broken, by(&a)], ""),
        ("many", many, ""),
    ] {
        let reference = attested(&kitfs, name, &packed, &signatures);
        let satisfied: BTreeSet<_> = satisfied.split_whitespace().collect();
        for wanted in ["a", "b", "c", "ab", "ac", "bc"] {
            let mut keys = String::new();
            wanted.chars().for_each(|key| write!(keys, "{{ key = \"{key}.pub\" }}, ").unwrap());
            let policy = kitfs.path("policy.toml");
            let text = format!(
                "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\n[[rule.attestation]]\n\
                 predicate_type = \"{PREDICATE}\"\nany = [{keys}]\nat_least = {}\n",
                wanted.len()
            );
            std::fs::write(&policy, text).unwrap();
            let exit = if satisfied.contains(wanted) { 0 } else { 6 };
            kitfs.run(&["ls", &reference, "--policy", policy.to_str().unwrap()]).expect(exit);
        }
    }
}

/// One good signature is enough, whatever lies beside it.
#[test]
fn a_layer_that_is_malformed_takes_no_signature_with_it() {
    let kitfs = Kitfs::new();
    let packed = Kit::named("k").with(Base::Model, "m", [file("m/weights.bin", *b"weights")]).pack();
    let layout = Layout::of(kitfs.path("layout"), &packed);
    let pair = Pair::new(KeyKind::P256);
    std::fs::write(kitfs.path("key.pub"), pem("PUBLIC KEY", &pair.spki)).unwrap();
    let payload = json!({
        "critical": {"identity": {"docker-reference": ""}, "image": {"docker-manifest-digest": packed.digest()},
                     "type": "cosign container image signature"},
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let digest = Digest::of(&payload).to_string();
    layout.put(&digest, &payload);
    let good = json!({
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": digest, "size": payload.len(),
        "annotations": {"dev.cosignproject.cosign/signature": base64(pair.sign(&payload))},
    });
    let with = |name: &str, value: Value| {
        let mut layer = good.clone();
        layer[name] = value;
        layer
    };
    let malformed =
        [with("size", (-1).into()), with("digest", "x".into()), with("annotations", json!({"a": 1})), json!(7)];
    let check = |layers: &[&Value], exit: i32| {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "layers": layers}).to_string();
        layout.add(kind, manifest.as_bytes(), Some(&format!("{}.sig", packed.digest().replace(':', "-"))));
        let key = kitfs.path("key.pub");
        kitfs.run(&["ls", &layout.reference("v1"), "--key", key.to_str().unwrap()]).expect(exit)
    };
    for layer in &malformed {
        check(&[layer], 6).says("a layer of its manifest is malformed");
        check(&[layer, &good], 0);
    }
}
