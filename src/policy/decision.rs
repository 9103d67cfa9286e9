//! What was decided about one kit, and the proof that it may be used.
//!
//! This file has no child modules but its tests: whatever holds an [`Admitted`] was let through by
//! [`Decision::admit`], or by the mount that it continues.

use serde::Deserialize;
use serde::Serialize;

use crate::digest::Digest;
use crate::policy::model::Judgement;
use crate::policy::model::ModelDemand;
use crate::policy::rule::AuditDemand;
use crate::policy::rule::Condition;

/// The word of the policies that apply to a kit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There is no policy.
    None,
    /// Every one is satisfied.
    Allow,
    /// One is not, and it only warns.
    Warn,
    /// One is not.
    Deny,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Allow => "allow",
            Self::Warn => "warn",
            Self::Deny => "deny",
        }
    }
}

/// What was decided about one kit, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    digest: Digest,
    verdict: Verdict,
    rules: Vec<String>,
    conditions: Vec<Condition>,
    reasons: Vec<String>,
    signers: Vec<String>,
    audit: AuditDemand,
    signatures: Vec<Shown>,
    attestations: Vec<Shown>,
    models: Vec<ModelDemand>,
    overruled: Vec<String>,
}

/// A signature or attestation as the JSON documents show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shown {
    /// Of an attestation: what kind of statement it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicate_type: Option<String>,
    /// What vouches for the signer; none where that is not known.
    pub kind: Option<SignerKind>,
    /// `key:sha256:<SPKI>`, or the subject of the certificate.
    pub identity: Option<String>,
    /// Who issued the identity.
    pub issuer: Option<String>,
    /// RFC 3339.
    pub logged_at: Option<String>,
    /// Whether it holds.
    pub verified: bool,
    /// Why it does not.
    pub error: Option<String>,
}

/// What vouches for a signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignerKind {
    /// A key that somebody named.
    Key,
    /// A certificate.
    Certificate,
}

/// What one policy says of a kit.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Opinion {
    pub verdict: Verdict,
    pub rule: String,
    pub conditions: Vec<Condition>,
    pub signers: Vec<String>,
    pub audit: AuditDemand,
    /// What is still to be held against the files.
    pub models: Vec<ModelDemand>,
    /// Whether it would be a refusal, if nobody had said that this kit is to be let through.
    pub is_overruled: bool,
}

impl Opinion {
    /// The same, where somebody has said that this kit is to be let through whatever this policy says.
    pub fn overruled_if(self, is_said: bool) -> Self {
        // A model that is demanded to be signed is refused later, if it is.
        let refuses = self.verdict == Verdict::Deny || self.models.iter().any(ModelDemand::may_refuse);
        match is_said && refuses {
            true => {
                let models = self.models.into_iter().map(ModelDemand::that_warns).collect();
                Self { verdict: Verdict::Warn, models, is_overruled: true, ..self }
            }
            false => self,
        }
    }
}

