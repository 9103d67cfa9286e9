//! Every kind of key with a Sigstore of the tests' own, certified and logged: what holds, and each way in which it may
//! not.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::digest::Digest;
use kitfs::trust::{Findings, Limits, Material, Message, PublicKey, TrustedRoot, examine, examine_artifact};
use serde_json::{Value, json};

use crate::forgeries::tagged_layout;
use crate::support::der::{extension, tlv};
use crate::support::host;
use crate::support::keys::{Hash, KeyKind, Pair};
use crate::support::kit::{Base, Kit, file};
use crate::support::kitfs::Kitfs;
use crate::support::sigstore::{Certified, Log, NOW, Seen, Signer, Sigstore, base64, pem};

const CONTENT: &[u8] = b"what somebody signs";
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

fn statement(about: &Digest) -> String {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": about.hex()}}],
        "predicateType": PREDICATE, "predicate": {},
    })
    .to_string()
}

fn read(root: &Value) -> TrustedRoot {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), root.to_string()).unwrap();
    TrustedRoot::from_file(file.path()).unwrap()
}

/// Whether a bundle is the signature of a file.
fn of_file(bundle: &Value, content: &[u8], keys: &[PublicKey], root: &TrustedRoot) -> Findings {
    let material = Material::of_bundle(bundle.to_string(), "here");
    examine_artifact(&material, &Message::of(content), keys, root, &Limits::default())
}

/// Whether a bundle is the signature of a kit.
fn of_kit(bundle: &Value, kit: &Digest, keys: &[PublicKey], root: &TrustedRoot) -> Findings {
    let material = Material::of_bundle(bundle.to_string(), "here");
    examine(&material, kit, keys, root, &Limits::default())
}

/// Whose signature a bundle is, whatever it is about.
fn holds(bundle: &Value, root: &TrustedRoot) -> Result<String, String> {
    signer(&found(bundle, &[], root))
}

fn found(bundle: &Value, keys: &[PublicKey], root: &TrustedRoot) -> Findings {
    match bundle["messageSignature"].is_object() {
        true => of_file(bundle, CONTENT, keys, root),
        false => of_kit(bundle, &kit(), keys, root),
    }
}

fn signer(findings: &Findings) -> Result<String, String> {
    let first = findings.endorsements.first();
    first.map(|it| it.signer().name()).ok_or_else(|| findings.rejected[0].reason.clone())
}

/// The digest that statements here are about.
fn kit() -> Digest {
    Digest::of(CONTENT)
}

fn certified() -> String {
    format!("{} ({})", Certified::IDENTITY, Certified::ISSUER)
}

#[test]
fn every_kind_of_key_can_be_certified() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    for kind in KeyKind::ALL {
        let maker = sigstore.certify(&Pair::new(kind), &Certified::new());
        for log in [Log::V1, Log::V2] {
            let file = sigstore.sign_file(&maker, CONTENT, log);
            assert_eq!(holds(&file, &root), Ok(certified()), "{kind:?} {log:?}");
            assert!(signer(&of_file(&file, b"another", &[], &root)).is_err());
            let signed = sigstore.sign_statement(&maker, &statement(&kit()), log);
            assert_eq!(holds(&signed, &root), Ok(certified()), "{kind:?} {log:?}");
            assert!(signer(&of_kit(&signed, &Digest::of(b"another"), &[], &root)).is_err());
        }
    }
}

