//! OpenSSF model signatures: a bundle whose statement names every file of a model by its hash
//! (model-transparency, "model_signing_format.md"; predicate `https://model_signing/signature/v1.0`, and the
//! older `https://model_signing/Digests/v0.1`).
//!
//! The subject is a hash over the hashes of the files, so the statement is about itself; what counts is who signed
//! it, and that the files are those. Reading them is up to the caller, who has them as proved bytes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;

use blake2::Blake2b512;
use bytes::Bytes;
use serde_json::Value;
use sha2::Digest as _;
use sha2::Sha256;

use crate::digest::Digest;
use crate::fault::Fault;
use crate::kit::name::KitPath;
use crate::trust::Limits;
use crate::trust::authority::CertificateAuthority;
use crate::trust::endorsement::Endorsement;
use crate::trust::endorsement::Rejected;
use crate::trust::endorsement::Role;
use crate::trust::examine;
use crate::trust::examine::Makers;
use crate::trust::key::PublicKey;
use crate::trust::material::Material;
use crate::trust::root::TrustedRoot;
use crate::verify::Verified;

/// The predicate type of a model signature.
pub const MODEL_PREDICATE: &str = "https://model_signing/signature/v1.0";
/// What version 0.2 wrote: one subject a file, and no predicate.
const OLD_MODEL_PREDICATE: &str = "https://model_signing/Digests/v0.1";

/// Files that belong to git are never part of a model.
const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A model signature that holds, and what was signed.
#[derive(Clone, Debug)]
pub struct ModelSignature {
    /// Who signed. The subject is the hash over the hashes.
    pub endorsement: Endorsement,
    /// Which files.
    pub manifest: ModelManifest,
}

/// The files of a model, by their hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelManifest {
    /// What its signer called it.
    pub name: String,
    /// Parts of each file, by path.
    files: BTreeMap<KitPath, Vec<Resource>>,
    ignored: Vec<KitPath>,
    /// Whether parts of files are named: an empty file has none, and no signer can name it.
    in_shards: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Resource {
    /// All of the file, or these bytes.
    range: Option<Range<u64>>,
    hash: ModelHash,
    digest: Vec<u8>,
}

/// Hashes that model signatures use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelHash {
    Sha256,
    Blake2b,
    Blake3,
}

/// Where a model lies in a kit, and what has to be read of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory that was signed.
    pub root: KitPath,
    /// What to read and compare.
    pub parts: Vec<Part>,
    /// Files of the kit that lie outside of it, so that nothing is said about them.
    pub outside: usize,
}

/// Bytes of a file, and their hash.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file in the kit.
    pub path: KitPath,
    /// Which bytes of it.
    pub range: Range<u64>,
    hash: ModelHash,
    digest: Vec<u8>,
}

/// Whose signatures of models count, beside those of whom a Sigstore certified.
#[derive(Clone, Copy, Debug)]
pub struct ModelSigners<'a> {
    /// The owners of these keys, also where they bring a certificate that counts for nothing.
    pub keys: &'a [PublicKey],
    /// The holders of certificates of these authorities.
    pub authorities: &'a [CertificateAuthority],
}

/// Checks a model signature against these signers and the root. What fails comes back with its reason.
pub fn examine_model(
    bundle: &[u8],
    found: &str,
    signers: ModelSigners<'_>,
    root: &TrustedRoot,
    limits: &Limits,
) -> (Vec<ModelSignature>, Vec<Rejected>) {
    let reject = |reason: String| Rejected {
        found: found.to_owned(),
        role: Role::Attestation,
        claimed: None,
        predicate_type: Some(MODEL_PREDICATE.to_owned()),
        reason,
    };
    let subject = match examine::statement_of(bundle, limits).and_then(|claimed| ModelManifest::read(&claimed)) {
        Ok((_, subject)) => subject,
        Err(why) => return (Vec::new(), vec![reject(why)]),
    };
    let makers = Makers { keys: signers.keys, authorities: Some(signers.authorities) };
    let findings = examine::examine_statement(&Material::of_bundle(bundle, found), &subject, makers, root, limits);
    let mut rejected = findings.rejected;
    let mut signatures = Vec::new();
    for endorsement in findings.endorsements {
        let read = endorsement.attestation().ok_or("it is no model signature".to_owned());
        match read.and_then(|statement| ModelManifest::read(&statement.raw)) {
            Ok((manifest, digest)) if digest == subject => signatures.push(ModelSignature { endorsement, manifest }),
            Ok(_) => rejected.push(reject("it is about something else".into())),
            Err(why) => rejected.push(reject(why)),
        }
    }
    (signatures, rejected)
}

