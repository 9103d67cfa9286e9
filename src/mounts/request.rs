//! What the processes of a mount tell each other: plain data, no behaviour.
//!
//! Everything here crosses a process boundary as JSON on a socket pair that nobody else can open, so it
//! may hold what must not be seen in arguments or the environment. In an upgrade the other process is of another
//! version: what was added since the first that could be upgraded has a default.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::audit::Copy;
use crate::digest::Digest;
use crate::fs::Passthrough;
use crate::kit::filter::Filter;
use crate::layers::Metadata;
use crate::layers::Prefetch;
use crate::ledger::TroubleKind;
use crate::policy::Identity;
use crate::resolve::Freshness;
use crate::resolve::Resolved;
use crate::trust::Limits;

/// All that a mount is made from. A worker that takes over gets the same one again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The reference as `status` and /proc/mounts show it. Paths in it are absolute: the background
    /// processes work in `/`.
    pub reference: String,
    /// Where to mount.
    pub directory: AbsolutePath,
    /// `-o`.
    pub options: MountOptions,
    /// `--filter`.
    pub filters: Vec<Filter>,
    /// `--metadata`.
    pub metadata: Metadata,
    /// `--prefetch`.
    pub prefetch: Prefetch,
    /// How the source is reached.
    pub source: SourceSettings,
    /// Who decides whether the kit may be mounted. A worker that takes over does not ask again.
    pub policy: PolicySettings,
    /// `--index`.
    #[serde(default)]
    pub indexes: Vec<AbsolutePath>,
    /// `--cache-dir`.
    pub cache_dir: AbsolutePath,
    /// `--state-dir`: mount records and the log.
    pub state_dir: AbsolutePath,
    /// `--runtime-dir`: the control socket.
    pub runtime_dir: AbsolutePath,
    /// `--cache-size` in bytes; none is the default share of the file system.
    pub cache_size: Option<u64>,
    /// `--memory` in bytes.
    pub memory: u64,
    /// `--passthrough`.
    pub passthrough: Passthrough,
    /// How many file systems lie on each other where the cache is, ours counted: the kernel's
    /// `max_stack_depth`.
    pub stack_depth: u32,
    /// `--read-timeout`.
    pub read_timeout: Duration,
    /// Where messages go once the mount runs in the background.
    pub log: LogSettings,
    /// Where the audit log is.
    pub audit: AuditSettings,
    /// Whether somebody waits for the mount's end.
    pub presence: Presence,
}

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// Refuse to run programs from the mount.
    pub noexec: bool,
    /// Let other users in, as far as modes do. Root's default.
    pub allow_other: bool,
}

/// How the source is reached: the options of the same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSettings {
    /// `--plain-http`.
    pub plain_http: bool,
    /// `--ca-cert`.
    pub ca_cert: Vec<AbsolutePath>,
    /// `--registry-config`.
    pub registry_config: Option<AbsolutePath>,
    /// Whether programs may be asked for credentials, as far as is known. Where that was not said, they may be.
    #[serde(default = "yes")]
    pub helpers: bool,
    /// `--access-ttl`.
    pub access_ttl: Duration,
    /// `--offline`, `--require-fresh`, or neither.
    pub freshness: Freshness,
}

fn yes() -> bool {
    true
}

/// Who decides: the policies of host and user, and the options of these names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    /// The names under which policies know the kit, as it was typed.
    pub names: Vec<String>,
    /// Policies of the host and of the user.
    pub standing: Vec<AbsolutePath>,
    /// `--policy`.
    pub file: Option<AbsolutePath>,
    /// `--key`.
    pub keys: Vec<AbsolutePath>,
    /// `--certificate-…`.
    pub identity: Identity,
    /// `--index-key`.
    pub index_keys: Vec<AbsolutePath>,
    /// `--trusted-root`.
    pub trusted_root: Option<AbsolutePath>,
    /// The root that an update has put in place of the embedded one.
    pub installed_root: Option<AbsolutePath>,
    /// `--max-…`.
    pub limits: Limits,
    /// `--danger-allow-refused`.
    pub allow_refused: Vec<Digest>,
    /// Of `standing`, the policies that it does not overrule.
    pub firm: Vec<AbsolutePath>,
}

/// Where messages of the background processes go, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// `--log-file`.
    pub target: LogTarget,
    /// `--log-level`.
    pub level: String,
}

/// `--audit-log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// The log.
    pub file: AbsolutePath,
    /// Who gets copies of its lines. A descriptor has the same number in all processes of the mount.
    pub copies: Vec<Copy>,
}

impl AuditSettings {
    /// The descriptors that the processes of the mount are started with.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.copies.iter().filter_map(|copy| copy.descriptor()).collect()
    }

    /// Keeps them from other programs that this process starts.
    pub(super) fn keep_private(&self) {
        self.copies.iter().for_each(|copy| copy.keep_private());
    }
}

/// `--log-file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// Standard error, with `--foreground`.
    Stderr,
    /// A file, rotated.
    File(AbsolutePath),
    /// The system's log.
    Syslog,
    /// systemd's journal.
    Journal,
}

