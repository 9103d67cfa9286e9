//! What cosign writes about a signature into the annotations of its layer, made into the parts of a bundle.
//!
//! A legacy signature is a v0.1 bundle in pieces (cosign, "SIGNATURE_SPEC"): certificate, chain, a promise of
//! Rekor v1 and a timestamp, each in an annotation of its own.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use sigstore_types::Bundle;
use sigstore_types::CanonicalizedBody;
use sigstore_types::DerCertificate;
use sigstore_types::KindVersion;
use sigstore_types::LogIndex;
use sigstore_types::LogKeyId;
use sigstore_types::MediaType;
use sigstore_types::SignatureContent;
use sigstore_types::SignedTimestamp;
use sigstore_types::TimestampToken;
use sigstore_types::bundle::InclusionPromise;
use sigstore_types::bundle::LogId;
use sigstore_types::bundle::Rfc3161Timestamp;
use sigstore_types::bundle::TimestampVerificationData;
use sigstore_types::bundle::TransparencyLogEntry;
use sigstore_types::bundle::VerificationMaterial;
use sigstore_types::bundle::VerificationMaterialContent;
use sigstore_types::bundle::X509Certificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::trust::certificate::read_pem;

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

/// Certificates in a chain that are looked at.
const CHAIN_LIMIT: usize = 8;

/// Annotations of a signature, read.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    pub(super) signature: Option<Vec<u8>>,
    pub(super) certificate: Option<DerCertificate>,
    chain: Vec<DerCertificate>,
    pub(super) entries: Vec<TransparencyLogEntry>,
    pub(super) timestamps: Vec<Rfc3161Timestamp>,
}

/// A promise of Rekor v1 with what it promises.
#[derive(Debug, Deserialize)]
struct Promise {
    #[serde(rename = "SignedEntryTimestamp")]
    signed_entry_timestamp: String,
    #[serde(rename = "Payload")]
    payload: Promised,
}

#[derive(Debug, Deserialize)]
struct Promised {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: i64,
    #[serde(rename = "logIndex")]
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Debug, Deserialize)]
struct Stamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    signed: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    kind: String,
    api_version: String,
}

impl Annotations {
    /// Reads them. An annotation that is empty is not there: cosign 3 writes empty chains.
    pub(super) fn read(annotations: &BTreeMap<String, String>) -> Result<Self, String> {
        let get = |name: &str| annotations.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let mut read = Self::default();
        if let Some(text) = get(SIGNATURE) {
            read.signature = Some(decode(text, "signature")?);
        }
        if let Some(text) = get(CERTIFICATE) {
            let certificate =
                DerCertificate::from_pem(text).map_err(|error| format!("its certificate is malformed: {error}"))?;
            read.certificate = Some(certificate);
        }
        if let Some(text) = get(CHAIN) {
            read.chain = chain(text)?;
        }
        if let Some(text) = get(BUNDLE) {
            read.entries.push(entry(text)?);
        }
        if let Some(text) = get(TIMESTAMP) {
            let stamp: Stamp =
                serde_json::from_str(text).map_err(|error| format!("its timestamp is malformed: {error}"))?;
            read.timestamps.push(Rfc3161Timestamp::new(TimestampToken::new(decode(&stamp.signed, "timestamp")?)));
        }
        Ok(read)
    }

    /// The bundle that these annotations and that content are the pieces of; none without a certificate.
    pub(super) fn bundle(&self, content: SignatureContent) -> Option<Bundle> {
        let leaf = self.certificate.iter().chain(&self.chain).cloned();
        self.certificate.as_ref()?;
        let material = VerificationMaterialContent::X509CertificateChain {
            certificates: leaf.map(X509Certificate::new).collect(),
        };
        let material = VerificationMaterial::new(material)
            .with_tlog_entries(self.entries.clone())
            .with_timestamp_verification_data(TimestampVerificationData::new(self.timestamps.clone()));
        Some(Bundle::new(MediaType::Bundle0_1, material, content))
    }
}

/// The intermediates of a chain: an anchor that comes along is nobody's anchor.
fn chain(text: &str) -> Result<Vec<DerCertificate>, String> {
    let malformed = |why: String| format!("its certificate chain is malformed: {why}");
    let mut intermediates = Vec::new();
    for der in read_pem(text, CHAIN_LIMIT).map_err(malformed)? {
        let parsed = Certificate::from_der(der.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        if parsed.tbs_certificate.issuer != parsed.tbs_certificate.subject {
            intermediates.push(der);
        }
    }
    Ok(intermediates)
}

fn entry(text: &str) -> Result<TransparencyLogEntry, String> {
    let malformed = |why: String| format!("its log entry is malformed: {why}");
    let Promise { signed_entry_timestamp, payload } =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let body = decode(&payload.body, "log entry")?;
    let Body { kind, api_version } = serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?;
    let kind = match (kind.as_str(), api_version.as_str()) {
        ("hashedrekord", "0.0.1") => KindVersion::HashedRekordV001,
        ("dsse", "0.0.1") => KindVersion::DsseV001,
        ("intoto", "0.0.2") => KindVersion::IntotoV002,
        _ => return Err(malformed(format!("it is of kind {kind:?} {api_version:?}"))),
    };
    let id = hex::decode(&payload.log_id).map_err(|error| malformed(error.to_string()))?;
    let index = LogIndex::new(payload.log_index).map_err(|error| malformed(error.to_string()))?;
    let time = Timestamp::from_second(payload.integrated_time).map_err(|error| malformed(error.to_string()))?;
    let promise = SignedTimestamp::new(decode(&signed_entry_timestamp, "promise")?);
    let entry =
        TransparencyLogEntry::new(index, LogId::new(LogKeyId::from_bytes(&id)), kind, CanonicalizedBody::new(body));
    Ok(entry.with_integrated_time(time).with_inclusion_promise(InclusionPromise::new(promise)))
}

/// Base64, with line breaks in it as `base64` writes them and Go's reader passes over.
fn decode(text: &str, what: &str) -> Result<Vec<u8>, String> {
    let text: String = text.chars().filter(|it| !matches!(it, '\r' | '\n')).collect();
    STANDARD.decode(text).map_err(|error| format!("its {what} is malformed: {error}"))
}