impl ModelManifest {
    /// Reads a statement, and what its subject must be: the hash over the hashes in their order.
    fn read(statement: &Value) -> Result<(Self, Digest), String> {
        let subjects = statement.get("subject").and_then(Value::as_array).ok_or("the statement has no subject")?;
        let mut manifest = Self { name: String::new(), files: BTreeMap::new(), ignored: Vec::new(), in_shards: false };
        match statement.get("predicateType").and_then(Value::as_str) {
            Some(MODEL_PREDICATE) => {
                let [subject] = &subjects[..] else { return Err("a model signature has exactly one subject".into()) };
                manifest.name = text(subject, "name")?.to_owned();
                let over_all = manifest.read_predicate(statement.get("predicate").unwrap_or(&Value::Null))?;
                Ok((manifest, over_all))
            }
            Some(OLD_MODEL_PREDICATE) => {
                let mut first = None;
                for subject in subjects {
                    let hex = subject.get("digest").and_then(|digest| digest.get("sha256")).and_then(Value::as_str);
                    let digest = unhex(hex.ok_or("a file has no SHA-256")?)?;
                    let sha256 =
                        digest.as_slice().try_into().map(Digest::Sha256).map_err(|_| "a SHA-256 is too short")?;
                    first.get_or_insert(sha256);
                    manifest.add(text(subject, "name")?, None, ModelHash::Sha256, digest)?;
                }
                Ok((manifest, first.ok_or("the statement has no subject")?))
            }
            other => Err(format!("the statement is of type {:?} and no model signature", other.unwrap_or_default())),
        }
    }

    fn read_predicate(&mut self, predicate: &Value) -> Result<Digest, String> {
        let serialization = predicate.get("serialization").ok_or("the predicate has no serialization")?;
        self.in_shards = match text(serialization, "method")? {
            "files" => false,
            "shards" => true,
            other => return Err(format!("files are listed by {other:?}, which is not known")),
        };
        for path in serialization.get("ignore_paths").and_then(Value::as_array).into_iter().flatten() {
            let path = path.as_str().ok_or("a path to ignore is no text")?;
            // A path outside of the model is about nothing in it.
            self.ignored.extend(KitPath::parse(path.as_bytes()));
        }
        let resources = predicate.get("resources").and_then(Value::as_array).ok_or("the predicate has no resources")?;
        let mut over_all = Sha256::new();
        for resource in resources {
            let digest = unhex(text(resource, "digest")?)?;
            over_all.update(&digest);
            let algorithm = text(resource, "algorithm")?;
            let hash = ModelHash::named(algorithm).ok_or_else(|| format!("the hash {algorithm:?} is not known"))?;
            let name = text(resource, "name")?;
            let (path, range) = if self.in_shards { shard(name)? } else { (name, None) };
            // A model of a single file goes by the name of the model.
            let path = if path == "." { self.name.clone() } else { path.to_owned() };
            self.add(&path, range, hash, digest)?;
        }
        Ok(Digest::Sha256(over_all.finalize().into()))
    }

    fn add(&mut self, path: &str, range: Option<Range<u64>>, hash: ModelHash, digest: Vec<u8>) -> Result<(), String> {
        let parsed = KitPath::parse(path.as_bytes()).map_err(|error| format!("{path:?} is no path: {error}"))?;
        if parsed.is_root() || digest.len() != hash.len() {
            return Err(format!("{path:?} is no file with a hash"));
        }
        let resources = self.files.entry(parsed).or_default();
        if range.is_none() && !resources.is_empty() {
            return Err(format!("{path:?} stands twice"));
        }
        resources.push(Resource { range, hash, digest });
        Ok(())
    }

