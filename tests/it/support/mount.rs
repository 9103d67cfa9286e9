//! A kit that is mounted for as long as a value lives.
//!
//! Dropping it unmounts it, and fails the test if that takes long or leaves something behind.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::host;
use super::kitfs::{Kitfs, Output};

/// A mounted kit.
pub struct Mount<'k> {
    kitfs: &'k Kitfs,
    directory: PathBuf,
    is_mounted: bool,
}

impl Kitfs {
    /// Mounts a kit in a directory of its own. Fails if that is refused.
    #[track_caller]
    pub fn mount(&self, reference: &str) -> Mount<'_> {
        self.mount_with::<&str>(reference, &[])
    }

    /// The same, with more arguments.
    #[track_caller]
    pub fn mount_with<A: AsRef<OsStr>>(&self, reference: &str, arguments: &[A]) -> Mount<'_> {
        let (mount, output) = self.try_mount(reference, arguments, &self.path("home"));
        mount.unwrap_or_else(|| panic!("not mounted\n{output}"))
    }

    /// Tries to mount a kit, from the working directory `from`; `None` and what was said if that was refused.
    #[track_caller]
    pub fn try_mount<A: AsRef<OsStr>>(
        &self,
        reference: &str,
        arguments: &[A],
        from: &Path,
    ) -> (Option<Mount<'_>>, Output) {
        let directory = self.next_directory();
        self.own(&directory);
        let mut words = vec![OsStr::new("mount"), reference.as_ref(), directory.as_os_str()];
        words.extend(arguments.iter().map(AsRef::as_ref));
        let output = self.command(&words).current_directory(from).run();
        let is_there = !host::mounts_below(&directory).is_empty();
        assert_eq!(output.code == 0, is_there, "exit code and mount table disagree\n{output}");
        let mount = is_there.then(|| Mount { kitfs: self, directory, is_mounted: true });
        (mount, output)
    }
}

impl Mount<'_> {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// A file or directory in it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// Its entry in `kitfs status`, unless nobody answers: between two holders nobody does.
    pub fn try_status(&self) -> Option<Value> {
        let directory = self.directory.to_str().expect("a plain name");
        let output = self.kitfs.run(&["status", directory, "--output", "json"]);
        (output.code == 0).then(|| output.json()["mounts"][0].clone())
    }

    /// Its entry in `kitfs status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let directory = self.directory.to_str().expect("a plain name");
        let output = self.kitfs.run(&["status", directory, "--output", "json"]).expect(0);
        let document = output.json();
        let mounts = document["mounts"].as_array().unwrap_or_else(|| panic!("no mounts\n{output}"));
        assert_eq!(mounts.len(), 1, "one directory, one mount\n{output}");
        mounts[0].clone()
    }

    /// Does something while the worker is stopped: nobody answers then but the kernel.
    pub fn without_worker<T>(&self, work: impl FnOnce() -> T) -> T {
        let pid = rustix::process::Pid::from_raw(self.process("pid")).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it runs");
        let result = work();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("it is stopped");
        result
    }

    /// A process of its entry in `kitfs status`: `pid` or `holder_pid`.
    #[track_caller]
    pub fn process(&self, key: &str) -> i32 {
        let status = self.status();
        let pid = status[key].as_i64().unwrap_or_else(|| panic!("no {key} in {status}"));
        pid.try_into().expect("a process id")
    }

    /// Its options in the mount table, those of the mount before those of the file system, and the type.
    pub fn table_entry(&self) -> String {
        host::mounts_below(&self.directory).pop().expect("it is mounted")
    }

    /// Unmounts it with `kitfs umount`.
    #[track_caller]
    pub fn unmount(mut self) {
        self.end();
    }

    /// Says that something else has unmounted it.
    pub fn gone(mut self) {
        self.is_mounted = false;
        assert!(host::mounts_below(&self.directory).is_empty(), "it is still mounted");
    }

    #[track_caller]
    fn end(&mut self) {
        self.is_mounted = false;
        self.kitfs.command(&[OsStr::new("umount"), self.directory.as_os_str()]).within(30).run().expect(0);
        assert!(host::mounts_below(&self.directory).is_empty(), "umount ended with 0 and it is still mounted");
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // `Kitfs` detaches it; a second panic would hide the first.
            return;
        }
        if self.is_mounted {
            self.end();
        }
    }
}

/// An extended attribute of a file as text, or the number of the error.
pub fn attribute(path: &Path, name: &str) -> Result<String, i32> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::lgetxattr(path, name, &mut value).map_err(rustix::io::Errno::raw_os_error)?;
    value.truncate(len);
    Ok(String::from_utf8(value).expect("our attributes are text"))
}
