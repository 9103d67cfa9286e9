//! User names and passwords for registries, as `kit login` and `docker login` keep them.
//!
//! The files have the shape of Docker's `config.json`: `auths`, `credHelpers`, `credsStore`. Helpers are
//! programs (`docker-credential-NAME get`) and run here, because one that hangs must die with its
//! children at a deadline, for which the crates that run them have no place. Nothing is written, and no
//! secret is printed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process_group;
use rustix::process::set_parent_process_death_signal;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::kit::descriptor::null_is_empty;
use crate::patience::Patience;
use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::files;
use crate::source::kitops;

/// The longest that a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// More than any helper has to say.
const HELPER_OUTPUT_LIMIT: u64 = 64 * 1024;

/// What a registry is told to know us.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A user name and a password, or an access token in its place.
    Password {
        /// The user's name.
        user: String,
        /// The secret.
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

/// As whom a source is asked: somebody whom a registry knows by a secret, or anybody.
#[derive(Clone, PartialEq, Eq)]
pub struct Visitor(Vec<u8>);

impl Visitor {
    /// Whoever asks.
    pub const ANYBODY: Self = Self(Vec::new());

    /// What only this visitor knows: host, user and secret; nothing for anybody. It is kept as a keyed hash, if at all.
    pub fn secret(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn known(host: &str, credential: &Credential) -> Self {
        let (user, secret) = match credential {
            Credential::Password { user, password } => (user.as_str(), password),
            Credential::IdentityToken(token) => ("<token>", token),
        };
        let parts = [host, user, secret].into_iter();
        Self(parts.flat_map(|part| (part.len() as u64).to_le_bytes().into_iter().chain(part.bytes())).collect())
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::ANYBODY { "Anybody" } else { "Known" })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
        })
    }
}

