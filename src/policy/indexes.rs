//! Whether an index that no manifest names may be used for a kit: who signed it, and who may.
//!
//! An index says what the files of a kit are, so whoever may sign one can say anything. It is admitted as a
//! kit is: by every policy that is there, each by the rule for the kit.

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::ledger;
use crate::policy::Loaded;
use crate::policy::Policies;
use crate::policy::decision::IndexAdmitted;
use crate::policy::evidence::Evidence;
use crate::policy::file::Otherwise;
use crate::policy::rule::Condition;
use crate::policy::rule::Rule;
use crate::policy::signer::Signer;
use crate::trust::Limits;
use crate::trust::Material;

/// Who is asked about an index, and by which name it goes in messages.
enum Voter<'a> {
    /// A rule that has something to say.
    Rule { name: String, rule: &'a Rule, policy: &'a Loaded },
    /// A policy that refuses the kit itself.
    Refuses { name: String },
}

impl Policies {
    /// Whether there is somebody who may sign an index for a kit of these names. If not, no index that the
    /// manifest does not name has to be looked for.
    pub fn may_admit_index(&self, names: &[String]) -> bool {
        let voters = self.voters(names);
        let may = |voter: &Voter<'_>| matches!(voter, Voter::Rule { rule, .. } if rule.admits_indexes());
        !voters.is_empty() && voters.iter().all(may)
    }

    /// Decides about an index that the manifest of a kit does not name.
    ///
    /// `names` are those of the kit ([`names`](crate::policy::names), or
    /// [`names_of_parent`](crate::policy::names_of_parent) for a link of a chain), and the kit was admitted.
    /// `index` is the digest that was signed: of the index's manifest where it is a referrer, of the file where it
    /// is one. `material` is what lies beside that digest ([`Material::collect`]), or the bundle beside the file
    /// ([`Material::of_bundle`]). That the index is about this very kit is for the caller to check: a signature
    /// says only that somebody stands behind the digest.
    ///
    /// The signers are those of `indexes`, and of `--index-key`; where a rule has no `indexes`, those who must
    /// have signed the kit must have signed the index too. A rule that asks for no signature of anybody leaves it
    /// to the others. Where nobody has anything to say, no index counts.
    pub fn admit_index(
        &self,
        names: &[String],
        index: &Digest,
        material: &Material,
        limits: &Limits,
    ) -> Result<IndexAdmitted, IndexRefused> {
        let mut signers = BTreeSet::new();
        let mut reasons = Vec::new();
        let voters = self.voters(names);
        for voter in &voters {
            let (name, rule, policy) = match voter {
                Voter::Rule { name, rule, policy } => (name, rule, policy),
                Voter::Refuses { name } => {
                    reasons.push(format!("{name}: no rule matches the kit"));
                    continue;
                }
            };
            let evidence = match self.root_for(rule, policy) {
                Ok(root) => Evidence::examine(material, index, &rule.keys, &root, limits),
                Err(error) => Evidence::unusable(ledger::chain(&error)),
            };
            let missed = rule.check_index(&evidence, &mut signers).into_iter().filter(|condition| !condition.ok);
            reasons.extend(missed.map(|Condition { what, why, .. }| format!("{name}: {what}: {why}")));
        }
        if voters.is_empty() {
            reasons.push("no policy says who may sign one: --index-key, or indexes in a policy".into());
        }
        match reasons.is_empty() {
            true => Ok(IndexAdmitted::by(signers.iter().map(Signer::to_string).collect())),
            false => Err(IndexRefused { index: *index, reasons }),
        }
    }

    fn voters<'a>(&'a self, names: &[String]) -> Vec<Voter<'a>> {
        let voter = |loaded: &'a Loaded| {
            let Loaded { policy, .. } = loaded;
            match (policy.rule_for(names), policy.default) {
                (Some(rule), _) if rule.indexes.is_none() && !rule.needs_evidence() => None,
                (Some(rule), _) => {
                    let name = format!("{}, rule {}", policy.name, rule.pattern);
                    Some(Voter::Rule { name, rule, policy: loaded })
                }
                (None, Otherwise::Allow) => None,
                (None, Otherwise::Deny) => Some(Voter::Refuses { name: policy.name.clone() }),
            }
        };
        self.policies.iter().chain(&self.index_keys).filter_map(voter).collect()
    }
}

