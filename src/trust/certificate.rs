//! What a Fulcio certificate says about its holder (fulcio, "docs/oid-info.md").
//!
//! Read after the certificate was proved, or to tell who a refused one claims to be.

use std::collections::BTreeMap;

use serde::Serialize;
use sigstore_types::DerCertificate;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The arc of Fulcio's extensions.
const ARC: &str = "1.3.6.1.4.1.57264.1.";
/// Under it: the issuer as bare text, and as the DER that replaced it.
const OLD_ISSUER: &str = "1";
const ISSUER: &str = "8";
/// The type of the names `user!domain` of Fulcio's username identities.
const USERNAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.7");

/// Extensions that have a name here; others go by their number.
const NAMES: [(&str, &str); 21] = [
    ("2", "github_workflow_trigger"),
    ("3", "github_workflow_sha"),
    ("4", "github_workflow_name"),
    ("5", "github_workflow_repository"),
    ("6", "github_workflow_ref"),
    ("9", "build_signer_uri"),
    ("10", "build_signer_digest"),
    ("11", "runner_environment"),
    ("12", "source_repository_uri"),
    ("13", "source_repository_digest"),
    ("14", "source_repository_ref"),
    ("15", "source_repository_identifier"),
    ("16", "source_repository_owner_uri"),
    ("17", "source_repository_owner_identifier"),
    ("18", "build_config_uri"),
    ("19", "build_config_digest"),
    ("20", "build_trigger"),
    ("21", "run_invocation_uri"),
    ("22", "source_repository_visibility_at_signing"),
    ("23", "deployment_environment"),
    ("24", "token_subject"),
];

/// Reads PEM `CERTIFICATE`s one after another, at most so many.
pub(super) fn read_pem(text: &str, most: usize) -> Result<Vec<DerCertificate>, String> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = text.split_inclusive(END).map(str::trim).filter(|block| !block.is_empty()).take(most);
    blocks.map(|block| DerCertificate::from_pem(block).map_err(|error| error.to_string())).collect()
}

/// Who a certificate was issued to, and on whose word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The only name in it: an e-mail address, a URI, or `user!domain`.
    pub identity: String,
    /// The OIDC issuer that vouched for it.
    pub issuer: String,
    /// What CI systems say about the build, by the names of `oid-info.md` in snake case
    /// (`source_repository_uri`, `build_trigger`, …), else by the number under Fulcio's arc.
    pub extensions: BTreeMap<String, String>,
}

impl Certificate {
    /// Reads a certificate; the error says what it lacks.
    pub(super) fn read(der: &DerCertificate) -> Result<Self, String> {
        let malformed = |error: x509_cert::der::Error| format!("the certificate is malformed: {error}");
        let certificate = X509::from_der(der.as_bytes()).map_err(malformed)?.tbs_certificate;
        let names: Option<(bool, SubjectAltName)> = certificate.get().map_err(malformed)?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let [name] = names.as_slice() else {
            return Err(format!("the certificate has {} names, and should have exactly one", names.len()));
        };
        let identity = match name {
            GeneralName::Rfc822Name(email) => email.to_string(),
            GeneralName::UniformResourceIdentifier(uri) => uri.to_string(),
            GeneralName::OtherName(other) if other.type_id == USERNAME => {
                other.value.decode_as::<Utf8StringRef<'_>>().map_err(malformed)?.to_string()
            }
            _ => return Err("the certificate's name is no e-mail address, URI or user name".into()),
        };
        let mut extensions = BTreeMap::new();
        for extension in certificate.extensions.iter().flatten() {
            let id = extension.extn_id.to_string();
            let Some(number) = id.strip_prefix(ARC) else { continue };
            let value = extension.extn_value.as_bytes();
            let text = match number {
                OLD_ISSUER | "2" | "3" | "4" | "5" | "6" => String::from_utf8(value.to_vec()).ok(),
                _ => Utf8StringRef::from_der(value).ok().map(|text| text.to_string()),
            };
            let text = text.ok_or_else(|| format!("the certificate's extension {id} is no text"))?;
            let named = NAMES.iter().find(|(known, _)| *known == number).map_or(number, |(_, name)| name);
            if extensions.insert(named.to_owned(), text).is_some() {
                return Err(format!("the certificate's extension {id} stands twice"));
            }
        }
        let old = extensions.remove(OLD_ISSUER);
        let issuer =
            extensions.remove(ISSUER).or(old).ok_or("the certificate does not say who vouched for its name")?;
        Ok(Self { identity, issuer, extensions })
    }
}
