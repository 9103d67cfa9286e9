//! What is fuzzed: parsers of bytes that anybody may have written, each with what must hold whatever they say.
//!
//! `cargo fuzz` runs these without end; `tests/it/fuzz.rs` runs the same functions over the seeds and some mutations
//! of them, with every other test.

mod blobs;
mod certificates;
mod kits;
mod signatures;

pub use blobs::{gzip, seek, tar, zstd};
pub use certificates::{certificate, holder};
pub use kits::{config, index, layout, manifest, reference, tarball};
pub use signatures::{audit, bundle, document, material, policy, signature};
