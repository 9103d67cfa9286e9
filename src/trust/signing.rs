//! Private keys, and what is signed with them here: indexes, and the head of the audit log.
//!
//! A key is PEM, PKCS#8; or as `cosign generate-key-pair` and `cosign import-key-pair` write it, the same
//! sealed with a password (scrypt and NaCl's secretbox; go-securesystemslib, "encrypted"). What is signed is
//! what cosign would have signed, so that cosign can check it too.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::encoding::PublicKeyX509Der;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;
use aws_lc_rs::signature::ECDSA_P521_SHA512_ASN1_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use aws_lc_rs::signature::RsaKeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use salsa20::XSalsa20;
use salsa20::cipher::KeyIvInit;
use salsa20::cipher::StreamCipher;
use serde::Deserialize;
use sigstore_types::pae;
use x509_cert::der::pem;

use crate::digest::Digest;
use crate::fault::Fault;
use crate::trust::key::PublicKey;
use crate::trust::statement::PAYLOAD_TYPE;
use crate::trust::statement::SIGNATURE_PREDICATE;

/// No key file is longer.
const LIMIT: u64 = 64 * 1024;

/// Memory and rounds that a sealed key may ask of scrypt. Cosign asks for 64 MiB and one round.
const SCRYPT_MEMORY: u64 = 256 << 20;
const SCRYPT_ROUNDS: u32 = 4;

/// Labels of sealed keys: cosign's since 2.0, and before.
const SEALED: [&str; 2] = ["ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"];

/// The media type of the bundles that are written.
pub const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A private key.
pub struct SigningKey {
    pair: Pair,
    public: PublicKey,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl SigningKey {
    /// Reads a key. `password` opens one that is sealed; what cosign calls `COSIGN_PASSWORD`.
    pub fn read(path: &Path, password: Option<&[u8]>) -> Result<Self, SigningError> {
        let unreadable = |source| SigningError::Unreadable { path: path.into(), source };
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut text)).map_err(unreadable)?;
        let no_key = |why: String| SigningError::NoKey { path: path.into(), why };
        let (label, content) = pem::decode_vec(&text).map_err(|error| no_key(error.to_string()))?;
        let der = match label {
            "PRIVATE KEY" => content,
            _ if SEALED.contains(&label) => {
                let password = password.ok_or_else(|| SigningError::Sealed { path: path.into() })?;
                let sealed: Sealed = serde_json::from_slice(&content).map_err(|error| no_key(error.to_string()))?;
                sealed.open(password).map_err(no_key)?
            }
            other => return Err(no_key(format!("it is a PEM {other:?}, and neither PKCS#8 nor a key of cosign"))),
        };
        Self::of_pkcs8(&der).ok_or_else(|| no_key("its kind is none of ECDSA, Ed25519 and RSA".into()))
    }

    fn of_pkcs8(der: &[u8]) -> Option<Self> {
        let algorithms =
            [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];
        let ecdsa = || algorithms.into_iter().find_map(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok());
        let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok();
        let rsa = || RsaKeyPair::from_pkcs8(der).ok();
        let pair =
            ecdsa().map(Pair::Ecdsa).or_else(|| ed25519().map(Pair::Ed25519)).or_else(|| rsa().map(Pair::Rsa))?;
        let spki: PublicKeyX509Der<'_> = match &pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der(),
            Pair::Ed25519(pair) => pair.public_key().as_der(),
            Pair::Rsa(pair) => pair.public_key().as_der(),
        }
        .ok()?;
        // What nobody here could check is not signed.
        let public = PublicKey::from_der(spki.as_ref()).ok()?;
        Some(Self { pair, public })
    }

    /// The key that checks what this one signs.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A signature over a message: ECDSA in ASN.1 over SHA-256 (P-256), SHA-384 (P-384) or SHA-512 (P-521),
    /// Ed25519, or RSA with PKCS#1 v1.5 over SHA-256.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| SigningError::Failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(|_| SigningError::Failed)?;
                Ok(signature)
            }
        }
    }

    /// The Sigstore bundle ([`BUNDLE_MEDIA_TYPE`]) that says the owner of the key stands behind a digest: what
    /// `cosign sign --key` makes of it without a log. It goes beside a manifest as a referrer, or beside a file.
    pub fn endorse(&self, subject: &Digest) -> Result<Vec<u8>, SigningError> {
        let statement = serde_json::json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {(subject.algorithm()): subject.hex()}}],
            "predicateType": SIGNATURE_PREDICATE,
            "predicate": {},
        });
        let payload = statement.to_string();
        let signature = self.sign(&pae(PAYLOAD_TYPE, payload.as_bytes()))?;
        // Cosign's name for a key; a verifier that has several finds the right one by it.
        let Digest::Sha256(hint) = Digest::of(self.public.spki()) else { return Err(SigningError::Failed) };
        let bundle = serde_json::json!({
            "mediaType": BUNDLE_MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": STANDARD.encode(hint)}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": STANDARD.encode(signature)}],
            },
        });
        Ok(bundle.to_string().into_bytes())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public).finish()
    }
}

