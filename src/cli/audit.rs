//! `kitfs audit`: what the log says, and whether it is the log that was written.

use std::io;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::audit;
use crate::audit::Anchor;
use crate::audit::Line;
use crate::audit::Verification;
use crate::cli::arguments::AuditTask;
use crate::cli::arguments::Filters;
use crate::cli::documents::AuditVerification;
use crate::cli::documents::SignedHead;
use crate::cli::failure::Error;
use crate::cli::print;
use crate::cli::signer;
use crate::cli::text;
use crate::config::Config;
use crate::config::Output;
use crate::digest::Digest;
use crate::store;
use crate::trust::SigningError;
use crate::trust::SigningKey;

/// Does it.
pub fn run(config: &Config, task: AuditTask) -> Result<(), Error> {
    match task {
        AuditTask::Show(filters) => show(config, &filters),
        AuditTask::Verify { head, start, sign_key } => {
            let anchor = Anchor {
                head: head.map(|head| hash("--head", &head)).transpose()?,
                start: start.map(|start| hash("--start", &start)).transpose()?,
            };
            let signer = sign_key.map(|path| signer::signing_key(&path)).transpose()?;
            verify(config, &anchor, signer.as_ref())
        }
    }
}

fn verify(config: &Config, anchor: &Anchor, signer: Option<&SigningKey>) -> Result<(), Error> {
    let (path, state) = (&config.audit.file, &config.folders.state);
    let key = store::local_key(&state.join("key"))?;
    let unreadable = |source| Error::AuditUnreadable { path: path.clone(), source };
    let verified = audit::verify(path, state, key, anchor).map_err(unreadable)?;
    let signer = signer.filter(|_| verified.error.is_none());
    let signed_head = signer.map(|signer| sign(signer, &verified)).transpose()?;
    let document = AuditVerification {
        ok: verified.error.is_none(),
        lines: verified.lines,
        head: verified.head,
        error: verified.error,
        file: path.to_string_lossy().into_owned(),
        notes: verified.notes,
        signed_head,
    };
    for note in &document.notes {
        let _nobody_reads = writeln!(io::stderr(), "kitfs: warning: {}", text::line(note));
    }
    match config.output {
        Output::Json => print::json(&document)?,
        Output::Text => print::text(|out| {
            writeln!(out, "file       {}", text::name(document.file.as_bytes()))?;
            writeln!(out, "lines      {}", document.lines)?;
            if let Some(head) = document.head {
                writeln!(out, "head       {head}")?;
            }
            if let Some(signed) = &document.signed_head {
                writeln!(out, "signed     {}", signed.payload)?;
                writeln!(out, "signature  {}", signed.signature)?;
            }
            if document.ok { writeln!(out, "ok") } else { Ok(()) }
        })?,
    }
    match document.error {
        Some(why) => Err(Error::AuditBroken { path: path.clone(), why }),
        None => Ok(()),
    }
}

fn sign(key: &SigningKey, verified: &Verification) -> Result<SignedHead, SigningError> {
    let payload = verified.statement();
    let signature = STANDARD.encode(key.sign(payload.as_bytes())?);
    Ok(SignedHead { payload, signature, public_key: key.public().to_pem() })
}

fn hash(option: &str, given: &str) -> Result<Digest, Error> {
    let named = if given.contains(':') { given.to_owned() } else { format!("sha256:{given}") };
    match named.parse::<Digest>() {
        Ok(digest @ Digest::Sha256(_)) => Ok(digest),
        _ => Err(Error::Usage(format!("{option}: {given:?} is not the SHA-256 hash of a line"))),
    }
}

fn show(config: &Config, filters: &Filters) -> Result<(), Error> {
    let path = &config.audit.file;
    let unreadable = |source| Error::AuditUnreadable { path: path.clone(), source };
    let wanted = Wanted::new(filters)?;
    let lines = audit::lines(path).map_err(unreadable)?;
    // What happens while this runs may be in or not; what cannot be read ends it.
    let mut failed = None;
    let lines = lines.map_while(|line| line.map_err(|error| failed = Some(error)).ok());
    let mut lines = lines.filter(|(line, _)| wanted.has(line));
    match config.output {
        Output::Json => print::text(|out| {
            write!(out, "{{\"events\": [")?;
            for (number, (_, text)) in lines.by_ref().enumerate() {
                let comma = if number == 0 { "" } else { "," };
                write!(out, "{comma}\n  {text}")?;
            }
            writeln!(out, "\n]}}")
        })?,
        Output::Text => print::text(|out| lines.by_ref().try_for_each(|(line, _)| write(out, &line)))?,
    }
    drop(lines);
    failed.map_or(Ok(()), |error| Err(unreadable(error)))
}

