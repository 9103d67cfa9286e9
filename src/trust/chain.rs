//! Certificates that a root vouches for: the chain to one of its authorities, and that a certificate log has
//! seen them (SCT; RFC 6962, 3.2).
//!
//! `sigstore-verify` proves both only together with a signature over SHA-256, so they are proved here too, for
//! every certificate. An authority is its whole chain: all certificates of it must be valid when the signature
//! was made, and not only the one that issued the signer's.

use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use sigstore_trust_root::CertificateAuthority;
use sigstore_types::Bundle;
use sigstore_types::DerCertificate;
use sigstore_types::bundle::VerificationMaterialContent;
use sigstore_verify::crypto::WEBPKI_VERIFICATION_ALGS;
use sigstore_verify::crypto::sha256;
use webpki::EndEntityCert;
use webpki::KeyUsage;
use webpki::anchor_from_trusted_cert;
use webpki::spki_for_anchor;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use x509_cert::der::Encode;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::ext::pkix::SignedCertificateTimestampList;

use crate::trust::key::Holds;
use crate::trust::key::PublicKey;
use crate::trust::message::Message;
use crate::trust::root::TrustedRoot;

/// The usage `id-kp-codeSigning` (RFC 5280, 4.2.1.12), as webpki takes it: DER without tag and length.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

/// A signer's certificate, and those that it came with.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) leaf: &'a DerCertificate,
    rest: &'a [sigstore_types::bundle::X509Certificate],
}

impl<'a> Chain<'a> {
    /// The certificates of a bundle, if it is by one.
    pub(super) fn of(bundle: &'a Bundle) -> Option<Self> {
        match &bundle.verification_material.content {
            VerificationMaterialContent::Certificate(leaf) => Some(Self { leaf: &leaf.raw_bytes, rest: &[] }),
            VerificationMaterialContent::X509CertificateChain { certificates } => {
                let (leaf, rest) = certificates.split_first()?;
                Some(Self { leaf: &leaf.raw_bytes, rest })
            }
            _ => None,
        }
    }

    /// The key in the signer's certificate. Nothing is proved by that.
    pub(super) fn key(&self) -> Result<PublicKey, String> {
        let spki = parse(self.leaf.as_bytes())?.tbs_certificate.subject_public_key_info.to_der();
        let key = PublicKey::from_der(&spki.map_err(|error| error.to_string())?);
        key.map_err(|error| format!("the key in the certificate cannot be used: {error}"))
    }

    /// Proves that an authority of the root issued the certificate to sign code, that all of the chain was valid at each
    /// of these times, and that a certificate log has seen it.
    pub(super) fn prove(&self, times: &[Timestamp], root: &TrustedRoot) -> Result<(), String> {
        if times.is_empty() {
            return Err("nobody who is trusted says when the certificate was used".into());
        }
        let mut why = format!("{} has no authority for certificates", root.origin());
        for authority in &root.parts().certificate_authorities {
            match self.prove_by(authority, times) {
                Ok(issuer) => return self.prove_seen(&issuer, root),
                Err(not_by_this) => why = not_by_this,
            }
        }
        Err(why)
    }

