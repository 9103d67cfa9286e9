//! The JSON documents of `--output json`: the contract with scripts and pipelines.
//!
//! Members are never left out: what is not known is null or empty. Members may be added, none may
//! change its meaning.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::mounts::Status;
use crate::policy::Condition;
use crate::policy::Judgement;
use crate::policy::Shown;
use crate::policy::Verdict;
use crate::resolve::Resolved;

/// What `verify` and `pull` print.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// The reference as it was given.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: Option<Digest>,
    /// What said so.
    pub resolved: Option<Resolved>,
    /// Whether everything held.
    pub ok: bool,
    /// What did not.
    pub error: Option<String>,
    /// Whether the kit could be mounted.
    pub mountable: bool,
    /// The layers, in the order of the manifests, those of parents last.
    pub layers: Vec<Layer>,
    /// The kits that this one builds on, nearest first.
    pub parents: Vec<Parent>,
    /// Signatures on the manifest, those that do not hold too.
    pub signatures: Vec<Shown>,
    /// Attestations about the manifest, those that do not hold too.
    pub attestations: Vec<Shown>,
    /// What the policies say.
    pub policy: Policy,
    /// The model signature that was asked for, if it holds.
    pub model_signature: Option<Model>,
    /// The manifest by which `--attach-index` published the index.
    pub attached_index: Option<Digest>,
}

impl Verification {
    /// The document about a kit of which nothing is known yet.
    pub fn of(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            digest: None,
            resolved: None,
            ok: false,
            error: None,
            mountable: false,
            layers: Vec::new(),
            parents: Vec::new(),
            signatures: Vec::new(),
            attestations: Vec::new(),
            policy: Policy { decision: Verdict::None, reasons: Vec::new() },
            model_signature: None,
            attached_index: None,
        }
    }
}

/// A model signature that holds for the files of a kit.
#[derive(Debug, Serialize)]
pub struct Model {
    /// Who signed.
    pub signer: String,
    /// The directory of the kit that was signed.
    pub directory: String,
    /// Files of the kit that lie outside of it.
    pub files_outside: usize,
}

/// One layer of a kit or of its parents.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, as the manifest has them.
    pub size: u64,
    /// The manifest that names it.
    pub kit: Digest,
    /// What became of it.
    pub status: LayerStatus,
    /// What did not hold.
    pub error: Option<String>,
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerStatus {
    /// All bytes were seen and the digest is right.
    Verified,
    /// The bytes have another digest.
    Mismatch,
    /// The source does not have it.
    Missing,
    /// The source did not give it, or it could not be read to its end.
    Unreadable,
    /// It was not looked at.
    Unchecked,
}

impl LayerStatus {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
            Self::Unchecked => "unchecked",
        }
    }
}

/// A kit that another one builds on.
#[derive(Debug, Serialize)]
pub struct Parent {
    /// The reference, as its child has it.
    pub reference: String,
    /// The digest it was resolved to.
    pub digest: Digest,
}

/// What the policies say.
#[derive(Debug, Serialize)]
pub struct Policy {
    /// Their word.
    pub decision: Verdict,
    /// Why.
    pub reasons: Vec<String>,
}

impl Policy {
    /// Adds what a rule says of the files to what was said of the manifests.
    pub fn join(&mut self, judgement: &Judgement) {
        if judgement.verdict > self.decision {
            self.decision = judgement.verdict;
            // What satisfied others is no reason for a warning.
            if judgement.verdict > Verdict::Allow {
                self.reasons.clear();
            }
        }
        if judgement.verdict == self.decision {
            self.reasons.push(judgement.reason());
        }
    }
}

/// What `policy check` prints.
#[derive(Debug, Serialize)]
pub struct PolicyCheck {
    /// Whether it is a policy.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// How many rules it has.
    pub rules: usize,
}

/// What `policy explain` prints.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The word of the policies.
    pub decision: Verdict,
    /// The rules that apply, one of each policy.
    pub rule: Option<String>,
    /// Their conditions.
    pub conditions: Vec<Condition>,
}

/// What `policy test` prints.
#[derive(Debug, Serialize)]
pub struct PolicyTest {
    /// Whether every case is as expected.
    pub ok: bool,
    /// The cases.
    pub cases: Vec<TestedCase>,
}

/// A case of a policy's test.
#[derive(Debug, Serialize)]
pub struct TestedCase {
    /// What it is called.
    pub name: String,
    /// Whether it is as expected.
    pub ok: bool,
    /// How it is not.
    pub error: Option<String>,
    /// The word of the policy.
    pub decision: Verdict,
    /// Why.
    pub reasons: Vec<String>,
}

