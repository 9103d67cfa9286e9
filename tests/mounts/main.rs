//! The processes of a mount, tried with a toy file system on the real /dev/fuse.
//!
//! A program of its own, and not part of the other integration tests: holders and workers are the running
//! program again, so this one must be able to be them, and `kitfs mount` too. Needs root and /dev/fuse;
//! where they are missing it says so and does nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Names and functions of cases.
macro_rules! cases {
    ($($name:ident,)*) => { &[$((stringify!($name), $name),)*] };
}

mod cases;
mod deaths;
mod host;
mod toy;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if let Some(code) = kitfs::mounts::background::<toy::Toy>(std::env::args_os()) {
        return code;
    }
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if arguments.first().is_some_and(|first| first == "mount") {
        return host::mount_command(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "umount") {
        return host::umount_command(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "upgrade") {
        return host::upgrade_command(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        cases().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = host::cannot() {
        println!("mounts: skipped, {reason}");
        return ExitCode::SUCCESS;
    }
    let filters = arguments.iter().filter(|argument| !argument.starts_with('-')).collect::<Vec<_>>();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let mut failed = 0;
    for (name, case) in cases().filter(|(name, _)| chosen(name)) {
        let start = Instant::now();
        let passed = std::panic::catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!("test {name} ... {} ({:.1} s)", if passed { "ok" } else { "FAILED" }, start.elapsed().as_secs_f32());
        failed += u32::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cases() -> impl Iterator<Item = &'static (&'static str, fn())> {
    cases::ALL.iter().chain(deaths::ALL)
}
