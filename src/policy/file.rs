//! Policy files: TOML of version 1.
//!
//! Everything that a file names (keys, roots, Rego) is read with it, relative to its folder, so that a
//! policy that is half there is none. What is not known is an error, and every error names the file and
//! the key or line.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::kit::name::KitPath;
use crate::ledger::chain;
use crate::policy::claim;
use crate::policy::claim::Claim;
use crate::policy::model::ModelBlock;
use crate::policy::opa;
use crate::policy::pattern::Pattern;
use crate::policy::rego::Rego;
use crate::policy::rule::AttestationBlock;
use crate::policy::rule::AuditDemand;
use crate::policy::rule::Demands;
use crate::policy::rule::Mode;
use crate::policy::rule::References;
use crate::policy::rule::Rule;
use crate::policy::rule::SignatureBlock;
use crate::policy::rule::Signers;
use crate::policy::signer::Matcher;
use crate::policy::signer::Wanted;
use crate::policy::text::duration;
use crate::trust::CertificateAuthority;
use crate::trust::PublicKey;
use crate::trust::TrustedRoot;

/// No policy, key, root or module is longer.
const LONGEST: u64 = 16 << 20;

/// What signers of models call the file with the signature (model-transparency).
const MODEL_SIGNATURE: &str = "model.sig";

/// The form of files that this version reads.
const VERSION: i64 = 1;

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What messages call it: its path.
    pub name: String,
    /// What holds where no rule matches.
    pub default: Otherwise,
    /// Its rules; no two of them match the same name and are equally specific.
    pub rules: Vec<Rule>,
}

