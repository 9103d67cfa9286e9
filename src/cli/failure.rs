//! Why a command failed: everything that the modules below say, and what only the command line knows.
//!
//! It is printed once, in `cli`, as one line; the exit code is decided in `exit`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ConfigError;
use crate::fs::FsError;
use crate::fs::ModelFailure;
use crate::fs::ReadError;
use crate::kit::index::IndexError;
use crate::kit::name::KitPath;
use crate::layers::LayerError;
use crate::mounts::MountFailure;
use crate::mounts::StatusError;
use crate::mounts::UmountError;
use crate::mounts::UpgradeError;
use crate::policy::PolicyError;
use crate::reference::InvalidReference;
use crate::resolve::PublishError;
use crate::resolve::ResolveError;
use crate::source::SourceError;
use crate::store::StoreError;
use crate::trust::InvalidRoot;
use crate::trust::ModelError;
use crate::trust::SigningError;
use crate::trust::UpdateError;
use crate::verify::DigestMismatch;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is no command line.
    #[error("{0}")]
    Usage(String),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A policy is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A policy does not say what its cases expect.
    #[error("{failed} of {cases} cases failed")]
    Trial {
        /// How many.
        failed: usize,
        /// Of how many.
        cases: usize,
    },
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// Messages cannot go where they should.
    #[error("cannot write messages to --log-file")]
    Log(#[source] io::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no mount.
    #[error(transparent)]
    Mount(#[from] MountFailure),
    /// A mount is still there.
    #[error(transparent)]
    Umount(#[from] UmountError),
    /// Nothing is known of a mount.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Mounts cannot be moved to this program.
    #[error(transparent)]
    CannotUpgrade(#[from] UpgradeError),
    /// Mounts are served by the program that they were.
    #[error("{failed} of {mounts} mounts did not move to this program")]
    Upgrade {
        /// How many.
        failed: usize,
        /// Of how many.
        mounts: usize,
    },
    /// The mount that was to be waited for cannot be.
    #[error("cannot wait for the mount")]
    Stay(#[source] io::Error),
    /// A path that cannot be made absolute.
    #[error("{path:?} is not a path")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the store cannot be used.
    #[error("cannot look through the store")]
    Look(#[source] io::Error),
    /// Something in the store was not what its name says.
    #[error("{count} damaged in the store, removed; the first: {digest}: {error}")]
    Damaged {
        /// How many.
        count: usize,
        /// What the first should have been.
        digest: String,
        /// What it was.
        error: String,
    },
    /// The audit log is not what was written.
    #[error("the audit log {} is broken: {why}", path.display())]
    AuditBroken {
        /// The log.
        path: PathBuf,
        /// What does not hold.
        why: String,
    },
    /// The audit log cannot be read.
    #[error("cannot read the audit log {}", path.display())]
    AuditUnreadable {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The reference did not become a kit.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The source did not give a manifest again.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A manifest that was proved before has changed in the source.
    #[error("manifest of {reference}")]
    Manifest {
        /// The kit.
        reference: String,
        /// Both digests.
        source: DigestMismatch,
    },
    /// A layer did not hold.
    #[error(transparent)]
    Layer(#[from] Arc<LayerError>),
    /// The kit cannot be shown as files.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A file of the kit cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: KitPath,
        /// Why.
        source: ReadError,
    },
    /// The kit has no such path.
    #[error("there is no {path} in {reference}")]
    NoSuchPath {
        /// The path as it was given, escaped.
        path: String,
        /// The kit.
        reference: String,
    },
    /// A directory has no content.
    #[error("{path} is a directory: kitfs ls lists it")]
    IsDirectory {
        /// The path.
        path: KitPath,
    },
    /// The directory that a kit should be written into is none that is empty.
    #[error("cannot export into {}: {why}", directory.display())]
    Target {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The directory that a kit should be written into cannot be used.
    #[error("cannot export into {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path} in {}", directory.display())]
    Write {
        /// What in the kit.
        path: KitPath,
        /// Where to.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be left where it was asked for.
    #[error("cannot write {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layers of a kit are too much for one index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An index could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A file that a command was given cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no trusted root.
    #[error(transparent)]
    Root(#[from] InvalidRoot),
    /// A trusted root could not be fetched or kept.
    #[error(transparent)]
    RootUpdate(#[from] UpdateError),
    /// The files of a kit are not those that were signed as a model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The files of a kit are not those that were signed as a model, or cannot be read.
    #[error(transparent)]
    ModelFiles(#[from] ModelFailure),
    /// A bundle does not prove what it should.
    #[error("{} is refused: {why}", bundle.display())]
    Bundle {
        /// The bundle.
        bundle: PathBuf,
        /// Why.
        why: String,
    },
    /// The doctor's verdict.
    #[error("nothing can be mounted on this host as it is")]
    CannotMount,
    /// The command was told to end.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
    /// Standard output failed.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The system did not give what every command needs.
    #[error("cannot start")]
    Start(#[source] io::Error),
}
