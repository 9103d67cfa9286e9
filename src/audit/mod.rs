//! The audit trail: what was resolved, admitted, mounted, verified and refused, one JSON object a line.
//!
//! Each line carries the hash of the one before, so an edit, a deletion or a reorder shows; the end of the
//! log is kept apart under this host's seal, so a truncation does too. An event counts as recorded when its
//! line is on the disk. Any number of processes write one log; each has one thread for it, so that an event
//! of a hot path costs nothing there, and events that come together share one sync.
//!
//! `docs/audit.md` is the format. In reading order: `event` and `line` (what is written), `files`, `head`
//! and `chain` (how), `copies` and `daemon` (who else gets it), `verification` (how it is checked).

mod chain;
mod copies;
mod daemon;
mod event;
mod files;
mod head;
mod line;
mod verification;

use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use lru::LruCache;
use tracing::Level;

pub use copies::Copy;
pub use daemon::Daemon;
pub use daemon::Stream;
pub use event::Event;
pub use event::Kit;
pub use event::NAMES;
pub use line::Line;
pub use verification::Anchor;
pub use verification::Verification;
pub use verification::lines;
pub use verification::verify;

use crate::audit::chain::Chain;
use crate::audit::chain::Entry;
use crate::audit::copies::Copies;
use crate::audit::line::Actor;
use crate::fault::Fault;
use crate::ledger;
use crate::verify::LocalKey;

/// A file is rotated when it has this many bytes.
const FULL: u64 = 64 << 20;

/// The most that is written and synced at once.
const BATCH: usize = 1000;

/// The same layer verified or the same mismatch again is left out, and counted, for this long.
const QUIET: Duration = Duration::from_secs(60);

/// So many different events are remembered for that.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("is not zero");

/// The same complaint about the log is made again after this time.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Where a log is, and who writes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file. Absolute.
    pub file: PathBuf,
    /// Who gets a copy of each line.
    pub copies: Vec<Copy>,
    /// The mount that this process works for, if it does.
    pub directory: Option<PathBuf>,
}

/// The log, where nothing else was said.
pub fn default_file(state: &Path) -> PathBuf {
    state.join("audit.log")
}

/// An audit log to write to.
#[derive(Debug)]
pub struct Audit {
    writer: Arc<Writer>,
    /// Started by the first event: a process without one touches nothing.
    thread: OnceLock<Result<Thread, Arc<AuditError>>>,
    required: AtomicBool,
    said: Mutex<LruCache<String, Said>>,
}

#[derive(Debug)]
struct Thread {
    queue: Mutex<Option<mpsc::Sender<Order>>>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Order {
    /// None is a question whether everything before it is written.
    entry: Option<Entry>,
    reply: Option<Reply>,
}

type Reply = mpsc::SyncSender<Result<(), Arc<AuditError>>>;

/// An event that may come again.
#[derive(Debug)]
struct Said {
    when: Instant,
    left_out: u64,
}

/// What was wrong with the log so far.
#[derive(Debug, Default)]
struct Trouble {
    first: Option<Arc<AuditError>>,
    complained: Option<(String, Instant)>,
}

impl Audit {
    /// Prepares to write to a log, of which `state`, the state directory, keeps the end, sealed with `key`.
    /// Whether that works shows with the first event.
    pub fn new(settings: Settings, state: &Path, key: LocalKey) -> Arc<Self> {
        Self::with_limit(settings, state, key, FULL)
    }

    fn with_limit(settings: Settings, state: &Path, key: LocalKey, full: u64) -> Arc<Self> {
        let Settings { file, copies, directory } = settings;
        let head = chain::head_path(state, &file);
        let writer = Writer {
            chain: Chain { path: file, head, key, full },
            copies: Copies::new(&copies),
            actor: Actor::here(directory.as_deref()),
            trouble: Mutex::default(),
        };
        Arc::new(Self {
            writer: Arc::new(writer),
            thread: OnceLock::new(),
            required: AtomicBool::new(false),
            said: Mutex::new(LruCache::new(REMEMBERED)),
        })
    }

    /// The file that is written.
    pub fn path(&self) -> &Path {
        &self.writer.chain.path
    }

    /// Says that policy asks for a log. From now on an event that cannot be recorded is an error, and it
    /// is one now if that has happened before.
    pub fn require(&self) -> Result<(), Arc<AuditError>> {
        self.required.store(true, Ordering::Relaxed);
        self.trouble().map_or(Ok(()), Err)
    }

    /// Records an event, and returns when it is on the disk.
    ///
    /// Where that fails and policy does not ask for a log, it is a warning and no error.
    pub fn record(&self, event: Event) -> Result<(), Arc<AuditError>> {
        let (reply, answer) = mpsc::sync_channel(1);
        let sent = self.send(Some(event), Some(reply));
        let ended = || Err(self.failed(std::io::Error::other("its writer has ended")));
        let Err(error) = sent.and_then(|()| answer.recv().unwrap_or_else(|_| ended())) else { return Ok(()) };
        if self.required.load(Ordering::Relaxed) {
            return Err(error);
        }
        self.writer.complain(&error);
        Ok(())
    }

    /// Records an event soon, in its order among the others. Where that fails it is a warning.
    ///
    /// A layer that was verified, or a mismatch, that is the same as one before is left out for a minute:
    /// a reader that reads corrupt content in a loop must not fill the log.
    pub fn record_soon(&self, event: Event) {
        if let Some(event) = self.news(event)
            && let Err(error) = self.send(Some(event), None)
        {
            self.writer.complain(&error);
        }
    }

    /// Waits for every event that was to be recorded soon.
    pub fn flush(&self) {
        let (reply, answer) = mpsc::sync_channel(1);
        if self.thread.get().is_some() && self.send(None, Some(reply)).is_ok() {
            let _written_or_complained_about = answer.recv();
        }
    }

