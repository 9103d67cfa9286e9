//! A signature over the end of a log, to be kept where nobody who can write the log can write too.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::audit::verification::Verification;

/// No key file is longer.
const LONGEST_KEY: u64 = 64 * 1024;

/// What was signed, and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignedHead {
    /// The text that was signed, byte for byte: a JSON object with `head`, `sequence`, `lines` and `time`.
    pub payload: String,
    /// The signature in base64: ASN.1 ECDSA over SHA-256 (P-256) or SHA-384 (P-384), or Ed25519.
    pub signature: String,
    /// The public key in PEM, to find out which one it is; nobody should trust it for standing here.
    pub public_key: String,
}

/// A private key that signs heads.
pub struct HeadSigner(Key);

enum Key {
    Ecdsa(EcdsaKeyPair, Curve),
    Ed25519(Ed25519KeyPair),
}

#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
}

impl HeadSigner {
    /// Reads a private key in PEM, PKCS#8 (`BEGIN PRIVATE KEY`): ECDSA on P-256 or P-384, or Ed25519.
    pub fn read(path: &Path) -> Result<Self, SigningError> {
        use std::io::Read;
        let unreadable = |source| SigningError::Unreadable { path: path.into(), source };
        let mut pem = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST_KEY).read_to_string(&mut pem))
            .map_err(unreadable)?;
        Self::from_pem(&pem).ok_or_else(|| SigningError::NoKey { path: path.into() })
    }

    fn from_pem(pem: &str) -> Option<Self> {
        let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----")?;
        let (body, _) = rest.split_once("-----END PRIVATE KEY-----")?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).ok()?;
        let ecdsa = |algorithm, curve| EcdsaKeyPair::from_pkcs8(algorithm, &der).ok().map(|key| Key::Ecdsa(key, curve));
        ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, Curve::P256)
            .or_else(|| ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, Curve::P384))
            .or_else(|| Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok().map(Key::Ed25519))
            .map(Self)
    }

    /// Signs the head of a log that was verified.
    pub fn sign(&self, verified: &Verification) -> Result<SignedHead, SigningError> {
        let payload = serde_json::json!({
            "type": "kitfs audit head 1",
            "head": verified.head,
            "sequence": verified.sequence,
            "lines": verified.lines,
            "time": format!("{:.6}", jiff::Timestamp::now()),
        });
        let payload = payload.to_string();
        let (signature, spki) = match &self.0 {
            Key::Ecdsa(key, curve) => {
                let signature = key.sign(&SystemRandom::new(), payload.as_bytes()).map_err(|_| SigningError::Failed)?;
                (signature, [curve.spki_prefix(), key.public_key().as_ref()].concat())
            }
            Key::Ed25519(key) => (key.sign(payload.as_bytes()), [ED25519_SPKI, key.public_key().as_ref()].concat()),
        };
        let (signature, public_key) = (STANDARD.encode(signature), pem(&spki));
        Ok(SignedHead { payload, signature, public_key })
    }
}

/// The DER of a SubjectPublicKeyInfo (RFC 8410, section 4) up to the key itself.
const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl Curve {
    /// The same for an uncompressed point of a named curve (RFC 5480, section 2).
    fn spki_prefix(self) -> &'static [u8] {
        match self {
            Self::P256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
                0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
            Self::P384 => &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
                0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
        }
    }
}

fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
}

impl std::fmt::Debug for HeadSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeadSigner")
    }
}

/// Why the head was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The key cannot be read.
    #[error("cannot read the key {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no key that can sign.
    #[error("{} holds no private key in PEM, PKCS#8 and not encrypted, of P-256, P-384 or Ed25519", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key does not sign.
    #[error("the key does not sign")]
    Failed,
}
