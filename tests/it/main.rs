//! The one integration-test binary: one link, one set of support code, all tests in parallel.
//!
//! Each module is one subject; `support` holds the parts that they share. Tests run the real `kitfs` binary,
//! real kernel mounts and a real registry, each with directories and ports of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::type_complexity, reason = "tables of cases with closures are read once, where they stand")]
#![expect(unreachable_pub, reason = "nothing here is reachable from outside; `pub` marks what a module offers")]

mod support;

mod layering;
mod tidy;

mod attached;
mod audit;
mod authorities;
mod bad_usage;
mod crashes;
mod damage;
mod demo;
mod dependencies;
mod disks;
mod docker;
mod forgeries;
mod fuzz;
mod hangs;
mod hostile;
mod index;
mod kits;
mod lazy;
mod limits;
mod many_files;
mod mappings;
mod models;
mod mount_cli;
mod neighbours;
mod own_kits;
mod parents;
mod passthrough;
mod policy;
mod privacy;
mod readers;
mod reference_model;
mod replays;
mod sample;
mod signed;
mod sigstore;
mod source;
mod standstill;
mod tampering;
mod trust;
mod trusted_root;
