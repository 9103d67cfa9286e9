//! Signed OPA bundles (openpolicyagent.org, "Bundles", "Signing"): policy and data in one archive.
//!
//! The signature is a JWT over the digests of all files. A bundle counts as a whole: a file that it does
//! not name, a file that is missing, a key that did not sign it, and it is none.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use crate::trust::KeyKind;
use crate::trust::PublicKey;

/// Bytes in a bundle, unpacked.
const LONGEST: u64 = 64 << 20;
/// Files in a bundle.
const MOST_FILES: usize = 10_000;

const SIGNATURES: &str = ".signatures.json";
const MANIFEST: &str = ".manifest";

/// A bundle whose signature holds.
#[derive(Debug)]
pub struct Bundle {
    /// Its modules, by name.
    pub modules: Vec<(String, String)>,
    /// Its data, each document in its place.
    pub data: Vec<String>,
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    crit: Value,
}

#[derive(Deserialize)]
struct Payload {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    hash: String,
    algorithm: String,
}

impl Bundle {
    /// Opens an archive (tar, gzip) that the owner of the key signed.
    pub fn open(archive: &[u8], key: &PublicKey) -> Result<Self, BundleError> {
        let mut files = unpack(archive)?;
        let signatures = files.remove(SIGNATURES).ok_or(BundleError::Unsigned)?;
        let malformed = |what: &'static str| {
            move |error: serde_json::Error| BundleError::Malformed { what: what.into(), why: error.to_string() }
        };
        let signatures: Signatures = serde_json::from_slice(&signatures).map_err(malformed(SIGNATURES))?;
        let [token] = signatures.signatures.as_slice() else { return Err(BundleError::Unsigned) };
        let payload: Payload = serde_json::from_slice(&verify(token, key)?).map_err(malformed("the signature"))?;
        let mut listed = BTreeMap::new();
        for file in payload.files {
            listed.insert(plain(&file.name), file);
        }
        let (mut modules, mut data) = (Vec::new(), Vec::new());
        for (name, content) in files {
            let file = listed.remove(&name).ok_or_else(|| BundleError::NotListed { file: name.clone() })?;
            check(&name, &content, &file)?;
            let base = name.rsplit('/').next().unwrap_or_default();
            match base {
                _ if base.ends_with(".rego") => modules.push((name.clone(), text(&name, content)?)),
                "data.json" => data.push(placed(&name, &content)?),
                MANIFEST => {}
                _ if base.ends_with(".wasm") || matches!(base, "data.yaml" | "data.yml") => {
                    return Err(BundleError::Unsupported { file: name });
                }
                _ => {}
            }
        }
        match listed.into_keys().next() {
            Some(file) => Err(BundleError::Missing { file }),
            None => Ok(Self { modules, data }),
        }
    }
}

/// A name without what `./` and `/` in front say.
fn plain(name: &str) -> String {
    name.trim_start_matches("./").trim_start_matches('/').to_owned()
}

fn unpack(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
    let malformed =
        |error: std::io::Error| BundleError::Malformed { what: "the archive".into(), why: error.to_string() };
    let mut files = BTreeMap::new();
    let mut tar = tar::Archive::new(GzDecoder::new(archive).take(LONGEST));
    for entry in tar.entries().map_err(malformed)? {
        let mut entry = entry.map_err(malformed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = plain(&String::from_utf8_lossy(&entry.path_bytes()));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(malformed)?;
        if files.len() >= MOST_FILES {
            return Err(malformed(std::io::Error::other("it has too many files")));
        }
        if files.insert(name.clone(), content).is_some() {
            return Err(malformed(std::io::Error::other(format!("{name} is there twice"))));
        }
    }
    Ok(files)
}

/// The payload of a JSON Web Token (RFC 7515, compact) that the owner of the key signed.
fn verify(token: &str, key: &PublicKey) -> Result<Vec<u8>, BundleError> {
    let broken = |why: &str| BundleError::Malformed { what: "the signature".into(), why: why.into() };
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| broken("it is no JWT"))?;
    let (header, payload) = signed.split_once('.').ok_or_else(|| broken("it is no JWT"))?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| broken("it is no base64"));
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|error| broken(&error.to_string()))?;
    if !header.crit.is_null() {
        return Err(broken("its header has something critical in it"));
    }
    let signature = decode(signature)?;
    let signature = match (header.alg.as_str(), key.kind()) {
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", KeyKind::Rsa) | ("EdDSA", KeyKind::Ed25519) => {
            signature
        }
        ("ES256", KeyKind::P256) => der(&signature, 32).ok_or_else(|| broken("it is no pair of numbers"))?,
        ("ES384", KeyKind::P384) => der(&signature, 48).ok_or_else(|| broken("it is no pair of numbers"))?,
        (alg, _) => return Err(broken(&format!("{alg} is not what this key signs with"))),
    };
    if !key.has_signed(signed.as_bytes(), &signature) {
        return Err(BundleError::OtherKey { key: key.fingerprint() });
    }
    decode(payload)
}

