//! Sigstore roots: whose certificates, logs and timestamps count.
//!
//! The public-good root comes with the program, as it was published when `sigstore-trust-root` was; a file
//! replaces it (`trusted_root.json`; sigstore protobuf-specs, "sigstore_trustroot.proto"). Nobody is
//! called for either; only [`TrustedRoot::fetch`] asks the public instance, when somebody says so.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sigstore_trust_root::SigstoreInstance;
use sigstore_trust_root::TufBootstrap;
use sigstore_trust_root::TufConfig;
use sigstore_types::TimeRange;
use sigstore_verify::Verifier;
use sigstore_verify::crypto::Keyring;
use tempfile::NamedTempFile;

use crate::fault::Fault;
use crate::trust::json;

/// A file with more bytes than this is no trusted root.
const LIMIT: u64 = 4 * 1024 * 1024;

/// Whose certificates, logs and timestamps count. Clones share it.
#[derive(Clone)]
pub struct TrustedRoot(Arc<Inner>);

struct Inner {
    origin: Origin,
    text: String,
    parts: sigstore_trust_root::TrustedRoot,
    verifier: Verifier,
    logs: Keyring,
}

/// Where a trusted root came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It comes with the program.
    Embedded,
    /// Somebody gave it.
    File(PathBuf),
}

impl TrustedRoot {
    /// The root of the public-good instance, as the program brings it.
    pub fn embedded() -> Result<Self, InvalidRoot> {
        Self::read(SigstoreInstance::PublicGood.embedded_trusted_root_json().to_owned(), Origin::Embedded)
    }

    /// A root from a file.
    pub fn from_file(path: &Path) -> Result<Self, InvalidRoot> {
        let origin = Origin::File(path.to_owned());
        match String::from_utf8(read_limited(path)?) {
            Ok(text) => Self::read(text, origin),
            Err(error) => Err(InvalidRoot::Malformed { origin, why: error.to_string() }),
        }
    }

    /// The root that counts where nobody gives one: the file that an update left, else the embedded one.
    pub fn standing(installed: &Path) -> Result<Self, InvalidRoot> {
        match Self::from_file(installed) {
            Err(InvalidRoot::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Self::embedded(),
            read => read,
        }
    }

    /// Fetches a root over TUF, which checks it against the keys of a first TUF root: that of the public-good
    /// instance comes with the program, and `first` replaces it. `mirror` is asked in place of that instance.
    pub async fn fetch(mirror: Option<&str>, first: Option<&Path>, within: Duration) -> Result<Self, UpdateError> {
        let public = SigstoreInstance::PublicGood;
        let first = match first {
            Some(path) => read_limited(path)?,
            None => public.tuf_root().to_vec(),
        };
        let config =
            TufConfig::custom(mirror.unwrap_or(public.tuf_url()), TufBootstrap::trusted(first)).without_cache();
        let fetched = sigstore_trust_root::TrustedRoot::from_tuf(config);
        let fetched = tokio::time::timeout(within, fetched).await.map_err(|_| UpdateError::Late(within))?;
        let text = fetched.and_then(|root| Ok(serde_json::to_string_pretty(&root)?)).map_err(UpdateError::Fetch)?;
        Ok(Self::read(text, Origin::Embedded)?)
    }

    /// Keeps this root in a file, all of it or nothing.
    pub fn install(&self, path: &Path) -> Result<Self, UpdateError> {
        let failed = |source| UpdateError::Keep { path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(self.0.text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(Self::from_file(path)?)
    }

    fn read(text: String, origin: Origin) -> Result<Self, InvalidRoot> {
        let malformed = |why: String| InvalidRoot::Malformed { origin: origin.clone(), why };
        json::strict(text.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let parts = sigstore_trust_root::TrustedRoot::from_json(&text).map_err(|error| malformed(error.to_string()))?;
        let is_root = parts.media_type.starts_with("application/vnd.dev.sigstore.trustedroot");
        if !is_root {
            return Err(malformed(format!("its media type is {:?}", parts.media_type)));
        }
        let verifier = Verifier::new(&parts).map_err(|error| malformed(error.to_string()))?;
        let logs = parts.rekor_keys().map_err(|error| malformed(error.to_string()))?;
        Ok(Self(Arc::new(Inner { origin, text, parts, verifier, logs })))
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// The root as it was read: JSON.
    pub fn json(&self) -> &str {
        &self.0.text
    }

    /// What is in it, for people: one line an authority.
    pub fn authorities(&self) -> Vec<Authority> {
        let parts = &self.0.parts;
        let authority = |role, name: String, window: Option<TimeRange>| Authority {
            role,
            name,
            from: window.map(|window| window.start),
            until: window.and_then(|window| window.end),
        };
        let logs = parts.tlogs.iter().map(|log| authority("log", log.base_url.clone(), log.public_key.valid_for));
        let authorities =
            parts.certificate_authorities.iter().map(|ca| authority("certificates", ca.uri.clone(), ca.valid_for));
        let ct = parts.ctlogs.iter().map(|log| authority("ct-log", log.base_url.clone(), log.public_key.valid_for));
        let stamps = parts.timestamp_authorities.iter().map(|tsa| {
            let name = tsa.uri.clone().or_else(|| tsa.subject.common_name.clone());
            authority("timestamps", name.unwrap_or_default(), tsa.valid_for)
        });
        logs.chain(authorities).chain(ct).chain(stamps).collect()
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    /// The keys of the transparency logs.
    pub(super) fn logs(&self) -> &Keyring {
        &self.0.logs
    }

    pub(super) fn parts(&self) -> &sigstore_trust_root::TrustedRoot {
        &self.0.parts
    }
}

fn read_limited(path: &Path) -> Result<Vec<u8>, InvalidRoot> {
    let unreadable = |source| InvalidRoot::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > LIMIT {
        let why = format!("it has more than {LIMIT} bytes");
        return Err(InvalidRoot::Malformed { origin: Origin::File(path.to_owned()), why });
    }
    Ok(bytes)
}

impl std::fmt::Debug for TrustedRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TrustedRoot").field(&self.0.origin).finish()
    }
}

/// One authority in a trusted root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// What it is trusted for: `log`, `certificates`, `ct-log`, `timestamps`.
    pub role: &'static str,
    /// Its URL or name.
    pub name: String,
    /// From when on what it says counts.
    pub from: Option<Timestamp>,
    /// Until when.
    pub until: Option<Timestamp>,
}

/// Why there is no trusted root.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRoot {
    /// The file cannot be read.
    #[error("cannot read the trusted root {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no trusted root.
    #[error("{origin} is malformed: {why}")]
    Malformed {
        /// Which one.
        origin: Origin,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a trusted root could not be fetched or kept.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// It is not there in time.
    #[error("the trusted root was not fetched within {0:?}")]
    Late(Duration),
    /// It could not be fetched, or is not signed as it should be.
    #[error("cannot fetch the trusted root")]
    Fetch(#[source] sigstore_trust_root::Error),
    /// What came is no trusted root.
    #[error(transparent)]
    Invalid(#[from] InvalidRoot),
    /// It cannot be kept.
    #[error("cannot keep the trusted root as {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl InvalidRoot {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        Fault::Usage
    }
}

impl UpdateError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Late(_) | Self::Fetch(_) => Fault::Unreachable,
            Self::Invalid(error) => error.fault(),
            Self::Keep { .. } => Fault::Other,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded trusted root"),
            Self::File(path) => write!(f, "the trusted root {}", path.display()),
        }
    }
}
