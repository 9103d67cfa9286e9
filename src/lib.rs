//! kitfs mounts ModelKits: lazily, read-only, and verified before a byte is read.
//!
//! A reference becomes a [`resolve::Kit`]: a manifest whose digest was checked, admitted by the
//! [`policy::Policies`]. Its layers are listed and merged into a [`fs::KitFs`], which a worker process of
//! [`mounts`] shows to the kernel through [`fuse`]. A `read(2)` goes one straight way:
//! `fuse`, `fs`, `chunks`, then `store` or, where a layer is not proved yet, `layers` and `source`.
//!
//! Three facts, three types, and no other way to any of them: [`verify::Verified`] says that content has
//! its digest, [`trust::Endorsement`] that somebody signed a manifest, [`policy::Admitted`] that the
//! operator wants it. Stores and sources hand out [`verify::Unverified`], the FUSE reply takes `Verified`.
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
pub mod patience;
pub mod buffers;
pub mod verity;
pub mod reference;
pub mod digest;
pub mod sha256;
mod sync;
