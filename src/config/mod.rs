//! What was asked for, from flags, environment and files, as one validated [`Config`].
//!
//! Flags count before the environment, the environment before files, a later file before an earlier
//! one. Every value is checked here, once; the modules below take the options that they declare and
//! never see the rest.

mod folders;
mod settings;
mod values;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

pub use folders::Environment;
pub use folders::Folders;
pub use folders::User;
pub use settings::Kind;
pub use settings::Origin;
pub use settings::SETTINGS;
pub use settings::Scope;
pub use settings::Setting;
pub use settings::Settings;

use crate::audit;
use crate::fs::Passthrough;
use crate::kit::filter::Filter;
use crate::kit::filter::InvalidFilter;
use crate::layers::Metadata;
use crate::layers::Prefetch;
use crate::policy;
use crate::resolve::Freshness;
use crate::source;
use crate::trust::Limits;

/// Less memory than this cannot carry the parallel fetches of one layer.
const LEAST_MEMORY: u64 = 8 << 20;

/// Everything that can be set, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where kitfs keeps what it keeps.
    pub folders: Folders,
    /// Bytes that the store may take; `None` is 80 % of its file system.
    pub cache_size: Option<u64>,
    /// Bytes of memory for data on its way.
    pub memory: u64,
    /// How sources are reached.
    pub source: source::Options,
    /// How long a registry's leave to have a kit stands while it cannot be asked.
    pub access_ttl: Duration,
    /// Whether tags are asked for.
    pub freshness: Freshness,
    /// Who decides whether a kit may be used.
    pub policy: policy::Options,
    /// How many signatures are looked at, and how large ones.
    pub limits: Limits,
    /// Indexes of kits in files.
    pub indexes: Vec<PathBuf>,
    /// Which parts of the kit; none is all.
    pub filters: Vec<Filter>,
    /// Whether layers are listed ahead of their proof.
    pub metadata: Metadata,
    /// What is fetched before it is asked for.
    pub prefetch: Prefetch,
    /// How it is mounted.
    pub mount: MountOptions,
    /// What happens to a mount that is busy when it is unmounted.
    pub busy: Busy,
    /// Where messages go.
    pub log: Log,
    /// Where the audit log is.
    pub audit: audit::Settings,
    /// What standard output gets.
    pub output: Output,
}

/// How a kit is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// No file of it can be executed.
    pub noexec: bool,
    /// Other users may read it; `None` is the default of who mounts: root's mounts are open.
    pub allow_other: Option<bool>,
    /// The command stays and unmounts when it is ended.
    pub foreground: bool,
    /// Which files the kernel may read by itself.
    pub passthrough: Passthrough,
}

/// What `umount` does with a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Refuses, and says who uses it.
    Refuse,
    /// Detaches it; its users keep what they have open.
    Detach,
}

/// Where messages go, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where they go, if that was said.
    pub target: Option<LogTarget>,
    /// Which messages, if that was said.
    pub level: Option<tracing::Level>,
}

/// A place for messages of a process in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// A file, which is rotated.
    File(PathBuf),
    /// The system's log daemon.
    Syslog,
    /// systemd's journal.
    Journal,
}

/// What standard output gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Text for people.
    Text,
    /// One JSON document.
    Json,
}

impl Config {
    /// The configuration that flags, environment and files make together. `file` is what `--config` or
    /// `KITFS_CONFIG` named; without it the default files are read, those that are there.
    pub fn load(flags: Settings, file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let variables = Settings::of_environment(|name| environment.variable(name));
        let named = file.map(Path::to_owned).or_else(|| environment.variable("KITFS_CONFIG").map(PathBuf::from));
        let mut files = Settings::default();
        match named {
            Some(path) => files = read_file(&path)?.ok_or(ConfigError::NoFile { path })?,
            None => {
                for path in environment.config_files() {
                    files = read_file(&path)?.unwrap_or_default().over(files);
                }
            }
        }
        Self::of(&flags.over(variables).over(files), environment)
    }

