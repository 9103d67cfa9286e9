//! The `input` of Rego: everything that is known of a kit when it is decided about. `docs/policy.md` has
//! the document; members may be added to it, none may change its meaning.

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::policy::evidence::Evidence;
use crate::policy::evidence::Seal;
use crate::policy::request::Named;
use crate::policy::request::Request;
use crate::policy::signer::Signer;

/// The document, as text.
pub fn document(request: &Request<'_>, evidence: &Evidence, now: Timestamp) -> String {
    let attestations = evidence.attestations.iter().map(|attestation| {
        let mut shown = seal(&attestation.seal);
        shown["predicate_type"] = json!(attestation.predicate_type);
        shown["statement"] = attestation.statement.clone();
        shown
    });
    let document = json!({
        "request": {
            "reference": request.reference,
            "name": request.names.first(),
            "names": request.names,
            "tag": request.tag,
            "by_digest": request.named == Named::Digest,
            "child": request.child,
            "parent": request.parent.as_ref().and_then(|names| names.first()),
        },
        "digest": request.digest.to_string(),
        "manifest": parsed(request.manifest),
        "kitfile": request.kitfile.map_or(Value::Null, parsed),
        "signatures": evidence.signatures.iter().map(seal).collect::<Vec<_>>(),
        "attestations": attestations.collect::<Vec<_>>(),
        "now": now.to_string(),
    });
    document.to_string()
}

fn seal(seal: &Seal) -> Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let mut shown = json!({
        "logged": seal.log.is_some(),
        "logged_at": time(seal.log.and_then(|entry| entry.at)),
        "stamped_at": time(seal.stamped_at),
        "annotations": seal.annotations,
    });
    match &seal.signer {
        Signer::Key { fingerprint } => {
            shown["kind"] = json!("key");
            shown["identity"] = json!(fingerprint);
            shown["issuer"] = Value::Null;
            shown["extensions"] = json!({});
        }
        Signer::Certificate { identity, issuer, extensions } => {
            shown["kind"] = json!("certificate");
            shown["identity"] = json!(identity);
            shown["issuer"] = json!(issuer);
            shown["extensions"] = json!(extensions);
        }
        Signer::Certified { subject, authority } => {
            shown["kind"] = json!("certificate");
            shown["identity"] = json!(subject);
            shown["issuer"] = json!(authority);
            shown["extensions"] = json!({});
        }
    }
    shown
}

/// A document that was proved, as it is; null if it is no JSON.
fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}
