//! What can happen that the audit log tells of.
//!
//! The names of events and of their members are a format: `docs/audit.md` has them all, and what is
//! written here is read by programs that this repository does not know.

use serde::Serialize;

use crate::digest::Digest;

/// A kit, as an event names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kit {
    /// How it was named.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// Something that happened. Members that say nothing are left out of the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A reference became a digest.
    Resolved {
        /// The kit.
        #[serde(flatten)]
        kit: Kit,
        /// What said so: `registry`, `cache` or `digest`.
        by: String,
        /// Where the kit comes from.
        source: String,
        /// For a parent, the kit that refers to it.
        #[serde(skip_serializing_if = "Option::is_none")]
        needed_by: Option<Digest>,
    },
    /// Policy has spoken.
    Decision {
        /// The kit.
        #[serde(flatten)]
        kit: Kit,
        /// `allow`, `warn`, `deny` or `none`.
        verdict: String,
        /// The rules that were asked, one for each policy.
        rules: Vec<String>,
        /// Who signed it, of those whom the policy asks for: `key:sha256:<SPKI>` or `identity (issuer)`.
        identities: Vec<String>,
        /// Why, in words.
        reasons: Vec<String>,
    },
    /// An index of a kit counts from here on.
    #[serde(rename = "index-admitted")]
    IndexChosen {
        /// The kit.
        #[serde(flatten)]
        kit: Kit,
        /// The index.
        index: Digest,
        /// What makes it count: `manifest`, which names it, or `signature`.
        by: String,
        /// Who signed it, of those whom the policies let.
        identities: Vec<String>,
    },
    /// A kit is mounted; nothing of it has been read yet.
    Mounted {
        /// The kit.
        #[serde(flatten)]
        kit: Kit,
    },
    /// Every byte of a layer was seen, and its digest was right.
    #[serde(rename = "layer-verified")]
    LayerProved {
        /// The kit that the layer belongs to.
        #[serde(flatten)]
        kit: Kit,
        /// The layer.
        layer: Digest,
        /// Bytes in it.
        size: u64,
        /// Where they came from.
        source: String,
        /// How often the same was left out since it was written last.
        #[serde(skip_serializing_if = "is_zero")]
        repeated: u64,
    },
    /// Something was not what its digest says.
    Mismatch {
        /// The kit that it belongs to.
        #[serde(flatten)]
        kit: Kit,
        /// The layer, if it is one or is in one.
        #[serde(skip_serializing_if = "Option::is_none")]
        layer: Option<Digest>,
        /// The digest that was promised.
        expected: String,
        /// The digest that was there.
        actual: String,
        /// Where it came from: a source, or `cache`.
        source: String,
        /// How often the same was left out since it was written last.
        #[serde(skip_serializing_if = "is_zero")]
        repeated: u64,
    },
    /// A mount has ended.
    Unmounted {
        /// The kit.
        #[serde(flatten)]
        kit: Kit,
    },
    /// Somebody relaxed a rule with an option whose name says danger.
    DangerUsed {
        /// The kit that it was used for.
        #[serde(flatten)]
        kit: Kit,
        /// The option or the key.
        option: String,
        /// What it overruled.
        detail: String,
    },
    /// Of the log itself: a writer died while it wrote, and what it left of its lines was moved aside.
    Repaired {
        /// How many bytes.
        bytes: u64,
        /// The file beside the log that has them now.
        moved_to: String,
    },
    /// Of the log itself: it does not end where this installation left it. It is broken from here on.
    Broken {
        /// What does not fit.
        reason: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The words for events, as they stand in lines: those that somebody can filter by.
pub const NAMES: &[&str] = &[
    "resolved",
    "decision",
    "index-admitted",
    "mounted",
    "layer-verified",
    "mismatch",
    "unmounted",
    "danger-used",
    "repaired",
    "broken",
];

/// Longer texts of a policy are cut: a line is to stay one that people and log daemons can take.
const LONGEST_TEXT: usize = 512;

/// More rules, reasons or identities than that are left out, and their number is told.
const MOST_TEXTS: usize = 16;

impl Event {
    /// Something of a kit was not what its digest says.
    pub fn mismatch(
        kit: &Kit,
        layer: Option<&Digest>,
        expected: impl ToString,
        actual: impl ToString,
        source: String,
    ) -> Self {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        Self::Mismatch { kit: kit.clone(), layer: layer.copied(), expected, actual, source, repeated: 0 }
    }

    /// The event with its texts cut to what a line should hold.
    pub(super) fn bounded(mut self) -> Self {
        if let Self::DangerUsed { detail, .. } = &mut self {
            cut(detail);
        }
        if let Self::Decision { rules, identities, reasons, .. } = &mut self {
            [rules, identities, reasons].into_iter().for_each(shorten);
        }
        if let Self::IndexChosen { identities, .. } = &mut self {
            shorten(identities);
        }
        self
    }

    /// Where the number of repetitions is told, for the events that can come in floods.
    pub(super) fn repeated(&mut self) -> Option<&mut u64> {
        match self {
            Self::LayerProved { repeated, .. } | Self::Mismatch { repeated, .. } => Some(repeated),
            _ => None,
        }
    }
}

fn shorten(list: &mut Vec<String>) {
    let left_out = list.len().saturating_sub(MOST_TEXTS);
    list.truncate(MOST_TEXTS);
    list.iter_mut().for_each(cut);
    if left_out > 0 {
        list.push(format!("and {left_out} more"));
    }
}

fn cut(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
}
