//! Exit codes: the same for every command, and decided in this one place.

use crate::chunks::ChunkError;
use crate::cli::error::Error;
use crate::fs::FsError;
use crate::fs::ReadError;
use crate::layers::LayerError;
use crate::resolve::ResolveError;
use crate::source::SourceError;

/// How a command ended, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Another failure; content whose digest holds but is malformed or no kit, among them.
    Failure,
    /// Wrong usage, reference or configuration.
    Usage,
    /// A reference, a path or a mount is not there.
    NotFound,
    /// The source denied access.
    Denied,
    /// Content does not match its digest.
    Mismatch,
    /// The source could not be reached in time.
    Unreachable,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Denied => 4,
            Exit::Mismatch => 5,
            Exit::Unreachable => 7,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        u8::from(exit).into()
    }
}

impl Exit {
    /// Where it stands when several things went wrong with layers: 5 before 4, 7, 3, 1.
    pub fn rank(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failure => 1,
            Self::NotFound => 2,
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::Mismatch => 5,
            Self::Usage => 6,
        }
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        match error {
            Error::Usage(_) | Error::Config(_) | Error::Reference(_) | Error::Log(_) | Error::Target { .. } => {
                Self::Usage
            }
            Error::NoSuchPath { .. } => Self::NotFound,
            Error::Damaged { .. } | Error::Manifest { .. } => Self::Mismatch,
            Error::Store(_)
            | Error::Look(_)
            | Error::IsDirectory { .. }
            | Error::Write { .. }
            | Error::CannotMount
            | Error::Interrupted
            | Error::Output(_)
            | Error::Start(_) => Self::Failure,
            Error::Resolve(error) => error.into(),
            Error::Source(error) => error.into(),
            Error::Layer(error) => (&**error).into(),
            Error::Fs(error) => error.into(),
            Error::Read { source, .. } => source.into(),
        }
    }
}

impl From<&SourceError> for Exit {
    fn from(error: &SourceError) -> Self {
        match error {
            SourceError::NotFound(_) => Self::NotFound,
            SourceError::Denied { .. } => Self::Denied,
            SourceError::Unreachable { .. } => Self::Unreachable,
            SourceError::Ambiguous { .. } | SourceError::Configuration { .. } => Self::Usage,
            SourceError::Malformed { .. }
            | SourceError::WrongSize { .. }
            | SourceError::NoRanges(_)
            | SourceError::Local { .. } => Self::Failure,
        }
    }
}

impl From<&ResolveError> for Exit {
    fn from(error: &ResolveError) -> Self {
        match error {
            // A parent is the kit's business: its author named it, nobody typed it.
            ResolveError::Parent { source: SourceError::Ambiguous { .. }, .. } => Self::Failure,
            ResolveError::Source(source) | ResolveError::Parent { source, .. } => source.into(),
            ResolveError::Mismatch { .. } => Self::Mismatch,
            ResolveError::Layer(error) => (&**error).into(),
            ResolveError::NeverSeen { .. } => Self::Unreachable,
            ResolveError::ConfigSize { .. }
            | ResolveError::NoKit { .. }
            | ResolveError::Malformed { .. }
            | ResolveError::TooManyParents { .. }
            | ResolveError::Loop { .. }
            | ResolveError::BadPin { .. } => Self::Failure,
        }
    }
}

impl From<&LayerError> for Exit {
    fn from(error: &LayerError) -> Self {
        match error {
            LayerError::Source { source, .. } => source.into(),
            LayerError::Silent { .. } => Self::Unreachable,
            LayerError::Mismatch { .. } => Self::Mismatch,
            LayerError::Malformed { .. }
            | LayerError::OtherStory { .. }
            | LayerError::Store { .. }
            | LayerError::Stopped { .. } => Self::Failure,
        }
    }
}

impl From<&FsError> for Exit {
    fn from(error: &FsError) -> Self {
        match error {
            FsError::Layer(error) => (&**error).into(),
            FsError::Conflict { .. } | FsError::Kitfile { .. } | FsError::Tree(_) => Self::Failure,
        }
    }
}

impl From<&ReadError> for Exit {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::Chunk(ChunkError::Layer(error)) => (&**error).into(),
            ReadError::Chunk(ChunkError::Lost { .. }) | ReadError::IsDirectory => Self::Failure,
            ReadError::NoSuchInode => Self::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_told_before_everything_else_that_happens_to_layers() {
        use Exit::{Denied, Done, Failure, Mismatch, NotFound, Unreachable};
        let mut exits = [Done, Mismatch, NotFound, Denied, Failure, Unreachable];
        exits.sort_by_key(|exit| std::cmp::Reverse(exit.rank()));
        assert_eq!(exits.map(u8::from), [5, 4, 7, 3, 1, 0]);
    }
}
