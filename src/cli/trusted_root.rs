//! `kitfs trusted-root`: the Sigstore roots in use, and how they are kept up to date.
//!
//! The embedded root counts until an update puts another one into the state directory. Only `update` asks a
//! network, and only when it is not given a file.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::arguments::TrustedRootTask;
use crate::cli::failure::Error;
use crate::cli::print;
use crate::cli::runtime;
use crate::cli::text;
use crate::config::Config;
use crate::config::Output;
use crate::trust::TrustedRoot;

/// What `trusted-root show` and `update` print.
#[derive(Debug, Serialize)]
struct Document {
    origin: String,
    authorities: Vec<Authority>,
}

#[derive(Debug, Serialize)]
struct Authority {
    role: &'static str,
    name: String,
    from: Option<String>,
    until: Option<String>,
}

/// The root that counts: the one that was given, else the one that an update installed, else the embedded one.
pub fn in_use(config: &Config, given: Option<&Path>) -> Result<TrustedRoot, Error> {
    match given {
        Some(path) => Ok(TrustedRoot::from_file(path)?),
        None => Ok(TrustedRoot::standing(&config.folders.installed_root())?),
    }
}

/// Shows or updates.
pub fn run(config: &Config, task: TrustedRootTask) -> Result<(), Error> {
    let root = match task {
        TrustedRootTask::Show { trusted_root } => in_use(config, trusted_root.as_deref())?,
        TrustedRootTask::Update { from: Some(path), .. } => {
            TrustedRoot::from_file(&path)?.install(&config.folders.installed_root())?
        }
        TrustedRootTask::Update { from: None, mirror, root } => {
            let runtime = runtime::start().map_err(Error::Start)?;
            let fetching = TrustedRoot::fetch(mirror.as_deref(), root.as_deref(), config.source.timeout);
            let fetched = runtime.block_on(fetching)?;
            fetched.install(&config.folders.installed_root())?
        }
    };
    let authorities = root.authorities().into_iter().map(|authority| Authority {
        role: authority.role,
        name: authority.name,
        from: authority.from.map(|time| time.to_string()),
        until: authority.until.map(|time| time.to_string()),
    });
    let document = Document { origin: root.origin().to_string(), authorities: authorities.collect() };
    match config.output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| write(out, &document)),
    }
}

fn write(out: &mut dyn io::Write, document: &Document) -> io::Result<()> {
    writeln!(out, "{}", text::line(&document.origin))?;
    let now = Timestamp::now().to_string();
    for Authority { role, name, from, until } in &document.authorities {
        let from = from.as_deref().unwrap_or("ever");
        let until = until.as_deref().unwrap_or("now");
        let word = if until != "now" && until < now.as_str() { "past" } else { "live" };
        writeln!(out, "{word:<5} {role:<13} {from:<20} to {until:<20} {}", text::line(name))?;
    }
    Ok(())
}
