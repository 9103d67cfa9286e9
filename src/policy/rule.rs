//! One rule of a policy, and what it says of a kit: condition by condition, with the reason.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::policy::claim::Claim;
use crate::policy::claim::is_newer;
use crate::policy::evidence::Attestation;
use crate::policy::evidence::Evidence;
use crate::policy::evidence::Kind;
use crate::policy::evidence::Seal;
use crate::policy::input;
use crate::policy::model::ModelBlock;
use crate::policy::pattern::Pattern;
use crate::policy::rego::Rego;
use crate::policy::request::Named;
use crate::policy::request::Request;
use crate::policy::signer::Signer;
use crate::policy::signer::Wanted;
use crate::trust::CertificateAuthority;
use crate::trust::PublicKey;
use crate::trust::TrustedRoot;

/// What holds for the kits that a pattern names.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which kits.
    pub pattern: Pattern,
    /// What happens to a kit that does not satisfy it.
    pub mode: Mode,
    /// The Sigstore that certificates and log entries are checked against; `None` is the default one.
    pub trusted_root: Option<TrustedRoot>,
    /// The keys that its blocks name.
    pub keys: Vec<PublicKey>,
    /// The authorities that its blocks name.
    pub authorities: Vec<CertificateAuthority>,
    /// How a kit must be named.
    pub references: References,
    /// The kits that it may build on; `None` is any.
    pub parents: Option<Vec<Pattern>>,
    /// Who may sign an index of the kit that its manifest does not name; `None` are those who must sign the kit.
    pub indexes: Option<Vec<Wanted>>,
    /// What happens where the audit log cannot be written.
    pub audit: AuditDemand,
    /// Who must have signed; each block must hold.
    pub signatures: Vec<SignatureBlock>,
    /// What must be attested; each block must hold.
    pub attestations: Vec<AttestationBlock>,
    /// Who must have signed the files of the model; each must hold.
    pub models: Vec<ModelBlock>,
    /// Rego; each must allow.
    pub rego: Vec<Rego>,
}

/// What happens to a kit that does not satisfy a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let through, with a warning.
    Warn,
}

/// How a kit must be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum References {
    /// By tag or digest.
    #[default]
    Tag,
    /// By digest.
    Digest,
}

/// What happens where the audit log cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum AuditDemand {
    /// A message says so.
    #[default]
    #[serde(rename = "best-effort")]
    BestEffort,
    /// Nothing is mounted.
    #[serde(rename = "required")]
    Required,
}

/// Who must have signed.
#[derive(Clone, Debug)]
pub struct SignatureBlock {
    /// Whose signatures count.
    pub signers: Signers,
    /// What a signature needs to count.
    pub demands: Demands,
    /// What a signature must say beside the digest.
    pub annotations: BTreeMap<String, String>,
}

/// Who, and how many of them.
#[derive(Clone, Debug, Default)]
pub struct Signers {
    /// Any of these.
    pub any: Vec<Wanted>,
    /// As many different ones.
    pub at_least: usize,
    /// And each of these.
    pub all: Vec<Wanted>,
}

/// What a signature needs beside a signer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demands {
    /// An entry in a transparency log.
    pub log: bool,
    /// An RFC 3161 timestamp.
    pub timestamp: bool,
}

/// What must be attested.
#[derive(Clone, Debug)]
pub struct AttestationBlock {
    /// The kind of statement.
    pub predicate_type: String,
    /// Whose attestations count.
    pub signers: Signers,
    /// What an attestation needs to count.
    pub demands: Demands,
    /// How old it may be.
    pub max_age: Option<SignedDuration>,
    /// What it must say.
    pub claims: Vec<Claim>,
    /// What it must say, in Rego: `data.signature.allow`, with the statement as input.
    pub rego: Option<Rego>,
}

/// One condition of a rule, and whether a kit satisfies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What is asked for.
    pub what: String,
    /// Whether it is so.
    pub ok: bool,
    /// What satisfied it, or what was found in its place.
    pub why: String,
}

impl Condition {
    pub(in crate::policy) fn met(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), ok: true, why: why.into() }
    }

    pub(in crate::policy) fn missed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), ok: false, why: why.into() }
    }
}

