//! Where kitfs keeps what it keeps, and where it looks for its files.
//!
//! Root's folders are fixed and root reads no XDG variables: `sudo` passes them on, and they are then
//! another user's. Everybody else's follow the XDG base directory specification.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;

use crate::config::ConfigError;

/// The folder of the host's own files.
const HOST: &str = "/etc/kitfs";

/// Where kitfs keeps what it keeps. Absolute paths; not made yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// The store.
    pub cache: PathBuf,
    /// Mount records, keys, logs.
    pub state: PathBuf,
    /// Sockets and pids.
    pub runtime: PathBuf,
}

/// The variables of a process, and whether it is root's.
#[derive(Clone, Debug)]
pub struct Environment {
    variables: HashMap<OsString, OsString>,
    user: User,
}

/// Who asks, as far as folders depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// User 0.
    Root,
    /// Anybody else.
    Other,
}

impl From<rustix::process::Uid> for User {
    fn from(user: rustix::process::Uid) -> Self {
        if user.is_root() { Self::Root } else { Self::Other }
    }
}

impl Environment {
    /// That of this process.
    pub fn current() -> Self {
        Self::new(std::env::vars_os(), rustix::process::geteuid().into())
    }

    /// One with these variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>, user: User) -> Self {
        Self { variables: variables.into_iter().collect(), user }
    }

    /// The value of a variable; one that is empty is as good as none.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(OsStr::new(name)).filter(|value| !value.is_empty()).cloned()
    }

    /// The files that are read when none is named, the one that counts most last.
    pub(in crate::config) fn config_files(&self) -> Vec<PathBuf> {
        self.files("config.toml")
    }

    /// The policies that count whatever is named, where they are there.
    pub(in crate::config) fn policy_files(&self) -> Vec<PathBuf> {
        self.files("policy.toml")
    }

    /// Whether a policy is the host's, and somebody else than root asks: then no option overrules it.
    pub(in crate::config) fn is_firm(&self, policy: &Path) -> bool {
        self.user == User::Other && policy.starts_with(HOST)
    }

    /// A file of the host, and of the user.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        let mut files = vec![Path::new(HOST).join(name)];
        if self.user == User::Other {
            files.extend(self.xdg("XDG_CONFIG_HOME", ".config").map(|folder| folder.join(name)));
        }
        files
    }

    /// The folder `kitfs` in the one that an XDG variable names, or in its default under `$HOME`.
    fn xdg(&self, name: &str, default: &str) -> Option<PathBuf> {
        let named = self.absolute(name);
        let folder = named.or_else(|| self.absolute("HOME").map(|home| home.join(default)))?;
        Some(folder.join("kitfs"))
    }

    /// "All paths set in these environment variables must be absolute. If an implementation encounters
    /// a relative path […] it should consider the path invalid and ignore it."
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

impl Folders {
    /// The folders that were named, and the usual ones for the others. A state folder that was named
    /// takes the runtime folder with it, so that one option is enough to stand apart.
    pub(in crate::config) fn new(
        cache: Option<PathBuf>,
        state: Option<PathBuf>,
        runtime: Option<PathBuf>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let usual = |root: &str, variable: &str, default: &str, option| match environment.user {
            User::Root => Ok(PathBuf::from(root)),
            User::Other => environment.xdg(variable, default).ok_or(ConfigError::NoHome { option }),
        };
        let run_of_state = |state: &Path| state.join("run");
        let runtime = match (runtime, &state, environment.user) {
            (Some(runtime), _, _) => Some(runtime),
            (None, Some(state), _) => Some(run_of_state(state)),
            (None, None, User::Root) => Some("/run/kitfs".into()),
            (None, None, User::Other) => environment.absolute("XDG_RUNTIME_DIR").map(|folder| folder.join("kitfs")),
        };
        let cache = match cache {
            Some(cache) => cache,
            None => usual("/var/cache/kitfs", "XDG_CACHE_HOME", ".cache", "cache-dir")?,
        };
        let state = match state {
            Some(state) => state,
            None => usual("/var/lib/kitfs", "XDG_STATE_HOME", ".local/state", "state-dir")?,
        };
        Ok(Self { cache, runtime: runtime.unwrap_or_else(|| run_of_state(&state)), state })
    }
    /// Where an update puts the Sigstore root that counts from then on.
    pub fn installed_root(&self) -> PathBuf {
        self.state.join("trusted_root.json")
    }
}