/// A key that a password seals, as its file has it.
#[derive(Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Deserialize)]
struct Params {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

impl Sealed {
    /// The PKCS#8 inside. The error is a sentence.
    fn open(&self, password: &[u8]) -> Result<Vec<u8>, String> {
        if (self.kdf.name.as_str(), self.cipher.name.as_str()) != ("scrypt", "nacl/secretbox") {
            return Err(format!("it is sealed with {} and {}", self.kdf.name, self.cipher.name));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| format!("it is malformed: {error}"));
        let Params { n, r, p } = self.kdf.params;
        if n.saturating_mul(u64::from(r)).saturating_mul(128) > SCRYPT_MEMORY || p > SCRYPT_ROUNDS {
            return Err(format!("its password asks for more work than is done: N {n}, r {r}, p {p}"));
        }
        let params = n.is_power_of_two().then(|| scrypt::Params::new(n.ilog2() as u8, r, p).ok()).flatten();
        let params = params.ok_or_else(|| format!("scrypt has no N {n}, r {r}, p {p}"))?;
        let mut key = [0; 32];
        scrypt::scrypt(password, &decode(&self.kdf.salt)?, &params, &mut key).map_err(|error| error.to_string())?;
        let nonce = decode(&self.cipher.nonce)?.try_into().map_err(|_| "its nonce has not 24 bytes".to_owned())?;
        open_box(&key, &nonce, &decode(&self.ciphertext)?).ok_or_else(|| "the password is another".to_owned())
    }
}

/// NaCl's `crypto_secretbox_open`: XSalsa20 and Poly1305, the tag in front.
fn open_box(key: &[u8; 32], nonce: &[u8; 24], sealed: &[u8]) -> Option<Vec<u8>> {
    let (tag, ciphertext) = sealed.split_at_checked(16)?;
    let mut stream = XSalsa20::new(key.into(), nonce.into());
    let mut one_time = [0; 32];
    stream.apply_keystream(&mut one_time);
    let expected = Poly1305::new((&one_time).into()).compute_unpadded(ciphertext);
    aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_slice(), tag).ok()?;
    let mut plain = ciphertext.to_vec();
    stream.apply_keystream(&mut plain);
    Some(plain)
}

/// Why nothing was signed.
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
    /// A password is needed.
    #[error("the key {} is sealed with a password: set COSIGN_PASSWORD", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// The file holds no key that signs.
    #[error("{} holds no private key that signs: {why}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key does not sign.
    #[error("the key does not sign")]
    Failed,
}

impl SigningError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            // A key that cannot be read or used is one that was named wrongly.
            Self::Unreadable { .. } | Self::Sealed { .. } | Self::NoKey { .. } => Fault::Usage,
            Self::Failed => Fault::Other,
        }
    }
}

