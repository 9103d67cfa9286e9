//! From material to findings: each item on its own, by every key and by the root.
//!
//! One good signature is enough, whatever lies beside it and in whichever format, so nothing that fails here
//! ends anything: it becomes a [`Rejected`] with its reason.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use sigstore_types::Artifact;
use sigstore_types::ArtifactDigest;
use sigstore_types::Bundle;
use sigstore_types::DerCertificate;
use sigstore_types::DigestBytes;
use sigstore_types::DsseEnvelope;
use sigstore_types::DsseSignature;
use sigstore_types::HashAlgorithm;
use sigstore_types::PayloadBytes;
use sigstore_types::SignatureBytes;
use sigstore_types::SignatureContent;
use sigstore_types::bundle::MessageSignature;

use crate::digest::Digest;
use crate::trust::Limits;
use crate::trust::authority::CertificateAuthority;
use crate::trust::bundle;
use crate::trust::certificate::Certificate;
use crate::trust::chain::Chain;
use crate::trust::endorsement::Endorsement;
use crate::trust::endorsement::Rejected;
use crate::trust::endorsement::Role;
use crate::trust::json;
use crate::trust::key::PublicKey;
use crate::trust::legacy::Annotations;
use crate::trust::log::Signed;
use crate::trust::material::Form;
use crate::trust::material::Item;
use crate::trust::material::Material;
use crate::trust::message::Hash;
use crate::trust::message::Message;
use crate::trust::proof::Attached;
use crate::trust::proof::Proof;
use crate::trust::proof::Signer;
use crate::trust::root::TrustedRoot;
use crate::trust::statement::PAYLOAD_TYPE;
use crate::trust::statement::SIGNATURE_PREDICATE;
use crate::trust::statement::Statement;
use crate::trust::statement::Subject;

/// What holds about one manifest, and what does not.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// What holds.
    pub endorsements: Vec<Endorsement>,
    /// What does not.
    pub rejected: Vec<Rejected>,
}

/// Checks everything in the material against the keys and the root. An item that several keys made is
/// several endorsements.
pub fn examine(
    material: &Material,
    manifest: &Digest,
    keys: &[PublicKey],
    root: &TrustedRoot,
    limits: &Limits,
) -> Findings {
    let makers = Makers { keys, authorities: None };
    let mut findings = examine_about(material, Subject::Manifest(manifest), makers, root, limits);
    findings.rejected.extend(material.unusable.iter().map(|unusable| Rejected {
        found: unusable.found.clone(),
        role: Role::Signature,
        claimed: None,
        predicate_type: None,
        reason: unusable.why.clone(),
    }));
    findings
}

/// Checks bundles that are about a file and not about a manifest.
pub fn examine_artifact(
    material: &Material,
    artifact: &Message<'_>,
    keys: &[PublicKey],
    root: &TrustedRoot,
    limits: &Limits,
) -> Findings {
    examine_about(material, Subject::Artifact(artifact), Makers { keys, authorities: None }, root, limits)
}

/// Checks bundles over the files of a model, of which this is the hash over the hashes.
pub(super) fn examine_statement(
    material: &Material,
    over_all: &Digest,
    makers: Makers<'_>,
    root: &TrustedRoot,
    limits: &Limits,
) -> Findings {
    examine_about(material, Subject::Manifest(over_all), makers, root, limits)
}

/// Who may have made a signature, beside those whom a Sigstore certified.
#[derive(Clone, Copy)]
pub(super) struct Makers<'a> {
    pub(super) keys: &'a [PublicKey],
    /// Of models: what brings a chain of certificates and no log entry may be by one of these keys, or by a holder of a
    /// certificate of one of these authorities. `model_signing sign certificate` writes such.
    pub(super) authorities: Option<&'a [CertificateAuthority]>,
}

fn examine_about(
    material: &Material,
    about: Subject<'_>,
    makers: Makers<'_>,
    root: &TrustedRoot,
    limits: &Limits,
) -> Findings {
    let mut findings = Findings::default();
    for item in material.items.iter().take(limits.signatures) {
        Examination { about, makers, root, limits, item, findings: &mut findings }.run();
    }
    findings
}

