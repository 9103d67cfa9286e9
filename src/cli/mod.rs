//! The command `kitfs`: arguments in, text or JSON out, and an exit code.
//!
//! Nothing is decided here about kits: the commands ask the modules below and show what they say.

mod arguments;
mod doctor;
mod documents;
mod exit;
mod log;
mod text;