/// What `ls` prints.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// The entries, in the order of the tree.
    pub entries: Vec<Entry>,
}

/// One file or directory.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its path in the kit.
    #[serde(flatten)]
    pub path: PathText,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Bytes in it.
    pub size: u64,
    /// Permission bits in octal: `0644`.
    pub mode: String,
    /// The layer that has it; for the Kitfile the config; none for a directory, which layers share.
    pub layer: Option<Digest>,
    /// What is known of its content, as its extended attribute says it.
    pub state: &'static str,
}

/// A path that JSON can hold, or its bytes in base64.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub enum PathText {
    /// UTF-8.
    #[serde(rename = "path")]
    Text(String),
    /// Anything else.
    #[serde(rename = "path_b64")]
    Bytes(String),
}

impl PathText {
    /// The form that these bytes need.
    pub fn new(path: &[u8]) -> Self {
        match str::from_utf8(path) {
            Ok(text) => Self::Text(text.into()),
            Err(_) => Self::Bytes(STANDARD.encode(path)),
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
}

/// What `inspect` prints.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The reference as it was given.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: Digest,
    /// The manifest as it is.
    pub manifest: Option<Box<RawValue>>,
    /// The Kitfile, as JSON.
    pub kitfile: Option<Box<RawValue>>,
    /// The layers of the kit and of its parents.
    pub layers: Vec<InspectedLayer>,
    /// The index that counts for the kit, else the first that was found and does not; null without one.
    pub index: Option<InspectedIndex>,
    /// Signatures on the manifest, those that do not hold too.
    pub signatures: Vec<Shown>,
    /// Attestations about the manifest, those that do not hold too.
    pub attestations: Vec<Shown>,
}

/// An index of a kit.
#[derive(Debug, Serialize)]
pub struct InspectedIndex {
    /// Its digest; null if what should carry it is malformed.
    pub digest: Option<Digest>,
    /// Whether it is used.
    pub admitted: bool,
    /// What makes it count: `manifest`, which names it, or `signature`; null if nothing does.
    pub by: Option<&'static str>,
    /// Who signed it, of those whom the policies let.
    pub signers: Vec<String>,
    /// Why it is not used.
    pub error: Option<String>,
}

/// What `index` prints.
#[derive(Debug, Serialize)]
pub struct Indexed {
    /// The reference as it was given.
    pub reference: String,
    /// The digest of the kit.
    pub digest: Digest,
    /// The index.
    pub index: NamedIndex,
    /// Layers in it.
    pub layers: usize,
    /// Files in it.
    pub files: usize,
    /// Where it was written.
    pub file: Option<PathBuf>,
    /// The manifest that carries it as a referrer of the kit.
    pub attached: Option<Digest>,
    /// The manifest that names it.
    pub embedded: Option<Tagged>,
    /// Who signed what was pushed or written.
    pub signed_by: Option<String>,
}

/// An index as others name it.
#[derive(Debug, Serialize)]
pub struct NamedIndex {
    /// Its digest.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
}

/// A manifest under a tag.
#[derive(Debug, Serialize)]
pub struct Tagged {
    /// The tag.
    pub tag: String,
    /// The manifest.
    pub digest: Digest,
}

/// One layer of a kit or of its parents, as its manifest has it.
#[derive(Debug, Serialize)]
pub struct InspectedLayer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
    /// The manifest that names it.
    pub kit: Digest,
}

/// What `mount` prints.
#[derive(Debug, Serialize)]
pub struct Mounted {
    /// Where it is mounted.
    pub directory: String,
    /// The reference as it was given.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: Digest,
    /// What said so.
    pub resolved: Resolved,
}

/// What `umount` prints.
#[derive(Debug, Serialize)]
pub struct Unmounted {
    /// Where it was mounted.
    pub directory: String,
    /// The processes that use it still.
    pub used_by: Vec<u32>,
}

/// What `upgrade` prints.
#[derive(Debug, Serialize)]
pub struct UpgradeList {
    /// The mounts, by directory.
    pub mounts: Vec<Upgrade>,
}

/// One mount, as `upgrade` leaves it.
#[derive(Debug, Serialize)]
pub struct Upgrade {
    /// Where it is mounted.
    pub directory: String,
    /// Why it is served by the program that it was.
    pub error: Option<String>,
}

/// What `status` prints.
#[derive(Debug, Serialize)]
pub struct MountList {
    /// The mounts, by directory.
    pub mounts: Vec<Status>,
}