/// An ECDSA signature as RFC 7518 has it, two numbers of `len` bytes, in DER.
fn der(signature: &[u8], len: usize) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(len).filter(|(_, s)| s.len() == len)?;
    let integer = |number: &[u8]| {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len() - 1);
        let digits = number.get(start..).unwrap_or_default();
        let sign = digits.first().is_some_and(|byte| byte & 0x80 != 0);
        let mut encoded = vec![2, u8::try_from(digits.len() + usize::from(sign)).unwrap_or(u8::MAX)];
        encoded.extend(sign.then_some(0));
        encoded.extend_from_slice(digits);
        encoded
    };
    let body = [integer(r), integer(s)].concat();
    // At most 2 * (2 + 49) bytes: one byte holds the length.
    Some([vec![0x30, u8::try_from(body.len()).ok()?], body].concat())
}

fn check(name: &str, content: &[u8], listed: &Listed) -> Result<(), BundleError> {
    let base = name.rsplit('/').next().unwrap_or_default();
    let canonical = match base {
        "data.json" | MANIFEST => {
            let value: Value = serde_json::from_slice(content)
                .map_err(|error| BundleError::Malformed { what: name.into(), why: error.to_string() })?;
            let mut text = String::new();
            write(&value, &mut text);
            text.into_bytes()
        }
        _ => content.to_vec(),
    };
    let actual = match listed.algorithm.as_str() {
        "SHA-256" => hex::encode(Sha256::digest(&canonical)),
        "SHA-384" => hex::encode(Sha384::digest(&canonical)),
        "SHA-512" => hex::encode(Sha512::digest(&canonical)),
        other => {
            return Err(BundleError::Malformed {
                what: name.into(),
                why: format!("{other:?} is no hash that counts here"),
            });
        }
    };
    match actual.eq_ignore_ascii_case(&listed.hash) {
        true => Ok(()),
        false => Err(BundleError::Mismatch { file: name.into(), expected: listed.hash.clone(), actual }),
    }
}

