//! Who made a signature: the only place where a signature becomes a [`Proof`].
//!
//! Three ways lead in. A key that somebody trusts made the signature; a log entry or a timestamp that comes along
//! adds to that, and one that does not hold adds nothing. A certificate of a trusted root made it, and
//! then everything must hold: chain, certificate log (SCT), log entry, a trusted time inside the validity. Or, for
//! models, a certificate of an authority that somebody trusts by name, which has no logs.
//! Where `sigstore-verify` can judge, it must say so too, never with one of its checks left out: of entries in
//! Rekor v2, and of digests in v1, it knows those by P-256 with SHA-256 only.

use std::collections::HashSet;

use jiff::Timestamp;
use sigstore_types::Artifact;
use sigstore_types::Bundle;
use sigstore_types::KindVersion;
use sigstore_types::SignatureBytes;
use sigstore_types::bundle::Rfc3161Timestamp;
use sigstore_types::bundle::TransparencyLogEntry;
use sigstore_verify::VerificationPolicy;
use sigstore_verify::bundle::validate_bundle;
use sigstore_verify::tsa::verify_timestamp_for_authority;

use crate::ledger::chain;
use crate::trust::authority::CertificateAuthority;
use crate::trust::certificate::Certificate;
use crate::trust::chain::Chain;
use crate::trust::key::Holds;
use crate::trust::key::KeyKind;
use crate::trust::key::PublicKey;
use crate::trust::log;
use crate::trust::log::Doubt;
use crate::trust::log::LogEntry;
use crate::trust::log::Maker;
use crate::trust::log::Signed;
use crate::trust::root::TrustedRoot;

/// More log entries or timestamps than this no honest signer attaches.
const ATTACHED: usize = 16;

/// Says that a signature holds, and whose it is. Nothing but the three functions here makes one.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    signer: Signer,
    log: Option<LogEntry>,
    timestamps: Vec<Timestamp>,
    doubts: Vec<Doubt>,
}

/// Who made a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// A key that the caller trusts.
    Key {
        /// `key:sha256:` and the SHA-256 of its SubjectPublicKeyInfo.
        fingerprint: String,
    },
    /// The holder of a certificate of a trusted root.
    Certificate(Certificate),
    /// The holder of a certificate of an authority that the caller trusts.
    Certified {
        /// The subject of the certificate (RFC 4514); where it has none, the key in it, as above.
        subject: String,
        /// `ca:sha256:` and the SHA-256 of the authority's SubjectPublicKeyInfo.
        authority: String,
    },
}

impl Signer {
    /// `key:sha256:<SPKI>`, `identity (issuer)`, or `subject (ca:sha256:<SPKI>)`.
    pub fn name(&self) -> String {
        match self {
            Self::Key { fingerprint } => fingerprint.clone(),
            Self::Certificate(Certificate { identity, issuer, .. }) => format!("{identity} ({issuer})"),
            Self::Certified { subject, authority } => format!("{subject} ({authority})"),
        }
    }
}

/// What came along with a signature.
#[derive(Clone, Copy)]
pub(super) struct Attached<'a> {
    pub(super) entries: &'a [TransparencyLogEntry],
    pub(super) timestamps: &'a [Rfc3161Timestamp],
}

impl<'a> Attached<'a> {
    /// What stands in a bundle.
    pub(super) fn to(bundle: &'a Bundle) -> Self {
        let material = &bundle.verification_material;
        Self { entries: &material.tlog_entries, timestamps: &material.timestamp_verification_data.rfc3161_timestamps }
    }

    fn are_few(&self) -> Result<(), String> {
        match self.entries.len().max(self.timestamps.len()) {
            0..=ATTACHED => Ok(()),
            _ => Err(format!("it has more than {ATTACHED} log entries or timestamps")),
        }
    }
}