#[test]
fn every_kind_of_key_can_sign_in_a_tag() {
    let (kitfs, sigstore) = (Kitfs::new(), Sigstore::new());
    let root = sigstore.root_file(kitfs.path("root.json"));
    let identity = ["--certificate-identity", Certified::IDENTITY, "--certificate-oidc-issuer", Certified::ISSUER];
    let packed = Kit::named("k").with(Base::Model, "m", [file("m/weights.bin", *b"weights")]).pack();
    let payload = json!({
        "critical": {"identity": {"docker-reference": ""}, "image": {"docker-manifest-digest": packed.digest()},
                     "type": "cosign container image signature"},
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let other = String::from_utf8(payload.clone()).unwrap().replace("null", "{}").into_bytes();
    for kind in KeyKind::ALL {
        let pair = Pair::new(kind);
        let (key, policy) = (kitfs.path("key.pub"), kitfs.path("policy.toml"));
        std::fs::write(&key, pem("PUBLIC KEY", &pair.spki)).unwrap();
        let rule = "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"oci:**\"\ntrusted_root = \"root.json\"\n\
                    [[rule.signature]]\nlog = true\nany = [{ key = \"key.pub\" }]\n";
        std::fs::write(&policy, rule).unwrap();
        let certified = sigstore.certify(&pair, &Certified::new());
        let uncertified = Signer { certificate: None, ..certified.clone() };
        let by_identity = [&identity[..], &["--trusted-root", root.to_str().unwrap()]].concat();
        let by_key = ["--policy", policy.to_str().unwrap()];
        for (how, maker, options) in [("certificate", certified, &by_identity[..]), ("key", uncertified, &by_key)] {
            let annotations = sigstore.sign_payload(&maker, &payload);
            let mut of_other = sigstore.sign_payload(&maker, &other);
            of_other[SIGNATURE] = annotations[SIGNATURE].clone();
            let mut in_lines = annotations.clone();
            in_lines[SIGNATURE] = annotations[SIGNATURE].as_str().unwrap().replace("A", "A\r\n").into();
            for (change, annotations, payload, exit) in [
                ("good", &annotations, &payload, 0),
                ("in-lines", &in_lines, &payload, 0),
                ("payload", &annotations, &other, 6),
                ("entry", &of_other, &payload, 6),
            ] {
                let media_type = "application/vnd.dev.cosign.simplesigning.v1+json";
                let layer = json!({"mediaType": media_type, "annotations": annotations});
                let place = format!("{kind:?}-{how}-{change}");
                let reference = tagged_layout(&kitfs, &place, &packed, &[(layer, payload.clone())]);
                kitfs.run(&[&["ls", &reference], options].concat()).expect(exit);
            }
        }
    }
}

#[test]
fn every_kind_of_key_can_be_logged() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    for kind in KeyKind::ALL {
        let maker = Signer::uncertified(kind);
        let keys = [PublicKey::from_der(&maker.pair.spki).unwrap()];
        let logged = |bundle: &Value| {
            let findings = found(bundle, &keys, &root);
            let [endorsement] = &findings.endorsements[..] else { panic!("{kind:?}: {:?}", findings.rejected) };
            endorsement.log().map(drop).ok_or_else(|| endorsement.doubts().collect::<Vec<_>>().join("; "))
        };
        let (right, _) = kind.registered();
        let wrong = if right == Hash::Sha256 { Hash::Sha512 } else { Hash::Sha256 };
        for log in [Log::V1, Log::V2] {
            let file = sigstore.sign_file(&maker, CONTENT, log);
            assert_eq!(logged(&file), Ok(()), "{kind:?} {log:?}");
            let mut in_one_line = maker.record(log, right, CONTENT, &signature(&file));
            if let Some(key) = in_one_line.pointer_mut("/spec/signature/publicKey/content") {
                *key = base64(pem("PUBLIC KEY", &maker.pair.spki).replace('\n', "").replace("KEY-----", "KEY-----\n"))
                    .into();
                assert_eq!(logged(&with(&file, ENTRY, sigstore.logged(log, &in_one_line, NOW))), Ok(()), "{kind:?}");
            }
            assert_eq!(logged(&sigstore.sign_statement(&maker, &statement(&kit()), log)), Ok(()), "{kind:?} {log:?}");
            let signed = signature(&file);
            let entry = |body: &Value| with(&file, ENTRY, sigstore.logged(log, body, NOW));
            let certified = sigstore.certify(&maker.pair, &Certified::new());
            for (what, bundle) in [
                ("the digest by another hash", entry(&maker.record(log, wrong, CONTENT, &signed))),
                ("the digest of something else", entry(&maker.record(log, right, b"another", &signed))),
                ("another signature", entry(&maker.record(log, right, CONTENT, &maker.pair.sign_file(b"another")))),
                ("a certificate", entry(&certified.record(log, right, CONTENT, &signed))),
                ("another key", entry(&Signer::uncertified(kind).record(log, right, CONTENT, &signed))),
                ("an envelope", entry(&maker.envelope("{}", &signed))),
            ] {
                assert!(logged(&bundle).is_err(), "{kind:?} {log:?} {what}");
            }
        }
    }
}

/// What cosign says of a bundle, offline.
fn cosign_accepts(kitfs: &Kitfs, cosign: &Path, bundle: &Value, options: &[&str]) -> bool {
    let (file, path) = (kitfs.path("content"), kitfs.path("bundle.json"));
    std::fs::write(&file, CONTENT).unwrap();
    std::fs::write(&path, bundle.to_string()).unwrap();
    let mut command = kitfs.other(cosign);
    if bundle["messageSignature"].is_object() {
        command.arg("verify-blob");
    } else {
        command.args(["verify-blob-attestation", "--type", PREDICATE]);
    }
    if bundle["verificationMaterial"]["timestampVerificationData"].is_object() {
        command.arg("--use-signed-timestamps");
    }
    command.args(["--trusted-root", "root.json", "--bundle"]).arg(path).args(options).arg(file);
    command.current_dir(kitfs.path("")).output().unwrap().status.success()
}

/// What is made here is what the real tool understands.
#[test]
fn cosign_accepts_every_kind_of_key_too() {
    let Some(cosign) = host::find("cosign") else {
        return host::note("cosign is not installed; scripts/test installs it where Go is");
    };
    let (kitfs, sigstore) = (Kitfs::new(), Sigstore::new());
    sigstore.root_file(kitfs.path("root.json"));
    let identity = ["--certificate-identity", Certified::IDENTITY, "--certificate-oidc-issuer", Certified::ISSUER];
    for kind in KeyKind::ALL {
        let certified = sigstore.certify(&Pair::new(kind), &Certified::new());
        let uncertified = Signer { certificate: None, ..certified.clone() };
        std::fs::write(kitfs.path("key.pub"), pem("PUBLIC KEY", &certified.pair.spki)).unwrap();
        // Of a key alone cosign takes SHA-256 for granted, where it verifies files.
        let takes_key = kind.registered().0 == Hash::Sha256;
        let makers = [(certified, &identity[..]), (uncertified, &["--key", "key.pub"])];
        for (maker, options) in makers.into_iter().take(1 + usize::from(takes_key)) {
            for log in [Log::V1, Log::V2] {
                let file = sigstore.sign_file(&maker, CONTENT, log);
                assert!(cosign_accepts(&kitfs, &cosign, &file, options), "{kind:?} {log:?} {options:?}");
                let statement = sigstore.sign_statement(&maker, &statement(&kit()), log);
                assert!(cosign_accepts(&kitfs, &cosign, &statement, options), "{kind:?} {log:?} {options:?}");
            }
        }
    }
}

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const ENTRY: &str = "/verificationMaterial/tlogEntries/0";
const STAMPS: &str = "/verificationMaterial/timestampVerificationData";

fn with(bundle: &Value, place: &str, value: impl Into<Value>) -> Value {
    let mut changed = bundle.clone();
    *changed.pointer_mut(place).unwrap_or_else(|| panic!("{place} is not there")) = value.into();
    changed
}

/// Without what is at that place.
fn without(bundle: &Value, place: &str) -> Value {
    let (parent, name) = place.rsplit_once('/').unwrap();
    let mut changed = bundle.clone();
    changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    changed
}

fn signature(bundle: &Value) -> Vec<u8> {
    let envelope = &bundle["dsseEnvelope"]["signatures"][0]["sig"];
    STANDARD.decode(bundle["messageSignature"]["signature"].as_str().or(envelope.as_str()).unwrap()).unwrap()
}

/// What a log and an authority of one's own can be made to say, and is not so.
fn forged(sigstore: &Sigstore, maker: &Signer, log: Log) -> Vec<(&'static str, Value)> {
    let other = Sigstore::new();
    let good = sigstore.sign_file(maker, CONTENT, log);
    let signed = signature(&good);
    let (right, _) = maker.pair.kind.registered();
    let wrong = if right == Hash::Sha256 { Hash::Sha512 } else { Hash::Sha256 };
    let record = |hash, content: &[u8], signature: &[u8]| maker.record(log, hash, content, signature);
    let entry = |body: &Value| with(&good, ENTRY, sigstore.logged(log, body, NOW));
    let mut mixed = record(wrong, CONTENT, &signed);
    let (v1, v2) = ("/spec/data/hash/algorithm", "/spec/hashedRekordV002/data/algorithm");
    let named = record(right, CONTENT, &signed);
    for place in [v1, v2] {
        if let Some(name) = mixed.pointer_mut(place) {
            *name = named.pointer(place).unwrap().clone();
        }
    }
    let renamed =
        sigstore.certify(&maker.pair, &Certified { more: vec![Vec::new()], from: NOW - 61, ..Certified::new() });
    let again = maker.pair.sign_file(b"another");
    let own = record(right, CONTENT, &signed);
    let envelope = maker.envelope("{}", &signed);
    let mut forged = vec![
        ("the digest by another hash", entry(&record(wrong, CONTENT, &signed))),
        ("the digest by another hash, under the name of the right one", entry(&mixed)),
        ("the digest of something else", entry(&record(right, b"another", &signed))),
        ("another signature", entry(&record(right, CONTENT, &again))),
        ("another certificate for the same key", entry(&renamed.record(log, right, CONTENT, &signed))),
        ("an entry about an envelope", entry(&envelope)),
        ("another log", with(&good, ENTRY, other.logged(log, &own, NOW))),
        ("no entry", with(&good, "/verificationMaterial/tlogEntries", json!([]))),
        (
            "an entry twice",
            with(&good, "/verificationMaterial/tlogEntries", json!([good.pointer(ENTRY), good.pointer(ENTRY)])),
        ),
        ("the signature of something else", with(&good, "/messageSignature/signature", base64(&again))),
        ("a certificate of another authority", {
            let foreign = other.certify(&maker.pair, &Certified::new());
            sigstore.sign_file(&foreign, CONTENT, log)
        }),
    ];
    forged.extend(match log {
        Log::V1 => vec![
            ("logged before the certificate", with(&good, ENTRY, sigstore.logged(log, &own, NOW - 61))),
            ("logged after the certificate", with(&good, ENTRY, sigstore.logged(log, &own, NOW + 541))),
            ("another time than promised", with(&good, &format!("{ENTRY}/integratedTime"), (NOW + 1).to_string())),
            ("no promise and so no time", without(&good, &format!("{ENTRY}/inclusionPromise"))),
            ("no proof", without(&good, &format!("{ENTRY}/inclusionProof"))),
            ("a proof in a larger tree", with(&good, &format!("{ENTRY}/inclusionProof/treeSize"), "3")),
            ("a proof at another place", with(&good, &format!("{ENTRY}/inclusionProof/logIndex"), "0")),
        ],
        Log::V2 => vec![
            ("no timestamp", without(&good, STAMPS)),
            ("a timestamp of something else", with(&good, STAMPS, sigstore.stamped(&again, NOW))),
            ("stamped before the certificate", with(&good, STAMPS, sigstore.stamped(&signed, NOW - 61))),
            ("stamped after the certificate", with(&good, STAMPS, sigstore.stamped(&signed, NOW + 541))),
            ("stamped by another authority", with(&good, STAMPS, other.stamped(&signed, NOW))),
            ("at another place", with(&good, &format!("{ENTRY}/logIndex"), "0")),
            ("no proof", without(&good, &format!("{ENTRY}/inclusionProof"))),
        ],
    });
    let certify = |certified: Certified| sigstore.sign_file(&sigstore.certify(&maker.pair, &certified), CONTENT, log);
    let new = Certified::new;
    let twice = [new().name, new().name].concat();
    let unknown = vec![extension("1.2.3.4", true, "x")];
    forged.extend([
        ("not seen", certify(Certified { seen: Seen::No, ..new() })),
        ("seen twice", certify(Certified { seen: Seen::Twice, ..new() })),
        ("seen by another log", certify(Certified { seen: Seen::ByAnother, ..new() })),
        ("another one seen", certify(Certified { seen: Seen::OfAnother, ..new() })),
        ("for servers", certify(Certified { usage: "1.3.6.1.5.5.7.3.1", ..new() })),
        ("not valid yet", certify(Certified { from: NOW + 1, ..new() })),
        ("not valid any more", certify(Certified { until: NOW - 1, ..new() })),
        ("for two people", certify(Certified { name: twice, ..new() })),
        ("for nobody", certify(Certified { name: Vec::new(), ..new() })),
        ("for a server's name", certify(Certified { name: tlv(0x82, "acme.example"), ..new() })),
        ("with something critical that nobody knows", certify(Certified { more: unknown, ..new() })),
    ]);
    forged
}

/// Before each kind of key had its hash, all signed with SHA-256.
#[test]
fn a_longer_key_may_sign_with_a_shorter_hash() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    let maker = sigstore.certify(&Pair::new(KeyKind::P521), &Certified::new());
    for log in [Log::V1, Log::V2] {
        let signed = maker.pair.sign_short(CONTENT);
        let mut bundle = sigstore.sign_file(&maker, CONTENT, log);
        bundle["messageSignature"]["signature"] = base64(&signed).into();
        if log == Log::V2 {
            bundle = with(&bundle, STAMPS, sigstore.stamped(&signed, NOW));
        }
        for (hash, is_right) in [(Hash::Sha256, true), (Hash::Sha512, false)] {
            let entry = sigstore.logged(log, &maker.record(log, hash, CONTENT, &signed), NOW);
            let held = holds(&with(&bundle, ENTRY, entry), &root);
            assert_eq!(held.is_ok(), is_right, "{log:?} {hash:?}: {held:?}");
        }
    }
}

