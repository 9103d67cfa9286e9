//! Content digests, as OCI descriptors name them.
//!
//! Parsed once at the edge; everything inside compares bytes, never strings. Only the two algorithms
//! that the image specification registers as hash functions are accepted ("image-spec, descriptor,
//! registered algorithms"); an unknown one could not be checked, so it cannot be a digest here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha512};

use crate::sha256::Sha256;

/// A digest that was well formed when it was parsed: a known algorithm and exactly its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// `sha256:` and 64 lower-case hexadecimal digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 lower-case hexadecimal digits.
    Sha512([u8; 64]),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::of(bytes))
    }

    /// A hasher for the algorithm of this digest, to compute what will be compared with it.
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The name of the algorithm, as it stands before the colon.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash value in lower-case hexadecimal, as it stands behind the colon.
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(bytes) => hex::encode(bytes),
            Self::Sha512(bytes) => hex::encode(bytes),
        }
    }
}

/// Computes a digest over bytes that arrive in pieces.
#[derive(Clone)]
pub enum Hasher {
    /// Computes a [`Digest::Sha256`].
    Sha256(Sha256),
    /// Computes a [`Digest::Sha512`].
    Sha512(Sha512),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Takes the next bytes, which `other` takes as well. For two SHA-256 that costs as much as one.
    pub fn update_beside(&mut self, other: &mut Sha256, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => Sha256::update_both(hasher, other, bytes),
            Self::Sha512(hasher) => {
                hasher.update(bytes);
                other.update(bytes);
            }
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finish()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(100).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(invalid)?;
        if hex.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid());
        }
        let bytes = hex::decode(hex).map_err(|_| invalid())?;
        match algorithm {
            "sha256" => bytes.try_into().map(Self::Sha256).map_err(|_| invalid()),
            "sha512" => bytes.try_into().map(Self::Sha512).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Text that is not a digest kitfs can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: expected sha256: or sha512: and lower-case hexadecimal digits")]
pub struct InvalidDigest(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest, Digest::of(b""));
        let long = format!("sha512:{}", "ab".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "sha256:",
            "sha256",
            "none:00",
            &format!("sha256:{}", "0".repeat(66)),
            &format!("sha256:{}", "0".repeat(63)),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256+b64:{}", "0".repeat(64)),
            "sha256:../../../../etc/passwd",
            &format!("sha384:{}", "0".repeat(96)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