impl Proof {
    /// Proves that the key made the signature. `Ok(None)` says that it did not.
    pub(super) fn by_key(
        key: &PublicKey,
        signed: Signed<'_>,
        attached: Attached<'_>,
        root: &TrustedRoot,
    ) -> Result<Option<Self>, String> {
        if !has_made(key, signed)? {
            return Ok(None);
        }
        let signer = Signer::Key { fingerprint: key.fingerprint() };
        Self::with(signer, Maker { key, certificate: None }, signed, attached, root).map(Some)
    }

    /// Proves that the holder of a certificate of this authority made the signature. What nobody saw was made now, as
    /// far as anybody knows.
    pub(super) fn by_authority(
        authority: &CertificateAuthority,
        certificates: Chain<'_>,
        signed: Signed<'_>,
        attached: Attached<'_>,
        root: &TrustedRoot,
    ) -> Result<Self, String> {
        let key = certificates.key()?;
        if !has_made(&key, signed)? {
            return Err("the holder of the certificate did not make the signature".into());
        }
        let subject = certificates.subject()?.unwrap_or_else(|| key.fingerprint());
        let signer = Signer::Certified { subject, authority: authority.fingerprint() };
        let by = Maker { key: &key, certificate: Some(certificates.leaf) };
        let proof = Self::with(signer, by, signed, attached, root)?;
        match proof.timestamps.as_slice() {
            [] => certificates.prove_issued(authority, &[Timestamp::now()])?,
            seen => certificates.prove_issued(authority, seen)?,
        }
        Ok(proof)
    }

    /// A signature that was made by that signer, with those of its log entries and timestamps that hold.
    fn with(
        signer: Signer,
        by: Maker<'_>,
        signed: Signed<'_>,
        attached: Attached<'_>,
        root: &TrustedRoot,
    ) -> Result<Self, String> {
        attached.are_few()?;
        let mut proof = Self { signer, log: None, timestamps: Vec::new(), doubts: Vec::new() };
        for entry in attached.entries {
            match log::prove(entry, signed, by, root) {
                Ok(entry) if proof.log.is_none() => proof.log = Some(entry),
                Ok(_) => {}
                Err(doubt) => proof.doubts.push(doubt),
            }
        }
        if has_twice(attached.entries) {
            proof.doubts.push(Doubt::Wrong("a log entry stands twice".into()));
        }
        for stamp in attached.timestamps {
            match stamped(stamp, signed, root) {
                Ok(time) => proof.timestamps.push(time),
                Err(why) => proof.doubts.push(Doubt::Wrong(why)),
            }
        }
        // What was logged and then turns out not to be is worth less than what never was.
        if proof.doubts.iter().any(|doubt| matches!(doubt, Doubt::Wrong(_))) {
            proof.log = None;
        }
        Ok(proof)
    }

    /// Proves that the holder of the bundle's certificate made the signature in it, which is about that artifact.
    pub(super) fn by_certificate(
        bundle: &Bundle,
        signed: Signed<'_>,
        artifact: Artifact<'_>,
        root: &TrustedRoot,
    ) -> Result<Self, String> {
        Attached::to(bundle).are_few()?;
        if has_twice(&bundle.verification_material.tlog_entries) {
            return Err("a log entry stands twice".into());
        }
        // What a log says that nobody here knows is neither for nor against it.
        let bundle = &without_unknown_logs(bundle, root)?;
        let attached = Attached::to(bundle);
        validate_bundle(bundle).map_err(|error| chain(&error))?;
        let certificates = Chain::of(bundle).ok_or("the bundle has no certificate")?;
        let key = certificates.key()?;
        if !has_made(&key, signed)? {
            return Err("the holder of the certificate did not make the signature".into());
        }
        let by = Maker { key: &key, certificate: Some(certificates.leaf) };
        let mut logged = Vec::new();
        for entry in attached.entries {
            logged.push(log::prove(entry, signed, by, root).map_err(|doubt| doubt.why().to_owned())?);
        }
        let mut timestamps = Vec::new();
        for stamp in attached.timestamps {
            timestamps.push(stamped(stamp, signed, root)?);
        }
        let times: Vec<_> = logged.iter().filter_map(|entry| entry.time).chain(timestamps.iter().copied()).collect();
        certificates.prove(&times, root)?;
        for entry in attached.entries {
            logged_in_time(entry, &times, root)?;
        }
        if key.kind() == KeyKind::P256 {
            let policy = VerificationPolicy::any_identity();
            let held = root.verifier().verify(artifact, bundle, &policy).map_err(|error| chain(&error))?;
            if !(held.certificate_verified() && held.sct_verified() && held.tlog_verified()) {
                return Err("not everything about the certificate was checked".into());
            }
        }
        let signer = Signer::Certificate(Certificate::read(certificates.leaf)?);
        let log = Some(logged.into_iter().next().ok_or("there is no log entry")?);
        Ok(Self { signer, log, timestamps, doubts: Vec::new() })
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(super) fn log(&self) -> Option<&LogEntry> {
        self.log.as_ref()
    }

    /// When authorities for timestamps saw the signature.
    pub(super) fn timestamps(&self) -> &[Timestamp] {
        &self.timestamps
    }

    /// What came along and does not hold.
    pub(super) fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }
}

