//! Certificates by an authority that signs anything, so that what stands in them is all that can be wrong.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::digest::Digest;
use kitfs::trust::{Limits, Material, Message, examine_artifact};
use serde_json::json;

use super::signatures::{ARTIFACT, IDENTITY, ROOT};

/// A timestamp over the signature of the artifact by [`HOLDER`].
const STAMP: &[u8] = include_bytes!("../data/stamp.der");

/// Who issues, who holds what was issued, and the log: the last two of the root.
static AUTHORITY: LazyLock<Ed25519KeyPair> = LazyLock::new(|| pair(8));
static HOLDER: LazyLock<Ed25519KeyPair> = LazyLock::new(|| pair(9));
static LOG: LazyLock<Ed25519KeyPair> = LazyLock::new(|| pair(10));

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("it has 32 bytes")
}

/// What the authority certifies (RFC 5280, `TBSCertificate`). Its word is not enough: a certificate log must have seen it.
pub fn certificate(data: &[u8]) {
    assert!(holder(data).is_none_or(|name| name == IDENTITY), "the certificate log has seen no other");
}

/// Whose signature of the artifact it is, by a certificate with this in it.
pub fn holder(to_be_signed: &[u8]) -> Option<String> {
    // Ed25519 (RFC 8410), and a signature by it: a BIT STRING.
    let algorithm = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    let issued = AUTHORITY.sign(to_be_signed);
    let certificate = sequence(&[to_be_signed, &algorithm, &[3, 65, 0], issued.as_ref()].concat())?;
    let signature = STANDARD.encode(HOLDER.sign(ARTIFACT));
    let verifier =
        json!({"keyDetails": "PKIX_ED25519_PH", "x509Certificate": {"rawBytes": STANDARD.encode(&certificate)}});
    let body = json!({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": {
        "data": {"algorithm": "SHA2_512", "digest": STANDARD.encode(digest(&SHA512, ARTIFACT))},
        "signature": {"content": signature, "verifier": verifier},
    }}});
    // The only leaf of a tree is its root (RFC 6962, 2.1).
    let leaf = STANDARD.encode(sha256(&[&[0], body.to_string().as_bytes()].concat()));
    let id = sha256(&[b"log3.example\n\x01", LOG.public_key().as_ref()].concat());
    let note = format!("log3.example\n1\n{leaf}\n");
    let by_log = STANDARD.encode([&id[..4], LOG.sign(note.as_bytes()).as_ref()].concat());
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "certificate": {"rawBytes": STANDARD.encode(&certificate)},
            "tlogEntries": [{
                "logIndex": "0", "logId": {"keyId": STANDARD.encode(id)},
                "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
                "inclusionProof": {
                    "logIndex": "0", "rootHash": leaf, "treeSize": "1", "hashes": [],
                    "checkpoint": {"envelope": format!("{note}\n\u{2014} log3.example {by_log}\n")},
                },
                "canonicalizedBody": STANDARD.encode(body.to_string()),
            }],
            "timestampVerificationData": {"rfc3161Timestamps": [{"signedTimestamp": STANDARD.encode(STAMP)}]},
        },
        "messageSignature": {"signature": signature},
    });
    let material = Material::of_bundle(bundle.to_string(), "fuzz");
    let findings = examine_artifact(&material, &Message::of(ARTIFACT), &[], &ROOT, &Limits::default());
    Some(findings.endorsements.first()?.signer().name())
}

/// SEQUENCE, in DER (X.690).
fn sequence(content: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).ok()?.to_be_bytes();
    let head: &[u8] = match (high, low) {
        (0, 0..=127) => &[0x30, low],
        (0, _) => &[0x30, 0x81, low],
        _ => &[0x30, 0x82, high, low],
    };
    Some([head, content].concat())
}

fn sha256(content: &[u8]) -> Vec<u8> {
    hex::decode(Digest::of(content).hex()).expect("it is hexadecimal")
}
