//! Public keys, and whether a signature by one of them holds over a message.
//!
//! A signature does not say which hash it was made with, so every one that real signers use with a kind
//! of key is tried: cosign signs P-384 with SHA-384 and Ed25519 over a SHA-512 prehash (RFC 8032,
//! Ed25519ph), older and other tools with SHA-256 and pure Ed25519. Nothing weaker than SHA-256 or than
//! RSA with 2048 bits is tried.

use aws_lc_rs::digest;
use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1;
use aws_lc_rs::signature::ECDSA_P256_SHA384_ASN1;
use aws_lc_rs::signature::ECDSA_P256_SHA512_ASN1;
use aws_lc_rs::signature::ECDSA_P384_SHA256_ASN1;
use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1;
use aws_lc_rs::signature::ECDSA_P384_SHA512_ASN1;
use aws_lc_rs::signature::ECDSA_P521_SHA256_ASN1;
use aws_lc_rs::signature::ECDSA_P521_SHA384_ASN1;
use aws_lc_rs::signature::ECDSA_P521_SHA512_ASN1;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA384;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA512;
use aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256;
use aws_lc_rs::signature::RSA_PSS_2048_8192_SHA384;
use aws_lc_rs::signature::RSA_PSS_2048_8192_SHA512;
use aws_lc_rs::signature::RsaPssSaltLength;
use aws_lc_rs::signature::UnparsedPublicKey;
use aws_lc_rs::signature::VerificationAlgorithm;
use ed25519_dalek::Signature as Ed25519Signature;
use ed25519_dalek::VerifyingKey as Ed25519Key;
use sha2::Digest as _;
use sha2::Sha512;
use sigstore_types::DerPublicKey;
use x509_cert::der::Any;
use x509_cert::der::Decode;
use x509_cert::der::Encode;
use x509_cert::der::asn1::BitString;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::pem;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::digest::Digest;
use crate::trust::message::Hash;
use crate::trust::message::Message;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// OpenSSL and Go sign with as much salt as fits where nobody says how much; others with as much as the hash has.
const LONGEST_SALT: RsaPssSaltLength = RsaPssSaltLength::Max;

/// A public key that somebody trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// SubjectPublicKeyInfo (RFC 5280), DER.
    spki: Vec<u8>,
    /// The bits in it.
    raw: Vec<u8>,
    kind: KeyKind,
}

/// Kinds of keys that signatures are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// RSA with 2048 to 8192 bits.
    Rsa,
    /// Ed25519.
    Ed25519,
}

impl PublicKey {
    /// Reads a PEM `PUBLIC KEY`, as `cosign generate-key-pair` and `cosign public-key` write it, or an
    /// `RSA PUBLIC KEY` (RFC 8017, A.1.1), which cosign reads too.
    pub fn from_pem(text: &[u8]) -> Result<Self, InvalidKey> {
        let text = str::from_utf8(text).map_err(|_| InvalidKey::NoPem("it is not text".into()))?;
        if let Ok(("RSA PUBLIC KEY", raw)) = pem::decode_vec(text.as_bytes()) {
            return Self::from_rsa(&raw);
        }
        let der = DerPublicKey::from_pem(text).map_err(|error| InvalidKey::NoPem(error.to_string()))?;
        Self::from_der(der.as_bytes())
    }

    fn from_rsa(raw: &[u8]) -> Result<Self, InvalidKey> {
        let malformed = |error: x509_cert::der::Error| InvalidKey::Malformed(error.to_string());
        let algorithm = AlgorithmIdentifierOwned { oid: RSA, parameters: Some(Any::null()) };
        let subject_public_key = BitString::from_bytes(raw).map_err(malformed)?;
        let spki = SubjectPublicKeyInfoOwned { algorithm, subject_public_key };
        Self::from_der(&spki.to_der().map_err(malformed)?)
    }