/// Whether the signature is by this key.
fn has_made(key: &PublicKey, signed: Signed<'_>) -> Result<bool, String> {
    match key.verifies(signed.message(), signed.signature()) {
        Holds::Yes => Ok(true),
        Holds::No => Ok(false),
        Holds::Unknown => Err("a signature of this kind needs the content, not only its digest".into()),
    }
}

/// When an authority saw the signature.
fn stamped(stamp: &Rfc3161Timestamp, signed: Signed<'_>, root: &TrustedRoot) -> Result<Timestamp, String> {
    let signature = SignatureBytes::new(signed.signature().to_vec());
    let authorities = root.parts().tsa_authorities();
    let mut times = authorities
        .iter()
        .filter_map(|authority| verify_timestamp_for_authority(&stamp.signed_timestamp, &signature, authority).ok());
    times.next().ok_or_else(|| format!("no authority of {} made the timestamp", root.origin()))
}

/// Whether two entries are one: whoever counts entries must not count it twice.
fn has_twice(entries: &[TransparencyLogEntry]) -> bool {
    let mut seen = HashSet::new();
    !entries.iter().all(|entry| seen.insert((entry.log_id.key_id.as_bytes(), entry.log_index.get())))
}

/// The bundle without entries of logs that the root does not know, if any other is left.
fn without_unknown_logs(bundle: &Bundle, root: &TrustedRoot) -> Result<Bundle, String> {
    let mut bundle = bundle.clone();
    let entries = &mut bundle.verification_material.tlog_entries;
    let is_known =
        |entry: &TransparencyLogEntry| root.parts().tlogs.iter().any(|log| log.log_id.key_id == entry.log_id.key_id);
    match entries.iter().any(is_known) {
        true => entries.retain(is_known),
        false if entries.is_empty() => return Err("there is no log entry".into()),
        false => return Err(format!("no log that has it is in {}", root.origin())),
    }
    Ok(bundle)
}

/// Rekor v2 does not sign when it took an entry in, and of an entry without a promise no log has said so. The log's key
/// must have been valid at the time that the timestamps say.
fn logged_in_time(entry: &TransparencyLogEntry, times: &[Timestamp], root: &TrustedRoot) -> Result<(), String> {
    if entry.kind_version != KindVersion::HashedRekordV002 && entry.inclusion_promise.is_some() {
        return Ok(());
    }
    let log = root.parts().tlogs.iter().find(|log| log.log_id.key_id == entry.log_id.key_id);
    let log = log.ok_or_else(|| format!("the log is not in {}", root.origin()))?;
    match log.public_key.valid_for {
        Some(window) if !times.iter().all(|time| window.contains(*time)) => {
            Err("the key of the log was not valid when the signature was made".into())
        }
        _ => Ok(()),
    }
}
