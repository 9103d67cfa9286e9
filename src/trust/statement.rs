//! What signatures say: cosign's payload, and in-toto statements.
//!
//! Read only after the signature over the very bytes held. What is read strictly: no member may stand
//! twice, and a payload may claim nothing critical that is not known here.

use std::collections::BTreeMap;

use serde_json::Map;
use serde_json::Value;

use crate::digest::Digest;
use crate::trust::json;
use crate::trust::message::Hash;
use crate::trust::message::Message;

/// The only payload type of envelopes that is read (in-toto, "Envelope").
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The predicate type of a signature, as opposed to an attestation (cosign, "BUNDLE_SPEC").
pub const SIGNATURE_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

const STATEMENT_TYPES: [&str; 2] = ["https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1"];
const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";

/// An in-toto statement that somebody signed about a subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// What kind of claim it is: a URI.
    pub predicate_type: String,
    /// The claim.
    pub predicate: Value,
    /// The whole statement, for pointers and Rego.
    pub raw: Value,
}

/// What a statement must be about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    Manifest(&'a Digest),
    Artifact(&'a Message<'a>),
}

impl Subject<'_> {
    /// Whether a digest set (in-toto, "DigestSet") names the subject: one algorithm must, none may say otherwise.
    fn is_in(&self, digests: &Map<String, Value>) -> bool {
        let mut named = false;
        for (algorithm, value) in digests {
            let Some(hex) = value.as_str() else { return false };
            let expected = match self {
                Self::Manifest(digest) if digest.algorithm() == algorithm => Some(digest.hex()),
                Self::Manifest(_) => None,
                Self::Artifact(message) => {
                    Hash::named(algorithm).and_then(|hash| message.digest(hash)).map(hex::encode)
                }
            };
            match expected {
                Some(expected) if expected.eq_ignore_ascii_case(hex) => named = true,
                Some(_) => return false,
                None => {}
            }
        }
        named
    }
}

impl Statement {
    /// Reads a statement about that subject, and the annotations that it gives it.
    pub(super) fn read(payload: &[u8], about: Subject<'_>) -> Result<(Self, BTreeMap<String, String>), String> {
        let raw = json::strict(payload).map_err(|error| format!("the statement is malformed: {error}"))?;
        let text = |at: &str| raw.get(at).and_then(Value::as_str).ok_or_else(|| format!("the statement has no {at}"));
        let kind = text("_type")?;
        if !STATEMENT_TYPES.contains(&kind) {
            return Err(format!("the statement is of type {kind:?}"));
        }
        let predicate_type = text("predicateType")?.to_owned();
        let subjects = raw.get("subject").and_then(Value::as_array).ok_or("the statement has no subject")?;
        let subject = subjects.iter().find(|subject| {
            subject.get("digest").and_then(Value::as_object).is_some_and(|digests| about.is_in(digests))
        });
        let subject = subject.ok_or("the statement is about something else")?;
        let annotations = texts(subject.get("annotations"))?;
        let predicate = raw.get("predicate").cloned().unwrap_or(Value::Null);
        Ok((Self { predicate_type, predicate, raw }, annotations))
    }

    /// The predicate type that a payload claims, for messages about what was refused.
    pub(super) fn claimed_type(payload: &[u8]) -> Option<String> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        Some(value.get("predicateType")?.as_str()?.to_owned())
    }
}

/// Reads cosign's payload (cosign, "SIGNATURE_SPEC") about that manifest: its annotations.
pub(super) fn simple_signing(payload: &[u8], manifest: &Digest) -> Result<BTreeMap<String, String>, String> {
    let payload = json::strict(payload).map_err(|error| format!("the payload is malformed: {error}"))?;
    known(Some(&payload), "the payload", &["critical", "optional"])?;
    let critical = known(payload.get("critical"), "critical", &["identity", "image", "type"])?;
    if let Some(identity) = critical.get("identity") {
        // A mirror keeps signatures as they were, so the name in them binds nothing.
        known(Some(identity), "critical.identity", &["docker-reference"])?;
    }
    match critical.get("type").and_then(Value::as_str) {
        Some(SIMPLE_SIGNING_TYPE) => {}
        other => return Err(format!("the payload is of type {:?}", other.unwrap_or_default())),
    }
    let image = critical.get("image").and_then(Value::as_object).ok_or("the payload names no image")?;
    // Go reads names in any case, and the specification's example begins with a capital.
    let mut members = image.iter();
    let (Some((name, digest)), None) = (members.next(), members.next()) else {
        return Err("critical.image should have exactly one member".into());
    };
    if !name.eq_ignore_ascii_case("docker-manifest-digest") {
        return Err(format!("the payload has something critical that is not known: {name:?}"));
    }
    match digest.as_str().map(str::parse::<Digest>) {
        Some(Ok(digest)) if digest == *manifest => texts(payload.get("optional")),
        Some(Ok(digest)) => Err(format!("the payload is about {digest}")),
        _ => Err("the payload names no digest".into()),
    }
}