    /// Reads a DER SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<Self, InvalidKey> {
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|error| InvalidKey::Malformed(error.to_string()))?;
        let raw = spki.subject_public_key.raw_bytes();
        let kind = match spki.algorithm.oid {
            EC_PUBLIC_KEY => {
                let curve =
                    spki.algorithm.parameters_oid().map_err(|error| InvalidKey::Malformed(error.to_string()))?;
                let (kind, len) = match curve {
                    P256 => (KeyKind::P256, 65),
                    P384 => (KeyKind::P384, 97),
                    P521 => (KeyKind::P521, 133),
                    other => return Err(InvalidKey::Unsupported(format!("the curve {other}"))),
                };
                if raw.len() != len || raw.first() != Some(&4) {
                    return Err(InvalidKey::Malformed("the point is not an uncompressed one of the curve".into()));
                }
                kind
            }
            RSA => {
                let bits = modulus_bits(raw).map_err(|error| InvalidKey::Malformed(error.to_string()))?;
                if !(2048..=8192).contains(&bits) {
                    return Err(InvalidKey::Unsupported(format!("RSA with {bits} bits")));
                }
                KeyKind::Rsa
            }
            ED25519 => {
                let point = raw.try_into().ok().and_then(|raw| Ed25519Key::from_bytes(raw).ok());
                if point.is_none_or(|point| point.is_weak()) {
                    return Err(InvalidKey::Malformed("it is no point that signs".into()));
                }
                KeyKind::Ed25519
            }
            other => return Err(InvalidKey::Unsupported(format!("the algorithm {other}"))),
        };
        Ok(Self { spki: der.to_vec(), raw: raw.to_vec(), kind })
    }

    /// What names the key: `key:sha256:` and the SHA-256 of its SubjectPublicKeyInfo in hexadecimal.
    pub fn fingerprint(&self) -> String {
        format!("key:{}", Digest::of(&self.spki))
    }

    /// PEM, as [`PublicKey::from_pem`] reads it.
    pub fn to_pem(&self) -> String {
        DerPublicKey::from_bytes(&self.spki).to_pem()
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Which kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Whether the owner of the key signed this content, with any hash that goes with the key.
    pub fn has_signed(&self, content: &[u8], signature: &[u8]) -> bool {
        self.verifies(&Message::of(content), signature) == Holds::Yes
    }

    /// Whether the signature over the message is by this key, with any hash that goes with it.
    pub(super) fn verifies(&self, message: &Message<'_>, signature: &[u8]) -> Holds {
        if self.kind == KeyKind::Ed25519 {
            return self.verifies_ed25519(message, signature);
        }
        Holds::from(
            [Hash::Sha256, Hash::Sha384, Hash::Sha512].iter().any(|hash| self.verifies_by(*hash, message, signature)),
        )
    }

    /// Whether the signature over the message is by this key and was made with that hash. Ed25519 goes with SHA-512,
    /// be it over the message or over its digest.
    pub(super) fn verifies_by(&self, hash: Hash, message: &Message<'_>, signature: &[u8]) -> bool {
        if self.kind == KeyKind::Ed25519 {
            return hash == Hash::Sha512 && self.verifies_ed25519(message, signature) == Holds::Yes;
        }
        // DER of the longest ECDSA signature has 141 bytes; RSA signatures are as long as the modulus.
        if signature.len() > 1024 {
            return false;
        }
        let Some(digest) = message.digest(hash) else { return false };
        let Ok(digest) = digest::Digest::import_less_safe(digest, hash.algorithm()) else { return false };
        let mut algorithms = self.algorithms().iter().filter(|(of, _)| *of == hash);
        algorithms.any(|(_, algorithm)| {
            UnparsedPublicKey::new(*algorithm, &self.raw).verify_digest(&digest, signature).is_ok()
        })
    }

    fn verifies_ed25519(&self, message: &Message<'_>, signature: &[u8]) -> Holds {
        let key = self.raw.as_slice().try_into().ok().and_then(|raw| Ed25519Key::from_bytes(raw).ok());
        let (Some(key), Ok(signature)) = (key, Ed25519Signature::from_slice(signature)) else { return Holds::No };
        let Some(content) = message.content() else { return Holds::Unknown };
        let pure = key.verify_strict(content, &signature).is_ok();
        let prehashed = || key.verify_prehashed_strict(Sha512::new_with_prefix(content), None, &signature).is_ok();
        Holds::from(pure || prehashed())
    }

    fn algorithms(&self) -> &'static [(Hash, &'static dyn VerificationAlgorithm)] {
        match self.kind {
            KeyKind::P256 => &[
                (Hash::Sha256, &ECDSA_P256_SHA256_ASN1),
                (Hash::Sha384, &ECDSA_P256_SHA384_ASN1),
                (Hash::Sha512, &ECDSA_P256_SHA512_ASN1),
            ],
            KeyKind::P384 => &[
                (Hash::Sha384, &ECDSA_P384_SHA384_ASN1),
                (Hash::Sha256, &ECDSA_P384_SHA256_ASN1),
                (Hash::Sha512, &ECDSA_P384_SHA512_ASN1),
            ],
            KeyKind::P521 => &[
                (Hash::Sha512, &ECDSA_P521_SHA512_ASN1),
                (Hash::Sha256, &ECDSA_P521_SHA256_ASN1),
                (Hash::Sha384, &ECDSA_P521_SHA384_ASN1),
            ],
            KeyKind::Rsa => &[
                (Hash::Sha256, &RSA_PKCS1_2048_8192_SHA256),
                (Hash::Sha256, &RSA_PSS_2048_8192_SHA256),
                (Hash::Sha256, &const { RSA_PSS_2048_8192_SHA256.with_pss_salt_length(LONGEST_SALT) }),
                (Hash::Sha384, &RSA_PKCS1_2048_8192_SHA384),
                (Hash::Sha384, &RSA_PSS_2048_8192_SHA384),
                (Hash::Sha384, &const { RSA_PSS_2048_8192_SHA384.with_pss_salt_length(LONGEST_SALT) }),
                (Hash::Sha512, &RSA_PKCS1_2048_8192_SHA512),
                (Hash::Sha512, &RSA_PSS_2048_8192_SHA512),
                (Hash::Sha512, &const { RSA_PSS_2048_8192_SHA512.with_pss_salt_length(LONGEST_SALT) }),
            ],
            KeyKind::Ed25519 => &[],
        }
    }
}