#[test]
fn what_others_certified_or_logged_does_not_count() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    let mut wrong = Vec::new();
    for kind in KeyKind::ALL {
        let maker = sigstore.certify(&Pair::new(kind), &Certified::new());
        for log in [Log::V1, Log::V2] {
            assert_eq!(holds(&sigstore.sign_file(&maker, CONTENT, log), &root), Ok(certified()));
            for (what, bundle) in forged(&sigstore, &maker, log) {
                match holds(&bundle, &root) {
                    Ok(_) => wrong.push(format!("{kind:?} {log:?} {what}")),
                    Err(why) => assert!(!why.is_empty()),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_bundle_can_be_written_in_several_ways() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    let maker = sigstore.certify(&Pair::new(KeyKind::P256), &Certified::new());
    let (v1, v2) = (sigstore.sign_file(&maker, CONTENT, Log::V1), sigstore.sign_file(&maker, CONTENT, Log::V2));
    let signed = sigstore.sign_statement(&maker, &statement(&kit()), Log::V1);
    let text = v1.to_string();
    let in_time = |bundle: &Value, by: &Sigstore, over: &[u8]| {
        let mut bundle = bundle.clone();
        bundle["verificationMaterial"]["timestampVerificationData"] = by.stamped(over, NOW);
        bundle
    };
    let entries = |list: &[&Value]| with(&v1, "/verificationMaterial/tlogEntries", json!(list));
    let (foreign, ours) = (Sigstore::new(), signature(&v1));
    let body = maker.record(Log::V2, Hash::Sha256, CONTENT, &ours);
    let (first, second) = (v1.pointer(ENTRY).unwrap(), sigstore.logged(Log::V2, &body, NOW));
    let unknown = foreign.logged(Log::V2, &body, NOW);
    let mut other_body = second.clone();
    other_body["canonicalizedBody"] = base64("{}").into();
    let (sig, envelope) = ("/messageSignature/signature", "/dsseEnvelope");
    let encoded = base64(&ours);
    let sent = signed["dsseEnvelope"]["payload"].as_str().unwrap();
    let hint = json!({"sig": base64(signature(&signed)), "keyid": "somebody"});
    let ways = [
        ("a line break behind", text.clone() + "\n", true),
        ("something behind", text.clone() + "x", false),
        ("a byte order mark before", format!("\u{feff}{text}"), false),
        ("what nobody knows", text.replacen('{', "{\"more\":1,", 1), false),
        ("two contents", text.replacen('{', "{\"dsseEnvelope\":{},", 1), false),
        ("two makers", text.replacen("{\"certificate\"", "{\"publicKey\":{\"hint\":\"x\"},\"certificate\"", 1), false),
        ("what nobody knows, deep", text.replacen("{\"rawBytes\"", "{\"more\":1,\"rawBytes\"", 1), false),
        ("numbers for text", text.replacen("\"logIndex\":\"1\"", "\"logIndex\":1", 1), true),
        ("URLs' base64", with(&v1, sig, encoded.replace('+', "-").replace('/', "_")).to_string(), true),
        ("base64 without padding", with(&v1, sig, encoded.trim_end_matches('=')).to_string(), true),
        (
            "a payload without padding",
            with(&signed, "/dsseEnvelope/payload", sent.trim_end_matches('=')).to_string(),
            true,
        ),
        ("a hint of the key", with(&signed, &format!("{envelope}/signatures/0"), hint).to_string(), true),
        ("two logs", entries(&[first, &second]).to_string(), true),
        ("a log that nobody knows beside", entries(&[first, &unknown]).to_string(), true),
        ("one entry of two that is wrong", entries(&[first, &other_body]).to_string(), false),
        ("a log that nobody knows alone", in_time(&entries(&[&unknown]), &sigstore, &ours).to_string(), false),
        ("both kinds of times", in_time(&v1, &sigstore, &ours).to_string(), true),
        ("a timestamp of something else beside", in_time(&v1, &sigstore, b"x").to_string(), false),
        ("a timestamp by somebody else beside", in_time(&v1, &foreign, &ours).to_string(), false),
    ];
    let mut wrong = Vec::new();
    for (way, text, is_right) in ways {
        let material = Material::of_bundle(text, way);
        let of_file = examine_artifact(&material, &Message::of(CONTENT), &[], &root, &Limits::default());
        let of_kit = examine(&material, &kit(), &[], &root, &Limits::default());
        if (of_file.endorsements.len() + of_kit.endorsements.len() > 0) != is_right {
            wrong.push(format!("{way}: {:?} {:?}", of_file.rejected, of_kit.rejected));
        }
    }
    let note = format!("{ENTRY}/inclusionProof/checkpoint/envelope");
    let renamed =
        v2.pointer(&note).unwrap().as_str().unwrap().replace("\u{2014} log2.example", "\u{2014} log3.example");
    wrong.extend(holds(&with(&v2, &note, renamed), &root).ok().map(|_| "another name of the log".to_owned()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_root_says_for_how_long_each_of_it_counts() {
    let sigstore = Sigstore::new();
    let root = sigstore.root();
    let maker = sigstore.certify(&Pair::new(KeyKind::P384), &Certified::new());
    let (v1, v2) = (sigstore.sign_file(&maker, CONTENT, Log::V1), sigstore.sign_file(&maker, CONTENT, Log::V2));
    for (place, bundle) in [
        ("/tlogs/0/publicKey/validFor", &v1),
        ("/tlogs/1/publicKey/validFor", &v2),
        ("/ctlogs/0/publicKey/validFor", &v1),
        ("/certificateAuthorities/0/validFor", &v2),
        ("/timestampAuthorities/0/validFor", &v2),
    ] {
        for (from, until, is_right) in [
            ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", true),
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", false),
            ("2026-10-01T00:00:00Z", "2027-01-01T00:00:00Z", false),
        ] {
            let changed = read(&with(&root, place, json!({"start": from, "end": until})));
            assert_eq!(holds(bundle, &changed).is_ok(), is_right, "{place} {from}");
        }
    }
    let other_name = read(&with(&root, "/tlogs/1/baseUrl", "https://log3.example"));
    assert!(holds(&v2, &other_name).unwrap_err().contains("the checkpoint is of"));
    let nobody = |place: &str| read(&with(&root, place, json!([])));
    assert!(holds(&v1, &nobody("/ctlogs")).is_err());
    assert!(holds(&v1, &nobody("/certificateAuthorities")).is_err());
    assert!(holds(&v2, &nobody("/timestampAuthorities")).is_err());

    let ended = Sigstore::with_intermediate_until(NOW - 10);
    let maker = ended.certify(&Pair::new(KeyKind::P384), &Certified::new());
    let why = holds(&ended.sign_file(&maker, CONTENT, Log::V1), &read(&ended.root())).unwrap_err();
    assert!(why.contains("CertExpired"), "{why}");
    let later = Sigstore::with_intermediate_until(NOW + 10);
    let maker = later.certify(&Pair::new(KeyKind::P384), &Certified::new());
    assert!(holds(&later.sign_file(&maker, CONTENT, Log::V1), &read(&later.root())).is_ok());
}

#[test]
fn a_bit_that_is_flipped_never_names_another_signer() {
    let sigstore = Sigstore::new();
    let root = read(&sigstore.root());
    for kind in [KeyKind::P384, KeyKind::Ed25519] {
        let maker = sigstore.certify(&Pair::new(kind), &Certified::new());
        for log in [Log::V1, Log::V2] {
            let bundle = sigstore.sign_statement(&maker, &statement(&kit()), log).to_string().into_bytes();
            let who = |bundle: &[u8]| {
                let findings = examine(&Material::of_bundle(bundle, "here"), &kit(), &[], &root, &Limits::default());
                findings.endorsements.first().map(|it| it.signer().name())
            };
            assert_eq!(who(&bundle), Some(certified()), "{kind:?} {log:?}");
            for at in (0..bundle.len()).step_by(3) {
                let mut flipped = bundle.clone();
                flipped[at] ^= 1 << (at % 8);
                let found = who(&flipped);
                assert!(found.is_none() || found == Some(certified()), "{kind:?} {log:?} {at}: {found:?}");
                assert_eq!(who(&bundle[..at]), None, "{kind:?} {log:?} cut at {at}");
            }
        }
    }
}