/// An index that does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index {index} is not used: {}", reasons.join("; "))]
pub struct IndexRefused {
    /// What was asked about.
    pub index: Digest,
    /// Why, policy by policy.
    pub reasons: Vec<String>,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::policy::Options;
    use crate::trust::SigningKey;

    /// Two keys in files, and an index that the owner of the first has signed.
    struct Case {
        folder: tempfile::TempDir,
        signer: String,
        material: Material,
    }

    impl Case {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let keys = ["a", "b"].map(|name| {
                let key = SigningKey::generated();
                fs::write(folder.path().join(format!("{name}.pub")), key.public().to_pem()).unwrap();
                key
            });
            let material = Material::of_bundle(keys[0].endorse(&index()).unwrap(), "here");
            Self { signer: keys[0].public().fingerprint(), folder, material }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn policy(&self, name: &str, text: &str) -> PathBuf {
            fs::write(self.path(name), format!("version = 1\n{text}")).unwrap();
            self.path(name)
        }

        fn admit(&self, options: &Options) -> Result<IndexAdmitted, String> {
            let policies = Policies::load(options).unwrap();
            let names = ["ghcr.io/acme/llm".to_owned()];
            let admitted = policies.admit_index(&names, &index(), &self.material, &Limits::default());
            assert!(admitted.is_err() || policies.may_admit_index(&names));
            admitted.map_err(|refused| refused.to_string())
        }

        fn check(&self, options: &Options, expected: Result<(), &str>) {
            match (self.admit(options), expected) {
                (Ok(admitted), Ok(())) => assert_eq!(admitted.signers(), [self.signer.as_str()]),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
    }

    fn index() -> Digest {
        Digest::of(b"an index")
    }

    #[test]
    fn keys_on_the_command_line_sign_indexes() {
        let case = Case::new();
        let (a, b) = (vec![case.path("a.pub")], vec![case.path("b.pub")]);
        let none = Options::default();
        case.check(&none, Err("no policy says who"));
        case.check(&Options { index_keys: a.clone(), ..none.clone() }, Ok(()));
        case.check(&Options { index_keys: b.clone(), ..none.clone() }, Err("b.pub"));
        case.check(&Options { index_keys: [a.clone(), b.clone()].concat(), ..none.clone() }, Ok(()));
        // Who must sign the kit may sign its index, unless somebody else is named for that.
        case.check(&Options { keys: a.clone(), ..none.clone() }, Ok(()));
        case.check(&Options { keys: b.clone(), ..none.clone() }, Err("b.pub"));
        case.check(&Options { keys: b, index_keys: a.clone(), ..none.clone() }, Ok(()));
    }

    #[test]
    fn every_policy_is_asked() {
        let case = Case::new();
        let index_keys = vec![case.path("a.pub")];
        let rule = |rest: &str| format!("default = \"deny\"\n[[rule]]\nmatch = \"ghcr.io/acme/**\"\n{rest}");
        let by_b = "[[rule.signature]]\nany = [{ key = \"b.pub\" }]\n";
        for (text, expected) in [
            (rule("indexes = [{ key = \"a.pub\" }]\n"), Ok(())),
            (rule("indexes = [{ key = \"b.pub\" }]\n"), Err("rule ghcr.io/acme/**")),
            (rule("indexes = []\n"), Err("indexes is empty")),
            (rule(&format!("indexes = [{{ key = \"a.pub\" }}]\n{by_b}")), Ok(())),
            (rule(by_b), Err("b.pub")),
            (rule("references = \"digest\"\n"), Ok(())),
            ("default = \"allow\"\n".into(), Ok(())),
            ("default = \"deny\"\n".into(), Err("no rule matches")),
        ] {
            let standing = vec![case.policy("policy.toml", &text)];
            case.check(&Options { standing, index_keys: index_keys.clone(), ..Options::default() }, expected);
        }
        let standing = vec![case.policy("policy.toml", &rule("references = \"digest\"\n"))];
        case.check(&Options { standing, ..Options::default() }, Err("no policy says who"));
    }

    #[test]
    fn a_signature_of_another_digest_or_an_attestation_is_none() {
        let mut case = Case::new();
        let key = SigningKey::generated();
        fs::write(case.path("a.pub"), key.public().to_pem()).unwrap();
        let options = Options { index_keys: vec![case.path("a.pub")], ..Options::default() };
        case.material = Material::of_bundle(key.endorse(&Digest::of(b"another")).unwrap(), "here");
        case.check(&options, Err("about something else"));
        case.material = Material::default();
        case.check(&options, Err("not signed"));
    }
}
