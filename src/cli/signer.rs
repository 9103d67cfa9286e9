//! Who must have signed, as the options of a command say it, for what is no kit: bundles and model signatures.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::failure::Error;
use crate::policy;
use crate::policy::Identity;
use crate::trust::CertificateAuthority;
use crate::trust::PublicKey;
use crate::trust::Signer;
use crate::trust::SigningKey;

/// Whose signature is asked for.
pub struct Wanted {
    pub keys: Vec<PublicKey>,
    pub authorities: Vec<CertificateAuthority>,
    holder: Option<policy::Wanted>,
}

impl Wanted {
    /// Reads the keys and expressions; without any of them anybody could have signed, which is wrong usage.
    pub fn new(keys: &[PathBuf], identity: &Identity) -> Result<Self, Error> {
        match Self::read(keys, &[], identity)? {
            Some(wanted) => Ok(wanted),
            None => Err(Error::Usage("--key or a certificate identity is needed: else anybody may have signed".into())),
        }
    }

    /// The same of a model, which holders of certificates of an authority may have signed too.
    pub fn of_model(keys: &[PathBuf], authorities: &[PathBuf], identity: &Identity) -> Result<Self, Error> {
        let nobody = "--key, --model-ca or a certificate identity is needed: else anybody may have signed the model";
        Self::read(keys, authorities, identity)?.ok_or_else(|| Error::Usage(nobody.into()))
    }

    fn read(keys: &[PathBuf], authorities: &[PathBuf], identity: &Identity) -> Result<Option<Self>, Error> {
        let keys = keys.iter().map(|path| policy::read_key(path)).collect::<Result<Vec<_>, _>>()?;
        let authorities = authorities.iter().map(|path| policy::read_authorities(path));
        let authorities: Vec<_> = authorities.collect::<Result<Vec<_>, _>>()?.concat();
        let holder = (*identity != Identity::default()).then(|| identity.wanted()).transpose()?;
        let is_anybody = keys.is_empty() && authorities.is_empty() && holder.is_none();
        Ok((!is_anybody).then_some(Self { keys, authorities, holder }))
    }

    /// Whether this is somebody who is asked for. Only keys and authorities that were given are tried.
    pub fn accepts(&self, signer: &Signer) -> bool {
        match signer {
            Signer::Key { .. } | Signer::Certified { .. } => true,
            Signer::Certificate(_) => self.holder.as_ref().is_some_and(|holder| holder.accepts(&signer.into())),
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
