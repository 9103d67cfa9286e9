//! Messages while kitfs runs: who gets them, and which ones.
//!
//! A command that a person waits for writes warnings on standard error. A process in the background has
//! nobody there: it writes to a file that is rotated, to the system's log daemon, or to the journal. A
//! message is one line whatever it holds; losing one never stops the work, so no sink reports errors
//! once it is open.

mod file;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::audit::Daemon;
use crate::audit::Stream;
use crate::cli::log::file::RotatedFile;
use crate::cli::text;
use crate::config::Log;
use crate::config::LogTarget;

/// Where a process stands, as far as its messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A person or a script waits for the result, which says itself what went wrong.
    Command,
    /// Somebody reads its standard error for as long as it runs.
    Foreground,
    /// Nobody does.
    Background,
}

/// Sends the messages of this process where they belong, from now on.
///
/// The error is that a place which was asked for cannot be written to.
pub fn start(log: &Log, place: Place, state: &Path) -> std::io::Result<()> {
    let target = match (&log.target, place) {
        (Some(target), _) => Some(target.clone()),
        (None, Place::Background) => Some(LogTarget::File(default_file(state))),
        (None, Place::Command | Place::Foreground) => None,
    };
    let quiet = match place {
        Place::Command | Place::Foreground => Level::WARN,
        Place::Background => Level::INFO,
    };
    let mut sinks = Vec::new();
    if let Some(target) = target {
        sinks.push(Sink::open(&target)?);
    }
    if place != Place::Background {
        sinks.push(Sink::Stderr);
    }
    let level = log.level.unwrap_or(quiet);
    // Libraries speak of themselves on every level; what they say below a warning is for whoever debugs them.
    let others = if level >= Level::TRACE { level } else { level.min(Level::WARN) };
    // A command prints the error that it ends with; the books have it too.
    let books = match (place, log.level) {
        (Place::Command, None) => LevelFilter::OFF,
        _ => level.into(),
    };
    let filter = Targets::new().with_default(others).with_target("kitfs", level).with_target("kitfs::ledger", books);
    let layer = Messages(sinks).with_filter(filter);
    // Only a second start in one process can fail, and then the first one's places stay in use.
    let _first_start_counts = tracing_subscriber::registry().with(layer).try_init();
    Ok(())
}

/// The log of background processes, where no other place was named.
pub fn default_file(state: &Path) -> PathBuf {
    state.join("kitfs.log")
}

/// Says whether background processes will be able to send their messages where they belong.
pub fn check(log: &Log, state: &Path) -> std::io::Result<()> {
    Sink::open(&log.target.clone().unwrap_or_else(|| LogTarget::File(default_file(state)))).map(drop)
}

/// One place that takes messages.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(Mutex<RotatedFile>),
    Daemon(Daemon),
}

impl Sink {
    fn open(target: &LogTarget) -> std::io::Result<Self> {
        Ok(match target {
            LogTarget::File(path) => Self::File(Mutex::new(RotatedFile::open(path)?)),
            LogTarget::Syslog => Self::Daemon(Daemon::syslog(Stream::Messages)?),
            LogTarget::Journal => Self::Daemon(Daemon::journal(Stream::Messages)?),
        })
    }

    fn write(&self, level: Level, message: &str) {
        match self {
            Self::Stderr => {
                let word = level.as_str().to_ascii_lowercase();
                let word = if level == Level::WARN { "warning" } else { &word };
                let _lost = writeln!(std::io::stderr().lock(), "kitfs: {word}: {message}");
            }
            Self::File(file) => {
                let line = format!("{:.3} {level} kitfs[{}] {message}\n", jiff::Timestamp::now(), std::process::id());
                file.lock().unwrap_or_else(PoisonError::into_inner).write(line.as_bytes());
            }
            Self::Daemon(daemon) => {
                let _lost = daemon.write(level, message);
            }
        }
    }
}

/// The layer that turns events into lines.
#[derive(Debug)]
struct Messages(Vec<Sink>);

impl<S: Subscriber> Layer<S> for Messages {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let message = line.message + &line.fields;
        let message = text::line(&message);
        self.0.iter().for_each(|sink| sink.write(*event.metadata().level(), &message));
    }
}

/// An event as text: its message, then its fields as `name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // What `log` adds to the messages of libraries.
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{:?}", text::chain(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/kitfs.log");
        let sink = Sink::open(&LogTarget::File(path.clone())).unwrap();
        let subscriber = tracing_subscriber::registry().with(Messages(vec![sink]));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(
                name = "a\nb",
                error = &std::io::Error::other("bad") as &dyn std::error::Error,
                "went\nwrong"
            );
        });
        let log = std::fs::read_to_string(path).unwrap();
        let (_, message) = log.split_once("] ").unwrap();
        assert_eq!(message, "went\\nwrong name=\"a\\nb\" error=\"bad\"\n");
        assert!(log.contains("Z WARN kitfs["), "{log}");
    }
}
