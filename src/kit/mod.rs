//! What a kit is: manifests, configs, layers and trees, read out of proved content.
//!
//! No network and no disk here: functions from bytes to meaning, and to clear refusals.

pub mod contents;
pub mod kitfile;
pub mod yaml;
pub mod plain;
pub mod config;
pub mod parameter;
pub mod filter;
pub mod artifact;
pub mod manifest;
pub mod media;
pub mod json;
pub mod tree;
pub mod index;
pub mod seek;
pub mod listing;
pub mod tar;
pub mod name;
pub mod descriptor;
