//! Standard output. Whoever reads it may leave at any time: that ends the output, and nothing else.

use std::io;
use std::io::BufWriter;
use std::io::Write;

use serde::Serialize;

use crate::cli::failure::Error;
use crate::cli::text::line;
use crate::policy::Shown;

/// Writes one JSON document.
pub fn json(document: &impl Serialize) -> Result<(), Error> {
    text(|out| {
        serde_json::to_writer_pretty(&mut *out, document)?;
        writeln!(out)
    })
}

/// Writes what `write` writes.
pub fn text(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// A signature or attestation, as a line for people.
pub fn signature(out: &mut dyn Write, word: &str, shown: &Shown) -> io::Result<()> {
    let who = match (&shown.identity, &shown.issuer) {
        (Some(identity), Some(issuer)) => format!("{identity} ({issuer})"),
        (Some(identity), None) => identity.clone(),
        (None, _) => "unknown signer".into(),
    };
    write!(out, "{word:<10} {:<8} {}", if shown.verified { "verified" } else { "refused" }, line(&who))?;
    if let Some(predicate_type) = &shown.predicate_type {
        write!(out, "  {}", line(predicate_type))?;
    }
    if let Some(logged_at) = &shown.logged_at {
        write!(out, "  {logged_at}")?;
    }
    match &shown.error {
        Some(error) => writeln!(out, ": {}", line(error)),
        None => writeln!(out),
    }
}

/// A number of bytes for people: `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, shown) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1 << 20, "1.0 MiB"), (1_500_000_000, "1.4 GiB")]
        {
            assert_eq!(size(bytes), shown);
        }
    }
}
