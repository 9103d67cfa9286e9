//! Lines of the log, written and read.
//!
//! A line is a JSON object in UTF-8 without a line break in it. It is hashed as it stands, every byte
//! before the line break: so there is no canonical form to rebuild, and any SHA-256 program can follow
//! the chain. `previous` is the hash of the line before; that of the first line is all zeros.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::Serialize;

use crate::audit::event::Event;
use crate::digest::Digest;

/// What the first line has for `previous`.
pub(super) const NOTHING: Digest = Digest::Sha256([0; 32]);

/// No line is longer. A longer one was not written by us.
pub(super) const LONGEST: usize = 1 << 20;

/// The process that something happened in.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    pid: u32,
    uid: u32,
    directory: Option<String>,
    directory_b64: Option<String>,
}

impl Actor {
    /// This process, at work on the mount at `directory` if it is one's.
    pub(super) fn here(directory: Option<&Path>) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let text = directory.and_then(Path::to_str).map(str::to_owned);
        let bytes = directory.filter(|_| text.is_none()).map(|path| STANDARD.encode(path.as_os_str().as_bytes()));
        let uid = rustix::process::getuid().as_raw();
        Self { pid: std::process::id(), uid, directory: text, directory_b64: bytes }
    }
}

/// A line as it is written; the members stand in this order, and there is no space between them.
#[derive(Serialize)]
struct Written<'a> {
    sequence: u64,
    previous: Digest,
    time: &'a str,
    pid: u32,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory_b64: Option<&'a str>,
    #[serde(flatten)]
    event: &'a Event,
}

/// Writes a line, without the line break.
pub(super) fn write(
    sequence: u64,
    previous: Digest,
    time: &str,
    actor: &Actor,
    event: &Event,
) -> serde_json::Result<String> {
    let Actor { pid, uid, directory, directory_b64 } = actor;
    let (directory, directory_b64) = (directory.as_deref(), directory_b64.as_deref());
    serde_json::to_string(&Written { sequence, previous, time, pid: *pid, uid: *uid, directory, directory_b64, event })
}

/// What is read out of a line. Members that are not here are for whoever reads the line itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    /// From 1, without a gap.
    pub sequence: u64,
    /// The hash of the line before.
    pub previous: Digest,
    /// When: RFC 3339.
    pub time: String,
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What happened.
    pub event: String,
    /// The mount that it happened at.
    pub directory: Option<String>,
    /// The kit.
    pub reference: Option<String>,
    /// The digest of the kit.
    pub digest: Option<String>,
    /// The layer.
    pub layer: Option<String>,
    /// The digest that was promised.
    pub expected: Option<String>,
    /// The digest that was there.
    pub actual: Option<String>,
    /// Where something came from.
    pub source: Option<String>,
    /// What policy said.
    pub verdict: Option<String>,
    /// The rules that it said it by.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Who satisfied it.
    #[serde(default)]
    pub identities: Vec<String>,
    /// Why.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// The option that says danger.
    pub option: Option<String>,
    /// What does not fit, where the log says that of itself.
    pub reason: Option<String>,
}

impl Line {
    /// Reads a line, without the line break.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::Kit;

    #[test]
    fn a_line_is_what_the_documentation_says() {
        let actor = Actor { pid: 7, uid: 0, directory: Some("/mnt".into()), directory_b64: None };
        let kit = Kit { reference: "kit:a\n".into(), digest: Digest::of(b"") };
        let line = write(1, NOTHING, "2026-01-02T03:04:05.000000Z", &actor, &Event::Mounted { kit }).unwrap();
        assert_eq!(
            line,
            concat!(
                r#"{"sequence":1,"previous":"sha256:0000000000000000000000000000000000000000000000000000000000000000","#,
                r#""time":"2026-01-02T03:04:05.000000Z","pid":7,"uid":0,"directory":"/mnt","event":"mounted","#,
                r#""reference":"kit:a\n","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#
            )
        );
        let read = Line::parse(line.as_bytes()).unwrap();
        assert_eq!((read.sequence, read.previous, read.event.as_str()), (1, NOTHING, "mounted"));
    }

    #[test]
    fn a_directory_that_is_not_utf_8_is_in_base64() {
        use std::os::unix::ffi::OsStrExt;
        let actor = Actor::here(Some(Path::new(std::ffi::OsStr::from_bytes(b"/\xff"))));
        assert_eq!((actor.directory, actor.directory_b64.as_deref()), (None, Some("L/8=")));
    }
}