    fn of(settings: &Settings, environment: &Environment) -> Result<Self, ConfigError> {
        let timeout = text(settings, "read-timeout", values::parse_duration)?.unwrap_or(Duration::from_secs(60));
        let least = |text: &str| match values::parse_size(text)? {
            bytes if bytes < LEAST_MEMORY => Err(format!("{text:?} is too little: at least 8MiB")),
            bytes => Ok(bytes),
        };
        let folders = Folders::new(
            path(settings, "cache-dir")?,
            path(settings, "state-dir")?,
            path(settings, "runtime-dir")?,
            environment,
        )?;
        Ok(Self {
            audit: audit_log(settings, &folders.state)?,
            policy: policy(settings, &folders, environment)?,
            folders,
            cache_size: text(settings, "cache-size", values::parse_size)?,
            memory: text(settings, "memory", least)?.unwrap_or(128 << 20),
            source: source::Options {
                plain_http: switch(settings, "plain-http")?,
                ca_cert: readable(settings, "ca-cert")?,
                registry_config: readable(settings, "registry-config")?.pop(),
                timeout,
            },
            access_ttl: text(settings, "access-ttl", values::parse_age)?.unwrap_or(Duration::from_secs(24 * 60 * 60)),
            freshness: match (switch(settings, "offline")?, switch(settings, "require-fresh")?) {
                (true, true) => return Err(conflict(settings, "offline", "require-fresh")),
                (true, false) => Freshness::Offline,
                (false, true) => Freshness::Require,
                (false, false) => Freshness::Prefer,
            },
            limits: limits(settings)?,
            indexes: paths(settings, "index")?,
            filters: filters(settings)?,
            metadata: choice(settings, "metadata", |word| match word {
                "provisional" => Some(Metadata::Provisional),
                "verified" => Some(Metadata::Verified),
                _ => None,
            })?
            .unwrap_or(Metadata::Provisional),
            prefetch: choice(settings, "prefetch", |word| match word {
                "none" => Some(Prefetch::None),
                "auto" => Some(Prefetch::Auto),
                "all" => Some(Prefetch::All),
                _ => None,
            })?
            .unwrap_or_default(),
            mount: mount_options(settings)?,
            busy: if switch(settings, "lazy")? { Busy::Detach } else { Busy::Refuse },
            log: Log { target: log_target(settings)?, level: choice(settings, "log-level", level)? },
            output: choice(settings, "output", |word| match word {
                "text" => Some(Output::Text),
                "json" => Some(Output::Json),
                _ => None,
            })?
            .unwrap_or(Output::Text),
        })
    }
}

fn read_file(path: &Path) -> Result<Option<Settings>, ConfigError> {
    let path = std::path::absolute(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Settings::of_file(&path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path, source }),
    }
}

fn texts(settings: &Settings, name: &str) -> Result<Vec<String>, ConfigError> {
    let Some(given) = settings.given(name) else { return Ok(Vec::new()) };
    let not_text = |value: &OsStr| ConfigError::bad(&given.origin, format!("{value:?} is not UTF-8"));
    given.values.iter().map(|value| value.to_str().map(str::to_owned).ok_or_else(|| not_text(value))).collect()
}

fn text<T>(
    settings: &Settings,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    let Some(given) = settings.given(name) else { return Ok(None) };
    let last = texts(settings, name)?.pop();
    last.map(|value| parse(&value).map_err(|why| ConfigError::bad(&given.origin, why))).transpose()
}

fn switch(settings: &Settings, name: &str) -> Result<bool, ConfigError> {
    text(settings, name, values::parse_switch).map(Option::unwrap_or_default)
}

fn choice<T>(settings: &Settings, name: &str, parse: fn(&str) -> Option<T>) -> Result<Option<T>, ConfigError> {
    let words = SETTINGS.iter().find_map(|setting| match setting.kind {
        Kind::Choice(words) if setting.name == name => Some(words.join(", ")),
        _ => None,
    });
    let words = words.unwrap_or_default();
    text(settings, name, |word| parse(word).ok_or_else(|| format!("{word:?} is not one of {words}")))
}

fn paths(settings: &Settings, name: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(given) = settings.given(name) else { return Ok(Vec::new()) };
    let absolute = |value: &OsString| {
        if value.is_empty() {
            return Err(ConfigError::bad(&given.origin, "the path is empty"));
        }
        let path = match &given.origin {
            Origin::File(_, file) => file.parent().unwrap_or(file).join(value),
            Origin::Flag(_) | Origin::Variable(_) => PathBuf::from(value),
        };
        // Processes in the background leave the working directory, so a path must not depend on it.
        std::path::absolute(path).map_err(|error| ConfigError::bad(&given.origin, error.to_string()))
    };
    given.values.iter().map(absolute).collect()
}