/// The files in which credentials are looked for.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    files: Vec<PathBuf>,
    timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default, deserialize_with = "null_is_empty")]
    auths: BTreeMap<String, Option<Login>>,
    #[serde(default, deserialize_with = "null_is_empty")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    #[serde(deserialize_with = "null_is_empty")]
    auth: String,
    #[serde(deserialize_with = "null_is_empty")]
    username: String,
    #[serde(deserialize_with = "null_is_empty")]
    password: String,
    #[serde(deserialize_with = "null_is_empty")]
    identitytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Credentials {
    /// The file that was given, which must be readable now; else KitOps' and Docker's, if they are there.
    pub(super) async fn open(given: Option<PathBuf>, timeout: Duration) -> Result<Self, SourceError> {
        let Some(file) = given else { return Ok(Self { files: usual_files(), timeout }) };
        // A process that mounts leaves its working directory later.
        let file = std::path::absolute(&file).map_err(|error| files::local(file.display().to_string(), error))?;
        let credentials = Self { files: vec![file.clone()], timeout };
        match credentials.read(&file).await? {
            Some(_) => Ok(credentials),
            None => Err(unusable(&file.display().to_string(), "it is not there")),
        }
    }

    /// What is kept for a registry. Nothing is no error: many kits are for everybody.
    pub(super) async fn find(&self, host: &str) -> Result<Option<Credential>, SourceError> {
        for file in &self.files {
            let Some(config) = self.read(file).await? else { continue };
            let found = match config.keeper(host) {
                Keeper::Helper(helper) => self.ask(&helper, &server(host)).await?,
                Keeper::File(login) => Some(login.credential(&file.display().to_string(), host)?),
                Keeper::Nobody => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn read(&self, file: &Path) -> Result<Option<Config>, SourceError> {
        let what = file.display().to_string();
        match files::read_small(file.to_owned(), METADATA_LIMIT, self.timeout).await {
            Ok(bytes) if bytes.trim_ascii().is_empty() => Ok(Some(Config::default())),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                // The parser's own words can quote a value, and values here are secrets.
                let (line, column) = (error.line(), error.column());
                unusable(&what, format!("it is no credentials file: see line {line}, column {column}"))
            }),
            Err(SourceError::NotFound(_)) => Ok(None),
            Err(error) => Err(unusable(&what, error)),
        }
    }

    /// Asks a credential helper, which has until the deadline. It runs in its own process group, and
    /// the whole group is killed when that has passed or this future is dropped.
    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Credential>, SourceError> {
        let program = format!("docker-credential-{helper}");
        if helper.is_empty() || helper.contains('/') {
            return Err(unusable(&program, "that is no name of a credential helper"));
        }
        if HELD_BACK.load(Ordering::SeqCst) {
            NEEDED.store(true, Ordering::SeqCst);
            return Err(unusable(
                &program,
                "the mount was made without a need for this credential helper: mount it again",
            ));
        }
        let mut command = Command::new(&program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.process_group(0).kill_on_drop(true);
        // SAFETY: between fork and exec this makes one system call, and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let mut child = command
            .spawn()
            .map_err(|error| unusable(&program, format!("the credential helper does not start: {error}")))?;
        let group = Group::new(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        // Sooner than the request that waits for this, whose own end would say less.
        let limit = (self.timeout / 4 * 3).min(HELPER_TIMEOUT);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            if let Some(mut stdin) = stdin {
                // A helper that does not read has a reason, which its exit status tells.
                let _ = stdin.write_all(server.as_bytes()).await;
            }
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(HELPER_OUTPUT_LIMIT).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>((answer, child.wait().await?))
        };
        let (answer, status) = Patience::new(limit)
            .wait_for(talk)
            .await
            .map_err(|_| SourceError::Unreachable {
                what: program.clone(),
                why: format!("the credential helper did not answer within {limit:?}"),
                source: None,
            })?
            .map_err(|error| unusable(&program, error))?;
        // It ended by itself: its number may be another's now, and what it left running may be an agent.
        group.has_ended();
        if !status.success() {
            // What Docker's helpers print when they have nothing for that server.
            let nothing = String::from_utf8_lossy(&answer).to_lowercase().contains("credentials not found");
            return if nothing {
                Ok(None)
            } else {
                Err(unusable(&program, format!("the credential helper ended with {status}")))
            };
        }
        let answer: HelperAnswer = serde_json::from_slice(&answer)
            .map_err(|_| unusable(&program, "the credential helper's answer is not understood"))?;
        Ok(Some(match answer {
            HelperAnswer { username, secret } if username == "<token>" => Credential::IdentityToken(secret),
            HelperAnswer { username, secret } => Credential::Password { user: username, password: secret },
        }))
    }
}

/// KitOps' file and Docker's.
fn usual_files() -> Vec<PathBuf> {
    let kitops = kitops::home().map(|home| home.join("credentials.json"));
    let docker = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let docker = docker.or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    kitops.into_iter().chain(docker.map(|folder| folder.join("config.json"))).collect()
}

/// Whether a helper may be asked for the credentials of a registry, as far as the files say now: the one that was given,
/// else KitOps' and Docker's.
pub fn asks_helpers(given: Option<&Path>, host: &str) -> bool {
    let files = given.map_or_else(usual_files, |file| vec![file.to_owned()]);
    files.into_iter().any(|file| {
        let mut content = Vec::new();
        let read = files::open_regular(&file).and_then(|(file, _)| file.take(METADATA_LIMIT).read_to_end(&mut content));
        // One that cannot be read or understood is an error when it is needed.
        let config = read.ok().and_then(|_| serde_json::from_slice::<Config>(&content).ok());
        config.is_some_and(|config| matches!(config.keeper(host), Keeper::Helper(_)))
    })
}

/// Whether helpers are held back, and whether one was needed since.
static HELD_BACK: AtomicBool = AtomicBool::new(false);
static NEEDED: AtomicBool = AtomicBool::new(false);

/// Runs no helper from now on: this process may write hardly anywhere, which would hold for a helper as well.
pub fn hold_helpers_back() {
    HELD_BACK.store(true, Ordering::SeqCst);
}

/// Whether a helper that was held back would have been asked.
pub fn needs_helpers() -> bool {
    NEEDED.load(Ordering::SeqCst)
}

/// The groups of the helpers that run now.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Kills the credential helpers that still run: for a process that ends without looking back. One that is killed
/// takes its helpers with it, though not what they have started themselves.
pub fn end_helpers() {
    for group in running().drain(..) {
        // Nobody may be left in it, which is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process group of a helper, which does not outlive this value.
struct Group(Option<Pid>);

impl Group {
    fn new(leader: Option<Pid>) -> Self {
        running().extend(leader);
        Self(leader)
    }

    /// Its leader has been waited for: the number may be another's from now on.
    fn has_ended(mut self) {
        running().retain(|other| Some(*other) != self.0);
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut running = running();
        let Some(group) = self.0.filter(|group| running.contains(group)) else { return };
        running.retain(|other| *other != group);
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Who keeps the credentials of one registry.
enum Keeper<'c> {
    Helper(String),
    File(&'c Login),
    Nobody,
}

impl Config {
    fn keeper(&self, host: &str) -> Keeper<'_> {
        let of = |key: &str| registry_of(key) == registry_of(host);
        let helper = self
            .cred_helpers
            .get(host)
            .or_else(|| self.cred_helpers.iter().find(|(key, _)| of(key)).map(|(_, helper)| helper));
        if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
            return Keeper::Helper(helper.clone());
        }
        let exact = self.auths.get(host).and_then(Option::as_ref).filter(|login| !login.is_empty());
        let similar = || self.auths.iter().filter(|(key, _)| of(key)).filter_map(|(_, login)| login.as_ref());
        if let Some(login) = exact.or_else(|| similar().find(|login| !login.is_empty())) {
            return Keeper::File(login);
        }
        if self.creds_store.is_empty() { Keeper::Nobody } else { Keeper::Helper(self.creds_store.clone()) }
    }
}

impl Login {
    /// With a credential store, Docker leaves empty entries in the file.
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identitytoken.is_empty()
    }

    fn credential(&self, file: &str, host: &str) -> Result<Credential, SourceError> {
        if !self.identitytoken.is_empty() {
            return Ok(Credential::IdentityToken(self.identitytoken.clone()));
        }
        if self.auth.is_empty() {
            return Ok(Credential::Password { user: self.username.clone(), password: self.password.clone() });
        }
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&STANDARD, config).decode(self.auth.trim()).ok();
        decoded
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())))
            // Docker pads some of what it writes with NUL.
            .map(|(user, password)| Credential::Password { user, password: password.trim_end_matches('\0').to_owned() })
            .ok_or_else(|| unusable(file, format!("the auth of {host} is not base64 of user:password")))
    }
}

