//! A place to mount at, and the command that mounts there.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use kitfs::fs::Passthrough;
use kitfs::layers::{Metadata, Prefetch};
use kitfs::mounts::{
    AbsolutePath, AuditSettings, Busy, LogSettings, LogTarget, MountFailure, MountOptions, MountRequest,
    PolicySettings, Presence, Progress, SourceSettings, State, Status,
};
use kitfs::resolve::Freshness;
use rustix::process::Signal;

use crate::toy;

/// How long a thing may take that takes milliseconds where nobody else computes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why nothing can be tried here, if so.
pub fn cannot() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse");
    }
    None
}

/// A folder with a mount point and a state directory. Unmounted and removed in the end.
pub struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(host.directory()).unwrap();
        host
    }

    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("mnt a")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.state().join("kitfs.log")).unwrap_or_default()
    }

    /// What the processes of a mount said when it had ended.
    pub fn told_unmounted(&self) -> String {
        fs::read_to_string(self.state().join("unmounted")).unwrap_or_default()
    }

    /// `kitfs mount`, as a command that has not run yet.
    pub fn command(&self, reference: &str) -> Command {
        command(reference, &self.directory(), &self.state())
    }

    /// `kitfs mount`, done.
    pub fn mount(&self, reference: &str) -> Output {
        let mut command = self.command(reference);
        command.output().unwrap()
    }

    /// `kitfs mount`, which must work.
    pub fn mounted(reference: &str) -> Self {
        let host = Self::new();
        let output = host.mount(reference);
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), host.log());
        host
    }

    pub fn status(&self) -> Status {
        kitfs::mounts::status(&self.directory()).unwrap()
    }

    pub fn umount(&self, busy: Busy) -> Result<kitfs::mounts::Unmounted, kitfs::mounts::UmountError> {
        kitfs::mounts::umount(&self.directory(), busy)
    }

    /// Kills the worker and the holder: nobody is left to start another one.
    pub fn kill_both(&self) {
        let status = self.status();
        // A worker that runs would look for another holder.
        signal(status.pid, Signal::STOP);
        signal(status.holder_pid, Signal::KILL);
        signal(status.pid, Signal::KILL);
        eventually("they die", || self.processes().is_empty());
    }

    /// Waits for a worker other than that one, which answers for itself.
    pub fn next_worker(&self, before: u32) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status.pid != before && status.state == State::Ready {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}\n{}", self.log());
        }
    }

    /// No process, mount, record or socket of this host is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        // A command that found the kit mounted already may return before its holder has gone.
        eventually("no process is left", || self.processes().is_empty());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(self.folder.path().to_str().unwrap()), "{table}");
        for folder in ["mounts", "run"] {
            let left = fs::read_dir(self.state().join(folder)).map(|entries| entries.count()).unwrap_or(0);
            assert_eq!(left, 0, "{folder}");
        }
    }

    /// The mount's line in /proc/mounts.
    pub fn table_line(&self) -> String {
        let table = fs::read_to_string("/proc/mounts").unwrap();
        table.lines().find(|line| line.contains(self.folder.path().to_str().unwrap())).unwrap().to_owned()
    }

    /// How many mounts there are.
    pub fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/mounts").unwrap();
        table.lines().filter(|line| line.contains(self.folder.path().to_str().unwrap())).count()
    }

    /// The file system's number.
    pub fn device(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(self.folder.path().to_str().unwrap())).unwrap();
        line.split(' ').nth(2).unwrap().to_owned()
    }

    /// The holder and the worker, as their arguments tell.
    pub fn processes(&self) -> Vec<String> {
        let mark = self.folder.path().to_str().unwrap();
        let mut processes = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.starts_with("kitfs ") && line.contains(mark) {
                processes.push(line);
            }
        }
        processes
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.umount(Busy::Detach);
        if std::thread::panicking() {
            println!("--- log\n{}---", self.log());
        }
    }
}

/// `kitfs mount REFERENCE DIRECTORY`, of this program.
pub fn command(reference: &str, directory: &Path, state: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("mount").arg(reference).arg(directory).arg(state).stdin(Stdio::null());
    command
}

/// `kitfs upgrade`.
pub fn upgrade_command(arguments: &[String]) -> ExitCode {
    let upgraded = kitfs::mounts::upgrade(Path::new(&arguments[0])).unwrap();
    println!("{upgraded:?}");
    if upgraded.iter().all(|mount| mount.result.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `kitfs umount`.
pub fn umount_command(arguments: &[String]) -> ExitCode {
    match kitfs::mounts::umount(Path::new(&arguments[0]), Busy::Keep) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// `kitfs mount`.
pub fn mount_command(arguments: &[String]) -> ExitCode {
    let (request, quiet) = request(arguments);
    let mounted = kitfs::mounts::mount(request, |progress| {
        if let (Progress::Step(step), false) = (progress, quiet) {
            println!("{step}");
        }
    });
    match mounted {
        Ok(mounted) => {
            println!("{:?}", mounted.novelty);
            mounted.stay().unwrap();
            ExitCode::SUCCESS
        }
        Err(MountFailure { exit_code, message }) => {
            eprintln!("{message}");
            ExitCode::from(exit_code)
        }
    }
}

fn request(arguments: &[String]) -> (MountRequest, bool) {
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let path = |path: &str| AbsolutePath::new(path).unwrap();
    let state = Path::new(&arguments[2]);
    let request = MountRequest {
        reference: arguments[0].clone(),
        directory: path(&arguments[1]),
        options: MountOptions {
            noexec: has("noexec"),
            allow_other: rustix::process::geteuid().is_root() && !has("noallow_other"),
        },
        filters: Vec::new(),
        metadata: Metadata::Provisional,
        prefetch: Prefetch::Auto,
        source: SourceSettings {
            access_ttl: std::time::Duration::from_secs(60),
            plain_http: false,
            ca_cert: Vec::new(),
            registry_config: None,
            helpers: false,
            freshness: Freshness::Prefer,
        },
        policy: PolicySettings::default(),
        indexes: Vec::new(),
        cache_dir: AbsolutePath::new(state.join("cache")).unwrap(),
        state_dir: AbsolutePath::new(state).unwrap(),
        runtime_dir: AbsolutePath::new(state.join("run")).unwrap(),
        cache_size: None,
        memory: 1 << 27,
        passthrough: Passthrough::Auto,
        stack_depth: 1,
        read_timeout: Duration::from_secs(60),
        audit: AuditSettings { file: path(&arguments[2]), copies: Vec::new() },
        log: LogSettings { target: LogTarget::Stderr, level: "debug".to_owned() },
        presence: if has("--foreground") { Presence::Foreground } else { Presence::Background },
    };
    (request, has("quiet"))
}

/// Starts a command that is not waited for.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap()
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a file whole and compares.
#[track_caller]
pub fn check(directory: &Path, number: u64) {
    let read = fs::read(directory.join(format!("f{number}"))).unwrap();
    assert!(read == toy::content(number), "f{number}");
}
