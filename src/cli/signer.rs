//! Who must have signed, as the options of a command say it, for what is no kit: bundles and model signatures.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use regex::Regex;

use crate::cli::failure::Error;
use crate::cli::text;
use crate::policy::Identity;
use crate::trust::Certificate;
use crate::trust::PublicKey;
use crate::trust::Signer;
use crate::trust::SigningKey;

/// Whose signature is asked for.
pub struct Wanted {
    pub keys: Vec<PublicKey>,
    holder: Option<[Text; 2]>,
}

impl Wanted {
    /// Reads the keys and expressions; without any of them anybody could have signed, which is wrong usage.
    pub fn new(keys: &[PathBuf], identity: &Identity) -> Result<Self, Error> {
        let read_key = |path: &PathBuf| {
            let usage = |why: String| Error::Usage(format!("--key {}: {why}", path.display()));
            let pem = read(path, 1 << 20).map_err(|error| usage(text::chain(&error)))?;
            PublicKey::from_pem(&pem).map_err(|error| usage(error.to_string()))
        };
        let keys = keys.iter().map(read_key).collect::<Result<Vec<_>, _>>()?;
        let issuer = Text::new(&identity.issuer, &identity.issuer_regexp)?;
        let identity = Text::new(&identity.identity, &identity.identity_regexp)?;
        let holder = match (identity, issuer) {
            (Some(identity), Some(issuer)) => Some([identity, issuer]),
            (None, None) => None,
            _ => return Err(Error::Usage("a certificate identity and its issuer are needed together".into())),
        };
        if keys.is_empty() && holder.is_none() {
            return Err(Error::Usage("--key or a certificate identity is needed: else anybody may have signed".into()));
        }
        Ok(Self { keys, holder })
    }

    /// Whether this is somebody who is asked for.
    pub fn accepts(&self, signer: &Signer) -> bool {
        match (signer, &self.holder) {
            // Only keys that were given are tried.
            (Signer::Key { .. }, _) => true,
            (Signer::Certificate(Certificate { identity, issuer, .. }), Some([wanted, by])) => {
                wanted.accepts(identity) && by.accepts(issuer)
            }
            (Signer::Certificate(_), None) => false,
        }
    }
}

enum Text {
    Exact(String),
    Matching(Regex),
}

impl Text {
    fn new(exact: &Option<String>, expression: &Option<String>) -> Result<Option<Self>, Error> {
        let Some(expression) = expression else { return Ok(exact.clone().map(Self::Exact)) };
        let wrong = |error: regex::Error| Error::Usage(format!("{expression:?} is no regular expression: {error}"));
        // By itself first: it must not close the group that it is put into.
        Regex::new(expression).map_err(wrong)?;
        let whole = Regex::new(&format!(r"\A(?:{expression})\z")).map_err(wrong)?;
        Ok(Some(Self::Matching(whole)))
    }

    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Matching(expression) => expression.is_match(text),
        }
    }
}

/// The key of `--sign-key`: PEM PKCS#8, or cosign's with its password in `COSIGN_PASSWORD`.
pub fn signing_key(path: &Path) -> Result<SigningKey, Error> {
    let password = std::env::var_os("COSIGN_PASSWORD");
    Ok(SigningKey::read(path, password.as_deref().map(OsStr::as_encoded_bytes))?)
}

/// A small file whole.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}
