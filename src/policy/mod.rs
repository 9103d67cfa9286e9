//! Policy: whether a kit may be used at all, decided on the digest that is then used.
//!
//! The third of three proofs: `verify` says that content is what a digest names, `trust` says who signed
//! that digest, this module says whether that is enough. Several policies may be there, of the host, of
//! the user, of the command; each must allow, none replaces another. What cannot be read, parsed or
//! evaluated refuses.

mod claim;
mod decision;
mod evidence;
mod file;
mod indexes;
mod input;
mod model;
mod opa;
mod pattern;
mod rego;
mod request;
mod rule;
mod signer;
mod text;
mod trial;

use std::path::PathBuf;

use jiff::Timestamp;

pub use decision::Admitted;
pub use decision::Decision;
pub use decision::IndexAdmitted;
pub use decision::Shown;
pub use decision::SignerKind;
pub use decision::Verdict;
pub use file::PolicyError;
pub use file::read_authorities;
pub use file::read_key;
pub use indexes::IndexRefused;
pub use model::Judgement;
pub use model::ModelDemand;
pub use request::Named;
pub use request::Request;
pub use request::names;
pub use request::names_of_parent;
pub use rule::AuditDemand;
pub use rule::Condition;
pub use signer::Signer;
pub use signer::Wanted;
pub use trial::Case;
pub use trial::Expectation;
pub use trial::Found;
pub use trial::Trial;

use crate::digest::Digest;
use crate::ledger;
use crate::policy::decision::Opinion;
use crate::policy::evidence::Evidence;
use crate::policy::file::Otherwise;
use crate::policy::file::Policy;
use crate::policy::model::ModelBlock;
use crate::policy::rule::Demands;
use crate::policy::rule::Mode;
use crate::policy::rule::Rule;
use crate::policy::rule::SignatureBlock;
use crate::policy::rule::Signers;
use crate::policy::signer::Matcher;
use crate::trust::InvalidRoot;
use crate::trust::Limits;
use crate::trust::Material;
use crate::trust::PublicKey;
use crate::trust::TrustedRoot;

/// The option that lets a kit through although policies refuse it.
pub const ALLOW_REFUSED: &str = "danger-allow-refused";

/// Where policies come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Policies of the host and of the user that are there. All of them count.
    pub standing: Vec<PathBuf>,
    /// `--policy`.
    pub file: Option<PathBuf>,
    /// `--key`: any of them.
    pub keys: Vec<PathBuf>,
    /// `--certificate-…`: whose signature is asked for.
    pub identity: Identity,
    /// `--index-key`: any of them may sign an index. They ask nothing of the kit.
    pub index_keys: Vec<PathBuf>,
    /// `--trusted-root`. It counts for what was given with it, not for the policies of host and user: who
    /// may choose the root could choose who signs.
    pub trusted_root: Option<PathBuf>,
    /// Where an update has put the root that counts where none is named; without one it is the embedded one.
    pub installed_root: Option<PathBuf>,
    /// `--danger-allow-refused`: these manifests are let through although policies refuse them.
    pub allow_refused: Vec<Digest>,
    /// Of `standing`, the policies that this does not overrule: the host's, unless root says so.
    pub firm: Vec<PathBuf>,
}

/// An identity and its issuer, each exact or as a regular expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// `--certificate-identity`.
    pub identity: Option<String>,
    /// `--certificate-identity-regexp`.
    pub identity_regexp: Option<String>,
    /// `--certificate-oidc-issuer`.
    pub issuer: Option<String>,
    /// `--certificate-oidc-issuer-regexp`.
    pub issuer_regexp: Option<String>,
}

impl Identity {
    /// Whom it is about. The error names the option.
    pub fn wanted(&self) -> Result<Wanted, PolicyError> {
        let Self { identity, identity_regexp, issuer, issuer_regexp } = self.clone();
        let said = |option, why| PolicyError::Option { option, why };
        Ok(Wanted::Certificate {
            identity: Matcher::parse(identity, identity_regexp, "identity")
                .map_err(|why| said("--certificate-identity", why))?,
            issuer: Matcher::parse(issuer, issuer_regexp, "issuer")
                .map_err(|why| said("--certificate-oidc-issuer", why))?,
            extensions: std::collections::BTreeMap::new(),
        })
    }
}