/// JSON with sorted members and no white space: what OPA hashes of a document.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<_, _> = members.iter().collect();
            out.push('{');
            for (number, (name, value)) in sorted.into_iter().enumerate() {
                out.push_str(if number > 0 { "," } else { "" });
                write(&Value::String(name.clone()), out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { "," } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        // Go escapes these two, serde_json does not.
        Value::String(text) => {
            let text = Value::String(text.clone()).to_string();
            out.push_str(&text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"));
        }
        other => out.push_str(&other.to_string()),
    }
}

fn text(name: &str, content: Vec<u8>) -> Result<String, BundleError> {
    String::from_utf8(content).map_err(|error| BundleError::Malformed { what: name.into(), why: error.to_string() })
}

/// `a/b/data.json` is the document at `data.a.b`.
fn placed(name: &str, content: &[u8]) -> Result<String, BundleError> {
    let malformed = |error: serde_json::Error| BundleError::Malformed { what: name.into(), why: error.to_string() };
    let value: Value = serde_json::from_slice(content).map_err(malformed)?;
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let folders = folder.split('/').filter(|part| !part.is_empty()).rev();
    Ok(folders.fold(value, |value, part| json!({ part: value })).to_string())
}

/// Why a bundle is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nobody signed it, or several did.
    #[error("the bundle has no {SIGNATURES} with one signature")]
    Unsigned,
    /// Somebody else signed it, or it was changed.
    #[error("the bundle is not signed by {key}")]
    OtherKey {
        /// The key that was asked for.
        key: String,
    },
    /// A part of it cannot be read.
    #[error("{what} of the bundle is malformed: {why}")]
    Malformed {
        /// Which part.
        what: String,
        /// Why.
        why: String,
    },
    /// A file that the signature does not cover.
    #[error("{file} of the bundle is not covered by its signature")]
    NotListed {
        /// The file.
        file: String,
    },
    /// A file that the signature names.
    #[error("{file} is missing in the bundle")]
    Missing {
        /// The file.
        file: String,
    },
    /// A file that was changed.
    #[error("{file} of the bundle does not match its digest: expected {expected}, got {actual}")]
    Mismatch {
        /// The file.
        file: String,
        /// The digest that was signed.
        expected: String,
        /// The digest that it has.
        actual: String,
    },
    /// A file that would mean something to OPA, and means nothing here.
    #[error("{file} of the bundle is of a kind that is not supported here")]
    Unsupported {
        /// The file.
        file: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    use aws_lc_rs::signature::EcdsaKeyPair;
    use aws_lc_rs::signature::KeyPair;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn key_pair() -> (EcdsaKeyPair, PublicKey) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        let public = PublicKey::from_der(der.as_ref()).unwrap();
        (pair, public)
    }

    fn token(pair: &EcdsaKeyPair, alg: &str, listed: &[(&str, &str)]) -> String {
        let files: Vec<_> = listed
            .iter()
            .map(|(name, content)| {
                let hash = hex::encode(Sha256::digest(content.as_bytes()));
                json!({"name": name, "hash": hash, "algorithm": "SHA-256"})
            })
            .collect();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({"alg": alg})), part(json!({"files": files})));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn archive(files: &[(&str, &str)], tokens: &[String]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let signatures = json!({"signatures": tokens}).to_string();
        for (name, content) in files.iter().copied().chain([("/.signatures.json", signatures.as_str())]) {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    const MODULE: &str = "package kitfs\nallow if data.a.limit == 3";
    const DATA: &str = "{ \"limit\": 3,\n \"also\": [1.50, \"x\"] }";
    /// The same as OPA hashes it.
    const CANONICAL: &str = "{\"also\":[1.50,\"x\"],\"limit\":3}";

    #[test]
    fn a_bundle_that_the_key_signed_gives_modules_and_data() {
        let (pair, public) = key_pair();
        let token = token(&pair, "ES256", &[("kitfs.rego", MODULE), ("a/data.json", CANONICAL)]);
        let bundle =
            Bundle::open(&archive(&[("/kitfs.rego", MODULE), ("/a/data.json", DATA)], &[token]), &public).unwrap();
        assert_eq!(bundle.modules, [("kitfs.rego".to_owned(), MODULE.to_owned())]);
        let rego = crate::policy::rego::Rego::compile("b", &bundle.modules, &bundle.data, "kitfs").unwrap();
        assert!(rego.answer("{}").unwrap().allowed);
    }

    #[test]
    fn a_bundle_that_is_not_all_signed_is_none() {
        let (pair, public) = key_pair();
        let (_, other) = key_pair();
        let files = [("kitfs.rego", MODULE)];
        let good = token(&pair, "ES256", &files);
        let open =
            |files: &[(&str, &str)], tokens: &[String], key: &PublicKey| Bundle::open(&archive(files, tokens), key);
        assert!(open(&files, std::slice::from_ref(&good), &public).is_ok());
        assert!(matches!(open(&files, &[], &public), Err(BundleError::Unsigned)));
        assert!(matches!(open(&files, &[good.clone(), good.clone()], &public), Err(BundleError::Unsigned)));
        assert!(matches!(open(&files, std::slice::from_ref(&good), &other), Err(BundleError::OtherKey { .. })));
        assert!(matches!(
            open(&[("kitfs.rego", "package kitfs")], std::slice::from_ref(&good), &public),
            Err(BundleError::Mismatch { .. })
        ));
        assert!(matches!(open(&[], std::slice::from_ref(&good), &public), Err(BundleError::Missing { .. })));
        assert!(matches!(open(&[files[0], ("b.rego", MODULE)], &[good], &public), Err(BundleError::NotListed { .. })));
        for alg in ["none", "HS256", "RS256", "ES384"] {
            assert!(open(&files, &[token(&pair, alg, &files)], &public).is_err(), "{alg}");
        }
        let wasm = [("policy.wasm", "x")];
        assert!(matches!(open(&wasm, &[token(&pair, "ES256", &wasm)], &public), Err(BundleError::Unsupported { .. })));
        for bytes in [&b""[..], b"x", &[0x1f, 0x8b]] {
            assert!(Bundle::open(bytes, &public).is_err());
        }
    }
}
