//! Who made a signature: the only place where a signature becomes a [`Proof`].
//!
//! Two ways lead in. A key that somebody trusts made the signature; a log entry or a timestamp that comes along
//! adds to that, and one that does not hold adds nothing. Or a certificate of a trusted root made it, and
//! then everything must hold: chain, certificate log (SCT), log entry, a trusted time inside the validity.
//! For the second `sigstore-verify` does the work, never with one of its checks left out.

use std::collections::HashSet;

use jiff::Timestamp;
use sigstore_types::Artifact;
use sigstore_types::Bundle;
use sigstore_types::KindVersion;
use sigstore_types::SignatureBytes;
use sigstore_types::bundle::Rfc3161Timestamp;
use sigstore_types::bundle::TransparencyLogEntry;
use sigstore_verify::VerificationPolicy;
use sigstore_verify::tsa::verify_timestamp_for_authority;

use crate::ledger::chain;
use crate::trust::certificate::Certificate;
use crate::trust::key::Holds;
use crate::trust::key::PublicKey;
use crate::trust::log;
use crate::trust::log::Doubt;
use crate::trust::log::LogEntry;
use crate::trust::log::Signed;
use crate::trust::root::TrustedRoot;

/// More log entries or timestamps than this no honest signer attaches.
const ATTACHED: usize = 16;

/// Says that a signature holds, and whose it is. Nothing but the two functions here makes one.
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
}

impl Signer {
    /// `key:sha256:<SPKI>`, or `identity (issuer)`.
    pub fn name(&self) -> String {
        match self {
            Self::Key { fingerprint } => fingerprint.clone(),
            Self::Certificate(Certificate { identity, issuer, .. }) => format!("{identity} ({issuer})"),
        }
    }
}

/// What came along with a signature.
#[derive(Clone, Copy)]
pub(super) struct Attached<'a> {
    pub(super) entries: &'a [TransparencyLogEntry],
    pub(super) timestamps: &'a [Rfc3161Timestamp],
}

impl Proof {
    /// Proves that the key made the signature. `Ok(None)` says that it did not.
    pub(super) fn by_key(
        key: &PublicKey,
        signed: Signed<'_>,
        attached: Attached<'_>,
        root: &TrustedRoot,
    ) -> Result<Option<Self>, String> {
        match key.verifies(signed.message(), signed.signature()) {
            Holds::Yes => {}
            Holds::No => return Ok(None),
            Holds::Unknown => return Err("a signature of this kind needs the content, not only its digest".into()),
        }
        if attached.entries.len() > ATTACHED || attached.timestamps.len() > ATTACHED {
            return Err(format!("it has more than {ATTACHED} log entries or timestamps"));
        }
        let mut proof = Self {
            signer: Signer::Key { fingerprint: key.fingerprint() },
            log: None,
            timestamps: Vec::new(),
            doubts: Vec::new(),
        };
        for entry in attached.entries {
            match log::prove(entry, signed, key, root) {
                Ok(entry) if proof.log.is_none() => proof.log = Some(entry),
                Ok(_) => {}
                Err(doubt) => proof.doubts.push(doubt),
            }
        }
        if has_twice(attached.entries) {
            proof.doubts.push(Doubt::Wrong("a log entry stands twice".into()));
        }
        let signature = SignatureBytes::new(signed.signature().to_vec());
        for stamp in attached.timestamps {
            let authorities = root.parts().tsa_authorities();
            let mut times = authorities.iter().filter_map(|authority| {
                verify_timestamp_for_authority(&stamp.signed_timestamp, &signature, authority).ok()
            });
            match times.next() {
                Some(time) => proof.timestamps.push(time),
                None => {
                    proof.doubts.push(Doubt::Wrong(format!("no authority of {} made the timestamp", root.origin())))
                }
            }
        }
        // What was logged and then turns out not to be is worth less than what never was.
        if proof.doubts.iter().any(|doubt| matches!(doubt, Doubt::Wrong(_))) {
            proof.log = None;
        }
        Ok(Some(proof))
    }

    /// Proves that the holder of the bundle's certificate made the signature in it over that artifact.
    pub(super) fn by_certificate(bundle: &Bundle, artifact: Artifact<'_>, root: &TrustedRoot) -> Result<Self, String> {
        let material = &bundle.verification_material;
        let stamps = &material.timestamp_verification_data.rfc3161_timestamps;
        if material.tlog_entries.len() > ATTACHED || stamps.len() > ATTACHED {
            return Err(format!("it has more than {ATTACHED} log entries or timestamps"));
        }
        if has_twice(&material.tlog_entries) {
            return Err("a log entry stands twice".into());
        }
        let policy = VerificationPolicy::any_identity();
        let held = root.verifier().verify(artifact, bundle, &policy).map_err(|error| chain(&error))?;
        if !(held.certificate_verified() && held.sct_verified() && held.tlog_verified()) {
            return Err("not everything about the certificate was checked".into());
        }
        let certificate = bundle.signing_certificate().ok_or("the bundle has no certificate")?;
        let certificate = Certificate::read(certificate)?;
        let timestamps = held.verified_timestamps().to_vec();
        for entry in &material.tlog_entries {
            logged_in_time(entry, &timestamps, root)?;
        }
        let log = material.tlog_entries.first().map(|entry| LogEntry {
            log_id: hex::encode(entry.log_id.key_id.as_bytes()),
            index: entry.log_index.get(),
            time: held.integrated_time(),
        });
        let log = log.ok_or("there is no log entry")?;
        Ok(Self { signer: Signer::Certificate(certificate), log: Some(log), timestamps, doubts: Vec::new() })
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(super) fn log(&self) -> Option<&LogEntry> {
        self.log.as_ref()
    }

    /// All trusted times of the signature.
    pub(super) fn timestamps(&self) -> &[Timestamp] {
        &self.timestamps
    }

    /// What came along and does not hold.
    pub(super) fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }
}

/// Whether two entries are one: whoever counts entries must not count it twice.
fn has_twice(entries: &[TransparencyLogEntry]) -> bool {
    let mut seen = HashSet::new();
    !entries.iter().all(|entry| seen.insert((entry.log_id.key_id.as_bytes(), entry.log_index.get())))
}

/// Rekor v2 does not sign when it took an entry in. The log's key must have been valid at the time that the timestamps say.
fn logged_in_time(entry: &TransparencyLogEntry, times: &[Timestamp], root: &TrustedRoot) -> Result<(), String> {
    if entry.kind_version != KindVersion::HashedRekordV002 {
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
