//! The binary under test, run with directories of its own and a deadline for every command.
//!
//! Every run is checked for what holds for all commands: it ends, it does not panic, its exit code is one of the
//! documented eight, and it leaves no process behind that holds the caller's output open.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::host;

const NOBODY: u32 = 65534;

/// Who runs the commands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Caller,
    /// `nobody`, through `setpriv`.
    Nobody,
}

/// One installation: a cache, a state directory and a home that no other test uses.
pub struct Kitfs {
    root: TempDir,
    program: PathBuf,
    user: User,
    environment: Vec<(OsString, OsString)>,
    mounts: AtomicU32,
}

impl Kitfs {
    /// An installation that is empty and used by whoever runs the tests.
    pub fn new() -> Self {
        Self::of(User::Caller)
    }

    /// An installation that is empty and used by `user`.
    pub fn of(user: User) -> Self {
        let root = tempfile::Builder::new().prefix("kitfs-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).expect("our own directory");
        let built = PathBuf::from(env!("CARGO_BIN_EXE_kitfs"));
        let program = match user {
            User::Caller => built,
            User::Nobody => {
                // The build may be where an ordinary user cannot look.
                let copy = root.path().join("kitfs");
                if std::fs::hard_link(&built, &copy).is_err() {
                    std::fs::copy(&built, &copy).expect("a copy of the binary");
                }
                copy
            }
        };
        let kitfs = Self { root, program, user, environment: Vec::new(), mounts: AtomicU32::new(0) };
        for folder in ["home", "cache", "state", "run", "kitops"] {
            kitfs.own(&kitfs.path(folder));
        }
        kitfs
    }

    /// The same, with a variable set for every command.
    pub fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().into()));
        self
    }

    /// The same, run from another copy of the binary.
    pub fn run_as(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// The binary that runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A path in the directory that goes away with this installation.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Makes a directory that the user of this installation owns.
    pub fn own(&self, dir: &Path) {
        std::fs::create_dir_all(dir).expect("a directory of this test");
        if self.user == User::Nobody {
            chown(dir, Some(NOBODY), Some(NOBODY)).expect("root runs this test");
        }
    }

    /// A directory that does not exist yet, for the next mount.
    pub fn next_directory(&self) -> PathBuf {
        self.path(&format!("mnt-{}", self.mounts.fetch_add(1, Ordering::Relaxed)))
    }

    /// A command of `kitfs`, to be given more before it runs.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Run<'_> {
        Run {
            kitfs: self,
            arguments: arguments.iter().map(|argument| argument.as_ref().to_owned()).collect(),
            directory: self.path("home"),
            deadline: Duration::from_secs(60),
        }
    }

    /// Runs a command of `kitfs` to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.command(arguments).run()
    }

    /// Another program, run as the user of this installation, in its environment.
    pub fn other(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.user {
            User::Caller => Command::new(program),
            User::Nobody => {
                let mut command = Command::new("setpriv");
                let id = NOBODY.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program);
                command
            }
        };
        command
            .env_clear()
            .envs(["PATH", "TMPDIR"].into_iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
        command
            .env("LANG", "C.UTF-8")
            .env("HOME", self.path("home"))
            .env("KITOPS_HOME", self.path("kitops"))
            .env("KITFS_CACHE_DIR", self.path("cache"))
            .env("KITFS_STATE_DIR", self.path("state"))
            .env("KITFS_RUNTIME_DIR", self.path("run"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        command
    }

    /// What the background processes have logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("state/kitfs.log")).unwrap_or_default()
    }

    /// Processes of this installation that still run.
    pub fn processes(&self) -> Vec<i32> {
        host::processes_with(self.root.path().to_str().expect("a plain name"))
    }

    /// Checks that nothing of this installation is mounted or runs. Waits for what is on its way out.
    pub fn check_nothing_is_left(&self) {
        assert!(
            host::soon(10, || host::mounts_below(self.root.path()).is_empty()),
            "still mounted: {:?}",
            host::mounts_below(self.root.path())
        );
        assert!(host::soon(10, || self.processes().is_empty()), "still running: {}", describe(&self.processes()));
    }
}

impl Drop for Kitfs {
    fn drop(&mut self) {
        for line in host::mounts_below(self.root.path()) {
            let at = line.split(' ').nth(4).unwrap_or_default().to_owned();
            rustix::mount::unmount(at.as_str(), rustix::mount::UnmountFlags::DETACH).ok();
        }
        if std::thread::panicking() {
            eprintln!("the log of the background processes:\n{}", self.log());
            return;
        }
        self.check_nothing_is_left();
    }
}

fn describe(pids: &[i32]) -> String {
    let line = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
    };
    pids.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// A command that has not run yet.
pub struct Run<'k> {
    kitfs: &'k Kitfs,
    arguments: Vec<OsString>,
    directory: PathBuf,
    deadline: Duration,
}

impl Run<'_> {
    /// Runs it in this directory.
    pub fn current_directory(mut self, directory: &Path) -> Self {
        self.directory = directory.to_owned();
        self
    }

    /// Gives it this long.
    pub fn within(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        let words = self.arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let shown: String = format!("kitfs {words}").chars().take(400).collect();
        let mut command = self.kitfs.other(&self.kitfs.program);
        command.args(&self.arguments).current_dir(&self.directory).process_group(0);
        let output = finish(command, &shown, self.deadline);
        assert!(!output.stderr.contains("panicked at"), "a panic\n{output}");
        assert!((0..=7).contains(&output.code), "an exit code outside the contract\n{output}");
        output
    }
}

/// Runs a command in a process group of its own to its end, or fails after `deadline`.
pub fn finish(mut command: Command, shown: &str, deadline: Duration) -> Output {
    let begun = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
    let out = drain(child.stdout.take().expect("piped"));
    let err = drain(child.stderr.take().expect("piped"));
    let pid = child.id().cast_signed();
    let end = begun + deadline;
    // Looked at while it runs: what `wait4` tells includes the memory of this process, from before the `exec`.
    let mut peak_kib = 0;
    let status = loop {
        peak_kib = host::peak_memory(pid).map_or(peak_kib, |now| peak_kib.max(now));
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if Instant::now() > end {
            // SAFETY: a plain system call on a child of ours that has not been waited for, so the id is still its own.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
            child.kill().ok();
            child.wait().ok();
            let err = err.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
            panic!("{shown}: not done after {deadline:?}\n{}", String::from_utf8_lossy(&err));
        }
        std::thread::sleep(Duration::from_millis(4));
    };
    let held = "its output is still held open 5 s after it ended: a background process has the caller's descriptor";
    let stdout = out.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{shown}: {held}"));
    let stderr = err.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{shown}: {held}"));
    let code = status.code().or(status.signal().map(|signal| -signal)).expect("it has ended");
    Output {
        shown: shown.to_owned(),
        code,
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        peak_kib,
        took: begun.elapsed(),
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        sender.send(bytes).ok();
    });
    receiver
}

/// What a command wrote and how it ended.
pub struct Output {
    shown: String,
    /// The exit code, or the negative number of the signal.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The most memory it had resident, in KiB.
    pub peak_kib: u64,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Fails unless it ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n{self}");
        self
    }

    /// Fails unless standard error has `text` in it.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "standard error lacks {text:?}\n{self}");
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON document: {error}\n{self}"))
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|error| panic!("not UTF-8: {error}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]).into_owned();
        write!(
            f,
            "{}\n  ended with {} after {:?}\n  stdout ({} bytes): {start}\n  stderr: {}",
            self.shown,
            self.code,
            self.took,
            self.stdout.len(),
            self.stderr.trim_end()
        )
    }
}
