//! Endorsements: that somebody stands behind a manifest. The second of three proofs.
//!
//! [`crate::verify::Verified`] says that bytes are those that a digest names, an [`Endorsement`] who vouches
//! for the digest, and the policy's admission that this is enough. Each can only be made where it is proved.
//!
//! This file has no child modules: a child could make an endorsement by hand.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::trust::log::Doubt;
use crate::trust::log::LogEntry;
use crate::trust::proof::Proof;
use crate::trust::proof::Signer;
use crate::trust::statement;
use crate::trust::statement::SIGNATURE_PREDICATE;
use crate::trust::statement::Statement;
use crate::trust::statement::Subject;

/// One signature that holds, over one subject, by one signer.
#[derive(Clone, Debug)]
pub struct Endorsement {
    subject: Option<Digest>,
    proof: Proof,
    kind: Kind,
    annotations: BTreeMap<String, String>,
    found: String,
}

/// What was said about the subject.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// That it is good.
    Signature,
    /// Something about it.
    Attestation(Statement),
}

impl Endorsement {
    /// From a proof about cosign's payload.
    pub(super) fn of_payload(proof: Proof, payload: &[u8], manifest: &Digest, found: &str) -> Result<Self, String> {
        let annotations = statement::simple_signing(payload, manifest)?;
        Ok(Self { subject: Some(*manifest), proof, kind: Kind::Signature, annotations, found: found.into() })
    }

    /// From a proof about a statement.
    pub(super) fn of_statement(
        proof: Proof,
        statement: &[u8],
        about: Subject<'_>,
        found: &str,
    ) -> Result<Self, String> {
        let (statement, annotations) = Statement::read(statement, about)?;
        let kind = if statement.predicate_type == SIGNATURE_PREDICATE {
            Kind::Signature
        } else {
            Kind::Attestation(statement)
        };
        let subject = match about {
            Subject::Manifest(digest) => Some(*digest),
            Subject::Artifact(_) => None,
        };
        Ok(Self { subject, proof, kind, annotations, found: found.into() })
    }

    /// From a proof about the artifact itself, which is no manifest.
    pub(super) fn of_artifact(proof: Proof, found: &str) -> Self {
        Self { subject: None, proof, kind: Kind::Signature, annotations: BTreeMap::new(), found: found.into() }
    }

    /// The manifest it is about; none for a file of `verify-bundle`.
    pub fn subject(&self) -> Option<&Digest> {
        self.subject.as_ref()
    }

    /// Who signed.
    pub fn signer(&self) -> &Signer {
        self.proof.signer()
    }

    /// The log entry, if there is one that holds.
    pub fn log(&self) -> Option<&LogEntry> {
        self.proof.log()
    }

    /// All times at which an authority for timestamps (RFC 3161) saw the signature.
    pub fn timestamps(&self) -> &[Timestamp] {
        self.proof.timestamps()
    }

    /// When the signature existed at the latest, by the word of a log or of a timestamp authority.
    pub fn logged_at(&self) -> Option<Timestamp> {
        let logged = self.log().and_then(|log| log.time);
        self.timestamps().iter().copied().chain(logged).min()
    }

    /// What it says.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The statement, if it is an attestation.
    pub fn attestation(&self) -> Option<&Statement> {
        match &self.kind {
            Kind::Signature => None,
            Kind::Attestation(statement) => Some(statement),
        }
    }

    /// What the signer noted about the subject.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// How it was found, for messages.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Why a log entry or a timestamp that came along does not count.
    pub fn doubts(&self) -> impl Iterator<Item = &str> {
        self.proof.doubts().iter().map(Doubt::why)
    }

    /// Whether something that came along was looked at and is wrong, as opposed to being of a log that nobody here knows.
    pub fn has_flaw(&self) -> bool {
        self.proof.doubts().iter().any(|doubt| matches!(doubt, Doubt::Wrong(_)))
    }
}

/// Something that looked like a signature and does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// How it was found.
    pub found: String,
    /// Whether it wanted to be an attestation.
    pub role: Role,
    /// Who it claims to be from. Nobody has proved that.
    pub claimed: Option<Signer>,
    /// The predicate type that it claims.
    pub predicate_type: Option<String>,
    /// Why it does not count.
    pub reason: String,
}

/// What a signature wanted to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A signature.
    Signature,
    /// An attestation.
    Attestation,
}