    /// Finds the directory that was signed: where the signature lies or above, else the first in which all files are.
    ///
    /// The error names what is missing, or what is there and was not signed.
    pub fn plan(&self, files: &BTreeMap<KitPath, u64>, signature: Option<&KitPath>) -> Result<Plan, ModelError> {
        if self.files.is_empty() {
            return Err(ModelError::Empty);
        }
        let mut roots = Vec::new();
        let mut above = signature.and_then(KitPath::parent);
        while let Some(root) = above {
            above = root.parent();
            roots.push(root);
        }
        roots.push(KitPath::root());
        roots.extend(files.keys().filter_map(KitPath::parent).collect::<BTreeSet<_>>());
        let mut problem = None;
        for root in roots {
            match self.plan_at(&root, files, signature) {
                Ok(plan) => return Ok(plan),
                // What was not signed is told rather than what is nowhere.
                Err(error @ ModelError::Unsigned { .. }) if !matches!(problem, Some(ModelError::Unsigned { .. })) => {
                    problem = Some(error);
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or(ModelError::Empty))
    }

    fn plan_at(
        &self,
        root: &KitPath,
        files: &BTreeMap<KitPath, u64>,
        signature: Option<&KitPath>,
    ) -> Result<Plan, ModelError> {
        let mut parts = Vec::new();
        let mut signed = BTreeSet::new();
        for (path, resources) in &self.files {
            let missing = || ModelError::Missing { path: path.clone(), root: root.clone() };
            let at = root.join(path).map_err(|_| missing())?;
            let size = *files.get(&at).ok_or_else(missing)?;
            let mut resources: Vec<_> = resources.iter().collect();
            resources.sort_by_key(|resource| resource.range.as_ref().map(|range| (range.start, range.end)));
            let mut end = 0;
            for Resource { range, hash, digest } in resources {
                let range = range.clone().unwrap_or(0..size);
                // Shards tile a file: what lies between two is signed by nobody.
                if range.start != end || range.end < range.start {
                    return Err(ModelError::Size { path: at, size });
                }
                end = range.end;
                parts.push(Part { path: at.clone(), range, hash: *hash, digest: digest.clone() });
            }
            if end != size {
                return Err(ModelError::Size { path: at, size });
            }
            signed.insert(at);
        }
        let mut outside = 0;
        for (path, size) in files.iter().filter(|(path, _)| !signed.contains(*path)) {
            let cannot_be_named = self.in_shards && *size == 0;
            if !path.starts_with(root) {
                outside += 1;
            } else if !cannot_be_named && Some(path) != signature && !self.ignores(root, path) {
                return Err(ModelError::Unsigned { path: path.clone(), root: root.clone() });
            }
        }
        Ok(Plan { root: root.clone(), parts, outside })
    }

    /// Whether the signer left a path out on purpose, or every signer does.
    fn ignores(&self, root: &KitPath, path: &KitPath) -> bool {
        let git = GIT.iter().filter_map(|name| KitPath::parse(name.as_bytes()).ok());
        let ignored = git.chain(self.ignored.iter().cloned());
        ignored.filter_map(|ignored| root.join(&ignored).ok()).any(|ignored| path.starts_with(&ignored))
    }
}

impl Part {
    /// Starts at the first byte.
    pub fn check(&self) -> PartCheck<'_> {
        let hasher = match self.hash {
            ModelHash::Sha256 => Hasher::Sha256(Sha256::new()),
            ModelHash::Blake2b => Hasher::Blake2b(Box::new(Blake2b512::new())),
            ModelHash::Blake3 => Hasher::Blake3(Box::new(blake3::Hasher::new())),
        };
        PartCheck { part: self, hasher }
    }
}

/// Compares a part while it is read.
pub struct PartCheck<'a> {
    part: &'a Part,
    hasher: Hasher,
}

enum Hasher {
    Sha256(Sha256),
    Blake2b(Box<Blake2b512>),
    Blake3(Box<blake3::Hasher>),
}

impl std::fmt::Debug for PartCheck<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartCheck").field("part", &self.part).finish_non_exhaustive()
    }
}

