//! Log entries that come with a signature by a key: that the log holds them, and that they are about it.
//!
//! `sigstore-verify` does this for certificates. For keys it knows neither SHA-384 and Ed25519ph entries nor
//! entries that nobody asked for, so it is done here, from the same parts: promises (SET) of Rekor v1,
//! inclusion proofs (RFC 6962) with checkpoints (C2SP signed notes) of v1 and v2, and the bodies of
//! `hashedrekord` 0.0.1 and 0.0.2, `dsse` 0.0.1 and `intoto` 0.0.2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sigstore_types::DsseEnvelope;
use sigstore_types::KindVersion;
use sigstore_types::Sha256Hash;
use sigstore_types::SignatureBytes;
use sigstore_types::TransparencyLogEntry;
use sigstore_types::bundle::InclusionProof;
use sigstore_verify::crypto::VerificationKey;
use sigstore_verify::crypto::sha256;
use x509_cert::der::pem;

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

/// Proves an entry, and that it is about this signature by this key.
pub(super) fn prove(
    entry: &TransparencyLogEntry,
    signed: Signed<'_>,
    key: &PublicKey,
    root: &TrustedRoot,
) -> Result<LogEntry, Doubt> {
    let time = included(entry, root)?;
    is_about(entry, signed, key)
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
        prove_inclusion(entry, proof, key, &id).map_err(wrong)?;
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
) -> Result<(), String> {
    let checkpoint = proof.checkpoint.checkpoint().ok_or("the inclusion proof has no checkpoint")?;
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
    let mut by_log = checkpoint.signatures().iter().filter(|signature| signature.key_id.as_slice() == hint);
    match by_log.any(|signature| key.verify(checkpoint.signed_data(), &signature.signature).is_ok()) {
        true => Ok(()),
        false => Err("the log did not sign the checkpoint".into()),
    }
}

/// Compares an entry with what it should be about, member by member.
fn is_about(entry: &TransparencyLogEntry, signed: Signed<'_>, key: &PublicKey) -> Result<(), String> {
    let body = json::strict(entry.canonicalized_body.as_bytes()).map_err(|error| error.to_string())?;
    let (kind, version) = (entry.kind_version.kind(), entry.kind_version.version());
    if text(&body, "/kind")? != kind || text(&body, "/apiVersion")? != version {
        return Err("it is of another kind than the bundle says".into());
    }
    let same = |what: &str, is_same: bool| if is_same { Ok(()) } else { Err(format!("another {what}")) };
    match (entry.kind_version, signed) {
        (KindVersion::HashedRekordV001, _) => {
            let digest = hex::decode(text(&body, "/spec/data/hash/value")?).map_err(|error| error.to_string())?;
            same("digest", is_digest(signed.message(), text(&body, "/spec/data/hash/algorithm")?, &digest))?;
            same("signature", base64(&body, "/spec/signature/content")? == signed.signature())?;
            same("key", is_key(&base64(&body, "/spec/signature/publicKey/content")?, key))
        }
        (KindVersion::HashedRekordV002, _) => {
            let digest = base64(&body, "/spec/hashedRekordV002/data/digest")?;
            let algorithm = text(&body, "/spec/hashedRekordV002/data/algorithm")?;
            same("digest", is_digest(signed.message(), algorithm, &digest))?;
            same("signature", base64(&body, "/spec/hashedRekordV002/signature/content")? == signed.signature())?;
            same("key", base64(&body, "/spec/hashedRekordV002/signature/verifier/publicKey/rawBytes")? == key.spki())
        }
        (KindVersion::DsseV001, Signed::Envelope { envelope, .. }) => {
            same("payload", is_payload(&body, "/spec/payloadHash", envelope)?)?;
            one(&body, "/spec/signatures")?;
            same("signature", base64(&body, "/spec/signatures/0/signature")? == signed.signature())?;
            same("key", is_key(&base64(&body, "/spec/signatures/0/verifier")?, key))
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
            same("key", is_key(&base64(&body, &format!("{inner}/signatures/0/publicKey"))?, key))
        }
        _ => Err(format!("an entry of kind {kind} {version}")),
    }
}

fn is_digest(message: &Message<'_>, algorithm: &str, digest: &[u8]) -> bool {
    Hash::named(algorithm).and_then(|hash| message.digest(hash)).is_some_and(|expected| expected == digest)
}

fn is_payload(body: &Value, at: &str, envelope: &DsseEnvelope) -> Result<bool, String> {
    let digest = hex::decode(text(body, &format!("{at}/value"))?).map_err(|error| error.to_string())?;
    Ok(is_digest(&Message::of(envelope.payload.as_bytes()), text(body, &format!("{at}/algorithm"))?, &digest))
}

fn is_key(text: &[u8], key: &PublicKey) -> bool {
    pem::decode_vec(text).is_ok_and(|(label, der)| label == "PUBLIC KEY" && der == key.spki())
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