/// Whether `kitfs mount` stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It returns when the tree can be listed.
    Background,
    /// It stays, and its end is the mount's end.
    Foreground,
}

/// A path that means the same in every working directory. May be other than UTF-8.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// Makes a path absolute from the current directory, without asking the file system about it.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        std::path::absolute(path).map(Self)
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Debug for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A string where the path is UTF-8, else its bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for AbsolutePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => PathText::Text(text.to_owned()),
            None => PathText::Bytes(self.0.as_os_str().as_bytes().to_vec()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = match PathText::deserialize(deserializer)? {
            PathText::Text(text) => PathBuf::from(text),
            PathText::Bytes(bytes) => PathBuf::from(std::ffi::OsString::from_vec(bytes)),
        };
        if !path.is_absolute() {
            return Err(serde::de::Error::custom("the path is not absolute"));
        }
        Ok(Self(path))
    }
}

/// Something to tell the person who waits for a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// What is being done now.
    Step(String),
    /// How much of it is done, in bytes.
    Bytes {
        /// Done so far.
        done: u64,
        /// All there is to do.
        total: u64,
    },
    /// Something that went other than asked, and does not stop the mount.
    Warning(String),
}

/// What is known of a kit when it can be listed. Does not change as long as the mount lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The manifest that was admitted.
    pub digest: Digest,
    /// Where the digest came from.
    pub resolved: Resolved,
    /// `key:sha256:<SPKI>` or `identity (issuer)`.
    pub signers: Vec<String>,
    /// What policy said.
    pub policy: Decision,
    /// Bytes of all layer blobs.
    pub bytes_total: u64,
    /// Whether parts of files were fetched alone when it was mounted: who asks for more than is wanted fetches more.
    #[serde(default)]
    pub comes_in_parts: bool,
}

/// What policy says of a kit that is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It satisfies every policy.
    Allow,
    /// It does not, and the policy only warns.
    Warn,
    /// There is no policy.
    None,
}

/// What a worker knows of its mount at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// How well it serves.
    pub state: State,
    /// Bytes of layer blobs that are proved and here.
    pub bytes_verified: u64,
    /// Bytes that came from the source since the mount.
    pub bytes_fetched: u64,
    /// Reads that were answered from the cache.
    pub cache_hits: u64,
    /// Whether files are handed to the kernel.
    pub passthrough: bool,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
}

/// How well a mount serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should.
    Ready,
    /// What is here; the source or the worker does not answer.
    Degraded,
    /// Nothing: every request gets EIO.
    Failed,
}

/// The last thing that went wrong on a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// RFC 3339.
    pub time: String,
    /// What sort of thing.
    pub kind: TroubleKind,
    /// The file in the mount.
    pub path: Option<String>,
    /// The layer's digest.
    pub layer: Option<String>,
    /// The digest that should have been.
    pub expected: Option<String>,
    /// The digest that was.
    pub actual: Option<String>,
    /// Where the bytes came from.
    pub source: Option<String>,
    /// One line for a person.
    pub message: String,
}

/// Why there is no mount, with the exit code that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct MountFailure {
    /// As in the table of exit codes.
    pub exit_code: u8,
    /// One line for a person.
    pub message: String,
}

impl MountFailure {
    /// A failure with an exit code and one line for a person.
    pub fn new(exit_code: u8, message: impl Into<String>) -> Self {
        Self { exit_code, message: message.into() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As the first version wrote it that could be upgraded.
    pub(in crate::mounts) const FIRST: &str = r#"{
        "reference": "registry.example/kit:v1", "directory": "/mnt/kit",
        "options": {"noexec": false, "allow_other": true}, "filters": [],
        "metadata": "provisional", "prefetch": "auto",
        "source": {"plain_http": false, "ca_cert": ["/ca.pem"], "registry_config": null,
            "access_ttl": {"secs": 86400, "nanos": 0}, "freshness": "prefer"},
        "policy": {"names": ["registry.example/kit:v1"], "standing": [], "file": null, "keys": [],
            "identity": {"identity": null, "identity_regexp": null, "issuer": null, "issuer_regexp": null},
            "index_keys": [], "trusted_root": null, "installed_root": null,
            "limits": {"signature": 1048576, "signatures": 256, "attestation": 16777216},
            "allow_refused": [], "firm": []},
        "cache_dir": "/var/cache/kitfs", "state_dir": "/var/lib/kitfs", "runtime_dir": "/run/kitfs",
        "cache_size": null, "memory": 536870912, "passthrough": "auto", "stack_depth": 1,
        "read_timeout": {"secs": 60, "nanos": 0},
        "log": {"target": {"file": "/var/log/kitfs.log"}, "level": "INFO"},
        "audit": {"file": "/var/lib/kitfs/audit.log", "copies": ["syslog", {"descriptor": 10}]},
        "presence": "background"}"#;

    #[test]
    fn the_first_request_is_still_read() {
        let request = serde_json::from_str::<MountRequest>(FIRST).unwrap();
        assert_eq!(request.reference, "registry.example/kit:v1");
        assert!(request.indexes.is_empty() && request.source.helpers, "{request:?}");
    }
}