impl PartCheck<'_> {
    /// Takes the next bytes, in order.
    pub fn update(&mut self, piece: &Verified<Bytes>) {
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(&***piece),
            Hasher::Blake2b(hasher) => hasher.update(&***piece),
            Hasher::Blake3(hasher) => drop(hasher.update(piece)),
        }
    }

    /// Compares, after the last byte.
    pub fn finish(self) -> Result<(), ModelError> {
        let actual = match self.hasher {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Blake2b(hasher) => hasher.finalize().to_vec(),
            Hasher::Blake3(hasher) => hasher.finalize().as_bytes().to_vec(),
        };
        if actual == self.part.digest {
            return Ok(());
        }
        let name = |digest: &[u8]| format!("{}:{}", self.part.hash.name(), hex::encode(digest));
        Err(ModelError::Mismatch {
            path: self.part.path.clone(),
            expected: name(&self.part.digest),
            actual: name(&actual),
        })
    }
}

impl ModelHash {
    /// By the names in model signatures; those of sharded files say so behind the name.
    fn named(name: &str) -> Option<Self> {
        match name.split("-sharded-").next() {
            Some("sha256") => Some(Self::Sha256),
            Some("blake2b" | "blake2") => Some(Self::Blake2b),
            Some("blake3") => Some(Self::Blake3),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake2b => "blake2b",
            Self::Blake3 => "blake3",
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Blake2b => 64,
        }
    }
}

/// `PATH:START:END`, where neither has a colon of its own.
fn shard(name: &str) -> Result<(&str, Option<Range<u64>>), String> {
    let mut pieces = name.rsplitn(3, ':');
    let (end, start, path) = (pieces.next(), pieces.next(), pieces.next());
    let number = |text: Option<&str>| text?.parse::<u64>().ok();
    match (path, number(start), number(end)) {
        (Some(path), Some(start), Some(end)) => Ok((path, Some(start..end))),
        _ => Err(format!("{name:?} is no part of a file")),
    }
}

fn text<'v>(value: &'v Value, at: &str) -> Result<&'v str, String> {
    value.get(at).and_then(Value::as_str).ok_or_else(|| format!("something in the statement has no {at}"))
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    hex::decode(text).map_err(|error| format!("a digest is malformed: {error}"))
}

/// Why a kit is not the model that was signed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Nothing was signed.
    #[error("the model signature names no file")]
    Empty,
    /// A file that was signed is not there.
    #[error("the model signature names {path}, which is not in {root}")]
    Missing {
        /// The file.
        path: KitPath,
        /// Where the model was looked for.
        root: KitPath,
    },
    /// A file is there that was not signed.
    #[error("the model signature does not name {path}, which is in {root}")]
    Unsigned {
        /// The file.
        path: KitPath,
        /// Where the model is.
        root: KitPath,
    },
    /// A file is longer or shorter than the parts that were signed.
    #[error("{path} has {size} bytes, which are not those that were signed")]
    Size {
        /// The file.
        path: KitPath,
        /// Its bytes.
        size: u64,
    },
    /// A file is not the one that was signed.
    #[error("{path} is not the file that was signed: expected {expected}, got {actual}")]
    Mismatch {
        /// The file.
        path: KitPath,
        /// What was signed.
        expected: String,
        /// What is there.
        actual: String,
    },
}