/// The policies that count for a command.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    policies: Vec<Loaded>,
    /// `--index-key` where nothing else on the command line is a policy. Only indexes are its business.
    index_keys: Option<Loaded>,
    /// The root of `--trusted-root`.
    root: Option<TrustedRoot>,
    /// Where an update has put the root that counts where none is named.
    installed_root: Option<PathBuf>,
    /// Manifests that are let through although policies refuse them.
    allow_refused: Vec<Digest>,
}

#[derive(Clone, Debug)]
struct Loaded {
    policy: Policy,
    /// The root for rules that name none; `None` is the embedded one.
    root: Option<TrustedRoot>,
    firmness: Firmness,
}

/// Whether a policy can be overruled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Firmness {
    /// By who runs the command.
    Yields,
    /// By nobody.
    Firm,
}

impl Policies {
    /// No policy: everything is let through.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads all policies, with the keys, roots and modules that they name.
    pub fn load(options: &Options) -> Result<Self, PolicyError> {
        let root = options.trusted_root.as_deref().map(|path| {
            TrustedRoot::from_file(path)
                .map_err(|error| PolicyError::Unreadable { path: path.into(), why: ledger::chain(&error) })
        });
        let root = root.transpose()?;
        let mut policies = Vec::new();
        for path in &options.standing {
            let firmness = if options.firm.contains(path) { Firmness::Firm } else { Firmness::Yields };
            policies.push(Loaded { policy: Policy::read(path)?, root: None, firmness });
        }
        if let Some(path) = &options.file {
            policies.push(Loaded { policy: Policy::read(path)?, root: root.clone(), firmness: Firmness::Yields });
        }
        let mut index_keys = None;
        if let Some(policy) = of_flags(options)? {
            let asks_of_kits = policy.rules.iter().any(Rule::needs_evidence);
            let loaded = Loaded { policy, root: root.clone(), firmness: Firmness::Yields };
            if asks_of_kits { policies.push(loaded) } else { index_keys = Some(loaded) }
        }
        let (installed_root, allow_refused) = (options.installed_root.clone(), options.allow_refused.clone());
        Ok(Self { policies, index_keys, root, installed_root, allow_refused })
    }

    /// The policy in one file.
    pub fn of_file(path: &std::path::Path) -> Result<Self, PolicyError> {
        Self::load(&Options { file: Some(path.into()), ..Options::default() })
    }