/// What `export` prints.
#[derive(Debug, Serialize)]
pub struct Export {
    /// The reference as it was given.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: Option<Digest>,
    /// Where the files are.
    pub directory: String,
    /// How many files were written.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// What `cache info` prints.
#[derive(Debug, Serialize)]
pub struct CacheInfo {
    /// Bytes that the store takes.
    pub bytes: u64,
    /// File contents in it.
    pub objects: u64,
    /// File contents in progress.
    pub partial: u64,
    /// Bytes that it may take.
    pub limit: u64,
    /// Bytes that mounts use now and eviction leaves alone.
    pub pinned: u64,
    /// Whether its file system can seal files with fs-verity.
    pub fs_verity: bool,
}

/// What `cache list` prints.
#[derive(Debug, Serialize)]
pub struct CacheList {
    /// The layers in the store, the one used last first.
    pub layers: Vec<CachedLayer>,
}

/// A layer in the store.
#[derive(Debug, Serialize)]
pub struct CachedLayer {
    /// Its digest.
    pub digest: Digest,
    /// Bytes of its files that are here.
    pub bytes: u64,
    /// Files in it.
    pub files: u64,
    /// When it was used last: RFC 3339.
    pub used_at: String,
    /// Whether a mount uses it now.
    pub pinned: bool,
}

/// What `cache verify` prints.
#[derive(Debug, Serialize)]
pub struct CacheVerification {
    /// Whether everything held.
    pub ok: bool,
    /// How many things were checked.
    pub checked: u64,
    /// What did not hold; it is removed.
    pub bad: Vec<BadObject>,
}

/// Something in the store that was not what its name says.
#[derive(Debug, Serialize)]
pub struct BadObject {
    /// The digest that names it.
    pub digest: String,
    /// What is wrong.
    pub error: String,
}

/// What `cache prune` prints.
#[derive(Debug, Serialize)]
pub struct CachePruning {
    /// Bytes that were freed.
    pub freed: u64,
    /// Bytes that the store still takes.
    pub bytes: u64,
}

/// What `audit verify` prints.
#[derive(Debug, Serialize)]
pub struct AuditVerification {
    /// Whether the log is whole.
    pub ok: bool,
    /// How many lines hold.
    pub lines: u64,
    /// The hash of the last of them.
    pub head: Option<Digest>,
    /// What does not hold.
    pub error: Option<String>,
    /// The log.
    pub file: String,
    /// What should be known although everything holds.
    pub notes: Vec<String>,
    /// The head, signed, if that was asked for.
    pub signed_head: Option<SignedHead>,
}

/// The end of an audit log, signed, to be kept where nobody who can write the log can write too.
#[derive(Debug, Serialize)]
pub struct SignedHead {
    /// The text that was signed, byte for byte.
    pub payload: String,
    /// The signature in base64.
    pub signature: String,
    /// The public key in PEM, to find out which one it is; nobody should trust it for standing here.
    pub public_key: String,
}

/// What `doctor` prints.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// Whether a kit can be mounted.
    pub ok: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to change; none where nothing needs to or can be.
    pub fix: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of(b"")
    }

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_verification_has_every_member_of_the_contract() {
        let mut document = Verification::of("kit:a");
        document.error = Some("x".into());
        let layer = Layer {
            digest: digest(),
            media_type: "m".into(),
            size: 3,
            kit: digest(),
            status: LayerStatus::Unchecked,
            error: None,
        };
        document.layers.push(layer);
        document.parents.push(Parent { reference: "p".into(), digest: digest() });
        assert_eq!(
            serde_json::to_value(&document).unwrap(),
            serde_json::json!({
                "reference": "kit:a", "digest": null, "resolved": null, "ok": false, "error": "x",
                "mountable": false,
                "layers": [{"digest": EMPTY, "media_type": "m", "size": 3, "kit": EMPTY,
                            "status": "unchecked", "error": null}],
                "parents": [{"reference": "p", "digest": EMPTY}],
                "signatures": [], "attestations": [],
                "policy": {"decision": "none", "reasons": []}, "model_signature": null, "attached_index": null,
            })
        );
    }

    #[test]
    fn an_entry_has_path_or_path_b64() {
        for (path, member) in [(&b"a/b"[..], ("path", "a/b")), (b"\xff", ("path_b64", "/w=="))] {
            let entry = Entry {
                path: PathText::new(path),
                kind: EntryKind::File,
                size: 1,
                mode: "0644".into(),
                layer: Some(digest()),
                state: "absent",
            };
            let value = serde_json::to_value(&entry).unwrap();
            assert_eq!(value[member.0], member.1);
            assert_eq!(value["type"], "file");
            assert_eq!(value["state"], "absent");
            assert_eq!(value.as_object().unwrap().len(), 6);
        }
    }
}