/// Whether a signature holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// The message itself is needed to tell, and only its digest is there.
    Unknown,
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

fn modulus_bits(raw: &[u8]) -> Result<usize, x509_cert::der::Error> {
    use x509_cert::der::Reader;
    use x509_cert::der::SliceReader;
    use x509_cert::der::asn1::UintRef;
    let mut reader = SliceReader::new(raw)?;
    let modulus: UintRef<'_> = reader.sequence(|reader| {
        let modulus = reader.decode()?;
        reader.decode::<UintRef<'_>>()?;
        Ok(modulus)
    })?;
    reader.finish(())?;
    let unused = modulus.as_bytes().first().map_or(0, |byte| byte.leading_zeros() as usize);
    Ok((modulus.as_bytes().len() * 8).saturating_sub(unused))
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

/// Why something is not a public key that signatures can be checked with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No PEM, or of something else.
    #[error("it is no PEM public key: {0}")]
    NoPem(String),
    /// Not the structure that it should be.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// A kind of key that signatures are not checked with.
    #[error("{0} is not supported")]
    Unsupported(String),
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::encoding::PublicKeyX509Der;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;
    use aws_lc_rs::signature::ECDSA_P521_SHA256_ASN1_SIGNING;
    use aws_lc_rs::signature::ECDSA_P521_SHA512_ASN1_SIGNING;
    use aws_lc_rs::signature::EcdsaKeyPair;
    use aws_lc_rs::signature::Ed25519KeyPair;
    use aws_lc_rs::signature::KeyPair as _;
    use aws_lc_rs::signature::RSA_PKCS1_SHA256;
    use aws_lc_rs::signature::RSA_PKCS1_SHA512;
    use aws_lc_rs::signature::RSA_PSS_SHA256;
    use aws_lc_rs::signature::RSA_PSS_SHA384;
    use aws_lc_rs::signature::RSA_PSS_SHA512;
    use aws_lc_rs::signature::RsaKeyPair;

    use super::*;

    const MESSAGE: &[u8] = b"a message";

    /// Holds for the message, for its digest alone, and for nothing else.
    fn check(spki: &impl AsDer<PublicKeyX509Der<'static>>, kind: KeyKind, signature: &[u8]) {
        let key = PublicKey::from_der(spki.as_der().unwrap().as_ref()).unwrap();
        assert_eq!(key.kind(), kind);
        assert_eq!(key.verifies(&Message::of(MESSAGE), signature), Holds::Yes);
        assert_eq!(key.verifies(&Message::of(b"another"), signature), Holds::No);
        assert_eq!(key.verifies(&Message::of(MESSAGE), b""), Holds::No);
        let mut flipped = signature.to_vec();
        flipped[signature.len() / 2] ^= 1;
        assert_eq!(key.verifies(&Message::of(MESSAGE), &flipped), Holds::No);
        let read = Message::read(MESSAGE).unwrap();
        let expected = if kind == KeyKind::Ed25519 { Holds::Unknown } else { Holds::Yes };
        assert_eq!(key.verifies(&read, signature), expected);
    }

    #[test]
    fn ecdsa_holds_with_the_hashes_that_signers_use() {
        let random = SystemRandom::new();
        for (algorithm, kind) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, KeyKind::P256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, KeyKind::P384),
            (&ECDSA_P521_SHA512_ASN1_SIGNING, KeyKind::P521),
            (&ECDSA_P521_SHA256_ASN1_SIGNING, KeyKind::P521),
        ] {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            check(pair.public_key(), kind, pair.sign(&random, MESSAGE).unwrap().as_ref());
        }
    }

    #[test]
    fn rsa_holds_with_both_paddings() {
        let random = SystemRandom::new();
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let long = &const { RSA_PSS_SHA256.with_pss_salt_length(LONGEST_SALT) };
        let longer_hash = &const { RSA_PSS_SHA512.with_pss_salt_length(LONGEST_SALT) };
        for padding in [&RSA_PKCS1_SHA256, &RSA_PKCS1_SHA512, &RSA_PSS_SHA256, &RSA_PSS_SHA384, long, longer_hash] {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &random, MESSAGE, &mut signature).unwrap();
            check(pair.public_key(), KeyKind::Rsa, &signature);
        }
    }

    #[test]
    fn an_rsa_key_is_the_same_in_both_forms() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let key = PublicKey::from_der(pair.public_key().as_der().unwrap().as_ref()).unwrap();
        let old = pem::encode_string("RSA PUBLIC KEY", pem::LineEnding::LF, pair.public_key().as_ref()).unwrap();
        assert_eq!(PublicKey::from_pem(old.as_bytes()).unwrap(), key);
        assert!(PublicKey::from_pem(old.replace("RSA ", "").as_bytes()).is_err());
    }

    #[test]
    fn ed25519_holds_pure_and_over_a_hash() {
        let pair = Ed25519KeyPair::generate().unwrap();
        check(pair.public_key(), KeyKind::Ed25519, pair.sign(MESSAGE).as_ref());
        // RFC 8032, 7.3: Ed25519ph of "abc".
        let spki = "302a300506032b6570032100ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf";
        let key = PublicKey::from_der(&hex::decode(spki).unwrap()).unwrap();
        let signature = "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41\
                         31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406";
        let signature = hex::decode(signature.replace(char::is_whitespace, "")).unwrap();
        assert_eq!(key.verifies(&Message::of(b"abc"), &signature), Holds::Yes);
        assert_eq!(key.verifies(&Message::of(b"abd"), &signature), Holds::No);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(PublicKey::from_pem(text.as_bytes()).is_err(), "{text}");
        }
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(PublicKey::from_pem(pem.as_bytes()), Err(InvalidKey::NoPem(_))));
        let point_at_infinity =
            hex::decode(format!("302a300506032b6570032100{}", "01".to_owned() + &"00".repeat(31))).unwrap();
        assert!(PublicKey::from_der(&point_at_infinity).is_err());
    }
}
