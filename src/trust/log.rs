//! Log entries that come with a signature: that the log holds them, and that they are about it.
//!
//! `sigstore-verify` does this for certificates that sign over SHA-256. It knows neither SHA-384, SHA-512 and
//! Ed25519ph entries nor, for keys, entries that nobody asked for, so it is done here, from the same parts:
//! promises (SET) of Rekor v1, inclusion proofs (RFC 6962) with checkpoints (C2SP signed notes) of v1 and v2,
//! and the bodies of `hashedrekord` 0.0.1 and 0.0.2, `dsse` 0.0.1 and `intoto` 0.0.2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::Url;
use serde_json::Value;
use sigstore_types::CheckpointSignature;
use sigstore_types::DerCertificate;
use sigstore_types::DerPublicKey;
use sigstore_types::DsseEnvelope;
use sigstore_types::KindVersion;
use sigstore_types::Sha256Hash;
use sigstore_types::SignatureBytes;
use sigstore_types::TransparencyLogEntry;
use sigstore_types::bundle::InclusionProof;
use sigstore_verify::crypto::VerificationKey;
use sigstore_verify::crypto::sha256;

use crate::trust::json;
use crate::trust::key::PublicKey;
use crate::trust::message::Hash;
use crate::trust::message::Message;
use crate::trust::root::TrustedRoot;

/// An entry in a transparency log that was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The log: SHA-256 of its key, in hexadecimal.
    pub log_id: String,
    /// Its number in the log.
    pub index: u64,
    /// When the log took it in, as the log signed it. Rekor v2 does not say.
    pub time: Option<Timestamp>,
}

/// Why an entry does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nobody here knows the log, so nothing can be said about the entry.
    UnknownLog(String),
    /// Something about it is wrong.
    Wrong(String),
}

impl Doubt {
    pub(super) fn why(&self) -> &str {
        match self {
            Self::UnknownLog(why) | Self::Wrong(why) => why,
        }
    }
}

/// What was signed, with its signature.
#[derive(Clone, Copy)]
pub(super) enum Signed<'a> {
    Message {
        message: &'a Message<'a>,
        signature: &'a [u8],
    },
    /// A DSSE envelope; the message is its pre-authentication encoding.
    Envelope {
        message: &'a Message<'a>,
        envelope: &'a DsseEnvelope,
    },
}

impl Signed<'_> {
    pub(super) fn message(&self) -> &Message<'_> {
        match self {
            Self::Message { message, .. } | Self::Envelope { message, .. } => message,
        }
    }

    pub(super) fn signature(&self) -> &[u8] {
        match self {
            Self::Message { signature, .. } => signature,
            Self::Envelope { envelope, .. } => envelope.signature.sig.as_bytes(),
        }
    }
}

/// What a log knows the maker of a signature by: the certificate if there is one, else the key.
#[derive(Clone, Copy)]
pub(super) struct Maker<'a> {
    pub(super) key: &'a PublicKey,
    pub(super) certificate: Option<&'a DerCertificate>,
}

impl Maker<'_> {
    /// Whether this PEM is the maker's. Some signers write it without line breaks.
    fn is(&self, text: &[u8]) -> bool {
        let Ok(text) = str::from_utf8(text) else { return false };
        match self.certificate {
            Some(certificate) => DerCertificate::from_pem(text).is_ok_and(|found| found == *certificate),
            None => DerPublicKey::from_pem(text).is_ok_and(|found| found.as_bytes() == self.key.spki()),
        }
    }
}

/// Proves an entry, and that it is about this signature by this maker.
pub(super) fn prove(
    entry: &TransparencyLogEntry,
    signed: Signed<'_>,
    by: Maker<'_>,
    root: &TrustedRoot,
) -> Result<LogEntry, Doubt> {
    let time = included(entry, root)?;
    is_about(entry, signed, by)
        .map_err(|why| Doubt::Wrong(format!("the log entry is not about this signature: {why}")))?;
    let log_id = hex::encode(entry.log_id.key_id.as_bytes());
    Ok(LogEntry { log_id, index: entry.log_index.get(), time })
}

