//! Certificates that a root vouches for: the chain to one of its authorities, and that a certificate log has
//! seen them (SCT; RFC 6962, 3.2).
//!
//! `sigstore-verify` proves both only together with a signature over SHA-256, so they are proved here too, for
//! every certificate. An authority is its whole chain: all certificates of it must be valid when the signature
//! was made, and not only the one that issued the signer's. Authorities that no Sigstore knows have no such log.

use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use sigstore_trust_root::CertificateAuthority as SigstoreAuthority;
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
use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::ext::pkix::KeyUsage as MayBeUsed;
use x509_cert::ext::pkix::SignedCertificateTimestampList;

use crate::trust::authority::CertificateAuthority;
use crate::trust::key::Holds;
use crate::trust::key::PublicKey;
use crate::trust::message::Message;
use crate::trust::root::TrustedRoot;

/// The usage `id-kp-codeSigning` (RFC 5280, 4.2.1.12), as webpki takes it: DER without tag and length.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

/// Certificates that come along and are looked at: webpki tries each as the issuer of each other.
const MOST: usize = 8;

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

    /// Whom the certificate names, if it names anybody (RFC 4514). Nothing is proved by that.
    pub(super) fn subject(&self) -> Result<Option<String>, String> {
        let subject = parse(self.leaf.as_bytes())?.tbs_certificate.subject;
        Ok((!subject.is_empty()).then(|| subject.to_string()))
    }

    /// Proves that an authority of the root issued the certificate to sign code, that all of the chain was valid at each
    /// of these times, and that a certificate log has seen it.
    pub(super) fn prove(&self, times: &[Timestamp], root: &TrustedRoot) -> Result<(), String> {
        if times.is_empty() {
            return Err("nobody who is trusted says when the certificate was used".into());
        }
        self.are_few()?;
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
    fn prove_by(&self, authority: &SigstoreAuthority, times: &[Timestamp]) -> Result<Vec<u8>, String> {
        let (anchor, between) = authority.cert_chain.certificates.split_last().ok_or("the authority has no chain")?;
        let between: Vec<_> = between.iter().map(|it| &it.raw_bytes).collect();
        let mut issuer = Vec::new();
        for time in times {
            if authority.valid_for.is_some_and(|window| !window.contains(*time)) {
                return Err(format!("the authority {:?} was not valid at {time}", authority.uri));
            }
            issuer = self.issuer_at(*time, &anchor.raw_bytes, &between, KeyUsage::required(CODE_SIGNING))?;
        }
        Ok(issuer)
    }

    /// Proves that this authority issued the certificate to sign, itself or through certificates that came along, and
    /// that all of the chain was valid at each of these times (model-transparency, "sign_certificate.py").
    pub(super) fn prove_issued(&self, authority: &CertificateAuthority, times: &[Timestamp]) -> Result<(), String> {
        self.are_few()?;
        let certificate = parse(self.leaf.as_bytes())?.tbs_certificate;
        let malformed = |error| format!("the certificate is malformed: {error}");
        let usage: Option<(bool, MayBeUsed)> = certificate.get().map_err(malformed)?;
        let extended: Option<(bool, ExtendedKeyUsage)> = certificate.get().map_err(malformed)?;
        // One of the two has to say what the key is for. What the second says webpki checks below.
        let signs = usage.map_or(extended.is_some(), |(_, usage)| usage.digital_signature());
        if !signs {
            return Err("the certificate's key is not for signing".into());
        }
        for time in times {
            self.issuer_at(*time, authority.certificate(), &[], KeyUsage::required_if_present(CODE_SIGNING))?;
        }
        Ok(())
    }

    fn are_few(&self) -> Result<(), String> {
        match self.rest.len() {
            0..=MOST => Ok(()),
            len => Err(format!("{len} certificates come along, and at most {MOST} are looked at")),
        }
    }

    /// Proves that there is a chain from the certificate to this anchor, all of it valid at that time, and returns the
    /// issuer's SubjectPublicKeyInfo.
    fn issuer_at(
        &self,
        time: Timestamp,
        anchor: &DerCertificate,
        between: &[&DerCertificate],
        usage: KeyUsage,
    ) -> Result<Vec<u8>, String> {
        let since_epoch = Duration::try_from(time.as_duration()).map_err(|error| error.to_string())?;
        // Of an anchor webpki takes nothing but its name and its key.
        let validity = parse(anchor.as_bytes())?.tbs_certificate.validity;
        if !(validity.not_before.to_unix_duration()..=validity.not_after.to_unix_duration()).contains(&since_epoch) {
            return Err(format!("the certificate of the authority was not valid at {time}"));
        }
        let anchor = CertificateDer::from(anchor.as_bytes());
        let anchor = [anchor_from_trusted_cert(&anchor).map_err(|error| error.to_string())?];
        let between = between.iter().copied().chain(self.rest.iter().map(|it| &it.raw_bytes));
        let between: Vec<_> = between.map(|it| CertificateDer::from(it.as_bytes())).collect();
        let leaf = CertificateDer::from(self.leaf.as_bytes());
        let leaf = EndEntityCert::try_from(&leaf).map_err(|error| format!("the certificate is malformed: {error}"))?;
        let at = UnixTime::since_unix_epoch(since_epoch);
        let path = leaf
            .verify_for_usage(WEBPKI_VERIFICATION_ALGS, &anchor, &between, at, usage, None, None)
            .map_err(|error| format!("the certificate does not hold at {time}: {error}"))?;
        Ok(match path.intermediate_certificates().next() {
            Some(issuer) => issuer.subject_public_key_info().to_vec(),
            None => spki_for_anchor(path.anchor()).to_vec(),
        })
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
