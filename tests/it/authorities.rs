//! Models that the holders of certificates of an authority signed, as `model_signing sign certificate` does: no log has
//! seen the signature, and who verifies it names the authority.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::models::{CODE, kit, policy, statement, weights};
use crate::support::der::{extension, name, oid, sequence};
use crate::support::keys::{KeyKind, Pair};
use crate::support::kitfs::Kitfs;
use crate::support::sigstore::{Authority, CODE_SIGNING, STATEMENT, base64, pem, pre_authentication};

const SERVERS: &str = "1.3.6.1.5.5.7.3.1";
/// BIT STRINGs of a key's usages: digitalSignature, and keyAgreement.
const SIGNS: [u8; 4] = [3, 2, 7, 0x80];
const AGREES: [u8; 4] = [3, 2, 3, 8];

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// What stands in a certificate about what its key is for.
fn usages(key: Option<[u8; 4]>, extended: Option<&str>) -> Vec<u8> {
    let key = key.map(|bits| extension("2.5.29.15", true, bits)).unwrap_or_default();
    let extended = extended.map(|usage| extension("2.5.29.37", false, sequence(&[&oid(usage)]))).unwrap_or_default();
    [key, extended].concat()
}

/// The bundle of who holds the first of these certificates.
fn sign(pair: &Pair, statement: &str, chain: &[&Vec<u8>]) -> Value {
    let chain: Vec<_> = chain.iter().map(|der| json!({"rawBytes": base64(der)})).collect();
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"x509CertificateChain": {"certificates": chain}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64(statement), "payloadType": STATEMENT,
            "signatures": [{"sig": base64(pair.sign(&pre_authentication(statement)))}],
        },
    })
}

