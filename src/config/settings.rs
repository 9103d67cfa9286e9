//! Settings as they are given: by flags, by the environment, by files; which ones there are, and which
//! one counts.
//!
//! One table says it for all three: the option `--a-b` is the variable `KITFS_A_B` and the key `a-b` (or
//! `a_b`) of a file. What a value means is decided in `config`; here a value is text that knows where it
//! came from, so that every complaint can name the place to mend.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use crate::config::ConfigError;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The name of its option, without the dashes in front.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Which commands have its option. Variables and files may hold any setting for any command.
    pub scope: Scope,
    /// What `--help` says.
    pub help: &'static str,
}

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On or off: `--name` alone is on.
    Switch,
    /// One value; the text stands for it in `--help`.
    One(&'static str),
    /// Any number of values: a repeated option, lines of a variable, an array in a file.
    Many(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Which commands have an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every command, and what `--help` calls the group.
    Every(&'static str),
    /// These commands, each with the names that lead to it.
    Only(&'static [&'static str]),
}

const SOURCE: Scope = Scope::Every("Where kits come from");
const STORE: Scope = Scope::Every("Store and memory");
const GENERAL: Scope = Scope::Every("General");
const MOUNT: Scope = Scope::Only(&["mount"]);
/// The commands that open a kit, which policies decide about.
const KIT: Scope =
    Scope::Only(&["mount", "ls", "cat", "export", "inspect", "verify", "pull", "index", "policy explain"]);

/// The commands that read a kit, and do so by its index where there is one.
const READ: Scope = Scope::Only(&["mount", "ls", "cat", "export", "inspect", "verify", "pull"]);

/// The commands that look at signatures.
const SIGNED: Scope = Scope::Only(&[
    "mount",
    "ls",
    "cat",
    "export",
    "inspect",
    "verify",
    "pull",
    "policy explain",
    "policy test",
    "verify-bundle",
]);

/// Every setting there is. Those of later versions do not exist: naming one is an error.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "filter",
        kind: Kind::Many("TYPE[,TYPE…][:NAME_OR_PATH[,…]]"),
        scope: Scope::Only(&["mount", "ls", "cat", "export"]),
        help: "Take only these parts of the kit, as kit unpack does (repeatable)",
    },
    Setting {
        name: "options",
        kind: Kind::Many("OPT[,OPT…]"),
        scope: MOUNT,
        help: "Mount options: noexec, allow_other (the default as root), noallow_other",
    },
    Setting {
        name: "foreground",
        kind: Kind::Switch,
        scope: MOUNT,
        help: "Stay in the foreground; unmount on Ctrl-C or SIGTERM",
    },
    Setting {
        name: "metadata",
        kind: Kind::Choice(&["provisional", "verified"]),
        scope: Scope::Only(&["mount", "ls", "cat", "export"]),
        help: "List layers from their headers before they are verified, or wait [default: provisional]",
    },
    Setting {
        name: "prefetch",
        kind: Kind::Choice(&["none", "auto", "all"]),
        scope: Scope::Only(&["mount", "cat", "export"]),
        help: "Fetch nothing before it is read, what readers will want next, or all of the kit [default: auto]",
    },
    Setting {
        name: "passthrough",
        kind: Kind::Choice(&["auto", "sealed", "off"]),
        scope: MOUNT,
        help: "Let the kernel read verified files by itself: those that nobody can write to unnoticed, those that \
               fs-verity seals, or none [default: auto]",
    },
    Setting {
        name: "lazy",
        kind: Kind::Switch,
        scope: Scope::Only(&["umount"]),
        help: "Detach now, even if the mount is busy",
    },
    Setting {
        name: "policy",
        kind: Kind::One("FILE"),
        scope: KIT,
        help: "A policy that the kit must satisfy, beside those of host and user",
    },
    Setting {
        name: "key",
        kind: Kind::Many("FILE"),
        scope: KIT,
        help: "Refuse kits that the owner of this public key did not sign (repeatable: any of them)",
    },
    Setting {
        name: "certificate-identity",
        kind: Kind::One("NAME"),
        scope: KIT,
        help: "Refuse kits that this identity did not sign; needs the issuer",
    },
    Setting {
        name: "certificate-identity-regexp",
        kind: Kind::One("REGEXP"),
        scope: KIT,
        help: "The same for identities of which the whole matches",
    },
    Setting {
        name: "certificate-oidc-issuer",
        kind: Kind::One("URL"),
        scope: KIT,
        help: "Who must have issued the identity",
    },
    Setting {
        name: "certificate-oidc-issuer-regexp",
        kind: Kind::One("REGEXP"),
        scope: KIT,
        help: "The same for issuers of which the whole matches",
    },
    Setting {
        name: "trusted-root",
        kind: Kind::One("FILE"),
        scope: KIT,
        help: "The Sigstore that certificates and log entries are checked against [default: the public one]",
    },
    Setting {
        name: "danger-allow-refused",
        kind: Kind::Many("DIGEST"),
        scope: KIT,
        help: "Let the kit with this manifest through although policies refuse it; written to the audit log \
               (repeatable)",
    },
    Setting {
        name: "max-signatures",
        kind: Kind::One("N"),
        scope: SIGNED,
        help: "Look at this many signatures and attestations of a kit, and at none beyond [default: 256]",
    },
    Setting {
        name: "max-signature-size",
        kind: Kind::One("SIZE"),
        scope: SIGNED,
        help: "Look at no signature that is larger [default: 1MiB]",
    },
    Setting {
        name: "max-attestation-size",
        kind: Kind::One("SIZE"),
        scope: SIGNED,
        help: "Look at no attestation that is larger [default: 16MiB]",
    },
    Setting {
        name: "index",
        kind: Kind::Many("FILE"),
        scope: READ,
        help: "Use this index, if who may sign one has signed it or the kit's manifest names it (repeatable)",
    },
    Setting {
        name: "index-key",
        kind: Kind::Many("FILE"),
        scope: READ,
        help: "Use indexes that the owner of this public key has signed; asks nothing of the kit (repeatable)",
    },
    Setting { name: "plain-http", kind: Kind::Switch, scope: SOURCE, help: "Speak plain HTTP to registries" },
    Setting {
        name: "ca-cert",
        kind: Kind::Many("FILE"),
        scope: SOURCE,
        help: "Trust these PEM certificates beside the system's (repeatable)",
    },
    Setting {
        name: "registry-config",
        kind: Kind::One("FILE"),
        scope: SOURCE,
        help: "Credentials, in the shape of Docker's config.json [default: KitOps', then Docker's]",
    },
    Setting {
        name: "read-timeout",
        kind: Kind::One("DURATION"),
        scope: SOURCE,
        help: "The longest that a read waits for the source: 8s, 500ms, 2m [default: 60s]",
    },
    Setting {
        name: "access-ttl",
        kind: Kind::One("DURATION"),
        scope: SOURCE,
        help: "How long a registry's leave stands while it cannot be asked for a cached kit [default: 24h]",
    },
    Setting {
        name: "offline",
        kind: Kind::Switch,
        scope: SOURCE,
        help: "Ask no registry: a tag is the digest last seen for it in this cache",
    },
    Setting {
        name: "require-fresh",
        kind: Kind::Switch,
        scope: SOURCE,
        help: "Fail where the registry cannot be asked what a tag is now",
    },
    Setting {
        name: "cache-dir",
        kind: Kind::One("DIR"),
        scope: STORE,
        help: "The store [default: /var/cache/kitfs as root, else $XDG_CACHE_HOME/kitfs]",
    },
    Setting {
        name: "cache-size",
        kind: Kind::One("SIZE"),
        scope: STORE,
        help: "What the store may take: 10GiB, 10GB [default: 80 % of its file system]",
    },
    Setting {
        name: "memory",
        kind: Kind::One("SIZE"),
        scope: STORE,
        help: "Memory for data on its way [default: 128MiB]",
    },
    Setting {
        name: "state-dir",
        kind: Kind::One("DIR"),
        scope: GENERAL,
        help: "Mount records, keys and logs [default: /var/lib/kitfs as root, else $XDG_STATE_HOME/kitfs]",
    },
    Setting {
        name: "runtime-dir",
        kind: Kind::One("DIR"),
        scope: GENERAL,
        help: "Sockets and pids [default: STATE_DIR/run where --state-dir is given, else /run/kitfs as root, \
               else $XDG_RUNTIME_DIR/kitfs]",
    },
    Setting {
        name: "log-file",
        kind: Kind::One("FILE|syslog|journal"),
        scope: GENERAL,
        help: "Where messages of background processes go [default: STATE_DIR/kitfs.log]",
    },
    Setting {
        name: "log-level",
        kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        scope: GENERAL,
        help: "Which messages [default: warn on the terminal, info in the background]",
    },
    Setting {
        name: "audit-log",
        kind: Kind::Many("FILE|syslog|journal|fd:N"),
        scope: GENERAL,
        help: "Where the audit log is [default: STATE_DIR/audit.log], and who gets a copy of it (repeatable)",
    },
    Setting {
        name: "output",
        kind: Kind::Choice(&["text", "json"]),
        scope: GENERAL,
        help: "What is written on standard output [default: text]",
    },
];

