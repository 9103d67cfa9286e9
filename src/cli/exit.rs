//! Exit codes: the same for every command.

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
    /// The one that is told where several things went wrong with layers: 5 before 4, 7, 3, 1.
    pub fn worst(exits: impl IntoIterator<Item = Self>) -> Self {
        let rank = |exit: &Self| match exit {
            Self::Done => 0,
            Self::Failure => 1,
            Self::NotFound => 2,
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::Mismatch => 5,
            Self::Usage => 6,
        };
        exits.into_iter().max_by_key(rank).unwrap_or(Self::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_told_before_everything_else_that_happens_to_layers() {
        use Exit::{Denied, Done, Failure, Mismatch, NotFound, Unreachable};
        for (exits, expected) in [
            (&[][..], 0),
            (&[Done, Done], 0),
            (&[Done, Failure], 1),
            (&[NotFound, Failure], 3),
            (&[NotFound, Unreachable], 7),
            (&[Unreachable, Denied], 4),
            (&[Denied, Mismatch, Unreachable], 5),
        ] {
            assert_eq!(u8::from(Exit::worst(exits.iter().copied())), expected, "{exits:?}");
        }
    }
}