/// Proves that the log holds the entry, and tells when it was taken in if that is signed.
fn included(entry: &TransparencyLogEntry, root: &TrustedRoot) -> Result<Option<Timestamp>, Doubt> {
    let wrong = |why: String| Doubt::Wrong(why);
    let id = Sha256Hash::try_from(entry.log_id.key_id.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let now = Timestamp::now();
    if root.logs().key(&id).is_none() {
        return Err(Doubt::UnknownLog(format!("the log {} is not in {}", id.to_hex(), root.origin())));
    }
    // An entry without a promise has no time of its own. Its log must at least have begun.
    let claimed = entry.integrated_time.filter(|_| entry.inclusion_promise.is_some());
    let key = match claimed {
        Some(time) => root.logs().key_at(&id, time),
        None => root.logs().key_started_by(&id, now),
    };
    let key = key.ok_or_else(|| wrong(format!("the key of the log {} was not valid then", id.to_hex())))?;
    if let Some(proof) = &entry.inclusion_proof {
        prove_inclusion(entry, proof, key, &id, root).map_err(wrong)?;
    }
    if let Some(promise) = &entry.inclusion_promise {
        let signed = promised(entry);
        let signature = SignatureBytes::new(promise.signed_entry_timestamp.as_bytes().to_vec());
        key.verify(signed, &signature).map_err(|_| wrong("the log's promise (SET) does not hold".into()))?;
        if claimed.is_some_and(|time| time > now) {
            return Err(wrong("the log's promise is from the future".into()));
        }
    }
    if entry.inclusion_proof.is_none() && entry.inclusion_promise.is_none() {
        return Err(wrong("the log entry has neither a proof nor a promise".into()));
    }
    // Only a promise of Rekor v1 signs the time.
    Ok(claimed.filter(|_| entry.kind_version != KindVersion::HashedRekordV002))
}

/// What Rekor v1 signs as a promise: canonical JSON (RFC 8785) of these four members.
fn promised(entry: &TransparencyLogEntry) -> String {
    let body = STANDARD.encode(entry.canonicalized_body.as_bytes());
    let time = entry.integrated_time.map_or(0, Timestamp::as_second);
    let id = hex::encode(entry.log_id.key_id.as_bytes());
    let index = entry.log_index.get();
    format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":{index}}}"#)
}

fn prove_inclusion(
    entry: &TransparencyLogEntry,
    proof: &InclusionProof,
    key: &VerificationKey,
    id: &Sha256Hash,
    root: &TrustedRoot,
) -> Result<(), String> {
    let checkpoint = proof.checkpoint.checkpoint().ok_or("the inclusion proof has no checkpoint")?;
    // Rekor v2 goes by the host of its URL (C2SP, "tlog-checkpoint"). What v1 calls itself is in no root.
    let name = match entry.kind_version {
        KindVersion::HashedRekordV002 => Some(host(id, root).ok_or("the log has no name")?),
        _ => None,
    };
    if name.as_ref().is_some_and(|name| name != checkpoint.origin()) {
        return Err(format!("the checkpoint is of {:?}", checkpoint.origin()));
    }
    let (index, size) = match entry.kind_version {
        // Rekor v2 signs these; the copies in the proof nobody signs.
        KindVersion::HashedRekordV002 => (entry.log_index.get(), checkpoint.tree_size()),
        _ => {
            if proof.root_hash != *checkpoint.root_hash() || proof.tree_size != checkpoint.tree_size() {
                return Err("the inclusion proof is of another tree than its checkpoint".into());
            }
            (proof.log_index.get(), proof.tree_size)
        }
    };
    let leaf = [&[0], entry.canonicalized_body.as_bytes()].concat();
    sigstore_merkle::verify_inclusion_proof(&sha256(&leaf), index, size, &proof.hashes, checkpoint.root_hash())
        .map_err(|error| format!("the inclusion proof does not hold: {error}"))?;
    let hint = id.as_bytes().get(..4).unwrap_or_default();
    let is_by_log = |signature: &&CheckpointSignature| {
        signature.key_id.as_slice() == hint && name.as_ref().is_none_or(|name| *name == signature.name)
    };
    let mut by_log = checkpoint.signatures().iter().filter(is_by_log);
    match by_log.any(|signature| key.verify(checkpoint.signed_data(), &signature.signature).is_ok()) {
        true => Ok(()),
        false => Err("the log did not sign the checkpoint".into()),
    }
}

/// The host of a log's URL.
fn host(id: &Sha256Hash, root: &TrustedRoot) -> Option<String> {
    let log = root.parts().tlogs.iter().find(|log| log.log_id.key_id.as_bytes() == id.as_bytes())?;
    Some(Url::parse(&log.base_url).ok()?.host_str()?.to_owned())
}

/// Compares an entry with what it should be about, member by member.
fn is_about(entry: &TransparencyLogEntry, signed: Signed<'_>, by: Maker<'_>) -> Result<(), String> {
    let body = json::strict(entry.canonicalized_body.as_bytes()).map_err(|error| error.to_string())?;
    let (kind, version) = (entry.kind_version.kind(), entry.kind_version.version());
    if text(&body, "/kind")? != kind || text(&body, "/apiVersion")? != version {
        return Err("it is of another kind than the bundle says".into());
    }
    let same = |what: &str, is_same: bool| if is_same { Ok(()) } else { Err(format!("another {what}")) };
    match (entry.kind_version, signed) {
        (KindVersion::HashedRekordV001, _) => {
            let digest = hex::decode(text(&body, "/spec/data/hash/value")?).map_err(|error| error.to_string())?;
            same("digest", is_signed(signed, by.key, text(&body, "/spec/data/hash/algorithm")?, &digest))?;
            same("signature", base64(&body, "/spec/signature/content")? == signed.signature())?;
            same("key", by.is(&base64(&body, "/spec/signature/publicKey/content")?))
        }
        (KindVersion::HashedRekordV002, _) => {
            let digest = base64(&body, "/spec/hashedRekordV002/data/digest")?;
            let algorithm = text(&body, "/spec/hashedRekordV002/data/algorithm")?;
            same("digest", is_signed(signed, by.key, algorithm, &digest))?;
            same("signature", base64(&body, "/spec/hashedRekordV002/signature/content")? == signed.signature())?;
            let (kind, der) = match by.certificate {
                Some(certificate) => ("x509Certificate", certificate.as_bytes()),
                None => ("publicKey", by.key.spki()),
            };
            let at = format!("/spec/hashedRekordV002/signature/verifier/{kind}/rawBytes");
            same("key", base64(&body, &at)? == der)
        }
        (KindVersion::DsseV001, Signed::Envelope { envelope, .. }) => {
            same("payload", is_payload(&body, "/spec/payloadHash", envelope)?)?;
            one(&body, "/spec/signatures")?;
            same("signature", base64(&body, "/spec/signatures/0/signature")? == signed.signature())?;
            same("key", by.is(&base64(&body, "/spec/signatures/0/verifier")?))
        }
        (KindVersion::IntotoV002, Signed::Envelope { envelope, .. }) => {
            same("payload", is_payload(&body, "/spec/content/payloadHash", envelope)?)?;
            let inner = "/spec/content/envelope";
            same("payload type", text(&body, &format!("{inner}/payloadType"))? == envelope.payload_type)?;
            one(&body, &format!("{inner}/signatures"))?;
            // This kind has the signature in base64 twice.
            let twice = base64(&body, &format!("{inner}/signatures/0/sig"))?;
            let signature = STANDARD.decode(twice).map_err(|error| error.to_string())?;
            same("signature", signature == signed.signature())?;
            same("key", by.is(&base64(&body, &format!("{inner}/signatures/0/publicKey"))?))
        }
        _ => Err(format!("an entry of kind {kind} {version}")),
    }
}

/// Whether this is what was signed: a log that was given only a digest has checked the signature with its hash.
fn is_signed(signed: Signed<'_>, key: &PublicKey, algorithm: &str, digest: &[u8]) -> bool {
    is_digest(signed.message(), algorithm, digest)
        && Hash::named(algorithm).is_some_and(|hash| key.verifies_by(hash, signed.message(), signed.signature()))
}

fn is_digest(message: &Message<'_>, algorithm: &str, digest: &[u8]) -> bool {
    Hash::named(algorithm).and_then(|hash| message.digest(hash)).is_some_and(|expected| expected == digest)
}

fn is_payload(body: &Value, at: &str, envelope: &DsseEnvelope) -> Result<bool, String> {
    let digest = hex::decode(text(body, &format!("{at}/value"))?).map_err(|error| error.to_string())?;
    Ok(is_digest(&Message::of(envelope.payload.as_bytes()), text(body, &format!("{at}/algorithm"))?, &digest))
}

fn text<'v>(body: &'v Value, at: &str) -> Result<&'v str, String> {
    body.pointer(at).and_then(Value::as_str).ok_or_else(|| format!("it has no {at}"))
}

fn base64(body: &Value, at: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text(body, at)?).map_err(|error| format!("its {at} is malformed: {error}"))
}

fn one(body: &Value, at: &str) -> Result<(), String> {
    match body.pointer(at).and_then(Value::as_array).map(Vec::len) {
        Some(1) => Ok(()),
        _ => Err("it has not exactly one signature".into()),
    }
}