impl Rule {
    /// A rule for everything, that asks for nothing.
    pub fn for_everything() -> Self {
        Self {
            pattern: Pattern::everything(),
            mode: Mode::Enforce,
            trusted_root: None,
            keys: Vec::new(),
            authorities: Vec::new(),
            references: References::Tag,
            parents: None,
            indexes: None,
            audit: AuditDemand::BestEffort,
            signatures: Vec::new(),
            attestations: Vec::new(),
            models: Vec::new(),
            rego: Vec::new(),
        }
    }

    /// Whether it can be decided only with signatures or attestations at hand.
    pub fn needs_evidence(&self) -> bool {
        !(self.signatures.is_empty() && self.attestations.is_empty() && self.rego.is_empty())
    }

    /// What it says of a kit, and whose signatures satisfied it.
    pub fn evaluate(
        &self,
        request: &Request<'_>,
        evidence: &Evidence,
        now: Timestamp,
    ) -> (Vec<Condition>, Vec<Signer>) {
        let mut conditions = Vec::new();
        let mut signers = BTreeSet::new();
        conditions.extend(self.check_name(request));
        conditions.extend(self.check_parent(request));
        for block in &self.signatures {
            conditions.push(block.check(evidence, &mut signers));
        }
        if self.signatures.is_empty() {
            signers.extend(evidence.signatures.iter().map(|seal| seal.signer.clone()));
        }
        conditions.extend(self.attestations.iter().map(|block| block.check(evidence, now)));
        if !self.rego.is_empty() {
            let input = input::document(request, evidence, now);
            conditions.extend(self.rego.iter().map(|rego| check_rego(rego, &input)));
        }
        (conditions, signers.into_iter().collect())
    }

    /// Whether there is anybody whose signature of an index would count.
    pub fn admits_indexes(&self) -> bool {
        match &self.indexes {
            Some(wanted) => !wanted.is_empty(),
            None => !self.signatures.is_empty(),
        }
    }

    /// What it says of an index, and whose signatures satisfied it.
    pub fn check_index(&self, evidence: &Evidence, signers: &mut BTreeSet<Signer>) -> Vec<Condition> {
        let Some(any) = &self.indexes else {
            if self.signatures.is_empty() {
                return vec![Condition::missed("somebody may sign an index", "the rule says nothing of signatures")];
            }
            return self.signatures.iter().map(|block| block.check(evidence, signers)).collect();
        };
        if any.is_empty() {
            return vec![Condition::missed("somebody may sign an index", "indexes is empty")];
        }
        let block = SignatureBlock {
            signers: Signers { any: any.clone(), at_least: 1, all: Vec::new() },
            demands: Demands::default(),
            annotations: BTreeMap::new(),
        };
        vec![block.check(evidence, signers)]
    }

    fn check_name(&self, request: &Request<'_>) -> Option<Condition> {
        let what = "the reference is a digest";
        match (self.references, request.named) {
            (References::Tag, _) => None,
            (References::Digest, Named::Digest) => Some(Condition::met(what, request.reference)),
            (References::Digest, Named::Tag) => Some(Condition::missed(
                what,
                format!("{} is a tag; its digest is {}", request.reference, request.digest),
            )),
        }
    }

    fn check_parent(&self, request: &Request<'_>) -> Option<Condition> {
        let (patterns, parent) = (self.parents.as_ref()?, request.parent.as_ref()?);
        let list = patterns.iter().map(Pattern::to_string).collect::<Vec<_>>().join(", ");
        let what = match patterns.is_empty() {
            true => "the kit builds on no other".to_owned(),
            false => format!("the kit builds on one of {list}"),
        };
        let shown = parent.first().map_or("", String::as_str);
        let fits = parent.iter().any(|name| patterns.iter().any(|pattern| pattern.matches(name)));
        Some(if fits {
            Condition::met(what, format!("it builds on {shown}"))
        } else {
            Condition::missed(what, format!("it builds on {shown}"))
        })
    }
}

fn check_rego(rego: &Rego, input: &str) -> Condition {
    let what = format!("{} allows it", rego.name());
    match rego.answer(input) {
        Ok(answer) if answer.allowed => Condition::met(what, "data.kitfs.allow"),
        Ok(answer) if answer.messages.is_empty() => Condition::missed(what, "data.kitfs.allow is not true"),
        Ok(answer) => Condition::missed(what, answer.messages.join("; ")),
        Err(error) => Condition::missed(what, error.to_string()),
    }
}

