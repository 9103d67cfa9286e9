//! Authorities for certificates that somebody names: those of a company, say, which no Sigstore knows.
//!
//! They count for models only. About a kit a certificate says nothing without a log (see [`crate::trust`]).

use sigstore_types::DerCertificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::Encode;
use x509_cert::ext::pkix::BasicConstraints;

use crate::digest::Digest;
use crate::trust::certificate::read_pem;

/// More certificates than this in one file are a store of roots, and no choice of whom to trust.
const MOST: usize = 64;

/// An authority that somebody trusts to say who signs models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority {
    certificate: DerCertificate,
    fingerprint: String,
}

impl CertificateAuthority {
    /// Reads PEM `CERTIFICATE`s: each is an authority of its own.
    pub fn from_pem(text: &[u8]) -> Result<Vec<Self>, InvalidAuthority> {
        let text = str::from_utf8(text).map_err(|error| InvalidAuthority::NoPem(error.to_string()))?;
        let certificates = read_pem(text, MOST).map_err(InvalidAuthority::NoPem)?;
        if certificates.is_empty() {
            return Err(InvalidAuthority::NoPem("it holds no certificate".into()));
        }
        certificates.into_iter().map(Self::new).collect()
    }

    fn new(certificate: DerCertificate) -> Result<Self, InvalidAuthority> {
        let malformed = |error: x509_cert::der::Error| InvalidAuthority::Malformed(error.to_string());
        let parsed = Certificate::from_der(certificate.as_bytes()).map_err(malformed)?.tbs_certificate;
        let constraints: Option<(bool, BasicConstraints)> = parsed.get().map_err(malformed)?;
        if constraints.is_none_or(|(_, constraints)| !constraints.ca) {
            return Err(InvalidAuthority::NoAuthority(parsed.subject.to_string()));
        }
        let spki = parsed.subject_public_key_info.to_der().map_err(malformed)?;
        Ok(Self { certificate, fingerprint: format!("ca:{}", Digest::of(&spki)) })
    }

    /// What names it: `ca:sha256:` and the SHA-256 of its SubjectPublicKeyInfo in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    pub(super) fn certificate(&self) -> &DerCertificate {
        &self.certificate
    }
}

/// Why a file names no authorities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    /// No PEM, or of something else.
    #[error("it is no PEM of certificates: {0}")]
    NoPem(String),
    /// No certificate.
    #[error("a certificate is malformed: {0}")]
    Malformed(String),
    /// A certificate of somebody who may not issue any.
    #[error("the certificate of {0:?} is not that of an authority")]
    NoAuthority(String),
}