fn path(settings: &Settings, name: &str) -> Result<Option<PathBuf>, ConfigError> {
    paths(settings, name).map(|mut paths| paths.pop())
}

/// The files of a setting, each of which can be read now.
fn readable(settings: &Settings, name: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let paths = paths(settings, name)?;
    for path in &paths {
        let checked = std::fs::metadata(path).and_then(|metadata| match metadata.is_file() {
            true => std::fs::File::open(path).map(drop),
            false => Err(io::Error::other("not a file")),
        });
        if let (Err(error), Some(given)) = (checked, settings.given(name)) {
            return Err(ConfigError::bad(&given.origin, format!("cannot read {}: {error}", path.display())));
        }
    }
    Ok(paths)
}

/// What is named, and the policies of host and user that are there. A policy that cannot even be looked
/// for is none that can be left out.
fn policy(settings: &Settings, folders: &Folders, environment: &Environment) -> Result<policy::Options, ConfigError> {
    let mut standing = Vec::new();
    for path in environment.policy_files() {
        match std::fs::symlink_metadata(&path) {
            Ok(_) => standing.push(path),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        }
    }
    let one = |name| text(settings, name, |text| Ok(text.to_owned()));
    let identity = policy::Identity {
        identity: one("certificate-identity")?,
        identity_regexp: one("certificate-identity-regexp")?,
        issuer: one("certificate-oidc-issuer")?,
        issuer_regexp: one("certificate-oidc-issuer-regexp")?,
    };
    for (exact, regexp) in [
        ("certificate-identity", "certificate-identity-regexp"),
        ("certificate-oidc-issuer", "certificate-oidc-issuer-regexp"),
    ] {
        if settings.given(exact).is_some() && settings.given(regexp).is_some() {
            return Err(conflict(settings, exact, regexp));
        }
    }
    let allow_refused = texts(settings, policy::ALLOW_REFUSED)?;
    let allow_refused = allow_refused.iter().map(|text| {
        let origin = settings.given(policy::ALLOW_REFUSED).map(|given| given.origin.to_string()).unwrap_or_default();
        text.parse().map_err(|error| ConfigError::BadValue { origin, why: format!("{text:?}: {error}") })
    });
    Ok(policy::Options {
        allow_refused: allow_refused.collect::<Result<_, ConfigError>>()?,
        firm: standing.iter().filter(|path| environment.is_firm(path)).cloned().collect(),
        standing,
        file: path(settings, "policy")?,
        keys: paths(settings, "key")?,
        identity,
        index_keys: paths(settings, "index-key")?,
        trusted_root: path(settings, "trusted-root")?,
        installed_root: Some(folders.installed_root()),
    })
}

fn limits(settings: &Settings) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    let size = |name| text(settings, name, values::parse_size);
    Ok(Limits {
        signature: size("max-signature-size")?.unwrap_or(default.signature),
        signatures: text(settings, "max-signatures", values::parse_count)?.unwrap_or(default.signatures),
        attestation: size("max-attestation-size")?.unwrap_or(default.attestation),
    })
}

fn filters(settings: &Settings) -> Result<Vec<Filter>, ConfigError> {
    let Some(given) = settings.given("filter") else { return Ok(Vec::new()) };
    let parse =
        |text: &String| text.parse().map_err(|error: InvalidFilter| ConfigError::bad(&given.origin, error.to_string()));
    texts(settings, "filter")?.iter().map(parse).collect()
}

