//! What happened: counters and the last error of one mount, for `status`, and the log lines that go with
//! them. Events are told here once, where they happen; nobody logs an error and returns it too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The books of one mount or one command.
#[derive(Debug, Default)]
pub struct Ledger {
    verified: AtomicU64,
    fetched: AtomicU64,
    cache_hits: AtomicU64,
    last_error: Mutex<Option<Trouble>>,
}

/// The counters of a [`Ledger`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes of layers that are proved.
    pub verified: u64,
    /// Bytes of layers that came from the source.
    pub fetched: u64,
    /// Reads that the store answered.
    pub cache_hits: u64,
}

/// Something that went wrong while a mount was served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When.
    pub time: SystemTime,
    /// What kind.
    pub kind: TroubleKind,
    /// The file that was read, if one was.
    pub path: Option<String>,
    /// The layer that it is in.
    pub layer: Option<String>,
    /// The digest that was promised.
    pub expected: Option<String>,
    /// The digest that was there.
    pub actual: Option<String>,
    /// Where the bytes came from.
    pub source: Option<String>,
    /// The whole story in one line.
    pub message: String,
}

/// Kinds of trouble, as `status` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TroubleKind {
    /// Content that is not what its digest says.
    Mismatch,
    /// The source cannot be reached in time.
    Unreachable,
    /// The source does not let us.
    Denied,
    /// The local store failed.
    Store,
    /// Anything else.
    Other,
}

impl Trouble {
    /// Trouble of a kind, told by an error and its causes.
    pub fn new(kind: TroubleKind, error: &dyn std::error::Error) -> Self {
        Self {
            time: SystemTime::now(),
            kind,
            path: None,
            layer: None,
            expected: None,
            actual: None,
            source: None,
            message: chain(error),
        }
    }
}

/// An error and its causes in one line, without saying twice what a cause already says.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

impl Ledger {
    /// Bytes of a layer came from the source.
    pub fn add_fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A layer of that many bytes is proved.
    pub fn add_verified(&self, bytes: u64) {
        self.verified.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The store answered a read.
    pub fn add_cache_hit(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Something went wrong: it is logged and kept as the last error.
    pub fn report(&self, trouble: Trouble) {
        match trouble.kind {
            TroubleKind::Mismatch => tracing::error!(
                path = trouble.path.as_deref(),
                layer = trouble.layer.as_deref(),
                expected = trouble.expected.as_deref(),
                actual = trouble.actual.as_deref(),
                source = trouble.source.as_deref(),
                "{}",
                trouble.message
            ),
            _ => {
                tracing::warn!(path = trouble.path.as_deref(), layer = trouble.layer.as_deref(), "{}", trouble.message)
            }
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    /// The counters now.
    pub fn counters(&self) -> Counters {
        Counters {
            verified: self.verified.load(Ordering::Relaxed),
            fetched: self.fetched.load(Ordering::Relaxed),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
        }
    }

    /// What went wrong last.
    pub fn last_error(&self) -> Option<Trouble> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