impl ModelError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Empty | Self::Missing { .. } | Self::Unsigned { .. } => Fault::Refused,
            Self::Size { .. } | Self::Mismatch { .. } => Fault::Mismatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> KitPath {
        KitPath::parse(text.as_bytes()).unwrap()
    }

    fn statement(method: &str, resources: &[(&str, &str, Vec<u8>)]) -> Value {
        let resources: Vec<_> = resources
            .iter()
            .map(|(name, algorithm, digest)| {
                serde_json::json!({"name": name, "algorithm": algorithm, "digest": hex::encode(digest)})
            })
            .collect();
        serde_json::json!({
            "subject": [{"name": "m"}], "predicateType": MODEL_PREDICATE,
            "predicate": {"serialization": {"method": method, "ignore_paths": ["logs"]}, "resources": resources},
        })
    }

    fn sha256(content: &[u8]) -> Vec<u8> {
        Sha256::digest(content).to_vec()
    }

    fn files(names: &[(&str, u64)]) -> BTreeMap<KitPath, u64> {
        names.iter().map(|(name, size)| (path(name), *size)).collect()
    }

    #[test]
    fn a_model_is_found_where_all_of_its_files_are() {
        let statement = statement("files", &[("a", "sha256", sha256(b"a")), ("b/c", "blake3", sha256(b"c"))]);
        let (manifest, _) = ModelManifest::read(&statement).unwrap();
        let kit =
            files(&[("Kitfile", 3), ("m/a", 1), ("m/b/c", 1), ("m/.git/x", 1), ("m/logs/y", 1), ("m/model.sig", 9)]);
        let plan = manifest.plan(&kit, Some(&path("m/model.sig"))).unwrap();
        assert_eq!((plan.root.clone(), plan.parts.len(), plan.outside), (path("m"), 2, 1));
        let error = manifest.plan(&kit, None).unwrap_err().to_string();
        assert!(error.contains("does not name m/model.sig"), "{error}");
        let error = manifest.plan(&files(&[("a", 1)]), None).unwrap_err().to_string();
        assert!(error.contains("names b/c"), "{error}");
    }

    #[test]
    fn shards_tile_their_file() {
        let digest = sha256(b"");
        let whole = [("a:0:4", "sha256", digest.clone()), ("a:4:6", "sha256", digest.clone())];
        let (manifest, _) = ModelManifest::read(&statement("shards", &whole)).unwrap();
        assert_eq!(manifest.plan(&files(&[("a", 6)]), None).unwrap().parts.len(), 2);
        assert!(matches!(manifest.plan(&files(&[("a", 7)]), None), Err(ModelError::Size { .. })));
        let gap = [("a:0:4", "sha256", digest.clone()), ("a:5:6", "sha256", digest.clone())];
        let (manifest, _) = ModelManifest::read(&statement("shards", &gap)).unwrap();
        assert!(matches!(manifest.plan(&files(&[("a", 6)]), None), Err(ModelError::Size { .. })));
        let (manifest, _) = ModelManifest::read(&statement("shards", &[("a:0:0", "sha256", digest.clone())])).unwrap();
        assert_eq!(manifest.plan(&files(&[("a", 0)]), None).unwrap().parts.len(), 1);
        // The tool names no part of an empty file.
        let one = [("a:0:4", "sha256", digest.clone())];
        let (manifest, _) = ModelManifest::read(&statement("shards", &one)).unwrap();
        assert!(manifest.plan(&files(&[("a", 4), ("empty", 0)]), None).is_ok());
        assert!(manifest.plan(&files(&[("a", 4), ("more", 1)]), None).is_err());
        let (manifest, _) = ModelManifest::read(&statement("files", &[("a", "sha256", digest)])).unwrap();
        assert!(manifest.plan(&files(&[("a", 4), ("empty", 0)]), None).is_err());
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let digest = || sha256(b"");
        for (method, name, algorithm, digest) in [
            ("files", "../a", "sha256", digest()),
            ("files", "", "sha256", digest()),
            ("files", "a", "md5", digest()),
            ("files", "a", "sha256", vec![1]),
            ("shards", "a", "sha256", digest()),
            ("shards", "a:1", "sha256", digest()),
            ("trees", "a", "sha256", digest()),
        ] {
            let read = ModelManifest::read(&statement(method, &[(name, algorithm, digest)]));
            assert!(read.is_err(), "{method} {name} {algorithm}");
        }
        let twice = [("a", "sha256", digest()), ("a", "sha256", digest())];
        assert!(ModelManifest::read(&statement("files", &twice)).is_err());
    }

    #[test]
    fn a_part_is_compared_by_its_own_hash() {
        for (algorithm, digest) in [
            ("sha256", sha256(b"")),
            ("blake2b", Blake2b512::digest(b"").to_vec()),
            ("blake3", blake3::hash(b"").as_bytes().to_vec()),
        ] {
            let (manifest, _) = ModelManifest::read(&statement("files", &[("a", algorithm, digest)])).unwrap();
            let plan = manifest.plan(&files(&[("a", 0)]), None).unwrap();
            let mut check = plan.parts[0].check();
            check.update(&Verified::nothing());
            check.finish().unwrap();
        }
        let (manifest, _) = ModelManifest::read(&statement("files", &[("a", "sha256", sha256(b"x"))])).unwrap();
        let plan = manifest.plan(&files(&[("a", 0)]), None).unwrap();
        let error = plan.parts[0].check().finish().unwrap_err();
        assert_eq!(error.fault(), Fault::Mismatch);
    }
}
