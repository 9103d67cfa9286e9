//! kitfs mounts ModelKits: lazily, read-only, and verified before a byte is read.
//!
//! The modules in reading order. Each one uses only modules that stand below it; a test holds that.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod cli;
pub mod config;
pub mod mounts;
pub mod fuse;
pub mod fs;
pub mod resolve;
pub mod policy;
pub mod trust;
pub mod chunks;
pub mod layers;
pub mod source;
pub mod store;
pub mod kit;
pub mod audit;
pub mod ledger;
pub mod fault;
pub mod verify;
pub mod buffers;
pub mod verity;
pub mod reference;
pub mod digest;