impl Signers {
    /// What is asked for, for people.
    pub fn describe(&self) -> String {
        let list = |wanted: &[Wanted]| wanted.iter().map(Wanted::to_string).collect::<Vec<_>>().join(", ");
        let any = match (self.any.as_slice(), self.at_least) {
            ([], _) => String::new(),
            ([one], 1) => format!("by {one}"),
            (any, at_least) => format!("by at least {at_least} of {}", list(any)),
        };
        match (any.is_empty(), self.all.is_empty()) {
            (_, true) => any,
            (true, false) => format!("by all of {}", list(&self.all)),
            (false, false) => format!("{any}, and by all of {}", list(&self.all)),
        }
    }

    /// Whether anybody that is wanted made it.
    pub fn accepts(&self, signer: &Signer) -> bool {
        self.any.iter().chain(&self.all).any(|wanted| wanted.accepts(signer))
    }

    /// Whether those who signed are enough; if so, those of them who are wanted.
    pub fn satisfied_by(&self, signed: &BTreeSet<&Signer>) -> Result<Vec<Signer>, String> {
        let missing = self.all.iter().find(|wanted| !signed.iter().any(|signer| wanted.accepts(signer)));
        if let Some(missing) = missing {
            return Err(format!("not by {missing}"));
        }
        let counted = signed.iter().filter(|signer| self.any.iter().any(|wanted| wanted.accepts(signer)));
        let different: BTreeSet<_> = counted.map(|signer| signer.who()).collect();
        if !self.any.is_empty() && different.len() < self.at_least {
            return Err(match different.len() {
                0 => "by none of them".into(),
                count => format!("by {count} of them, not by {}", self.at_least),
            });
        }
        Ok(signed.iter().filter(|signer| self.accepts(signer)).map(|&signer| signer.clone()).collect())
    }
}

impl Demands {
    /// What is asked for, for people.
    pub fn describe(self) -> String {
        let mut text = String::new();
        if self.log {
            text.push_str(", in a transparency log");
        }
        if self.timestamp {
            text.push_str(", with a timestamp");
        }
        text
    }

    /// Whether a signature has what is asked for; if not, what it lacks.
    pub fn check(self, seal: &Seal) -> Result<(), String> {
        if self.log && seal.log.is_none() {
            return Err("it has no log entry that holds".into());
        }
        if self.timestamp && seal.stamped_at.is_none() {
            return Err("it has no timestamp that holds".into());
        }
        Ok(())
    }
}

impl SignatureBlock {
    fn check(&self, evidence: &Evidence, signers: &mut BTreeSet<Signer>) -> Condition {
        let words: Vec<_> = self.annotations.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let with = if words.is_empty() { String::new() } else { format!(", saying {}", words.join(", ")) };
        let what = format!("signed {}{}{with}", self.signers.describe(), self.demands.describe());
        let mut signed = BTreeSet::new();
        let mut misses = Vec::new();
        for seal in &evidence.signatures {
            match self.check_one(seal) {
                Ok(()) => {
                    signed.insert(&seal.signer);
                }
                Err(why) => misses.push(format!("{}: {why}", seal.signer)),
            }
        }
        match self.signers.satisfied_by(&signed) {
            Ok(satisfied) => {
                let why = satisfied.iter().map(Signer::to_string).collect::<Vec<_>>().join(", ");
                signers.extend(satisfied);
                Condition::met(what, format!("signed by {why}"))
            }
            Err(why) => {
                Condition::missed(what, because(evidence, Kind::Signature, "signed", &why, signed.len(), misses))
            }
        }
    }

    fn check_one(&self, seal: &Seal) -> Result<(), String> {
        if !self.signers.accepts(&seal.signer) {
            return Err("this signer is not asked for".into());
        }
        self.demands.check(seal)?;
        self.annotations.iter().try_for_each(|(name, wanted)| match seal.annotations.get(name) {
            Some(said) if said == wanted => Ok(()),
            Some(said) => Err(format!("it says {name}={said}")),
            None => Err(format!("it does not say {name}")),
        })
    }
}

