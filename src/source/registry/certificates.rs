//! Certificate files of `--ca-cert`. The HTTP client takes junk without a word, so it is refused here.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::files;

/// Reads every certificate of the files. A file without one, or with one that is none, is refused.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let mut all = Vec::new();
    for path in paths {
        let unusable = |why: String| SourceError::Configuration { what: path.display().to_string(), why };
        let (file, len) = files::open_regular(path).map_err(|error| unusable(error.to_string()))?;
        if len > METADATA_LIMIT {
            return Err(unusable(format!("it has {len} bytes, too many for a file of certificates")));
        }
        let mut pem = vec![0; len as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut pem, 0).map_err(|error| unusable(error.to_string()))?;
        let before = all.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(format!("it is not PEM: {error}")))?;
            RootCertStore::empty()
                .add(certificate.clone())
                .map_err(|error| unusable(format!("a certificate in it cannot be read: {error}")))?;
            all.push(certificate);
        }
        if all.len() == before {
            return Err(unusable("it holds no PEM certificate".into()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let junk = "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n";
        for (name, content) in [("empty.pem", ""), ("text.pem", "hello"), ("junk.pem", junk)] {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let error = read(&[path]).unwrap_err();
            assert!(matches!(error, SourceError::Configuration { .. }) && error.to_string().contains(name), "{error}");
        }
        assert!(read(&[folder.path().join("missing.pem")]).unwrap_err().to_string().contains("missing.pem"));
    }
}
