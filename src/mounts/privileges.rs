//! What a worker gives up before it does anything: it reads what strangers wrote.
//!
//! Mounting, unmounting and registering files is the holder's. What is left to root's worker are files that belong
//! to somebody else: a cache, credentials or keys that another user lent.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// What a worker keeps, if it has it.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// Drops capabilities, and the means to get any by running other programs. Comes before any thread: each has its
/// own.
pub(super) fn drop_all_but_needed() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let has = rustix::thread::capabilities(None)?;
    let kept = CapabilitySets {
        effective: has.effective & KEPT,
        permitted: has.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, kept)?)
}
