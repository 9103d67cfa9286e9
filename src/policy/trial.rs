//! Tests of a policy: cases in a TOML file, so that a pipeline can try a policy before a host has it.
//!
//! A case names a kit and says what the policy should decide. What is known of the kit stands in the case
//! itself, and is believed there, or lies in a layout, and is checked as it would be at a mount.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::digest::Digest;
use crate::policy::Decision;
use crate::policy::Policies;
use crate::policy::PolicyError;
use crate::policy::Verdict;
use crate::policy::evidence::Attestation;
use crate::policy::evidence::Evidence;
use crate::policy::evidence::LogEntry;
use crate::policy::evidence::Seal;
use crate::policy::file;
use crate::policy::request;
use crate::policy::request::Named;
use crate::policy::request::Request;
use crate::policy::signer::Signer;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::trust::Limits;
use crate::trust::Material;

/// A file of cases, read.
#[derive(Debug)]
pub struct Trial {
    /// The policy that is tested.
    pub policies: Policies,
    /// The cases, in the order of the file.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// What the policy should say.
    pub expect: Expectation,
    /// Text that one of the reasons must hold.
    pub because: Option<String>,
    /// The layout with the kit, if it is not made up. An absolute path, and the version behind it.
    pub layout: Option<Reference>,
    /// The reference as it would be typed.
    pub reference: Reference,
    inline: Inline,
}

/// A kit in a layout.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its digest.
    pub digest: Digest,
    /// Its manifest, as JSON.
    pub manifest: &'a [u8],
    /// Its Kitfile, as JSON.
    pub kitfile: Option<&'a [u8]>,
    /// The kit that it builds on.
    pub parent: Option<&'a RegistryReference>,
    /// What lies beside it.
    pub material: &'a Material,
}

/// What a policy should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expectation {
    /// Let it through.
    Allow,
    /// Let it through with a warning.
    Warn,
    /// Refuse it.
    Deny,
}

impl From<Expectation> for Verdict {
    fn from(expectation: Expectation) -> Self {
        match expectation {
            Expectation::Allow => Self::Allow,
            Expectation::Warn => Self::Warn,
            Expectation::Deny => Self::Deny,
        }
    }
}

