//! Who stands behind a kit: signatures and attestations, found, proved, and told apart.
//!
//! The second of three proofs: that the content is what a digest names ([`crate::verify`]), that somebody
//! vouches for the digest ([`Endorsement`], here), and that this is who must (the policy). Nothing is
//! decided here: [`examine`] says what holds and what does not, and why.
//!
//! Signatures are those of cosign 2 and 3, and of everything else that writes Sigstore bundles; roots are
//! Sigstore's. No network is used but the kit's own source, in [`Material::collect`].

mod authority;
mod bundle;
mod certificate;
mod chain;
mod endorsement;
mod examine;
mod json;
mod key;
mod legacy;
mod log;
mod material;
mod message;
mod model;
mod proof;
mod root;
mod signing;
mod statement;

use serde::Deserialize;
use serde::Serialize;

pub use crate::trust::authority::CertificateAuthority;
pub use crate::trust::authority::InvalidAuthority;
pub use crate::trust::certificate::Certificate;
pub use crate::trust::endorsement::Endorsement;
pub use crate::trust::endorsement::Kind;
pub use crate::trust::endorsement::Rejected;
pub use crate::trust::endorsement::Role;
pub use crate::trust::examine::Findings;
pub use crate::trust::examine::examine;
pub use crate::trust::examine::examine_artifact;
pub use crate::trust::json::strict as strict_json;
pub use crate::trust::key::InvalidKey;
pub use crate::trust::key::KeyKind;
pub use crate::trust::key::PublicKey;
pub use crate::trust::log::LogEntry;
pub use crate::trust::material::Material;
pub use crate::trust::material::TrustError;
pub use crate::trust::message::Message;
pub use crate::trust::model::MODEL_PREDICATE;
pub use crate::trust::model::ModelError;
pub use crate::trust::model::ModelManifest;
pub use crate::trust::model::ModelSignature;
pub use crate::trust::model::ModelSigners;
pub use crate::trust::model::Part;
pub use crate::trust::model::PartCheck;
pub use crate::trust::model::Plan;
pub use crate::trust::model::examine_model;
pub use crate::trust::proof::Signer;
pub use crate::trust::root::Authority;
pub use crate::trust::root::InvalidRoot;
pub use crate::trust::root::Origin;
pub use crate::trust::root::TrustedRoot;
pub use crate::trust::root::UpdateError;
pub use crate::trust::signing::BUNDLE_MEDIA_TYPE;
pub use crate::trust::signing::SigningError;
pub use crate::trust::signing::SigningKey;
pub use crate::trust::statement::SIGNATURE_PREDICATE;
pub use crate::trust::statement::Statement;

/// How much is looked at. What is beyond counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of one signature.
    pub signature: u64,
    /// Manifests beside a kit, and signatures and attestations in them.
    pub signatures: usize,
    /// Bytes of one attestation.
    pub attestation: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { signature: 1 << 20, signatures: 256, attestation: 16 << 20 }
    }
}
