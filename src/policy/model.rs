//! Model signatures that a rule demands: who must have signed the files of a kit's model.
//!
//! They are about content, where everything else that a policy demands is about a manifest. So they are held
//! against the files, by `fs`, once these are listed and before anybody sees them.

use std::collections::BTreeSet;

use crate::policy::decision::Verdict;
use crate::policy::evidence::Seal;
use crate::policy::rule::Condition;
use crate::policy::rule::Demands;
use crate::policy::rule::Mode;
use crate::policy::rule::Signers;
use crate::policy::signer::Signer;
use crate::trust;
use crate::trust::CertificateAuthority;
use crate::trust::Limits;
use crate::trust::ModelSignature;
use crate::trust::ModelSigners;
use crate::trust::PublicKey;
use crate::trust::TrustedRoot;

/// Who must have signed the model.
#[derive(Clone, Debug)]
pub struct ModelBlock {
    /// Whose signatures count.
    pub signers: Signers,
    /// What a signature needs to count.
    pub demands: Demands,
    /// The name of files with signatures, or the path of the only one.
    pub file: String,
}

/// What one rule demands of the files of a kit.
#[derive(Clone, Debug)]
pub struct ModelDemand {
    pub(in crate::policy) rule: String,
    pub(in crate::policy) mode: Mode,
    pub(in crate::policy) block: ModelBlock,
    pub(in crate::policy) keys: Vec<PublicKey>,
    pub(in crate::policy) authorities: Vec<CertificateAuthority>,
    pub(in crate::policy) root: Result<TrustedRoot, String>,
    pub(in crate::policy) limits: Limits,
}

/// What a rule says of the files.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The rule.
    pub rule: String,
    /// What was demanded, and whether it is so.
    pub condition: Condition,
    /// What follows for the kit: anything but [`Verdict::None`].
    pub verdict: Verdict,
    /// Whose signatures satisfied it.
    pub signers: Vec<String>,
}

impl ModelDemand {
    /// The name of files with signatures, or the path of the only one: then it has a `/`.
    pub fn file(&self) -> &str {
        &self.block.file
    }

    /// How many such files are looked at, and how large ones.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether it refuses what does not satisfy it.
    pub(in crate::policy) fn may_refuse(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// The same, refusing nothing.
    pub(in crate::policy) fn that_warns(self) -> Self {
        Self { mode: Mode::Warn, ..self }
    }

    /// The signatures in a file that hold and are by whom they should be, and why others do not count.
    pub fn examine(&self, bundle: &[u8], found: &str) -> (Vec<ModelSignature>, Vec<String>) {
        let root = match &self.root {
            Ok(root) => root,
            Err(why) => return (Vec::new(), vec![why.clone()]),
        };
        let signers = ModelSigners { keys: &self.keys, authorities: &self.authorities };
        let (signatures, rejected) = trust::examine_model(bundle, found, signers, root, &self.limits);
        let mut misses: Vec<_> = rejected.into_iter().map(|rejected| format!("{found}: {}", rejected.reason)).collect();
        let mut accepted = Vec::new();
        for signature in signatures {
            let seal = Seal::of(&signature.endorsement);
            match self.block.signers.accepts(&seal.signer).then(|| self.block.demands.check(&seal)) {
                Some(Ok(())) => accepted.push(signature),
                Some(Err(why)) => misses.push(format!("{found}: {}: {why}", seal.signer)),
                None => misses.push(format!("{found}: {}: this signer is not asked for", seal.signer)),
            }
        }
        (accepted, misses)
    }

    /// What follows: `held` are the signatures by which all files of the model are as they were signed.
    pub fn conclude(&self, held: &[ModelSignature], misses: &[String]) -> Judgement {
        self.judge(held.iter().map(|held| Signer::from(held.endorsement.signer())).collect(), misses)
    }

    /// What follows where signatures over the model are believed as they are.
    pub(in crate::policy) fn believe(&self, seals: &[Seal]) -> Judgement {
        let (mut signed, mut misses) = (BTreeSet::new(), Vec::new());
        for seal in seals {
            match self.block.demands.check(seal) {
                Ok(()) => drop(signed.insert(seal.signer.clone())),
                Err(why) => misses.push(format!("{}: {why}", seal.signer)),
            }
        }
        self.judge(signed, &misses)
    }

    fn judge(&self, signed: BTreeSet<Signer>, misses: &[String]) -> Judgement {
        let what = format!("the model signed {}{}", self.block.signers.describe(), self.block.demands.describe());
        let (condition, signers) = match self.block.signers.satisfied_by(&signed.iter().collect()) {
            Ok(signers) => {
                let signers: Vec<_> = signers.iter().map(Signer::to_string).collect();
                (Condition::met(what, format!("signed by {}", signers.join(", "))), signers)
            }
            Err(why) if misses.is_empty() => (Condition::missed(what, format!("signed {why}")), Vec::new()),
            Err(why) => (Condition::missed(what, format!("signed {why}: {}", misses.join("; "))), Vec::new()),
        };
        let verdict = match (condition.ok, self.mode) {
            (true, _) => Verdict::Allow,
            (false, Mode::Warn) => Verdict::Warn,
            (false, Mode::Enforce) => Verdict::Deny,
        };
        Judgement { rule: self.rule.clone(), condition, verdict, signers }
    }
}

impl Judgement {
    /// Why, in one line.
    pub fn reason(&self) -> String {
        let Condition { what, ok, why } = &self.condition;
        if *ok { why.clone() } else { format!("{}: {what}: {why}", self.rule) }
    }
}
