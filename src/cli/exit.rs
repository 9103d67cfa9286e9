//! Exit codes: the same for every command, and decided in this one place.

use std::io;

use crate::cli::failure::Error;
use crate::fault::Fault;

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
    /// A policy refuses it.
    Refused,
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
            Exit::Refused => 6,
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
    /// The exit that another process of ours has ended with.
    fn of_code(code: u8) -> Self {
        let exits = [Self::Usage, Self::NotFound, Self::Denied, Self::Mismatch, Self::Refused, Self::Unreachable];
        exits.into_iter().find(|&exit| u8::from(exit) == code).unwrap_or(Self::Failure)
    }

    /// Where it stands when several things went wrong with layers: 5 before 4, 7, 3, 1.
    pub fn rank(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failure => 1,
            Self::NotFound => 2,
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::Mismatch => 5,
            Self::Refused => 6,
            Self::Usage => 7,
        }
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        match error {
            Error::Usage(_)
            | Error::Config(_)
            | Error::Policy(_)
            | Error::Reference(_)
            | Error::Log(_)
            | Error::Target { .. }
            | Error::Path { .. } => Self::Usage,
            Error::NoSuchPath { .. } => Self::NotFound,
            Error::Damaged { .. } | Error::Manifest { .. } | Error::AuditBroken { .. } => Self::Mismatch,
            Error::Store(_)
            | Error::AuditUnreadable { .. }
            | Error::Look(_)
            | Error::IsDirectory { .. }
            | Error::Directory { .. }
            | Error::Write { .. }
            | Error::Keep { .. }
            | Error::Index(_)
            | Error::CannotMount
            | Error::Trial { .. }
            | Error::Interrupted
            | Error::Output(_)
            | Error::CannotUpgrade(_)
            | Error::Upgrade { .. }
            | Error::Stay(_)
            | Error::Start(_) => Self::Failure,
            Error::Bundle { .. } => Self::Refused,
            Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Self::NotFound,
            Error::File { .. } => Self::Failure,
            Error::Signing(error) => error.fault().into(),
            Error::Model(error) => error.fault().into(),
            Error::ModelFiles(error) => error.fault().into(),
            Error::Root(error) => error.fault().into(),
            Error::RootUpdate(error) => error.fault().into(),
            Error::Mount(error) => Self::of_code(error.exit_code),
            Error::Umount(error) => Self::of_code(error.exit_code()),
            Error::Status(error) => Self::of_code(error.exit_code()),
            Error::Publish(error) => error.fault().into(),
            Error::Resolve(error) => error.fault().into(),
            Error::Source(error) => error.fault().into(),
            Error::Layer(error) => error.fault().into(),
            Error::Fs(error) => error.fault().into(),
            Error::Read { source, .. } => source.fault().into(),
        }
    }
}

impl From<Fault> for Exit {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Other => Self::Failure,
            Fault::Usage => Self::Usage,
            Fault::NotFound => Self::NotFound,
            Fault::Denied => Self::Denied,
            Fault::Mismatch => Self::Mismatch,
            Fault::Refused => Self::Refused,
            Fault::Unreachable => Self::Unreachable,
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