/// Writes certificates of authorities, and returns the path.
fn write(kitfs: &Kitfs, name: &str, certificates: &[&Vec<u8>]) -> String {
    let path = kitfs.path(name);
    std::fs::write(&path, certificates.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_model_can_be_signed_by_whom_an_authority_certified() {
    let (kitfs, now, weights) = (Kitfs::new(), now(), weights());
    let authority = Authority::new(CODE_SIGNING, now + 90_000);
    let [intermediate, root] = &authority.chain[..] else { panic!("there are two") };
    let ca = write(&kitfs, "ca.pem", &[root]);
    let ours = policy(&kitfs, "ours.toml", "any = [{ ca = \"ca.pem\" }]", "");
    let said = statement(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    let (pair, other) = (Pair::new(KeyKind::P384), Pair::new(KeyKind::P384));
    let usual = usages(Some(SIGNS), Some(CODE_SIGNING));
    let issue = |pair: &Pair, valid: [i64; 2], usages: &[u8]| authority.issue(pair, &name("Release"), valid, usages);
    let today = [now - 600, now + 90_000];
    let leaf = issue(&pair, today, &usual);
    let by = |leaf: &Vec<u8>| sign(&pair, &said, &[leaf, intermediate]);
    let ended = Authority::new(CODE_SIGNING, now - 10);
    let by_ended = ended.issue(&pair, &name("Release"), today, &usual);
    let foreign = Authority::new(CODE_SIGNING, now + 90_000);
    let by_foreign = foreign.issue(&pair, &name("Release"), today, &usual);
    let good = by(&leaf);
    let mut logged = good.clone();
    logged["verificationMaterial"]["tlogEntries"] = json!([{}]);
    let many: Vec<_> = [&leaf].into_iter().chain(std::iter::repeat_n(intermediate, 9)).collect();
    let p521 = Pair::new(KeyKind::P521);
    let by_p521 = sign(&p521, &said, &[&issue(&p521, today, &usual), intermediate]);
    for (case, bundle, exit, why) in [
        ("good", good.clone(), 0, ""),
        ("the root beside", sign(&pair, &said, &[&leaf, intermediate, root]), 0, ""),
        ("without words on extended usage", by(&issue(&pair, today, &usages(Some(SIGNS), None))), 0, ""),
        ("without words on usage but extended", by(&issue(&pair, today, &usages(None, Some(CODE_SIGNING)))), 0, ""),
        ("p521", by_p521, 0, ""),
        ("nobody between", sign(&pair, &said, &[&leaf]), 6, "UnknownIssuer"),
        ("another authority", sign(&pair, &said, &[&by_foreign, &foreign.chain[0]]), 6, "InvalidSignature"),
        ("of an authority that ended", sign(&pair, &said, &[&by_ended, &ended.chain[0]]), 6, ""),
        ("not valid any more", by(&issue(&pair, [now - 600, now - 10], &usual)), 6, "CertExpired"),
        ("not valid yet", by(&issue(&pair, [now + 6_000, now + 9_000], &usual)), 6, "CertNotValidYet"),
        ("for servers", by(&issue(&pair, today, &usages(Some(SIGNS), Some(SERVERS)))), 6, "RequiredEkuNotFound"),
        ("for nothing", by(&issue(&pair, today, &[])), 6, "not for signing"),
        ("for other things", by(&issue(&pair, today, &usages(Some(AGREES), Some(CODE_SIGNING)))), 6, "not for signing"),
        ("by another key", sign(&other, &said, &[&leaf, intermediate]), 6, "did not make the signature"),
        ("more certificates than anybody needs", sign(&pair, &said, &many), 6, "at most 8 are looked at"),
        ("a log", logged, 6, ""),
    ] {
        let reference = kit(&kitfs, &case.replace(' ', "-"), &weights, bundle.to_string().as_bytes());
        let verify = ["verify", &reference, "--model-signature", "m/model.sig", "--model-ca", &ca, "-o", "json"];
        let output = kitfs.run(&verify).expect(exit).says(why);
        kitfs.run(&["ls", &reference, "--policy", &ours]).expect(exit).says(why);
        if exit == 0 {
            let signer = output.json()["model_signature"]["signer"].to_string();
            assert!(signer.contains("CN=Release (ca:sha256:"), "{output}");
        }
    }
    let mut changed = weights.clone();
    changed[123_456] ^= 1;
    let changed = kit(&kitfs, "changed", &changed, good.to_string().as_bytes());
    kitfs.run(&["verify", &changed, "--model-signature", "m/model.sig", "--model-ca", &ca]).expect(5);
    kitfs.run(&["ls", &changed, "--policy", &ours]).expect(6).says("is not the file that was signed");
}

#[test]
fn who_is_an_authority_is_said_by_name() {
    let (kitfs, now, weights) = (Kitfs::new(), now(), weights());
    let authority = Authority::new(CODE_SIGNING, now + 90_000);
    let [intermediate, root] = &authority.chain[..] else { panic!("there are two") };
    let said = statement(&[("run.py", CODE), ("weights.bin", &weights)], "files");
    let pair = Pair::new(KeyKind::P256);
    let usual = usages(Some(SIGNS), Some(CODE_SIGNING));
    let leaf = authority.issue(&pair, &name("Release"), [now - 600, now + 90_000], &usual);
    let reference = kit(&kitfs, "good", &weights, sign(&pair, &said, &[&leaf]).to_string().as_bytes());
    let foreign = Authority::new(CODE_SIGNING, now + 90_000);
    write(&kitfs, "foreign.pem", &[&foreign.chain[1]]);
    write(&kitfs, "leaf.pem", &[&leaf]);
    write(&kitfs, "none.pem", &[]);
    let ca = write(&kitfs, "both.pem", &[&foreign.chain[1], intermediate]);
    std::fs::write(kitfs.path("key.pub"), pem("PUBLIC KEY", &pair.spki)).unwrap();
    for (block, exit) in [
        ("any = [{ ca = \"both.pem\" }]", 0),
        ("any = [{ ca = \"foreign.pem\" }, { ca = \"both.pem\" }]", 0),
        ("all = [{ ca = \"both.pem\" }, { key = \"key.pub\" }]", 0),
        ("any = [{ ca = \"foreign.pem\" }]", 6),
        ("any = [{ ca = \"both.pem\" }]\nat_least = 2", 6),
        ("any = [{ ca = \"both.pem\" }]\nlog = true", 6),
        ("any = [{ ca = \"both.pem\" }]\ntimestamp = true", 6),
        // Whatever a company's certificate says, it is nobody whom a Sigstore knows.
        ("any = [{ identity_regexp = \".*\", issuer_regexp = \".*\" }]\nall = [{ ca = \"both.pem\" }]", 6),
        ("any = [{ ca = \"leaf.pem\" }]", 2),
        ("any = [{ ca = \"none.pem\" }]", 2),
        ("any = [{ ca = \"key.pub\" }]", 2),
        ("any = [{ ca = \"absent.pem\" }]", 2),
        ("any = [{ ca = \"both.pem\", key = \"key.pub\" }]", 2),
        ("any = [{ ca = \"both.pem\", identity = \"x\", issuer = \"y\" }]", 2),
    ] {
        let policy = policy(&kitfs, "block.toml", block, "");
        kitfs.run(&["ls", &reference, "--policy", &policy]).expect(exit);
    }
    let any = "any = [{ ca = \"both.pem\" }]";
    for block in [
        format!("[[rule.signature]]\n{any}"),
        format!("[[rule.attestation]]\npredicate_type = \"x\"\n{any}"),
        "indexes = [{ ca = \"both.pem\" }]".into(),
    ] {
        let policy = policy(&kitfs, "block.toml", any, &block);
        kitfs.run(&["policy", "check", &policy]).expect(2).says("a ca says who signs models");
    }
    let root = write(&kitfs, "root.pem", &[root]);
    kitfs.run(&["verify", &reference, "--model-signature", "m/model.sig", "--model-ca", &ca]).expect(0);
    kitfs.run(&["verify", &reference, "--model-signature", "m/model.sig", "--model-ca", &root]).expect(6);
    kitfs.run(&["verify", &reference, "--model-ca", &ca]).expect(2);
    let leaf = kitfs.path("leaf.pem");
    kitfs
        .run(&["verify", &reference, "--model-signature", "m/model.sig", "--model-ca", leaf.to_str().unwrap()])
        .expect(2);
}
