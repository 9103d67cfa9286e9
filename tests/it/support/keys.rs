//! Pairs of keys of every kind that people sign with, and the hashes that go with them.

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA256_ASN1_SIGNING,
    ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use sha2::Digest as _;

/// Kinds of keys that people sign with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    P256,
    P384,
    P521,
    Rsa2048,
    Ed25519,
}

impl KeyKind {
    pub const ALL: [Self; 5] = [Self::P256, Self::P384, Self::P521, Self::Rsa2048, Self::Ed25519];

    /// The hash that goes with it, by the names of Rekor v1 and v2; and what Rekor v2 calls the key
    /// (sigstore/protobuf-specs, "algorithm-registry.md").
    pub fn registered(self) -> (Hash, &'static str) {
        match self {
            Self::P256 => (Hash::Sha256, "PKIX_ECDSA_P256_SHA_256"),
            Self::P384 => (Hash::Sha384, "PKIX_ECDSA_P384_SHA_384"),
            Self::P521 => (Hash::Sha512, "PKIX_ECDSA_P521_SHA_512"),
            Self::Rsa2048 => (Hash::Sha256, "PKIX_RSA_PKCS1V15_2048_SHA256"),
            Self::Ed25519 => (Hash::Sha512, "PKIX_ED25519_PH"),
        }
    }

    fn ecdsa(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            Self::P521 => &ECDSA_P521_SHA512_ASN1_SIGNING,
            _ => &ECDSA_P256_SHA256_ASN1_SIGNING,
        }
    }
}

/// Hashes that logs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn of(self, content: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        };
        digest(algorithm, content).as_ref().to_vec()
    }

    /// Its names in Rekor v1 and v2.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Sha256 => ("sha256", "SHA2_256"),
            Self::Sha384 => ("sha384", "SHA2_384"),
            Self::Sha512 => ("sha512", "SHA2_512"),
        }
    }
}

/// A pair of keys.
#[derive(Clone, Debug)]
pub struct Pair {
    pub kind: KeyKind,
    /// PKCS#8; of Ed25519 the seed.
    secret: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
}

impl Pair {
    pub fn new(kind: KeyKind) -> Self {
        fn der<'a>(key: &impl AsDer<PublicKeyX509Der<'a>>) -> Vec<u8> {
            key.as_der().unwrap().as_ref().to_vec()
        }
        let (secret, spki) = match kind {
            KeyKind::P256 | KeyKind::P384 | KeyKind::P521 => {
                let pair = EcdsaKeyPair::generate(kind.ecdsa()).unwrap();
                (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), der(pair.public_key()))
            }
            KeyKind::Rsa2048 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let secret: Pkcs8V1Der<'_> = pair.as_der().unwrap();
                (secret.as_ref().to_vec(), der(pair.public_key()))
            }
            KeyKind::Ed25519 => {
                let mut seed = vec![0; 32];
                getrandom::fill(&mut seed).unwrap();
                let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
                let spki = der(pair.public_key());
                (seed, spki)
            }
        };
        Self { kind, secret, spki }
    }

    /// Signs with the hash that goes with the key; Ed25519 without one.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self.kind {
            KeyKind::P256 | KeyKind::P384 | KeyKind::P521 => self.sign_ecdsa(self.kind.ecdsa(), message),
            KeyKind::Rsa2048 => {
                let pair = RsaKeyPair::from_pkcs8(&self.secret).unwrap();
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            KeyKind::Ed25519 => {
                Ed25519KeyPair::from_seed_unchecked(&self.secret).unwrap().sign(message).as_ref().to_vec()
            }
        }
    }

    /// Signs a file, of which a log sees only the digest: Ed25519 over SHA-512 (Ed25519ph).
    pub fn sign_file(&self, content: &[u8]) -> Vec<u8> {
        if self.kind != KeyKind::Ed25519 {
            return self.sign(content);
        }
        let key = ed25519_dalek::SigningKey::from_bytes(self.secret.as_slice().try_into().unwrap());
        key.sign_prehashed(sha2::Sha512::new_with_prefix(content), None).unwrap().to_bytes().to_vec()
    }

    /// Signs with SHA-256, as old signers do with longer keys too.
    pub fn sign_short(&self, message: &[u8]) -> Vec<u8> {
        assert_eq!(self.kind, KeyKind::P521);
        self.sign_ecdsa(&ECDSA_P521_SHA256_ASN1_SIGNING, message)
    }

    fn sign_ecdsa(&self, algorithm: &'static EcdsaSigningAlgorithm, message: &[u8]) -> Vec<u8> {
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &self.secret).unwrap();
        pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}
