//! Signers as a policy names them, and as a signature shows them.

use std::collections::BTreeMap;
use std::fmt;

use crate::policy::text::Whole;
use crate::policy::text::whole;

/// Who made a signature that holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signer {
    /// Whoever has the private key.
    Key {
        /// `key:sha256:<hexadecimal digest of the public key as SubjectPublicKeyInfo>`.
        fingerprint: String,
    },
    /// Whom an identity provider vouched for.
    Certificate {
        /// The subject: an e-mail address, a URI of a workflow, `user!domain`.
        identity: String,
        /// The provider.
        issuer: String,
        /// What the provider says of a CI run, by the names of the documentation.
        extensions: BTreeMap<String, String>,
    },
    /// Whom an authority that a policy names certified.
    Certified {
        /// The subject of the certificate.
        subject: String,
        /// `ca:sha256:<hexadecimal digest of its public key as SubjectPublicKeyInfo>`.
        authority: String,
    },
}

/// Whom a policy accepts.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The owner of a key.
    Key {
        /// The file as the policy names it.
        name: String,
        /// As in [`Signer::Key`].
        fingerprint: String,
    },
    /// Somebody with a certificate.
    Certificate {
        /// The subject.
        identity: Matcher,
        /// The provider.
        issuer: Matcher,
        /// Extensions that the certificate must have, with these values.
        extensions: BTreeMap<String, Matcher>,
    },
    /// Anybody with a certificate of one of these authorities.
    Authority {
        /// The file as the policy names it.
        name: String,
        /// As in [`Signer::Certified`].
        fingerprints: Vec<String>,
    },
}

/// A text, or a regular expression that has to match the whole text.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Exactly this.
    Exact(String),
    /// Anything that matches.
    Regexp(Whole),
}

impl Signer {
    /// Who it is. What else a certificate says does not make it another: two runs of one workflow are one signer.
    pub(in crate::policy) fn who(&self) -> (&str, Option<&str>) {
        match self {
            Self::Key { fingerprint } => (fingerprint, None),
            Self::Certificate { identity, issuer, .. } => (identity, Some(issuer)),
            Self::Certified { subject, authority } => (subject, Some(authority)),
        }
    }
}

impl Matcher {
    /// An exact text or a regular expression, one of the two.
    pub(in crate::policy) fn parse(exact: Option<String>, regexp: Option<String>, what: &str) -> Result<Self, String> {
        match (exact, regexp) {
            (Some(exact), None) => Ok(Self::Exact(exact)),
            (None, Some(regexp)) => whole(&regexp).map(Self::Regexp).map_err(|why| format!("{what}: {why}")),
            (Some(_), Some(_)) => Err(format!("the {what} is a text or a regular expression, not both")),
            (None, None) => Err(format!("the {what} is missing: a certificate counts by its identity and its issuer")),
        }
    }

    /// Whether a text is accepted.
    pub fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Regexp(regex) => regex.is_match(text),
        }
    }
}

impl Wanted {
    /// Whether it is about this signer.
    pub fn accepts(&self, signer: &Signer) -> bool {
        match (self, signer) {
            (Self::Key { fingerprint: wanted, .. }, Signer::Key { fingerprint }) => wanted == fingerprint,
            (
                Self::Certificate { identity: wanted, issuer: by, extensions: with },
                Signer::Certificate { identity, issuer, extensions },
            ) => {
                wanted.accepts(identity)
                    && by.accepts(issuer)
                    && with.iter().all(|(name, value)| extensions.get(name).is_some_and(|found| value.accepts(found)))
            }
            (Self::Authority { fingerprints, .. }, Signer::Certified { authority, .. }) => {
                fingerprints.contains(authority)
            }
            _ => false,
        }
    }

    /// Whether it can be about more than one signer.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Key { .. } => false,
            Self::Authority { .. } => true,
            Self::Certificate { identity, issuer, .. } => {
                matches!(identity, Matcher::Regexp(_)) || matches!(issuer, Matcher::Regexp(_))
            }
        }
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { fingerprint } => f.write_str(fingerprint),
            Self::Certificate { identity, issuer, .. } => write!(f, "{identity} ({issuer})"),
            Self::Certified { subject, authority } => write!(f, "{subject} ({authority})"),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { name, fingerprint } => write!(f, "{name} ({fingerprint})"),
            Self::Authority { name, fingerprints } => write!(f, "{name} ({})", fingerprints.join(", ")),
            Self::Certificate { identity, issuer, extensions } => {
                write!(f, "{identity} ({issuer})")?;
                extensions.iter().try_for_each(|(name, value)| write!(f, " with {name} {value}"))
            }
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regexp(regex) => regex.fmt(f),
        }
    }
}