/// An object that has none but these members.
fn known<'v>(value: Option<&'v Value>, what: &str, names: &[&str]) -> Result<&'v Map<String, Value>, String> {
    let object = value.and_then(Value::as_object).ok_or_else(|| format!("{what} is no object"))?;
    match object.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(format!("{what} has a member that is not known: {name:?}")),
        None => Ok(object),
    }
}

/// Annotations: those that are text. Cosign writes numbers there too (`timestamp`), which match nothing.
fn texts(annotations: Option<&Value>) -> Result<BTreeMap<String, String>, String> {
    match annotations {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(members)) => {
            let texts = members.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            Ok(texts.collect())
        }
        Some(_) => Err("the annotations are no object".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Digest {
        Digest::of(b"m")
    }

    fn payload(critical: &str, optional: &str) -> Vec<u8> {
        format!(r#"{{"critical":{critical},"optional":{optional}}}"#).into_bytes()
    }

    fn critical(kind: &str, image: &str) -> String {
        format!(r#"{{"identity":{{"docker-reference":"elsewhere"}},"image":{image},"type":"{kind}"}}"#)
    }

    #[test]
    fn a_payload_says_what_it_is_about() {
        let image = format!(r#"{{"docker-manifest-digest":"{}"}}"#, manifest());
        let good = critical(SIMPLE_SIGNING_TYPE, &image);
        assert_eq!(simple_signing(&payload(&good, "null"), &manifest()).unwrap(), BTreeMap::new());
        let annotated = simple_signing(&payload(&good, r#"{"env":"prod","timestamp":3}"#), &manifest()).unwrap();
        assert_eq!(annotated.into_iter().collect::<Vec<_>>(), [("env".into(), "prod".into())]);
        let capital = critical(SIMPLE_SIGNING_TYPE, &image.replace("docker", "Docker"));
        assert!(simple_signing(&payload(&capital, "null"), &manifest()).is_ok());
        for bad in [
            critical("atomic container signature", &image),
            critical(SIMPLE_SIGNING_TYPE, &format!(r#"{{"docker-manifest-digest":"{}"}}"#, Digest::of(b"n"))),
            critical(SIMPLE_SIGNING_TYPE, "{}"),
            good.replace(r#""image""#, r#""more":1,"image""#),
            good.replace(r#""docker-reference""#, r#""x":1,"docker-reference""#),
            good.replace(r#""image""#, r#""type":"x","image""#),
            "null".into(),
        ] {
            assert!(simple_signing(&payload(&bad, "null"), &manifest()).is_err(), "{bad}");
        }
        assert!(simple_signing(&payload(&good, "[1]"), &manifest()).is_err());
    }

    #[test]
    fn a_statement_is_about_one_of_its_subjects() {
        let manifest = manifest();
        let read = |kind: &str, digests: &str| {
            let subjects =
                format!(r#"[{{"digest":{{"sha256":"00"}}}},{{"digest":{digests},"annotations":{{"a":"b"}}}}]"#);
            let text =
                format!(r#"{{"_type":"{kind}","subject":{subjects},"predicateType":"p","predicate":{{"x":1}}}}"#);
            Statement::read(text.as_bytes(), Subject::Manifest(&manifest))
        };
        let hex = manifest.hex();
        for kind in STATEMENT_TYPES {
            let (statement, annotations) = read(kind, &format!(r#"{{"sha256":"{hex}"}}"#)).unwrap();
            assert_eq!((statement.predicate_type.as_str(), annotations["a"].as_str()), ("p", "b"));
            assert_eq!(statement.predicate["x"], 1);
        }
        assert!(read("https://in-toto.io/Statement/v9", &format!(r#"{{"sha256":"{hex}"}}"#)).is_err());
        assert!(read(STATEMENT_TYPES[1], r#"{"sha256":"11"}"#).is_err());
        assert!(read(STATEMENT_TYPES[1], &format!(r#"{{"sha512":"{hex}"}}"#)).is_err());
        assert!(read(STATEMENT_TYPES[1], &format!(r#"{{"sha256":"{hex}","sha256":"{hex}"}}"#)).is_err());
        assert!(Statement::read(b"{}", Subject::Manifest(&manifest)).is_err());
    }
}
