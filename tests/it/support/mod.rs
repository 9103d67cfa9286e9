//! What the tests share: the binary under test, mounts that clean up, kits, registries, trees to compare.

pub mod der;
pub mod faults;
pub mod host;
pub mod keys;
pub mod kit;
pub mod kitfs;
pub mod mount;
pub mod random;
pub mod registry;
pub mod shared;
pub mod sigstore;
pub mod tree;