/// Which settings one or more places give.
#[derive(Clone, Debug, Default)]
pub struct Settings(BTreeMap<&'static str, Given>);

/// The values given for one setting, and where.
#[derive(Clone, Debug)]
pub(in crate::config) struct Given {
    pub values: Vec<OsString>,
    pub origin: Origin,
}

/// The place where a setting was given. It prints as what to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option on the command line.
    Flag(&'static str),
    /// A variable.
    Variable(&'static str),
    /// A key of a file.
    File(&'static str, PathBuf),
}

impl Settings {
    /// Notes the values of one option of the command line.
    pub fn give_flag(&mut self, setting: &'static Setting, values: Vec<OsString>) {
        self.0.insert(setting.name, Given { values, origin: Origin::Flag(setting.name) });
    }

    /// The settings that variables give. An empty variable gives nothing.
    pub fn of_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = SETTINGS.iter().filter_map(|setting| {
            let value = variable(&variable_name(setting.name)).filter(|value| !value.is_empty())?;
            let values = match (setting.kind, value.to_str()) {
                (Kind::Many(_), Some(lines)) => lines.lines().filter(|line| !line.is_empty()).map(Into::into).collect(),
                _ => vec![value],
            };
            Some((setting.name, Given { values, origin: Origin::Variable(setting.name) }))
        });
        Self(given.collect())
    }

    /// The settings in a TOML file. Paths in it are relative to its folder.
    pub fn of_file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = text.parse::<toml::Table>().map_err(|error| ConfigError::Syntax {
            path: path.into(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            why: error.message().replace('\n', ", "),
        })?;
        let mut settings = Self::default();
        for (key, value) in table {
            let name = key.replace('_', "-");
            let setting = SETTINGS
                .iter()
                .find(|setting| setting.name == name)
                .ok_or_else(|| ConfigError::UnknownKey { path: path.into(), key: key.clone() })?;
            let origin = Origin::File(setting.name, path.into());
            let values = match (setting.kind, value) {
                (Kind::Switch, toml::Value::Boolean(on)) => vec![on.to_string().into()],
                (Kind::One(_) | Kind::Choice(_) | Kind::Many(_), toml::Value::String(text)) => vec![text.into()],
                (Kind::One("SIZE" | "N"), toml::Value::Integer(number)) => vec![number.to_string().into()],
                (Kind::Many(_), toml::Value::Array(items)) => items
                    .into_iter()
                    .map(|item| item.as_str().map(OsString::from))
                    .collect::<Option<_>>()
                    .ok_or_else(|| ConfigError::bad(&origin, "expected strings"))?,
                (Kind::Switch, _) => return Err(ConfigError::bad(&origin, "expected true or false")),
                (Kind::Many(_), _) => {
                    return Err(ConfigError::bad(&origin, "expected a string or an array of strings"));
                }
                _ => return Err(ConfigError::bad(&origin, "expected a string")),
            };
            if settings.0.insert(setting.name, Given { values, origin: origin.clone() }).is_some() {
                return Err(ConfigError::bad(&origin, "the key is there twice, with dashes and with underscores"));
            }
        }
        Ok(settings)
    }

    /// These settings, and those of `below` that they do not give.
    #[must_use]
    pub fn over(mut self, below: Self) -> Self {
        for (name, given) in below.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    /// What was given for a setting.
    pub(in crate::config) fn given(&self, name: &str) -> Option<&Given> {
        self.0.get(name)
    }
}

/// `KITFS_A_B` for `a-b`.
fn variable_name(name: &str) -> String {
    format!("KITFS_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// The number of the line, from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(&variable_name(name)),
            Self::File(name, path) => write!(f, "{name} in {}", path.display()),
        }
    }
}