    /// Proves it for one authority, and returns the issuer's SubjectPublicKeyInfo.
    fn prove_by(&self, authority: &CertificateAuthority, times: &[Timestamp]) -> Result<Vec<u8>, String> {
        let (anchor, between) = authority.cert_chain.certificates.split_last().ok_or("the authority has no chain")?;
        let validity = parse(anchor.raw_bytes.as_bytes())?.tbs_certificate.validity;
        let (from, until) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
        let anchor = CertificateDer::from(anchor.raw_bytes.as_bytes());
        let anchor = [anchor_from_trusted_cert(&anchor).map_err(|error| error.to_string())?];
        let between = between.iter().map(|it| &it.raw_bytes).chain(self.rest.iter().map(|it| &it.raw_bytes));
        let between: Vec<_> = between.map(|it| CertificateDer::from(it.as_bytes())).collect();
        let leaf = CertificateDer::from(self.leaf.as_bytes());
        let leaf = EndEntityCert::try_from(&leaf).map_err(|error| format!("the certificate is malformed: {error}"))?;
        let mut issuer = Vec::new();
        for time in times {
            let since_epoch = Duration::try_from(time.as_duration()).map_err(|error| error.to_string())?;
            // Of an anchor webpki takes nothing but its name and its key.
            let is_anchor_valid = (from..=until).contains(&since_epoch);
            if !is_anchor_valid || authority.valid_for.is_some_and(|window| !window.contains(*time)) {
                return Err(format!("the authority {:?} was not valid at {time}", authority.uri));
            }
            let at = UnixTime::since_unix_epoch(since_epoch);
            let usage = KeyUsage::required(CODE_SIGNING);
            let path = leaf
                .verify_for_usage(WEBPKI_VERIFICATION_ALGS, &anchor, &between, at, usage, None, None)
                .map_err(|error| format!("the certificate does not hold at {time}: {error}"))?;
            issuer = match path.intermediate_certificates().next() {
                Some(issuer) => issuer.subject_public_key_info().to_vec(),
                None => spki_for_anchor(path.anchor()).to_vec(),
            };
        }
        Ok(issuer)
    }

    /// Proves that a certificate log has seen the certificate before it was issued.
    fn prove_seen(&self, issuer: &[u8], root: &TrustedRoot) -> Result<(), String> {
        let mut certificate = parse(self.leaf.as_bytes())?.tbs_certificate;
        let malformed = |why: &dyn std::fmt::Debug| format!("the certificate's timestamp (SCT) is malformed: {why:?}");
        let list: Option<(bool, SignedCertificateTimestampList)> =
            certificate.get().map_err(|error| malformed(&error))?;
        let (_, list) = list.ok_or("no certificate log has seen the certificate: it has no timestamp (SCT)")?;
        let list = list.parse_timestamps().map_err(|error| malformed(&error))?;
        let [stamp] = &list[..] else { return Err("the certificate should have exactly one timestamp (SCT)".into()) };
        let stamp = stamp.parse_timestamp().map_err(|error| malformed(&error))?;
        let millisecond = i64::try_from(stamp.timestamp).map_err(|error| malformed(&error))?;
        let time = Timestamp::from_millisecond(millisecond).map_err(|error| malformed(&error))?;
        let log = root.parts().ctlogs.iter().find(|log| log.log_id.key_id.as_bytes() == stamp.log_id.key_id);
        let log = log.ok_or_else(|| format!("{} does not know the certificate log", root.origin()))?;
        if log.public_key.valid_for.is_some_and(|window| !window.contains(time)) {
            return Err("the key of the certificate log was not valid then".into());
        }
        // What the log saw was the certificate without its own word.
        let others = certificate.extensions.iter().flatten();
        let others = others.filter(|it| it.extn_id != SignedCertificateTimestampList::OID).cloned().collect();
        certificate.extensions = Some(others);
        let seen = certificate.to_der().map_err(|error| malformed(&error))?;
        let len = u32::try_from(seen.len()).map_err(|error| malformed(&error))?;
        let [_, len @ ..] = len.to_be_bytes();
        let extensions = stamp.extensions.as_slice();
        let extensions_len = u16::try_from(extensions.len()).map_err(|error| malformed(&error))?;
        // `digitally-signed` of RFC 6962, 3.2: v1, certificate_timestamp, time, precert_entry.
        let mut signed = vec![0, 0];
        signed.extend(stamp.timestamp.to_be_bytes());
        signed.extend([0, 1]);
        signed.extend(sha256(issuer).as_bytes());
        signed.extend(len);
        signed.extend(seen);
        signed.extend(extensions_len.to_be_bytes());
        signed.extend(extensions);
        let key = PublicKey::from_der(log.public_key.raw_bytes.as_bytes()).map_err(|error| error.to_string())?;
        match key.verifies(&Message::of(&signed), stamp.signature.signature.as_slice()) {
            Holds::Yes => Ok(()),
            _ => Err("the certificate's timestamp (SCT) is not by its log, or is of another certificate".into()),
        }
    }
}

fn parse(der: &[u8]) -> Result<X509, String> {
    X509::from_der(der).map_err(|error| format!("the certificate is malformed: {error}"))
}