    /// The first thing that was wrong with the log, for whoever waits for a mount to be told.
    pub fn trouble(&self) -> Option<Arc<AuditError>> {
        self.flush();
        lock(&self.writer.trouble).first.clone()
    }

    /// The event, unless it was told just now.
    fn news(&self, mut event: Event) -> Option<Event> {
        if event.repeated().is_none() {
            return Some(event);
        }
        let Ok(name) = serde_json::to_string(&event) else { return Some(event) };
        let mut said = lock(&self.said);
        let now = Instant::now();
        match said.get_mut(&name) {
            Some(before) if now.duration_since(before.when) < QUIET => {
                before.left_out += 1;
                None
            }
            Some(before) => {
                let left_out = std::mem::take(&mut before.left_out);
                before.when = now;
                if let Some(repeated) = event.repeated() {
                    *repeated = left_out;
                }
                Some(event)
            }
            None => {
                said.put(name, Said { when: now, left_out: 0 });
                Some(event)
            }
        }
    }

    fn send(&self, event: Option<Event>, reply: Option<Reply>) -> Result<(), Arc<AuditError>> {
        let time = || format!("{:.6}", jiff::Timestamp::now());
        let entry = event.map(|event| Entry { time: time(), event: event.bounded() });
        let thread = self.thread.get_or_init(|| self.start()).as_ref().map_err(Arc::clone)?;
        let sent = lock(&thread.queue).as_ref().is_some_and(|queue| queue.send(Order { entry, reply }).is_ok());
        if sent { Ok(()) } else { Err(self.failed(std::io::Error::other("its writer has ended"))) }
    }

    fn failed(&self, source: std::io::Error) -> Arc<AuditError> {
        Arc::new(AuditError { path: self.path().into(), source })
    }

    fn start(&self) -> Result<Thread, Arc<AuditError>> {
        let (queue, orders) = mpsc::channel();
        let writer = Arc::clone(&self.writer);
        let thread = std::thread::Builder::new().name("kitfs-audit".to_owned());
        let handle = thread.spawn(move || writer.run(&orders)).map_err(|source| self.failed(source))?;
        Ok(Thread { queue: Mutex::new(Some(queue)), handle: Mutex::new(Some(handle)) })
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let Some(Ok(thread)) = self.thread.get() else { return };
        // Without a queue the writer ends when it has written what was in it.
        drop(lock(&thread.queue).take());
        if let Some(handle) = lock(&thread.handle).take() {
            let _ended = handle.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread of a log works with.
#[derive(Debug)]
struct Writer {
    chain: Chain,
    copies: Copies,
    actor: Actor,
    trouble: Mutex<Trouble>,
}

impl Writer {
    fn run(&self, orders: &mpsc::Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let mut batch = vec![order];
            batch.extend(orders.try_iter().take(BATCH - 1));
            let nobody_waits = batch.iter().any(|order| order.entry.is_some() && order.reply.is_none());
            let (entries, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|order| (order.entry, order.reply)).unzip();
            let entries: Vec<_> = entries.into_iter().flatten().collect();
            let result = if entries.is_empty() { Ok(()) } else { self.write(&entries) };
            if let Err(error) = &result {
                lock(&self.trouble).first.get_or_insert_with(|| Arc::clone(error));
                if nobody_waits {
                    self.complain(error);
                }
            }
            for reply in replies.into_iter().flatten() {
                // Whoever asked may be gone.
                let _ = reply.send(result.clone());
            }
        }
    }

    fn complain(&self, error: &Arc<AuditError>) {
        let message = ledger::chain(&**error);
        let mut trouble = lock(&self.trouble);
        trouble.first.get_or_insert_with(|| Arc::clone(error));
        let told = trouble.complained.as_ref();
        if told.is_none_or(|(before, when)| *before != message || when.elapsed() >= COMPLAIN_AGAIN) {
            tracing::error!("events are missing from the audit log: {message}");
            trouble.complained = Some((message, Instant::now()));
        }
    }

    fn write(&self, entries: &[Entry]) -> Result<(), Arc<AuditError>> {
        let failed = |source| Arc::new(AuditError { path: self.chain.path.clone(), source });
        let lines = self.chain.append(entries, &self.actor).map_err(failed)?;
        // The log may have put lines of its own before those of the events.
        let own = lines.len() - entries.len();
        let levels = std::iter::repeat_n(Level::WARN, own).chain(entries.iter().map(|entry| level(&entry.event)));
        let lines: Vec<_> = levels.zip(lines).collect();
        if own > 0 {
            tracing::error!(path = %self.chain.path.display(), "the audit log was not as it was left: kitfs audit verify tells more");
        }
        if let Err(error) = self.copies.send(&lines) {
            tracing::warn!("lines of the audit log could not be copied: {error}");
        }
        Ok(())
    }
}

/// How loud a log daemon should be about an event.
fn level(event: &Event) -> Level {
    match event {
        Event::Mismatch { .. } | Event::Broken { .. } => Level::ERROR,
        Event::Decision { verdict, .. } if verdict == "deny" || verdict == "warn" => Level::WARN,
        Event::DangerUsed { .. } | Event::Repaired { .. } => Level::WARN,
        Event::Resolved { .. }
        | Event::Decision { .. }
        | Event::IndexChosen { .. }
        | Event::Mounted { .. }
        | Event::LayerProved { .. }
        | Event::Unmounted { .. } => Level::INFO,
    }
}

/// Why an event could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log {}", path.display())]
pub struct AuditError {
    /// The log.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl AuditError {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        Fault::Other
    }
}

#[cfg(test)]
mod tests;
