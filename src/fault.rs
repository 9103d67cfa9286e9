//! What kind of failure an error is: whoever started a command acts on it by the exit code.
//!
//! Each error says it of itself, next to its definition, so that no table elsewhere can fall behind.

/// Kinds of failure. Each has one exit code, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Content whose digest holds but is malformed or no kit, and everything that has no kind of its own.
    Other,
    /// Wrong usage, reference or configuration.
    Usage,
    /// A reference, path or mount that is not there.
    NotFound,
    /// The source denies access.
    Denied,
    /// Content does not match its digest.
    Mismatch,
    /// A policy refuses it.
    Refused,
    /// The source cannot be reached in time.
    Unreachable,
}

impl Fault {
    /// The exit code of a command that fails so.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Mismatch => 5,
            Self::Refused => 6,
            Self::Unreachable => 7,
        }
    }
}
