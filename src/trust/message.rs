//! What a signature is over: bytes that are here, or only their digests.

use std::io;
use std::io::Read;

use aws_lc_rs::digest;
use aws_lc_rs::digest::SHA256;
use aws_lc_rs::digest::SHA384;
use aws_lc_rs::digest::SHA512;

use crate::digest::Digest;

/// Hashes that signatures and log entries are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// By the names of Rekor v1 (`sha256`), in-toto (the same) and of Sigstore's protocol (`SHA2_256`).
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "sha256" | "SHA2_256" => Some(Self::Sha256),
            "sha384" | "SHA2_384" => Some(Self::Sha384),
            "sha512" | "SHA2_512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub(super) fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        }
    }
}

/// What was signed, or is said to have been.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    content: Option<&'a [u8]>,
    sha256: Option<Vec<u8>>,
    sha384: Option<Vec<u8>>,
    sha512: Option<Vec<u8>>,
}

impl<'a> Message<'a> {
    /// Bytes that are here.
    pub fn of(content: &'a [u8]) -> Self {
        let digest = |algorithm| Some(digest::digest(algorithm, content).as_ref().to_vec());
        Self { content: Some(content), sha256: digest(&SHA256), sha384: digest(&SHA384), sha512: digest(&SHA512) }
    }
}

impl Message<'static> {
    /// Bytes of which only the digest is known.
    pub fn of_digest(digest: &Digest) -> Self {
        let (sha256, sha512) = match digest {
            Digest::Sha256(bytes) => (Some(bytes.to_vec()), None),
            Digest::Sha512(bytes) => (None, Some(bytes.to_vec())),
        };
        Self { content: None, sha256, sha384: None, sha512 }
    }

    /// Bytes that are read to their end, and not kept.
    pub fn read(mut reader: impl Read) -> io::Result<Self> {
        let mut hashers = [&SHA256, &SHA384, &SHA512].map(digest::Context::new);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => hashers.iter_mut().for_each(|hasher| hasher.update(buffer.get(..len).unwrap_or_default())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let [sha256, sha384, sha512] = hashers.map(|hasher| Some(hasher.finish().as_ref().to_vec()));
        Ok(Self { content: None, sha256, sha384, sha512 })
    }
}

impl Message<'_> {
    /// The bytes, where they are here.
    pub(super) fn content(&self) -> Option<&[u8]> {
        self.content
    }

    /// Its digest, where it is known or can be computed.
    pub(super) fn digest(&self, hash: Hash) -> Option<&[u8]> {
        match hash {
            Hash::Sha256 => self.sha256.as_deref(),
            Hash::Sha384 => self.sha384.as_deref(),
            Hash::Sha512 => self.sha512.as_deref(),
        }
    }
}
