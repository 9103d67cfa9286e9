//! Kernel and privileges of this process, as /proc and /boot tell them.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use rustix::fs::Access;

/// `CAP_SYS_ADMIN`, capabilities(7).
const SYS_ADMIN: u32 = 21;

/// What is the same for all checks.
#[derive(Debug)]
pub(in crate::cli::doctor) struct Host {
    /// As `uname -r` prints it.
    pub release: String,
    /// Major and minor number of the release; zeros where it has none.
    pub kernel: (u32, u32),
    pub is_root: bool,
    pub may_administer: bool,
    pub is_initial_namespace: bool,
    path: OsString,
}

impl Host {
    pub(in crate::cli::doctor) fn current() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self {
            kernel: version(&release),
            release,
            is_root: rustix::process::geteuid().is_root(),
            may_administer: effective_capabilities(&status) & (1 << SYS_ADMIN) != 0,
            is_initial_namespace: map.split_whitespace().eq(["0", "0", "4294967295"]),
            path: env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// Where a program is that can be run by its name alone.
    pub(in crate::cli::doctor) fn program(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(&self.path)
            .map(|folder| folder.join(name))
            .find(|path| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok())
    }

    /// How the kernel was built, where the system tells: `y`, `m` or `n`.
    pub(in crate::cli::doctor) fn kernel_option(&self, name: &str) -> Option<String> {
        let mut config = String::new();
        let read = match fs::File::open("/proc/config.gz") {
            Ok(file) => GzDecoder::new(file).take(4 << 20).read_to_string(&mut config),
            Err(_) => fs::File::open(format!("/boot/config-{}", self.release))
                .and_then(|file| file.take(4 << 20).read_to_string(&mut config)),
        };
        read.ok()?;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        Some(config.lines().find_map(value).unwrap_or_else(|| "n".into()))
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compare_by_number() {
        for (release, expected) in
            [("6.18.44-fc-v669", (6, 18)), ("5.4.0", (5, 4)), ("6.9-rc1", (6, 9)), ("7", (7, 0)), ("odd", (0, 0))]
        {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("6.18") > (6, 9));
    }

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(
            effective_capabilities("CapPrm:\t0\nCapEff:\t000001ffffffffff\n") & (1 << SYS_ADMIN),
            1 << SYS_ADMIN
        );
        assert_eq!(effective_capabilities("CapEff:\t0000000000000000\n"), 0);
    }
}
