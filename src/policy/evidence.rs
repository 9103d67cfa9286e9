//! What the conditions of a policy look at: signatures and attestations that hold over one manifest, and
//! what was there and does not hold.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::digest::Digest;
use crate::policy::decision::Shown;
use crate::policy::decision::SignerKind;
use crate::policy::signer::Signer;
use crate::trust;
use crate::trust::Endorsement;
use crate::trust::Limits;
use crate::trust::Material;
use crate::trust::PublicKey;
use crate::trust::Role;
use crate::trust::TrustedRoot;

/// Everything that was found about one manifest.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Signatures that hold.
    pub signatures: Vec<Seal>,
    /// Attestations that hold.
    pub attestations: Vec<Attestation>,
    /// What does not.
    pub rejected: Vec<Rejected>,
}

/// Who vouches, since when, and with which words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Who.
    pub signer: Signer,
    /// The entry in a transparency log, if there is one that holds.
    pub log: Option<LogEntry>,
    /// What a timestamp authority says, if it holds.
    pub stamped_at: Option<Timestamp>,
    /// What the signature says beside the digest.
    pub annotations: BTreeMap<String, String>,
    /// Where it was found.
    pub found: String,
}

/// An entry in a transparency log that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When the log took it, where the log says so (Rekor v2 does not).
    pub at: Option<Timestamp>,
}

/// A signed statement about the manifest.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// Who says it.
    pub seal: Seal,
    /// What kind of statement it is, as it says itself.
    pub predicate_type: String,
    /// The in-toto statement.
    pub statement: Value,
}

/// Something that was there and does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejected {
    /// What it would have been.
    pub kind: Kind,
    /// Where it was found.
    pub found: String,
    /// The kind of statement that it claims to be.
    pub predicate_type: Option<String>,
    /// Whose it claims to be, as far as that is known.
    pub signer: Option<Signer>,
    /// Why it does not hold.
    pub why: String,
}

/// A signature or an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It says that the signer stands behind the kit.
    Signature,
    /// It says something about the kit.
    Attestation,
}

impl Seal {
    /// The earliest time at which somebody else than the signer saw it.
    pub fn seen_at(&self) -> Option<Timestamp> {
        self.log.and_then(|entry| entry.at).into_iter().chain(self.stamped_at).min()
    }
}

impl Evidence {
    /// What material proves about a manifest with these keys and this root.
    pub fn examine(
        material: &Material,
        manifest: &Digest,
        keys: &[PublicKey],
        root: &TrustedRoot,
        limits: &Limits,
    ) -> Self {
        let findings = trust::examine(material, manifest, keys, root, limits);
        let mut evidence = Self::default();
        for endorsement in &findings.endorsements {
            let seal = Seal::of(endorsement);
            match endorsement.attestation() {
                None => evidence.signatures.push(seal),
                Some(statement) => evidence.attestations.push(Attestation {
                    seal,
                    predicate_type: statement.predicate_type.clone(),
                    statement: statement.raw.clone(),
                }),
            }
        }
        evidence.rejected.extend(findings.rejected.into_iter().map(|rejected| Rejected {
            kind: match rejected.role {
                Role::Signature => Kind::Signature,
                Role::Attestation => Kind::Attestation,
            },
            found: rejected.found,
            predicate_type: rejected.predicate_type,
            signer: rejected.claimed.as_ref().map(Signer::from),
            why: rejected.reason,
        }));
        evidence
    }

    /// Nothing, because nothing can be checked.
    pub fn unusable(why: String) -> Self {
        let rejected =
            Rejected { kind: Kind::Signature, found: String::new(), predicate_type: None, signer: None, why };
        Self { rejected: vec![rejected], ..Self::default() }
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.signatures.is_empty() && self.attestations.is_empty() && self.rejected.is_empty()
    }

    fn seals(&self) -> impl Iterator<Item = &Seal> {
        self.signatures.iter().chain(self.attestations.iter().map(|attestation| &attestation.seal))
    }
}

impl Seal {
    /// What an endorsement says.
    pub fn of(endorsement: &Endorsement) -> Self {
        Self {
            signer: endorsement.signer().into(),
            log: endorsement.log().map(|entry| LogEntry { at: entry.time }),
            stamped_at: endorsement.timestamps().iter().copied().min(),
            annotations: endorsement.annotations().clone(),
            found: endorsement.found().to_owned(),
        }
    }

    fn shown(&self, predicate_type: Option<&String>) -> Shown {
        Shown {
            predicate_type: predicate_type.cloned(),
            logged_at: self.seen_at().map(|time| time.to_string()),
            verified: true,
            error: None,
            ..self.signer.shown()
        }
    }
}

impl From<&trust::Signer> for Signer {
    fn from(signer: &trust::Signer) -> Self {
        match signer {
            trust::Signer::Key { fingerprint } => Self::Key { fingerprint: fingerprint.clone() },
            trust::Signer::Certificate(certificate) => Self::Certificate {
                identity: certificate.identity.clone(),
                issuer: certificate.issuer.clone(),
                extensions: certificate.extensions.clone(),
            },
            trust::Signer::Certified { subject, authority } => {
                Self::Certified { subject: subject.clone(), authority: authority.clone() }
            }
        }
    }
}

impl Signer {
    /// A signature of this signer of which nothing else is known.
    fn shown(&self) -> Shown {
        let (kind, identity, issuer) = match self {
            Self::Key { fingerprint } => (SignerKind::Key, fingerprint, None),
            Self::Certificate { identity, issuer, .. } => (SignerKind::Certificate, identity, Some(issuer.clone())),
            Self::Certified { subject, authority } => (SignerKind::Certificate, subject, Some(authority.clone())),
        };
        Shown {
            predicate_type: None,
            kind: Some(kind),
            identity: Some(identity.clone()),
            issuer,
            logged_at: None,
            verified: false,
            error: None,
        }
    }
}

/// What the documents show of signatures and of attestations, where several policies looked at the same
/// material with other keys: what one of them verified is verified.
pub fn shown(seen: &[Evidence]) -> (Vec<Shown>, Vec<Shown>) {
    let (mut signatures, mut attestations) = (Vec::new(), Vec::new());
    let mut add = |kind: Kind, shown: Shown| {
        let list = match kind {
            Kind::Signature => &mut signatures,
            Kind::Attestation => &mut attestations,
        };
        if !list.contains(&shown) {
            list.push(shown);
        }
    };
    for evidence in seen {
        evidence.signatures.iter().for_each(|seal| add(Kind::Signature, seal.shown(None)));
        for attestation in &evidence.attestations {
            add(Kind::Attestation, attestation.seal.shown(Some(&attestation.predicate_type)));
        }
    }
    let holds = |found: &String| seen.iter().flat_map(Evidence::seals).any(|seal| seal.found == *found);
    for rejected in seen.iter().flat_map(|evidence| &evidence.rejected) {
        if seen.len() > 1 && holds(&rejected.found) {
            continue;
        }
        let unknown = Shown {
            predicate_type: None,
            kind: None,
            identity: None,
            issuer: None,
            logged_at: None,
            verified: false,
            error: None,
        };
        let claimed = rejected.signer.as_ref().map_or(unknown, Signer::shown);
        let predicate_type = match rejected.kind {
            Kind::Signature => None,
            Kind::Attestation => Some(rejected.predicate_type.clone().unwrap_or_default()),
        };
        add(rejected.kind, Shown { predicate_type, error: Some(rejected.why.clone()), ..claimed });
    }
    (signatures, attestations)
}