/// The registry that a key means: keys may be URLs, and Docker Hub has several names.
fn registry_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        registry => registry,
    }
}

/// What helpers know a registry by.
fn server(host: &str) -> String {
    match registry_of(host) {
        "index.docker.io" => "https://index.docker.io/v1/".into(),
        _ => host.into(),
    }
}

fn unusable(what: &str, why: impl fmt::Display) -> SourceError {
    SourceError::Configuration { what: what.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    async fn find(text: &str, host: &str) -> Result<Option<Credential>, SourceError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, text).unwrap();
        Credentials::open(Some(file), Duration::from_millis(500)).await?.find(host).await
    }

    #[tokio::test]
    async fn finds_the_entry_of_a_registry_however_its_key_is_written() {
        let text = r#"{"auths": {
            "a.example": {"auth": "dXNlcjpwYXNzOndvcmQ="},
            "https://b.example/v2/": {"auth": "dXNlcjpwYXNz"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "c.example": {}, "d.example": null}}"#;
        for (host, expected) in [
            ("a.example", password("user", "pass:word")),
            ("b.example", password("user", "pass")),
            ("docker.io", password("hub", "x")),
            ("c.example", None),
            ("d.example", None),
            ("example", None),
        ] {
            assert_eq!(find(text, host).await.unwrap(), expected, "{host}");
        }
    }

    #[tokio::test]
    async fn a_malformed_file_is_named_and_its_secrets_are_not() {
        for text in ["{", r#"{"auths": {"h.example": {"auth": 1}}}"#, r#"{"auths": "TOPSECRET"}"#, "[]x"] {
            let error = find(text, "h.example").await.unwrap_err();
            assert!(matches!(error, SourceError::Configuration { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("config.json") && !text.contains("TOPSECRET"), "{text}");
        }
        let error = find(r#"{"auths": {"h.example": {"auth": "TOPSECRET!"}}}"#, "h.example").await.unwrap_err();
        assert!(!format!("{error:?}").contains("TOPSECRET"), "{error:?}");
    }

    #[test]
    fn a_credential_prints_no_secret() {
        let printed =
            format!("{:?} {:?}", password("user", "TOPSECRET"), Credential::IdentityToken("TOPSECRET".into()));
        assert!(!printed.contains("TOPSECRET"), "{printed}");
    }

    #[tokio::test]
    async fn a_helper_is_preferred_and_its_name_is_checked() {
        let error = find(r#"{"credHelpers": {"h.example": "../../bin/sh"}}"#, "h.example").await.unwrap_err();
        assert!(error.to_string().contains("no name of a credential helper"), "{error}");
        let error = find(r#"{"credsStore": "kitfs-has-none-of-this-name"}"#, "h.example").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-kitfs-has-none-of-this-name"), "{error}");
    }
}
