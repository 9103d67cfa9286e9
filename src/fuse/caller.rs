//! The process behind a request that waits: whether it is being killed.
//!
//! fuser refuses the kernel's INTERRUPT, after which the kernel sends none. Buffered readers can be killed all the
//! same, but one that reads with O_DIRECT or waits for an OPEN stays in D state until it has its answer. So its request
//! looks for itself.

use std::time::Duration;

/// How often one looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// The longest that a process waits of which nothing can be seen: it may be of another PID namespace.
const UNSEEN: Duration = Duration::from_secs(10);

/// Whether it can be told that a process, or a thread, is being killed.
pub(super) fn is_seen(pid: u32) -> bool {
    status(pid).is_ok()
}

/// Returns when that process, or thread, is being killed, or when nobody can tell for too long.
pub(super) async fn killed(pid: u32) {
    let mut unseen = Duration::ZERO;
    while unseen < UNSEEN {
        tokio::time::sleep(INTERVAL).await;
        match status(pid) {
            Ok(status) if is_killed(&status) => return,
            Ok(_) => unseen = Duration::ZERO,
            Err(_) => unseen += INTERVAL,
        }
    }
}

fn status(pid: u32) -> std::io::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
}

/// Whether SIGKILL is pending, for the thread or for its process: proc_pid_status(5).
fn is_killed(status: &str) -> bool {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let masks = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    masks.fold(0, |all, mask| all | mask) & SIGKILL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen() {
        let status =
            |own: &str, shared: &str| format!("Name:\tcat\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0100\n");
        for (own, shared, expected) in [
            ("0000000000000000", "0000000000000000", false),
            ("0000000000000100", "0000000000000000", true),
            ("0000000000000000", "0000000000000102", true),
            ("0000000000004002", "0000000000000001", false),
        ] {
            assert_eq!(is_killed(&status(own, shared)), expected, "{own} {shared}");
        }
    }
}