#[cfg(test)]
impl SigningKey {
    /// A new key, for tests.
    pub fn generated() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        Self::of_pkcs8(pair.to_pkcs8v1().unwrap().as_ref()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, password: Option<&[u8]>) -> Result<SigningKey, SigningError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        SigningKey::read(file.path(), password)
    }

    /// PKCS#8 in PEM.
    fn pem(label: &str, content: &[u8]) -> String {
        let base64 = STANDARD.encode(content);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn what_is_signed_holds_by_the_public_key() {
        let random = SystemRandom::new();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        let p521 = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let rsa: aws_lc_rs::encoding::Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        for der in [p384.as_ref(), p521.as_ref(), ed25519.as_ref(), rsa.as_ref()] {
            let key = read(&pem("PRIVATE KEY", der), None).unwrap();
            let signature = key.sign(b"a message").unwrap();
            assert!(key.public().has_signed(b"a message", &signature), "{:?}", key.public().kind());
            assert!(!key.public().has_signed(b"another", &signature));
        }
    }

    #[test]
    fn a_key_has_the_public_key_that_openssl_says() {
        // RFC 8410, 10.3 and 10.1.
        let key = pem("PRIVATE KEY", &hex::decode(RFC_8410).unwrap());
        let public = read(&key, None).unwrap().public().to_pem();
        assert!(public.contains("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="), "{public}");
    }

    const RFC_8410: &str = "302e020100300506032b657004220420\
                            d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842";

    /// What `cosign generate-key-pair` (3.1.2) wrote with the password `open-sesame`.
    const COSIGN: &str = "\
-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJPaHpnbW9wMWdNRDYvb3RWVVJqaWhZY1YrUkxSVWlT
U0Q0N3FSbWdnTFZRPSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJpbE90K2xwbEdVR0RmNHNmMGF2YlVaUEFwYjV1M3FQZyJ9LCJj
aXBoZXJ0ZXh0IjoiL0ppM3lXMTJqNE1KbjNCbTkyVE1wVkRPOExuR1IvN2pmTVNT
aHdxMGlYVmxCYWQvdTVOWThOekxDWS95L0NLS3haQXdoYytaeEtrTHBsUGlaNjFq
Z3ZObTM0dVV5d2ZXSWtXSkZJY1oxbDkxOWgrNnIzMldmck5wa2FlNmVVN3FBcEhl
ZmNUeXpub0VDY2RhNElWTkVzY0ZTSisvODNzQ05kUVRKZHZCM2RpbG9Pd29HSXky
VXFULzYyNFliZU5LZlJ1NGYyVENoSlZPTlE9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
";
    const COSIGN_PUBLIC: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEt6nEXSiU4jzJr8fb0gmSc23d5ZjcdDDm5dLeSWoZXVJMECum9MJLzFCZSOsmi/sruQJgVXVRanuTy6vxDvAHFg==";

    #[test]
    fn a_key_of_cosign_opens_with_its_password() {
        let key = read(COSIGN, Some(b"open-sesame")).unwrap();
        assert_eq!(
            key.public().to_pem().lines().filter(|line| !line.starts_with('-')).collect::<String>(),
            COSIGN_PUBLIC
        );
        let error = read(COSIGN, Some(b"")).unwrap_err();
        assert!(error.to_string().contains("password is another"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_told_why() {
        for (text, why) in [
            (String::new(), "PEM"),
            (pem("PRIVATE KEY", b"x"), "none of ECDSA"),
            (pem("EC PRIVATE KEY", b"x"), "EC PRIVATE KEY"),
            (pem("ENCRYPTED SIGSTORE PRIVATE KEY", b"{}"), "missing field"),
            (pem("ENCRYPTED COSIGN PRIVATE KEY", sealed(1 << 30, "scrypt").as_bytes()), "more work"),
            (pem("ENCRYPTED COSIGN PRIVATE KEY", sealed(48, "scrypt").as_bytes()), "scrypt has no"),
            (pem("ENCRYPTED COSIGN PRIVATE KEY", sealed(64, "argon2").as_bytes()), "argon2"),
            (pem("ENCRYPTED COSIGN PRIVATE KEY", sealed(64, "scrypt").as_bytes()), "password is another"),
        ] {
            let error = read(&text, Some(b"p")).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.fault(), Fault::Usage);
        }
        let error = read(&pem(SEALED[0], b"{}"), None).unwrap_err();
        assert!(error.to_string().contains("COSIGN_PASSWORD"), "{error}");
    }

    fn sealed(n: u64, kdf: &str) -> String {
        let (nonce, ciphertext) = (STANDARD.encode([0; 24]), STANDARD.encode([0; 20]));
        format!(
            r#"{{"kdf":{{"name":"{kdf}","params":{{"N":{n},"r":8,"p":1}},"salt":"AAAA"}},
            "cipher":{{"name":"nacl/secretbox","nonce":"{nonce}"}},"ciphertext":"{ciphertext}"}}"#
        )
    }

    #[test]
    fn a_box_opens_as_nacl_says() {
        // NaCl, tests/secretbox.c.
        let bytes = |text: &str| hex::decode(text).unwrap();
        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389").try_into().unwrap();
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").try_into().unwrap();
        let mut sealed = bytes(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a\
             c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae\
             90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74\
             e355a5",
        );
        let plain = "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129\
                     6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde\
                     048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705";
        assert_eq!(open_box(&key, &nonce, &sealed), Some(bytes(plain)));
        sealed[20] ^= 1;
        assert_eq!(open_box(&key, &nonce, &sealed), None);
    }
}