/// Which lines are wanted.
struct Wanted<'f> {
    filters: &'f Filters,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl<'f> Wanted<'f> {
    fn new(filters: &'f Filters) -> Result<Self, Error> {
        let since = filters.since.as_deref().map(|since| time("--since", since)).transpose()?;
        let until = filters.until.as_deref().map(|until| time("--until", until)).transpose()?;
        Ok(Self { filters, since, until })
    }

    fn has(&self, line: &Line) -> bool {
        let Filters { kit, digest, event, .. } = self.filters;
        let of_kit = kit.as_deref().is_none_or(|kit| line.reference.as_deref().is_some_and(|named| is_of(named, kit)));
        let digests = [&line.digest, &line.layer, &line.expected, &line.actual];
        let with_digest = digest.as_deref().is_none_or(|digest| {
            digests.into_iter().flatten().any(|named| {
                named.starts_with(digest) || named.split_once(':').is_some_and(|(_, hex)| hex.starts_with(digest))
            })
        });
        let of_event = event.is_empty() || event.contains(&line.event);
        let in_time = (self.since.is_none() && self.until.is_none())
            || line.time.parse::<Timestamp>().is_ok_and(|time| {
                self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time < until)
            });
        of_kit && with_digest && of_event && in_time
    }
}

/// Whether a reference is the one that is asked for, or names a part of it.
fn is_of(reference: &str, asked: &str) -> bool {
    reference.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@', '/']))
}

/// A moment: RFC 3339, a date (its beginning, UTC), or how long ago.
fn time(option: &str, given: &str) -> Result<Timestamp, Error> {
    if let Ok(time) = given.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = format!("{given}T00:00:00Z").parse::<Timestamp>() {
        return Ok(time);
    }
    let wrong = || Error::Usage(format!("{option}: {given:?} is no time: 2026-01-31T12:00:00Z, 2026-01-31 or 2h"));
    let ago = humantime::parse_duration(given).map_err(|_| wrong())?;
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}

fn write(out: &mut dyn Write, line: &Line) -> io::Result<()> {
    write!(out, "{}  {:<14}", text::line(&line.time), text::line(&line.event))?;
    let words = [
        ("", &line.reference),
        ("", &line.digest),
        ("at ", &line.directory),
        ("layer ", &line.layer),
        ("expected ", &line.expected),
        ("actual ", &line.actual),
        ("", &line.verdict),
        ("option ", &line.option),
        ("from ", &line.source),
        ("", &line.reason),
    ];
    for (word, value) in words {
        if let Some(value) = value {
            write!(out, "  {word}{}", text::line(value))?;
        }
    }
    for (word, list) in [("by ", &line.rules), ("signed by ", &line.identities), ("because ", &line.reasons)] {
        for value in list {
            write!(out, "  {word}{}", text::line(value))?;
        }
    }
    writeln!(out, "  pid {} uid {}", line.pid, line.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_is_found_by_the_beginning_of_its_reference() {
        for (reference, asked, found) in [
            ("ghcr.io/acme/model:v1", "ghcr.io/acme/model:v1", true),
            ("ghcr.io/acme/model:v1", "ghcr.io/acme/model", true),
            ("ghcr.io/acme/model:v1", "ghcr.io/acme", true),
            ("ghcr.io/acme/model@sha256:0", "ghcr.io/acme/model", true),
            ("ghcr.io/acme/model:v1", "ghcr.io/acme/mod", false),
            ("ghcr.io/acme/model:v10", "ghcr.io/acme/model:v1", false),
        ] {
            assert_eq!(is_of(reference, asked), found, "{asked}");
        }
    }

    #[test]
    fn times_are_moments_dates_or_durations() {
        let noon = time("--since", "2026-01-31T12:00:00Z").unwrap();
        let midnight = time("--since", "2026-01-31").unwrap();
        assert_eq!(noon.duration_since(midnight).as_hours(), 12);
        assert!(time("--since", "2h").unwrap() < Timestamp::now());
        for wrong in ["", "yesterday", "2026-13-01", "99999999999999y"] {
            assert!(time("--since", wrong).is_err(), "{wrong}");
        }
    }
}