/// Signatures in one envelope that are looked at.
const SIGNATURES: usize = 16;

struct Examination<'a> {
    about: Subject<'a>,
    makers: Makers<'a>,
    root: &'a TrustedRoot,
    limits: &'a Limits,
    item: &'a Item,
    findings: &'a mut Findings,
}

/// Whose word there is for the holder of a certificate.
enum Voucher<'a> {
    /// There is no certificate.
    Nobody,
    /// A Sigstore's, for the maker of this bundle about that.
    Sigstore(&'a Bundle, Artifact<'a>),
    /// That of any of these.
    Authority(Chain<'a>, &'a [CertificateAuthority]),
}

/// A DSSE envelope (DSSE, "envelope.md"). In a bundle it has exactly one signature.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: PayloadBytes,
    signatures: Vec<DsseSignature>,
}

/// What is known about an item while it is looked at.
#[derive(Default)]
struct Claims {
    signer: Option<Signer>,
    predicate_type: Option<String>,
}

impl Examination<'_> {
    fn run(mut self) {
        let mut claims = Claims::default();
        let found = match self.item.form {
            Form::SimpleSigning => self.simple_signing(&mut claims),
            Form::Envelope => self.envelope(&mut claims),
            Form::Bundle => self.bundle(&mut claims),
        };
        match found {
            Ok(endorsements) => self.findings.endorsements.extend(endorsements),
            Err(reason) => self.reject(claims, reason),
        }
    }

    fn reject(&mut self, claims: Claims, reason: String) {
        let is_attestation = match self.item.form {
            Form::SimpleSigning => false,
            Form::Envelope => true,
            Form::Bundle => claims.predicate_type.as_deref().is_some_and(|kind| kind != SIGNATURE_PREDICATE),
        };
        self.findings.rejected.push(Rejected {
            found: self.item.found.clone(),
            role: if is_attestation { Role::Attestation } else { Role::Signature },
            claimed: claims.signer,
            predicate_type: claims.predicate_type,
            reason,
        });
    }

    /// Cosign's payload with its signature in an annotation.
    fn simple_signing(&self, claims: &mut Claims) -> Result<Vec<Endorsement>, String> {
        let Subject::Manifest(manifest) = self.about else { return Err("it is about a manifest only".into()) };
        let payload = self.item.content.as_slice();
        self.fits(payload.len(), self.limits.signature)?;
        let annotations = Annotations::read(&self.item.annotations)?;
        claims.signer = claimed(annotations.certificate.as_ref());
        let signature = annotations.signature.as_deref().ok_or("it has no signature")?;
        let message = Message::of(payload);
        let signed = Signed::Message { message: &message, signature };
        let attached = Attached { entries: &annotations.entries, timestamps: &annotations.timestamps };
        let content = MessageSignature::new(SignatureBytes::from_bytes(signature));
        let bundle = annotations.bundle(SignatureContent::MessageSignature(content));
        let certified = match &bundle {
            Some(bundle) => Voucher::Sigstore(bundle, Artifact::from_blob(payload)),
            None => Voucher::Nobody,
        };
        let proofs = self.prove(self.makers.keys, signed, attached, certified)?;
        let endorse = |proof| Endorsement::of_payload(proof, payload, manifest, &self.item.found);
        proofs.into_iter().map(endorse).collect()
    }

    /// A DSSE envelope with everything else in annotations. Of several signatures in it each counts by itself, as if it
    /// were the only one: what stands in annotations is about one of them at most.
    fn envelope(&self, claims: &mut Claims) -> Result<Vec<Endorsement>, String> {
        self.fits(self.item.content.len(), self.limits.attestation)?;
        let Envelope { payload_type, payload, signatures } = serde_json::from_slice(&self.item.content)
            .map_err(|error| format!("the envelope is malformed: {error}"))?;
        claims.predicate_type = Statement::claimed_type(payload.as_bytes());
        let annotations = Annotations::read(&self.item.annotations)?;
        claims.signer = claimed(annotations.certificate.as_ref());
        let attached = Attached { entries: &annotations.entries, timestamps: &annotations.timestamps };
        if !(1..=SIGNATURES).contains(&signatures.len()) {
            return Err(format!("the envelope has {} signatures, not 1 to {SIGNATURES}", signatures.len()));
        }
        let mut endorsements = Vec::new();
        let mut reasons = BTreeSet::new();
        for signature in signatures {
            let envelope = DsseEnvelope::new(payload_type.clone(), payload.clone(), signature);
            let bundle = annotations.bundle(SignatureContent::DsseEnvelope(envelope.clone()));
            let certified = bundle.as_ref().map_or(Ok(Voucher::Nobody), |bundle| self.certified(bundle))?;
            match self.statement(&envelope, attached, certified, self.makers.keys) {
                Ok(found) => endorsements.extend(found),
                Err(why) => drop(reasons.insert(why)),
            }
        }
        match endorsements.is_empty() {
            true => Err(reasons.into_iter().collect::<Vec<_>>().join("; ")),
            false => Ok(endorsements),
        }
    }

    /// A Sigstore bundle.
    fn bundle(&self, claims: &mut Claims) -> Result<Vec<Endorsement>, String> {
        self.fits(self.item.content.len(), self.limits.attestation)?;
        let bundle = bundle::read(&self.item.content)?;
        let material = &bundle.verification_material;
        claims.signer = claimed(bundle.signing_certificate());
        let (keys, certified) = match (Chain::of(&bundle), self.makers.authorities) {
            (None, _) => (self.makers.keys, Voucher::Nobody),
            (Some(chain), Some(authorities)) if material.tlog_entries.is_empty() => {
                (self.makers.keys, Voucher::Authority(chain, authorities))
            }
            // What names a certificate was not made by a key that is known otherwise.
            (Some(_), _) => (&[][..], self.certified(&bundle)?),
        };
        let attached = Attached::to(&bundle);
        match &bundle.content {
            SignatureContent::DsseEnvelope(envelope) => {
                claims.predicate_type = Statement::claimed_type(envelope.payload.as_bytes());
                self.statement(envelope, attached, certified, keys)
            }
            SignatureContent::MessageSignature(signature) => self.message(signature, attached, certified, keys),
            _ => Err("the bundle holds neither an envelope nor a signature".into()),
        }
    }

    fn statement(
        &self,
        envelope: &DsseEnvelope,
        attached: Attached<'_>,
        certified: Voucher<'_>,
        keys: &[PublicKey],
    ) -> Result<Vec<Endorsement>, String> {
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(format!("the payload is of type {:?}", envelope.payload_type));
        }
        let payload = envelope.payload.as_bytes();
        if Statement::claimed_type(payload).as_deref() == Some(SIGNATURE_PREDICATE) {
            self.fits(payload.len(), self.limits.signature)?;
        }
        let encoded = envelope.pae();
        let message = Message::of(&encoded);
        let signed = Signed::Envelope { message: &message, envelope };
        let proofs = self.prove(keys, signed, attached, certified)?;
        proofs
            .into_iter()
            .map(|proof| Endorsement::of_statement(proof, payload, self.about, &self.item.found))
            .collect()
    }

    /// A signature over the artifact itself. About a manifest it says nothing: that is what statements are for.
    fn message(
        &self,
        content: &MessageSignature,
        attached: Attached<'_>,
        certified: Voucher<'_>,
        keys: &[PublicKey],
    ) -> Result<Vec<Endorsement>, String> {
        let Subject::Artifact(artifact) = self.about else {
            return Err("it is the signature of a file, not of a kit".into());
        };
        if let Some(said) = &content.message_digest {
            let expected = hash(said.algorithm).and_then(|hash| artifact.digest(hash));
            if expected != Some(said.digest.as_bytes()) {
                return Err("it is the signature of something else".into());
            }
        }
        let signed = Signed::Message { message: artifact, signature: content.signature.as_bytes() };
        let proofs = self.prove(keys, signed, attached, certified)?;
        Ok(proofs.into_iter().map(|proof| Endorsement::of_artifact(proof, &self.item.found)).collect())
    }

    /// Every proof of who made the signature: by each key that did, and by the certificate that comes along.
    fn prove(
        &self,
        keys: &[PublicKey],
        signed: Signed<'_>,
        attached: Attached<'_>,
        certified: Voucher<'_>,
    ) -> Result<Vec<Proof>, String> {
        let mut proofs = Vec::new();
        let mut reasons = Vec::new();
        for key in keys {
            match Proof::by_key(key, signed, attached, self.root) {
                Ok(proof) => proofs.extend(proof),
                Err(why) => reasons.push(why),
            }
        }
        match certified {
            Voucher::Sigstore(bundle, artifact) => match Proof::by_certificate(bundle, signed, artifact, self.root) {
                Ok(proof) => proofs.push(proof),
                Err(why) => reasons.push(why),
            },
            Voucher::Authority(chain, authorities) => {
                for authority in authorities {
                    match Proof::by_authority(authority, chain, signed, attached, self.root) {
                        Ok(proof) => proofs.push(proof),
                        Err(why) => reasons.push(why),
                    }
                }
            }
            Voucher::Nobody => {}
        }
        if reasons.is_empty() {
            reasons.push("none of the keys that are trusted made it".into());
        }
        if proofs.is_empty() { Err(reasons.join("; ")) } else { Ok(proofs) }
    }

    fn certified<'b>(&'b self, bundle: &'b Bundle) -> Result<Voucher<'b>, String> {
        Ok(Voucher::Sigstore(bundle, self.artifact()?))
    }

    /// The subject as the verifier of certificates takes it.
    fn artifact(&self) -> Result<Artifact<'_>, String> {
        let digest = |algorithm, bytes: &[u8]| {
            let digest = ArtifactDigest::new(algorithm, DigestBytes::new(bytes.to_vec()));
            digest.map(Artifact::Digest).map_err(|error| error.to_string())
        };
        match self.about {
            Subject::Manifest(Digest::Sha256(bytes)) => digest(HashAlgorithm::Sha2256, bytes),
            Subject::Manifest(Digest::Sha512(bytes)) => digest(HashAlgorithm::Sha2512, bytes),
            Subject::Artifact(message) => match (message.content(), message.digest(Hash::Sha256)) {
                (Some(content), _) => Ok(Artifact::from_blob(content)),
                (None, Some(bytes)) => digest(HashAlgorithm::Sha2256, bytes),
                (None, None) => Err("its SHA-256 is not known".into()),
            },
        }
    }

    fn fits(&self, len: usize, limit: u64) -> Result<(), String> {
        if len as u64 <= limit { Ok(()) } else { Err(format!("it has {len} bytes, and at most {limit} are looked at")) }
    }
}

/// The statement in a bundle, before anything about it is proved: it says what to ask for.
pub(super) fn statement_of(content: &[u8], limits: &Limits) -> Result<Value, String> {
    if content.len() as u64 > limits.attestation {
        return Err(format!("it has {} bytes, and at most {} are looked at", content.len(), limits.attestation));
    }
    match bundle::read(content)?.content {
        SignatureContent::DsseEnvelope(envelope) => {
            json::strict(envelope.payload.as_bytes()).map_err(|error| format!("the statement is malformed: {error}"))
        }
        _ => Err("the bundle holds no statement".into()),
    }
}

fn hash(algorithm: HashAlgorithm) -> Option<Hash> {
    match algorithm {
        HashAlgorithm::Sha2256 => Some(Hash::Sha256),
        HashAlgorithm::Sha2384 => Some(Hash::Sha384),
        HashAlgorithm::Sha2512 => Some(Hash::Sha512),
        _ => None,
    }
}

/// Who a certificate that proves nothing yet claims to be.
fn claimed(certificate: Option<&DerCertificate>) -> Option<Signer> {
    Certificate::read(certificate?).ok().map(Signer::Certificate)
}
