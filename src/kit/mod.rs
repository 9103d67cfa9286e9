//! What a kit is: manifests, configs, layers and trees, read out of proved content.
//!
//! No network and no disk here: functions from bytes to meaning, and to clear refusals.

pub mod tree;
pub mod index;
pub mod listing;
pub mod tar;
pub mod name;
pub mod descriptor;