impl AttestationBlock {
    fn check(&self, evidence: &Evidence, now: Timestamp) -> Condition {
        let mut what =
            format!("attested {} {}{}", self.predicate_type, self.signers.describe(), self.demands.describe());
        if let Some(age) = self.max_age {
            what.push_str(&format!(", at most {age:#} old"));
        }
        for claim in &self.claims {
            what.push_str(&format!(", where {claim}"));
        }
        if let Some(rego) = &self.rego {
            what.push_str(&format!(", and {} allows it", rego.name()));
        }
        let mut signed = BTreeSet::new();
        let mut misses = Vec::new();
        for attestation in &evidence.attestations {
            if attestation.predicate_type != self.predicate_type {
                continue;
            }
            match self.check_one(attestation, now) {
                Ok(()) => {
                    signed.insert(&attestation.seal.signer);
                }
                Err(why) => misses.push(format!("{}: {why}", attestation.seal.signer)),
            }
        }
        match self.signers.satisfied_by(&signed) {
            Ok(satisfied) => {
                let why = satisfied.iter().map(Signer::to_string).collect::<Vec<_>>().join(", ");
                Condition::met(what, format!("attested by {why}"))
            }
            Err(why) => {
                Condition::missed(what, because(evidence, Kind::Attestation, "attested", &why, signed.len(), misses))
            }
        }
    }

    fn check_one(&self, attestation: &Attestation, now: Timestamp) -> Result<(), String> {
        if !self.signers.accepts(&attestation.seal.signer) {
            return Err("this signer is not asked for".into());
        }
        self.demands.check(&attestation.seal)?;
        if let Some(age) = self.max_age {
            let times: Vec<_> = attestation.seal.seen_at().into_iter().chain(said_at(attestation)?).collect();
            if times.is_empty() {
                return Err("nothing says how old it is".into());
            }
            times.into_iter().try_for_each(|time| is_newer(time, age, now))?;
        }
        self.claims.iter().try_for_each(|claim| claim.check(&attestation.statement, now))?;
        let Some(rego) = &self.rego else { return Ok(()) };
        match rego.is_true("data.signature.allow", &attestation.statement.to_string()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} does not allow it", rego.name())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Where known predicates say when they were made. A statement that is signed again stays as old as it is.
const TIMES: &[(&str, &str)] = &[
    ("https://cosign.sigstore.dev/attestation/vuln/v1", "/predicate/metadata/scanFinishedOn"),
    ("https://slsa.dev/provenance/v1", "/predicate/runDetails/metadata/finishedOn"),
    ("https://slsa.dev/provenance/v0.2", "/predicate/metadata/buildFinishedOn"),
    ("https://spdx.dev/Document", "/predicate/creationInfo/created"),
    ("https://cyclonedx.org/bom", "/predicate/metadata/timestamp"),
    ("https://in-toto.io/attestation/vulns/v0.1", "/predicate/metadata/scanFinishedOn"),
];

/// When the statement was made, as it says itself.
fn said_at(attestation: &Attestation) -> Result<Option<Timestamp>, String> {
    let place = TIMES.iter().find(|(predicate_type, _)| *predicate_type == attestation.predicate_type);
    let said = place.and_then(|(_, pointer)| attestation.statement.pointer(pointer));
    match said {
        None | Some(Value::Null) => Ok(None),
        Some(said) => {
            let time = said.as_str().and_then(|text| text.parse::<Timestamp>().ok());
            time.map(Some).ok_or_else(|| format!("{said} is no time"))
        }
    }
}

/// Different reasons that are told.
const SHOWN: usize = 6;

/// Why what was found is not enough: `counted` signers, and what does not count.
fn because(evidence: &Evidence, kind: Kind, done: &str, why: &str, counted: usize, mut misses: Vec<String>) -> String {
    for rejected in evidence.rejected.iter().filter(|rejected| rejected.kind == kind) {
        misses.push(match &rejected.signer {
            Some(signer) => format!("{signer}: {}", rejected.why),
            None => rejected.why.clone(),
        });
    }
    let misses = counted_lines(misses);
    match (counted, misses.is_empty()) {
        (0, true) => format!("not {done}"),
        (_, true) => format!("{done} {why}"),
        (_, false) => format!("{done} {why}: {}", misses.join("; ")),
    }
}

/// Of a thousand signatures nobody reads more than a few lines, and one reason is told once.
fn counted_lines(lines: Vec<String>) -> Vec<String> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for line in lines {
        match counted.iter_mut().find(|(known, _)| *known == line) {
            Some((_, times)) => *times += 1,
            None => counted.push((line, 1)),
        }
    }
    let more = counted.len().saturating_sub(SHOWN);
    counted.truncate(SHOWN);
    let shown = counted.into_iter().map(|(line, times)| match times {
        1 => line,
        times => format!("{line} ({times} times)"),
    });
    shown.chain((more > 0).then(|| format!("and {more} more"))).collect()
}