/// What holds where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// The kit is let through.
    Allow,
    /// The kit is refused.
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: i64,
    default: Otherwise,
    #[serde(default)]
    rule: Vec<RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    r#match: String,
    #[serde(default)]
    mode: Mode,
    trusted_root: Option<PathBuf>,
    #[serde(default)]
    references: References,
    parents: Option<Vec<String>>,
    indexes: Option<Vec<SignerTable>>,
    #[serde(default)]
    audit: AuditDemand,
    #[serde(default)]
    signature: Vec<SignatureTable>,
    #[serde(default)]
    attestation: Vec<AttestationTable>,
    #[serde(default)]
    model_signature: Vec<ModelTable>,
    #[serde(default)]
    rego: Vec<RegoTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerTable {
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    identity: Option<String>,
    identity_regexp: Option<String>,
    issuer: Option<String>,
    issuer_regexp: Option<String>,
    #[serde(default)]
    extensions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureTable {
    #[serde(default)]
    any: Vec<SignerTable>,
    at_least: Option<usize>,
    #[serde(default)]
    all: Vec<SignerTable>,
    #[serde(default)]
    log: bool,
    #[serde(default)]
    timestamp: bool,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestationTable {
    predicate_type: String,
    #[serde(default)]
    any: Vec<SignerTable>,
    at_least: Option<usize>,
    #[serde(default)]
    all: Vec<SignerTable>,
    #[serde(default)]
    log: bool,
    #[serde(default)]
    timestamp: bool,
    max_age: Option<String>,
    #[serde(default)]
    r#where: Vec<claim::Table>,
    rego: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    #[serde(default)]
    any: Vec<SignerTable>,
    at_least: Option<usize>,
    #[serde(default)]
    all: Vec<SignerTable>,
    #[serde(default)]
    log: bool,
    #[serde(default)]
    timestamp: bool,
    file: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegoTable {
    file: Option<PathBuf>,
    data: Option<PathBuf>,
    bundle: Option<PathBuf>,
    bundle_key: Option<PathBuf>,
    #[serde(default)]
    keys: Vec<PathBuf>,
}

impl Policy {
    /// Reads a policy and what it names.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = text(path)?;
        let document: Document = toml::from_str(&text).map_err(|error| syntax(path, &text, &error))?;
        if document.version != VERSION {
            let why = format!("version {} is none that this program reads: it reads {VERSION}", document.version);
            return Err(PolicyError::Invalid { path: path.into(), key: "version".into(), why });
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let reader = Reader { path, folder, keys: Vec::new(), authorities: Vec::new() };
        let rules = document.rule.into_iter().zip(1..).map(|(table, number)| reader.clone().rule(table, number));
        let rules: Vec<_> = rules.collect::<Result<_, _>>()?;
        for (number, rule) in rules.iter().enumerate() {
            let same = |other: &&Rule| {
                rule.pattern.specificity() == other.pattern.specificity() && rule.pattern.overlaps(&other.pattern)
            };
            if let Some(other) = rules.iter().take(number).find(same) {
                let why = format!(
                    "{} and {} are equally specific, and there are names that match both",
                    other.pattern, rule.pattern
                );
                return Err(PolicyError::Invalid { path: path.into(), key: "match".into(), why });
            }
        }
        Ok(Self { name: path.display().to_string(), default: document.default, rules })
    }

    /// The rule for a kit of these names: the most specific one that matches any of them.
    pub fn rule_for(&self, names: &[String]) -> Option<&Rule> {
        let matching = self.rules.iter().filter(|rule| names.iter().any(|name| rule.pattern.matches(name)));
        matching.max_by_key(|rule| rule.pattern.specificity())
    }
}

/// What somebody signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Kits,
    Models,
}

/// Reads the tables of one rule. Keys and authorities that are named on the way are collected.
#[derive(Clone)]
struct Reader<'a> {
    path: &'a Path,
    folder: &'a Path,
    keys: Vec<PublicKey>,
    authorities: Vec<CertificateAuthority>,
}

impl Reader<'_> {
    fn invalid(&self, key: impl Into<String>, why: impl Into<String>) -> PolicyError {
        PolicyError::Invalid { path: self.path.into(), key: key.into(), why: why.into() }
    }

    fn rule(mut self, table: RuleTable, number: usize) -> Result<Rule, PolicyError> {
        let place = format!("rule {number} ({})", table.r#match);
        let pattern = |text: &String, key: &str| {
            Pattern::parse(text).map_err(|error| self.invalid(format!("{key} of {place}"), error.to_string()))
        };
        let parents = table.parents.map(|texts| texts.iter().map(|text| pattern(text, "parents")).collect());
        let (matched, parents) = (pattern(&table.r#match, "match")?, parents.transpose()?);
        let trusted_root = table.trusted_root.map(|path| {
            TrustedRoot::from_file(&self.folder.join(path))
                .map_err(|error| self.invalid(format!("trusted_root of {place}"), chain(&error)))
        });
        let trusted_root = trusted_root.transpose()?;
        let signatures = table.signature.into_iter().map(|table| self.signature(table, &place));
        let signatures = signatures.collect::<Result<_, _>>()?;
        let attestations = table.attestation.into_iter().map(|table| self.attestation(table, &place));
        let attestations = attestations.collect::<Result<_, _>>()?;
        let indexes = format!("indexes of {place}");
        let indexes = table.indexes.map(|tables| self.signers(tables, Of::Kits, &indexes)).transpose()?;
        let models = table.model_signature.into_iter().map(|table| self.model(table, &place));
        let models = models.collect::<Result<_, _>>()?;
        let rego = table.rego.into_iter().map(|table| self.rego(table, &place)).collect::<Result<_, _>>()?;
        Ok(Rule {
            pattern: matched,
            mode: table.mode,
            trusted_root,
            references: table.references,
            parents,
            indexes,
            audit: table.audit,
            signatures,
            attestations,
            models,
            rego,
            keys: self.keys,
            authorities: self.authorities,
        })
    }

    fn signature(&mut self, table: SignatureTable, place: &str) -> Result<SignatureBlock, PolicyError> {
        let place = format!("signature of {place}");
        Ok(SignatureBlock {
            signers: self.demanded(table.any, table.at_least, table.all, Of::Kits, &place)?,
            demands: Demands { log: table.log, timestamp: table.timestamp },
            annotations: table.annotations,
        })
    }

    fn attestation(&mut self, table: AttestationTable, place: &str) -> Result<AttestationBlock, PolicyError> {
        let place = format!("attestation {} of {place}", table.predicate_type);
        let max_age = table.max_age.map(|text| duration(&text)).transpose();
        let claims = table.r#where.into_iter().map(Claim::parse).collect::<Result<_, _>>();
        let rego = table.rego.map(|file| self.module(&file, "signature", &place)).transpose()?;
        Ok(AttestationBlock {
            signers: self.demanded(table.any, table.at_least, table.all, Of::Kits, &place)?,
            demands: Demands { log: table.log, timestamp: table.timestamp },
            max_age: max_age.map_err(|why| self.invalid(format!("max_age in {place}"), why))?,
            claims: claims.map_err(|why| self.invalid(&place, why))?,
            rego,
            predicate_type: table.predicate_type,
        })
    }

    fn model(&mut self, table: ModelTable, place: &str) -> Result<ModelBlock, PolicyError> {
        let place = format!("model_signature of {place}");
        let file = table.file.unwrap_or_else(|| MODEL_SIGNATURE.into());
        let is_path = KitPath::parse(file.as_bytes()).is_ok_and(|path| !path.is_root() && path.to_string() == file);
        if !is_path {
            return Err(self.invalid(place, format!("{file:?} is no file of a kit")));
        }
        Ok(ModelBlock {
            signers: self.demanded(table.any, table.at_least, table.all, Of::Models, &place)?,
            demands: Demands { log: table.log, timestamp: table.timestamp },
            file,
        })
    }

    fn demanded(
        &mut self,
        any: Vec<SignerTable>,
        at_least: Option<usize>,
        all: Vec<SignerTable>,
        of: Of,
        place: &str,
    ) -> Result<Signers, PolicyError> {
        let (any, all) = (self.signers(any, of, place)?, self.signers(all, of, place)?);
        let signers = Signers { any, at_least: at_least.unwrap_or(1), all };
        let why = if signers.any.is_empty() && signers.all.is_empty() {
            "it says neither any nor all: who?"
        } else if at_least.is_some() && signers.any.is_empty() {
            "at_least counts the signers of any, and there are none"
        } else if signers.at_least == 0 {
            "at_least is 0, which asks for nothing"
        } else if signers.at_least > 1
            && signers.at_least > signers.any.len()
            && !signers.any.iter().any(Wanted::is_open)
        {
            "at_least is more than there are signers"
        } else {
            return Ok(signers);
        };
        Err(self.invalid(place, why))
    }

    fn signers(&mut self, tables: Vec<SignerTable>, of: Of, place: &str) -> Result<Vec<Wanted>, PolicyError> {
        tables.into_iter().map(|table| self.signer(table, of, place)).collect()
    }

    fn signer(&mut self, table: SignerTable, of: Of, place: &str) -> Result<Wanted, PolicyError> {
        let SignerTable { key, ca, identity, identity_regexp, issuer, issuer_regexp, extensions } = table;
        let is_certificate = [&identity, &identity_regexp, &issuer, &issuer_regexp].into_iter().any(Option::is_some)
            || !extensions.is_empty();
        match (key, ca) {
            (Some(_), Some(_)) => Err(self.invalid(place, "a signer is a key or a ca, not both")),
            (Some(_), None) if is_certificate => {
                Err(self.invalid(place, "a signer is a key, or an identity with its issuer, not both"))
            }
            (None, Some(_)) if is_certificate => {
                Err(self.invalid(place, "a signer is a ca, or an identity with its issuer, not both"))
            }
            (None, Some(_)) if of == Of::Kits => {
                let why = "a ca says who signs models: without a log its certificates count for nothing else";
                Err(self.invalid(place, why))
            }
            (None, Some(file)) => {
                let name = file.display().to_string();
                let read = read_authorities(&self.folder.join(&file));
                let read = read.map_err(|error| error.in_policy(self.path, place))?;
                let fingerprints = read.iter().map(CertificateAuthority::fingerprint).collect();
                self.authorities.extend(read);
                Ok(Wanted::Authority { name, fingerprints })
            }
            (Some(file), None) => {
                let name = file.display().to_string();
                let key = read_key(&self.folder.join(&file)).map_err(|error| error.in_policy(self.path, place))?;
                let fingerprint = key.fingerprint();
                self.keys.push(key);
                Ok(Wanted::Key { name, fingerprint })
            }
            (None, None) => {
                let invalid = |why: String| self.invalid(place, why);
                let identity = Matcher::parse(identity, identity_regexp, "identity").map_err(invalid)?;
                let issuer = Matcher::parse(issuer, issuer_regexp, "issuer").map_err(invalid)?;
                let extensions = extensions.into_iter().map(|(name, value)| (name, Matcher::Exact(value))).collect();
                Ok(Wanted::Certificate { identity, issuer, extensions })
            }
        }
    }

    fn rego(&mut self, table: RegoTable, place: &str) -> Result<Rego, PolicyError> {
        let place = format!("rego of {place}");
        for file in &table.keys {
            let key = read_key(&self.folder.join(file)).map_err(|error| error.in_policy(self.path, &place))?;
            self.keys.push(key);
        }
        let said = (table.file, table.data, table.bundle, table.bundle_key);
        let (file, data) = match said {
            (Some(file), data, None, None) => (file, data),
            (None, None, Some(bundle), Some(key)) => {
                let bytes = self.read(&bundle, &place)?;
                let key = read_key(&self.folder.join(key)).map_err(|error| error.in_policy(self.path, &place))?;
                let name = bundle.display().to_string();
                let bundle = opa::Bundle::open(&bytes, &key)
                    .map_err(|error| self.invalid(&place, format!("{name}: {error}")))?;
                return Rego::compile(&name, &bundle.modules, &bundle.data, "kitfs")
                    .map_err(|error| self.invalid(&place, error.to_string()));
            }
            (None, None, Some(_), None) => {
                return Err(self.invalid(place, "a bundle needs bundle_key: who must have signed it"));
            }
            _ => return Err(self.invalid(place, "it is either file, with or without data, or bundle and bundle_key")),
        };
        let text = self.text(&file, &place)?;
        let data = data.map(|data| self.text(&data, &place)).transpose()?;
        let name = file.display().to_string();
        Rego::compile(&name, &[(name.clone(), text)], data.as_slice(), "kitfs")
            .map_err(|error| self.invalid(place, error.to_string()))
    }

    fn module(&self, file: &Path, package: &str, place: &str) -> Result<Rego, PolicyError> {
        let text = self.text(file, place)?;
        let name = file.display().to_string();
        Rego::compile(&name, &[(name.clone(), text)], &[], package)
            .map_err(|error| self.invalid(place, error.to_string()))
    }

    fn read(&self, file: &Path, place: &str) -> Result<Vec<u8>, PolicyError> {
        read(&self.folder.join(file)).map_err(|error| error.in_policy(self.path, place))
    }

    fn text(&self, file: &Path, place: &str) -> Result<String, PolicyError> {
        let bytes = self.read(file, place)?;
        String::from_utf8(bytes).map_err(|_| self.invalid(place, format!("{} is not UTF-8", file.display())))
    }
}

/// The public key in a PEM file.
pub fn read_key(path: &Path) -> Result<PublicKey, PolicyError> {
    let unreadable = |why: String| PolicyError::Unreadable { path: path.into(), why };
    PublicKey::from_pem(&read(path)?).map_err(|error| unreadable(chain(&error)))
}

/// The authorities in a PEM file.
pub fn read_authorities(path: &Path) -> Result<Vec<CertificateAuthority>, PolicyError> {
    let unreadable = |why: String| PolicyError::Unreadable { path: path.into(), why };
    CertificateAuthority::from_pem(&read(path)?).map_err(|error| unreadable(chain(&error)))
}

/// A file of text.
pub fn text(path: &Path) -> Result<String, PolicyError> {
    let not_text = |_| PolicyError::Unreadable { path: path.into(), why: "it is not UTF-8".into() };
    String::from_utf8(read(path)?).map_err(not_text)
}

/// What the parser says of a file.
pub fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> PolicyError {
    let line = error.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
    let key = text.lines().nth(line - 1).map_or("", |line| line.split('=').next().unwrap_or_default().trim());
    PolicyError::Syntax { path: path.into(), line, key: key.into(), why: error.message().replace('\n', ", ") }
}

fn read(path: &Path) -> Result<Vec<u8>, PolicyError> {
    use std::io::Read;
    let unreadable = |error: std::io::Error| PolicyError::Unreadable { path: path.into(), why: error.to_string() };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(PolicyError::Unreadable { path: path.into(), why: "it is not a file".into() });
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(PolicyError::Unreadable { path: path.into(), why: format!("it is longer than {LONGEST} bytes") });
    }
    Ok(bytes)
}

/// Why a policy is none. Nothing is mounted under it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A file is not there, or cannot be read as what it should be.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The file is no TOML, or has other keys than a policy.
    #[error("policy {}, line {line} ({key}): {why}", path.display())]
    Syntax {
        /// The policy.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands in the line before the `=`.
        key: String,
        /// What the parser says.
        why: String,
    },
    /// A key says something that cannot be.
    #[error("policy {}, {key}: {why}", path.display())]
    Invalid {
        /// The policy.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option says something that cannot be.
    #[error("{option}: {why}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl PolicyError {
    /// The error about a file that a policy names, with the policy.
    fn in_policy(self, path: &Path, key: &str) -> Self {
        match self {
            Self::Unreadable { .. } => Self::Invalid { path: path.into(), key: key.into(), why: self.to_string() },
            error => error,
        }
    }
}