    /// The same, for those who only show what a kit says of itself: nothing is refused.
    #[must_use]
    pub fn that_warn(&self) -> Self {
        let mut policies = self.clone();
        for loaded in &mut policies.policies {
            loaded.policy.default = Otherwise::Allow;
            loaded.policy.rules.iter_mut().for_each(|rule| rule.mode = Mode::Warn);
        }
        policies
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// How many rules there are in all.
    pub fn rules(&self) -> usize {
        self.policies.iter().map(|loaded| loaded.policy.rules.len()).sum()
    }

    /// Whether a kit of these names can be decided about only with its signatures at hand.
    pub fn need_material(&self, names: &[String]) -> bool {
        self.policies.iter().filter_map(|loaded| loaded.policy.rule_for(names)).any(Rule::needs_evidence)
    }

    /// Decides about one kit.
    pub fn decide(&self, request: &Request<'_>, material: &Material, limits: &Limits) -> Decision {
        self.decide_now(request, material, limits, None)
    }

    /// Decides about one kit as of a time, if one is given.
    fn decide_now(
        &self,
        request: &Request<'_>,
        material: &Material,
        limits: &Limits,
        now: Option<Timestamp>,
    ) -> Decision {
        self.decide_at(request, now.unwrap_or_else(Timestamp::now), limits, |keys, root| {
            let root = match root {
                Some(root) => root.clone(),
                None => match self.standing_root() {
                    Ok(root) => root,
                    Err(error) => return Evidence::unusable(ledger::chain(&error)),
                },
            };
            Evidence::examine(material, &request.digest, keys, &root, limits)
        })
    }

    /// The root that counts for a rule of a policy.
    fn root_for(&self, rule: &Rule, policy: &Loaded) -> Result<TrustedRoot, InvalidRoot> {
        match rule.trusted_root.as_ref().or(policy.root.as_ref()) {
            Some(root) => Ok(root.clone()),
            None => self.standing_root(),
        }
    }

    /// The root that counts where none is named.
    fn standing_root(&self) -> Result<TrustedRoot, InvalidRoot> {
        match &self.installed_root {
            Some(path) => TrustedRoot::standing(path),
            None => TrustedRoot::embedded(),
        }
    }

    /// Decides about one kit at a time, on what `examine` finds with keys and a root.
    fn decide_at(
        &self,
        request: &Request<'_>,
        now: Timestamp,
        limits: &Limits,
        examine: impl Fn(&[PublicKey], Option<&TrustedRoot>) -> Evidence,
    ) -> Decision {
        let mut opinions = Vec::new();
        let mut seen = Vec::new();
        for loaded in &self.policies {
            let Loaded { policy, root, firmness } = loaded;
            let yields = *firmness == Firmness::Yields && self.allow_refused.contains(&request.digest);
            let Some(rule) = policy.rule_for(&request.names) else {
                opinions.push(otherwise(policy, request).overruled_if(yields));
                continue;
            };
            let evidence = match rule.needs_evidence() {
                true => examine(&rule.keys, rule.trusted_root.as_ref().or(root.as_ref())),
                false => Evidence::default(),
            };
            let (conditions, signers) = rule.evaluate(request, &evidence, now);
            let verdict = match (conditions.iter().all(|condition| condition.ok), rule.mode) {
                (true, _) => Verdict::Allow,
                (false, Mode::Warn) => Verdict::Warn,
                (false, Mode::Enforce) => Verdict::Deny,
            };
            let name = format!("{}, rule {}", policy.name, rule.pattern);
            let demand = |block: &ModelBlock| ModelDemand {
                rule: name.clone(),
                mode: rule.mode,
                block: block.clone(),
                keys: rule.keys.clone(),
                authorities: rule.authorities.clone(),
                root: self.root_for(rule, loaded).map_err(|error| ledger::chain(&error)),
                limits: *limits,
            };
            let models = rule.models.iter().map(demand).collect();
            let signers = signers.iter().map(Signer::to_string).collect();
            let opinion = Opinion {
                verdict,
                rule: name.clone(),
                conditions,
                signers,
                audit: rule.audit,
                models,
                is_overruled: false,
            };
            opinions.push(opinion.overruled_if(yields));
            seen.push(evidence);
        }
        if seen.iter().all(Evidence::is_empty) {
            // Nobody asked for signatures; whoever looks at them sees what holds by itself.
            seen.push(examine(&[], self.root.as_ref()));
        }
        let (signatures, attestations) = evidence::shown(&seen);
        Decision::of(request.digest, opinions, signatures, attestations)
    }
}

/// What a policy says where none of its rules matches.
fn otherwise(policy: &Policy, request: &Request<'_>) -> Opinion {
    let name = request.names.first().map_or(request.reference, String::as_str);
    let (verdict, word) = match policy.default {
        Otherwise::Allow => (Verdict::Allow, "allow"),
        Otherwise::Deny => (Verdict::Deny, "deny"),
    };
    let condition = Condition {
        what: "a rule for the kit".into(),
        ok: verdict == Verdict::Allow,
        why: format!("no rule matches {name}, and the default is {word}"),
    };
    Opinion {
        verdict,
        rule: format!("{}, default", policy.name),
        conditions: vec![condition],
        signers: Vec::new(),
        audit: AuditDemand::BestEffort,
        models: Vec::new(),
        is_overruled: false,
    }
}

/// The policy that keys and an identity on the command line are: for every kit, parents too. Where both
/// are given, both must have signed.
fn of_flags(options: &Options) -> Result<Option<Policy>, PolicyError> {
    let mut rule = Rule::for_everything();
    let block = |any: Vec<Wanted>| SignatureBlock {
        signers: Signers { any, at_least: 1, all: Vec::new() },
        demands: Demands::default(),
        annotations: std::collections::BTreeMap::new(),
    };
    let mut read = |paths: &[PathBuf]| -> Result<Vec<Wanted>, PolicyError> {
        let mut wanted = Vec::new();
        for path in paths {
            let key = file::read_key(path)?;
            wanted.push(Wanted::Key { name: path.display().to_string(), fingerprint: key.fingerprint() });
            rule.keys.push(key);
        }
        Ok(wanted)
    };
    let (wanted, of_indexes) = (read(&options.keys)?, read(&options.index_keys)?);
    if !wanted.is_empty() {
        rule.signatures.push(block(wanted));
    }
    if !of_indexes.is_empty() {
        rule.indexes = Some(of_indexes);
    }
    if options.identity != Identity::default() {
        rule.signatures.push(block(vec![options.identity.wanted()?]));
    }
    if rule.signatures.is_empty() && rule.indexes.is_none() {
        return Ok(None);
    }
    Ok(Some(Policy { name: "the command line".into(), default: Otherwise::Deny, rules: vec![rule] }))
}

#[cfg(test)]
mod tests;
