//! A mounted kit inside a container, through the real dockerd, both ways of binding it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::host;
use crate::support::kit::{Kit, Layout, append, noise};
use crate::support::kitfs::{Kitfs, Output, finish};
use crate::support::tree::sha256;

/// A dockerd of this test's own: its data, its socket, no network.
struct Docker {
    folder: TempDir,
    daemon: Child,
}

impl Docker {
    /// Starts one with an image `box`, a static busybox. `None` after saying why that cannot be.
    fn start() -> Option<Self> {
        if !["dockerd", "docker", "busybox"].iter().all(|program| host::has(program)) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("kitfs-docker-").tempdir().expect("a temporary directory");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let log = std::fs::File::create(folder.path().join("log")).expect("our own directory");
        let daemon = Command::new(host::find("dockerd")?)
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["--host", &format!("unix://{}", at("socket"))])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("dockerd is installed");
        let mut docker = Self { folder, daemon };
        let is_up = host::soon(60, || {
            let has_ended = docker.daemon.try_wait().is_ok_and(|ended| ended.is_some());
            has_ended || docker.command(&["version"]).output().is_ok_and(|output| output.status.success())
        });
        let has_ended = docker.daemon.try_wait().is_ok_and(|ended| ended.is_some());
        if !is_up || has_ended {
            host::skip(&format!("dockerd does not start here: {}", docker.log()));
            return None;
        }
        docker.import();
        Some(docker)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.folder.path().join("socket").display())).args(words);
        command.env("DOCKER_CONFIG", self.folder.path()).stdin(Stdio::null());
        command
    }

    fn import(&self) {
        let busybox: PathBuf = host::find("busybox").expect("looked for before");
        let bytes = std::fs::read(busybox).expect("it is there");
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "bin", tar::EntryType::Directory, 0o755, b"");
        append(&mut tar, "bin/busybox", tar::EntryType::Regular, 0o755, &bytes);
        let file = self.folder.path().join("box.tar");
        std::fs::write(&file, tar.into_inner().expect("a vector takes everything")).expect("our own directory");
        let path = file.to_str().expect("a plain name");
        finish(self.command(&["import", path, "box"]), "docker import", Duration::from_secs(60)).expect(0);
    }

    /// Runs busybox in a container without a network.
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        let all = [&["run", "--rm", "--network", "none"], options, &["box", "/bin/busybox"], words].concat();
        finish(self.command(&all), "docker run", Duration::from_secs(90))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SAFETY: a plain system call on a child of ours that has not been waited for.
        unsafe { libc::kill(self.daemon.id().cast_signed(), libc::SIGTERM) };
        if !host::soon(20, || self.daemon.try_wait().is_ok_and(|ended| ended.is_some())) {
            self.daemon.kill().ok();
            self.daemon.wait().ok();
        }
        for line in host::mounts_below(self.folder.path()) {
            let at = line.split(' ').nth(4).unwrap_or_default().to_owned();
            rustix::mount::unmount(at.as_str(), rustix::mount::UnmountFlags::DETACH).ok();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[test]
fn a_container_reads_a_mounted_kit() {
    if !host::can_mount() {
        return;
    }
    let Some(docker) = Docker::start() else { return };
    let kitfs = Kitfs::new();
    let reference = Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack()).reference("v1");
    let mount = kitfs.mount(&reference);
    let wanted = sha256(&noise(7, 1_300_007));

    let volume = format!("{}:/kit:ro", text(mount.path()));
    let output = docker.run(&["-v", &volume], &["sha256sum", "/kit/model/weights.bin"]).expect(0);
    assert!(output.text().starts_with(&wanted), "{output}");
    // Another user than the one who mounted.
    let output = docker.run(&["-v", &volume, "--user", "1234:1234"], &["cat", "/kit/README.md"]).expect(0);
    assert_eq!(output.text(), "# usual\n");
    assert_ne!(docker.run(&["-v", &volume], &["touch", "/kit/new"]).code, 0, "a kit cannot be written");

    // A parent directory, bound as a slave: a mount made later on the host appears in the running container.
    let shared = kitfs.path("shared");
    std::fs::create_dir(&shared).expect("our own directory");
    rustix::mount::mount_bind(text(&shared), text(&shared)).expect("root may");
    let flags = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(text(&shared), flags).expect("root may");
    std::fs::create_dir(shared.join("kit")).expect("our own directory");
    let bind = format!("type=bind,source={},target=/shared,bind-propagation=rslave", text(&shared));
    let mut waiting = docker.command(&["run", "--rm", "--network", "none", "--mount", &bind, "box", "/bin/busybox"]);
    let script = "for n in $(/bin/busybox seq 300); do [ -e /shared/kit/README.md ] && \
                  exec /bin/busybox sha256sum /shared/kit/model/weights.bin; /bin/busybox sleep 0.1; done; exit 9";
    waiting.args(["sh", "-c", script]);
    let reader = std::thread::spawn(move || finish(waiting, "docker run", Duration::from_secs(90)));
    std::thread::sleep(Duration::from_secs(2));
    kitfs.run(&["mount", &reference, text(&shared.join("kit"))]).expect(0);
    let output = reader.join().expect("no panic").expect(0);
    assert!(output.text().starts_with(&wanted), "{output}");
    kitfs.run(&["umount", text(&shared.join("kit"))]).expect(0);
    rustix::mount::unmount(text(&shared), rustix::mount::UnmountFlags::DETACH).expect("root may");
    mount.unmount();
}
