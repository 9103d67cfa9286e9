//! kitfs mounts ModelKits: lazily, read-only, and verified before a byte is read.
//!
//! The modules in reading order. Each one uses only modules that stand below it; a test holds that.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod cli;
pub mod config;
pub mod ledger;
pub mod source;
pub mod store;
pub mod kit;
pub mod verify;
pub mod buffers;
pub mod verity;
pub mod reference;
pub mod digest;