fn mount_options(settings: &Settings) -> Result<MountOptions, ConfigError> {
    let passthrough = choice(settings, "passthrough", |word| match word {
        "auto" => Some(Passthrough::Auto),
        "sealed" => Some(Passthrough::Sealed),
        "off" => Some(Passthrough::Off),
        _ => None,
    })?
    .unwrap_or(Passthrough::Auto);
    let foreground = switch(settings, "foreground")?;
    let mut options = MountOptions { noexec: false, allow_other: None, foreground, passthrough };
    let Some(given) = settings.given("options") else { return Ok(options) };
    for word in texts(settings, "options")?.iter().flat_map(|list| list.split(',')) {
        let allow_other = match word {
            "noexec" => {
                options.noexec = true;
                continue;
            }
            "allow_other" => true,
            "noallow_other" => false,
            word => {
                let why = format!("{word:?} is not one of noexec, allow_other, noallow_other");
                return Err(ConfigError::bad(&given.origin, why));
            }
        };
        if options.allow_other.is_some_and(|other| other != allow_other) {
            return Err(ConfigError::bad(&given.origin, "allow_other and noallow_other exclude each other"));
        }
        options.allow_other = Some(allow_other);
    }
    Ok(options)
}

fn log_target(settings: &Settings) -> Result<Option<LogTarget>, ConfigError> {
    let word = settings.given("log-file").and_then(|given| given.values.last()).and_then(|value| value.to_str());
    Ok(match word {
        Some("syslog") => Some(LogTarget::Syslog),
        Some("journal") => Some(LogTarget::Journal),
        _ => path(settings, "log-file")?.map(LogTarget::File),
    })
}

/// One file, which is the log, and any number of places that get copies.
fn audit_log(settings: &Settings, state: &Path) -> Result<audit::Settings, ConfigError> {
    let mut log = audit::Settings { file: audit::default_file(state), copies: Vec::new(), directory: None };
    let Some(given) = settings.given("audit-log") else { return Ok(log) };
    let bad = |why: String| ConfigError::bad(&given.origin, why);
    let mut file = None;
    for (value, path) in given.values.iter().zip(paths(settings, "audit-log")?) {
        let copy = match value.to_str() {
            Some("syslog") => audit::Copy::Syslog,
            Some("journal") => audit::Copy::Journal,
            Some(word) if word.starts_with("fd:") => {
                let number =
                    word.strip_prefix("fd:").and_then(|number| number.parse().ok()).filter(|number| *number >= 0);
                audit::Copy::Descriptor(number.ok_or_else(|| bad(format!("{word:?} names no descriptor: fd:3")))?)
            }
            _ => {
                if file.replace(path).is_some() {
                    return Err(bad("there is one audit log, and two files are named".into()));
                }
                continue;
            }
        };
        copy.check().map_err(|error| bad(format!("{value:?} cannot be written to: {error}")))?;
        if !log.copies.contains(&copy) {
            log.copies.push(copy);
        }
    }
    log.file = file.unwrap_or(log.file);
    Ok(log)
}

fn level(word: &str) -> Option<tracing::Level> {
    Some(match word {
        "error" => tracing::Level::ERROR,
        "warn" => tracing::Level::WARN,
        "info" => tracing::Level::INFO,
        "debug" => tracing::Level::DEBUG,
        "trace" => tracing::Level::TRACE,
        _ => return None,
    })
}

fn conflict(settings: &Settings, one: &str, other: &str) -> ConfigError {
    let [one, other] = [one, other].map(|name| settings.given(name).map(|given| given.origin.to_string()));
    ConfigError::Conflict { one: one.unwrap_or_default(), other: other.unwrap_or_default() }
}

/// Why a configuration is not one. All of them are for the person who wrote it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("there is no configuration file {}", path.display())]
    NoFile {
        /// As it was named.
        path: PathBuf,
    },
    /// A file is there and cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{} is not TOML, line {line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// A file holds a key that is no setting.
    #[error("{} holds {key:?}, which is no setting of this version", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value is not one that the setting takes.
    #[error("{origin}: {why}")]
    BadValue {
        /// Where it was given.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two settings exclude each other.
    #[error("{one} and {other} exclude each other")]
    Conflict {
        /// Where the one was given.
        one: String,
        /// Where the other was given.
        other: String,
    },
    /// Nothing says where the folders are.
    #[error("HOME is not set: name the folder with --{option}")]
    NoHome {
        /// The option that names the folder.
        option: &'static str,
    },
}

impl ConfigError {
    fn bad(origin: &Origin, why: impl Into<String>) -> Self {
        Self::BadValue { origin: origin.to_string(), why: why.into() }
    }
}

#[cfg(test)]
mod tests;