/// What a case says of its kit.
#[derive(Debug)]
struct Inline {
    now: Option<Timestamp>,
    manifest: Vec<u8>,
    kitfile: Option<Vec<u8>>,
    parent: Option<Vec<String>>,
    evidence: Evidence,
    /// Signatures over the files of the model.
    models: Vec<Seal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: i64,
    policy: PathBuf,
    #[serde(default)]
    case: Vec<CaseTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseTable {
    name: Option<String>,
    reference: String,
    expect: Expectation,
    because: Option<String>,
    layout: Option<String>,
    now: Option<String>,
    manifest: Option<serde_json::Value>,
    kitfile: Option<serde_json::Value>,
    parent: Option<String>,
    #[serde(default)]
    signature: Vec<SealTable>,
    #[serde(default)]
    attestation: Vec<AttestationTable>,
    #[serde(default)]
    model_signature: Vec<SealTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealTable {
    key: Option<PathBuf>,
    identity: Option<String>,
    issuer: Option<String>,
    #[serde(default)]
    extensions: BTreeMap<String, String>,
    logged_at: Option<String>,
    stamped_at: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestationTable {
    predicate_type: String,
    #[serde(default)]
    predicate: serde_json::Value,
    by: SealTable,
}

impl Trial {
    /// Reads a file of cases, and the policy that it names.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = file::text(path)?;
        let document: Document = toml::from_str(&text).map_err(|error| file::syntax(path, &text, &error))?;
        let invalid = |key: &str, why: String| PolicyError::Invalid { path: path.into(), key: key.into(), why };
        if document.version != 1 {
            return Err(invalid(
                "version",
                format!("version {} is none that this program reads: it reads 1", document.version),
            ));
        }
        if document.case.is_empty() {
            return Err(invalid("case", "there is no case".into()));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let policies = Policies::of_file(&folder.join(document.policy))?;
        let cases = document.case.into_iter().zip(1..).map(|(table, number)| {
            let name = table.name.clone().unwrap_or_else(|| format!("case {number}"));
            Case::new(table, name.clone(), folder).map_err(|why| invalid(&name, why))
        });
        Ok(Self { policies, cases: cases.collect::<Result<_, _>>()? })
    }
}

impl Case {
    fn new(table: CaseTable, name: String, folder: &Path) -> Result<Self, String> {
        let reference: Reference = table.reference.parse().map_err(|error| format!("{error}"))?;
        let layout = table.layout.map(|text| {
            let path = std::path::absolute(folder.join(text)).map_err(|error| error.to_string())?;
            format!("oci:{}", path.display()).parse::<Reference>().map_err(|error| format!("{error}"))
        });
        let is_inline =
            !(table.signature.is_empty() && table.attestation.is_empty() && table.model_signature.is_empty())
                || table.manifest.is_some()
                || table.kitfile.is_some();
        if layout.is_some() && is_inline {
            return Err("a case has a layout, or says itself what is known of the kit, not both".into());
        }
        let parent = table.parent.map(|parent| {
            let parent = Reference::parse_parent(&parent).map_err(|error| format!("{error}"))?;
            Ok::<_, String>(request::names_of_parent(&parent))
        });
        let signatures = table.signature.into_iter().map(|table| table.seal(folder)).collect::<Result<_, _>>()?;
        let attestations = table.attestation.into_iter().map(|table| {
            Ok::<_, String>(Attestation {
                statement: json!({
                    "_type": "https://in-toto.io/Statement/v1",
                    "predicateType": table.predicate_type,
                    "predicate": table.predicate,
                }),
                predicate_type: table.predicate_type,
                seal: table.by.seal(folder)?,
            })
        });
        let attestations = attestations.collect::<Result<_, _>>()?;
        let models = table.model_signature.into_iter().map(|table| match table.annotations.is_empty() {
            true => table.seal(folder),
            false => Err("a signature over the model has no annotations".into()),
        });
        let models = models.collect::<Result<_, _>>()?;
        let inline = Inline {
            now: table.now.map(|text| time(&text)).transpose()?,
            manifest: table.manifest.unwrap_or_else(|| json!({})).to_string().into_bytes(),
            kitfile: table.kitfile.map(|kitfile| kitfile.to_string().into_bytes()),
            parent: parent.transpose()?,
            evidence: Evidence { signatures, attestations, rejected: Vec::new() },
            models,
        };
        let layout = layout.transpose()?;
        Ok(Self { name, expect: table.expect, because: table.because, layout, reference, inline })
    }

    /// What policies say of the kit as the case describes it.
    pub fn decide(&self, policies: &Policies) -> Decision {
        let version: &Version = self.reference.version();
        let reference = self.reference.to_string();
        let request = Request {
            reference: &reference,
            names: request::names(&self.reference),
            tag: version.tag.as_deref(),
            named: Named::by(version),
            digest: version.digest.unwrap_or_else(|| Digest::of(&self.inline.manifest)),
            manifest: &self.inline.manifest,
            kitfile: self.inline.kitfile.as_deref(),
            parent: self.inline.parent.clone(),
            child: None,
        };
        let now = self.inline.now.unwrap_or_else(Timestamp::now);
        let decision = policies.decide_at(&request, now, &Limits::default(), |_, _| self.inline.evidence.clone());
        let judgements: Vec<_> = decision.models().iter().map(|demand| demand.believe(&self.inline.models)).collect();
        decision.judged(&judgements)
    }

    /// What policies say of a kit in a layout, as if it had been named as the case names it. What they demand of its
    /// model is left to whoever has the files.
    pub fn decide_about(&self, policies: &Policies, kit: &Found<'_>, limits: &Limits) -> Decision {
        let version: &Version = self.reference.version();
        let reference = self.reference.to_string();
        let request = Request {
            reference: &reference,
            names: request::names(&self.reference),
            tag: version.tag.as_deref(),
            named: Named::by(version),
            digest: kit.digest,
            manifest: kit.manifest,
            kitfile: kit.kitfile,
            parent: kit.parent.map(request::names_of_parent),
            child: None,
        };
        policies.decide_now(&request, kit.material, limits, self.inline.now)
    }

    /// Whether a decision is what the case expects; if not, why.
    pub fn check(&self, decision: &Decision) -> Result<(), String> {
        let expected = Verdict::from(self.expect);
        if decision.verdict() != expected {
            return Err(format!("expected {}, got {}", expected.name(), decision.verdict().name()));
        }
        match &self.because {
            Some(because) if !decision.reasons().iter().any(|reason| reason.contains(because.as_str())) => {
                Err(format!("no reason says {because:?}"))
            }
            _ => Ok(()),
        }
    }
}

impl SealTable {
    fn seal(self, folder: &Path) -> Result<Seal, String> {
        let signer = match (self.key, self.identity, self.issuer) {
            (Some(key), None, None) if self.extensions.is_empty() => {
                let key = file::read_key(&folder.join(key)).map_err(|error| error.to_string())?;
                Signer::Key { fingerprint: key.fingerprint() }
            }
            (None, Some(identity), Some(issuer)) => {
                Signer::Certificate { identity, issuer, extensions: self.extensions }
            }
            _ => return Err("a signature is by a key, or by an identity with its issuer".into()),
        };
        let logged_at = self.logged_at.map(|text| time(&text)).transpose()?;
        Ok(Seal {
            signer,
            log: logged_at.map(|at| LogEntry { at: Some(at) }),
            stamped_at: self.stamped_at.map(|text| time(&text)).transpose()?,
            annotations: self.annotations,
            found: String::new(),
        })
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time: write 2026-01-31T00:00:00Z"))
}
