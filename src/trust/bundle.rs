//! Sigstore bundles, read from JSON (sigstore/protobuf-specs, "sigstore_bundle.proto").
//!
//! Nothing is proved here.

use serde_json::Value;
use sigstore_types::Bundle;

use crate::trust::json;

/// Every name in the protocol, sorted. A reader of protobuf's JSON refuses others: what it does not know may be meant.
const NAMES: [&str; 39] = [
    "algorithm",
    "canonicalizedBody",
    "certificate",
    "certificates",
    "checkpoint",
    "digest",
    "dsseEnvelope",
    "envelope",
    "hashes",
    "hint",
    "inclusionPromise",
    "inclusionProof",
    "integratedTime",
    "keyId",
    "keyid",
    "kind",
    "kindVersion",
    "logId",
    "logIndex",
    "mediaType",
    "messageDigest",
    "messageSignature",
    "payload",
    "payloadType",
    "publicKey",
    "rawBytes",
    "rfc3161Timestamps",
    "rootHash",
    "sig",
    "signature",
    "signatures",
    "signedEntryTimestamp",
    "signedTimestamp",
    "timestampVerificationData",
    "tlogEntries",
    "treeSize",
    "verificationMaterial",
    "version",
    "x509CertificateChain",
];

/// Reads a bundle. In protobuf's JSON null is the same as absence, and some writers make use of that.
pub(super) fn read(content: &[u8]) -> Result<Bundle, String> {
    let malformed = |error: &dyn std::fmt::Display| format!("the bundle is malformed: {error}");
    let mut value = json::strict(content).map_err(|error| malformed(&error))?;
    normalize(&mut value).map_err(|name| malformed(&format!("it has a member that is not known: {name:?}")))?;
    let material = value.get("verificationMaterial").unwrap_or(&Value::Null);
    one_of(&value, &["messageSignature", "dsseEnvelope"]).map_err(|why| malformed(&why))?;
    one_of(material, &["publicKey", "certificate", "x509CertificateChain"]).map_err(|why| malformed(&why))?;
    Bundle::from_json(&value.to_string()).map_err(|error| malformed(&error))
}

/// A reader of protobuf's JSON refuses two members of a `oneof`: which of them counts would be anybody's guess.
fn one_of(value: &Value, names: &[&str]) -> Result<(), String> {
    let there: Vec<_> = names.iter().copied().filter(|name| value.get(name).is_some()).collect();
    match there.len() {
        0 | 1 => Ok(()),
        _ => Err(format!("it has {}, and may have one of them", there.join(" and "))),
    }
}

/// Leaves out what is null. The error is a name that nobody knows.
fn normalize(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Object(members) => {
            if let Some(name) = members.keys().find(|name| NAMES.binary_search(&name.as_str()).is_err()) {
                return Err(name.clone());
            }
            members.retain(|_, member| !member.is_null());
            members.values_mut().try_for_each(normalize)
        }
        Value::Array(items) => items.iter_mut().try_for_each(normalize),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}