impl Decision {
    /// What policies say together: the strictest counts.
    pub(in crate::policy) fn of(
        digest: Digest,
        opinions: Vec<Opinion>,
        signatures: Vec<Shown>,
        attestations: Vec<Shown>,
    ) -> Self {
        let mut decision = Self {
            digest,
            verdict: Verdict::None,
            rules: Vec::new(),
            conditions: Vec::new(),
            reasons: Vec::new(),
            signers: Vec::new(),
            audit: AuditDemand::BestEffort,
            signatures,
            attestations,
            models: Vec::new(),
            overruled: Vec::new(),
        };
        decision.verdict = opinions.iter().map(|opinion| opinion.verdict).max().unwrap_or(Verdict::None);
        for opinion in opinions {
            // A policy that is satisfied is no reason for a warning.
            for condition in opinion.conditions.iter().filter(|_| opinion.verdict == decision.verdict) {
                match (decision.verdict, condition.ok) {
                    (Verdict::Allow, true) => decision.reasons.push(condition.why.clone()),
                    (Verdict::Warn | Verdict::Deny, false) => {
                        decision.reasons.push(format!("{}: {}: {}", opinion.rule, condition.what, condition.why));
                    }
                    _ => {}
                }
            }
            decision.audit = decision.audit.max(opinion.audit);
            if opinion.is_overruled {
                // What was let through against a policy is let through only if it is written down.
                decision.audit = AuditDemand::Required;
                decision.overruled.push(opinion.rule.clone());
            }
            decision.models.extend(opinion.models);
            decision.rules.push(opinion.rule);
            decision.conditions.extend(opinion.conditions);
            decision.signers.extend(opinion.signers);
        }
        for list in [&mut decision.signers, &mut decision.reasons] {
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|item| seen.insert(item.clone()));
        }
        decision
    }

    /// The manifest that was decided about.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The word.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The rules that were asked, one for each policy.
    pub fn rules(&self) -> &[String] {
        &self.rules
    }

    /// Every condition of them.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// What made the word what it is.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Whose signatures satisfied the policies.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// What happens where the audit log cannot be written.
    pub fn audit(&self) -> AuditDemand {
        self.audit
    }

    /// What is still to be held against the files.
    pub fn models(&self) -> &[ModelDemand] {
        &self.models
    }

    /// The same after rules have judged the files: the strictest counts.
    pub fn judged(mut self, judgements: &[Judgement]) -> Self {
        let verdict = judgements.iter().map(|judgement| judgement.verdict).fold(self.verdict, Verdict::max);
        if verdict != self.verdict {
            self.reasons.clear();
        }
        self.verdict = verdict;
        let reasons = judgements.iter().filter(|judgement| judgement.verdict == verdict).map(Judgement::reason);
        self.reasons.extend(reasons);
        self.conditions.extend(judgements.iter().map(|judgement| judgement.condition.clone()));
        self.models.clear();
        self
    }

    /// The rules that refuse the kit, and were overruled by [`ALLOW_REFUSED`](crate::policy::ALLOW_REFUSED).
    pub fn overruled(&self) -> &[String] {
        &self.overruled
    }

    /// Every signature that was found.
    pub fn signatures(&self) -> &[Shown] {
        &self.signatures
    }

    /// Every attestation that was found.
    pub fn attestations(&self) -> &[Shown] {
        &self.attestations
    }

    /// Lets the kit through, unless it is refused.
    pub fn admit(&self) -> Option<Admitted> {
        let admitted = || Admitted { verdict: self.verdict, signers: self.signers.clone(), audit: self.audit };
        (self.verdict != Verdict::Deny).then(admitted)
    }
}

/// Says that the policies let a kit through. Nothing of its layers is touched without it.
///
/// It can be stored for the processes that continue a mount: they do not ask again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    verdict: Verdict,
    signers: Vec<String>,
    audit: AuditDemand,
}

impl Admitted {
    /// The word of the policies: anything but [`Verdict::Deny`].
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whose signatures satisfied them: `key:sha256:<SPKI>` or `identity (issuer)`.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// What happens where the audit log cannot be written.
    pub fn audit(&self) -> AuditDemand {
        self.audit
    }

    /// The same after a rule has judged the files, unless it refuses them.
    pub fn after(mut self, judgement: &Judgement) -> Option<Self> {
        self.verdict = self.verdict.max(judgement.verdict);
        self.signers.extend(
            judgement.signers.iter().filter(|signer| !self.signers.contains(signer)).cloned().collect::<Vec<_>>(),
        );
        (self.verdict != Verdict::Deny).then_some(self)
    }
}

/// Says that every policy accepts whoever signed an index that no manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexAdmitted {
    signers: Vec<String>,
}

impl IndexAdmitted {
    /// Every policy that has something to say was satisfied, by these.
    pub(in crate::policy) fn by(signers: Vec<String>) -> Self {
        Self { signers }
    }

    /// Who signed it, of those whom the policies accept.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}
