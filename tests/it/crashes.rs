//! A cache whose writer died at any of its writes, and one whose machine lost power: what is read from it is right, and
//! nothing has to be mended by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Layout, Packed, Packing, file, noise};
use crate::support::kitfs::{Kitfs, finish};
use crate::support::random::Random;
use crate::support::tree::Tree;

/// The system calls by which anything reaches the disk.
const WRITES: &str = "write,pwrite64,pwritev,pwritev2,writev,rename,renameat,renameat2,link,linkat,unlink,unlinkat,\
                      mkdir,mkdirat,ftruncate,fallocate,copy_file_range,fchmod,fchmodat,openat";

fn kit(seed: u64) -> Packed {
    let files = |seed: u64| {
        vec![
            file("model/a.bin", noise(seed, 1_100_000)),
            file("model/b.bin", noise(seed + 1, 9000)),
            file("model/c", []),
        ]
    };
    Kit::named("crash")
        .with(Base::Model, "model", files(seed))
        .with(Base::Docs, "README.md", [file("README.md", noise(seed + 2, 50))])
        .packing(Packing::Tar(if seed.is_multiple_of(2) { Compression::None } else { Compression::Gzip }))
        .pack()
}

/// Everything of a kit, exported through the cache: it is what it should be.
#[track_caller]
fn check(kitfs: &Kitfs, reference: &str, kit: &Packed, what: &str) {
    let target = kitfs.next_directory();
    kitfs.run(&["export", reference, target.to_str().expect("a plain name")]).expect(0);
    Tree::read(&target).without("Kitfile").assert_is(&kit.tree, what);
    std::fs::remove_dir_all(target).expect("our own directory");
}

#[test]
fn a_writer_that_dies_at_any_write_leaves_a_cache_that_serves() {
    if !host::has("strace") {
        return;
    }
    let mut random = Random::new(4);
    let kitfs = Kitfs::new();
    let kits = [kit(10), kit(11)];
    let layouts: Vec<_> =
        kits.iter().enumerate().map(|(n, kit)| Layout::of(kitfs.path(&format!("layout{n}")), kit)).collect();
    // How many there are, and whether they can be traced here at all.
    let pull = |calls: &str, reference: &str| {
        let mut command = kitfs.other("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={WRITES}")]);
        if !calls.is_empty() {
            command.args(["-e", &format!("inject={WRITES}:{calls}")]);
        }
        command.arg(env!("CARGO_BIN_EXE_kitfs")).args(["pull", reference]).stdin(Stdio::null());
        finish(command, "strace kitfs pull", Duration::from_secs(60))
    };
    if pull("", &layouts[0].reference("v1")).code != 0 {
        return host::skip("strace cannot trace here");
    }
    let (mut died, mut lived) = (0, 0);
    for round in 0..40 {
        let (layout, kit) = (&layouts[round % 2], &kits[round % 2]);
        let reference = layout.reference("v1");
        // Half of them begin with nothing; the others with what the last death has left.
        if round % 4 < 2 {
            std::fs::remove_dir_all(kitfs.path("cache/v1")).ok();
        }
        let calls = if round < 30 { 1 + random.below(12) } else { 12 + random.below(80) };
        // It counts for each thread, of which any may be the one that dies, and all with it.
        let output = pull(&format!("signal=KILL:when={calls}"), &reference);
        if output.code == 0 {
            lived += 1
        } else {
            died += 1
        }
        let what = format!("round {round}, killed at call {calls}");
        check(&kitfs, &reference, kit, &what);
        // Nothing that is kept is damaged.
        kitfs.run(&["cache", "verify"]).expect(0);
        kitfs.run(&["audit", "verify"]).expect(0);
    }
    assert!(died >= 10, "{died} died and {lived} lived");
    // What deaths have left is swept, and nothing else.
    kitfs.run(&["cache", "prune"]).expect(0);
    for (layout, kit) in layouts.iter().zip(&kits) {
        check(&kitfs, &layout.reference("v1"), kit, "after all deaths");
    }
}

/// A file system in a file, mounted through a loop device for as long as this lives.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts an image, or says why not.
    fn mount(image: &Path, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("our own directory");
        let output = Command::new("mount").args(["-o", "loop"]).args([image, &at]).output().expect("mount");
        if !output.status.success() {
            host::skip(&format!("no loop devices here: {}", String::from_utf8_lossy(&output.stderr).trim()));
            return None;
        }
        Some(Self { at })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A worker that has just ended may still hold a file.
        let is_out =
            host::soon(20, || Command::new("umount").arg(&self.at).output().is_ok_and(|out| out.status.success()));
        assert!(is_out || std::thread::panicking(), "{} cannot be unmounted", self.at.display());
    }
}

#[test]
fn a_power_cut_leaves_a_cache_that_serves() {
    if !rustix::process::geteuid().is_root() {
        return host::skip("a file system is mounted by root");
    }
    if !host::has("mkfs.ext4") {
        return;
    }
    let mut random = Random::new(5);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let image = folder.path().join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(48 << 20)).expect("our own directory");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output().expect("mkfs.ext4");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let kits = [kit(20), kit(21), kit(22)];
    let live = Kitfs::new();
    let layouts: Vec<_> =
        kits.iter().enumerate().map(|(n, kit)| Layout::of(live.path(&format!("layout{n}")), kit)).collect();
    let live = live.with("KITFS_CACHE_DIR", folder.path().join("live/cache"));
    let Some(_disk) = Disk::mount(&image, folder.path().join("live")) else { return };
    for cut in 0..6 {
        // The machine is in the middle of it.
        let layout = &layouts[cut % 3];
        std::fs::remove_dir_all(folder.path().join("live/cache/v1")).ok();
        let mut pull = live.other(env!("CARGO_BIN_EXE_kitfs"));
        pull.args(["pull", &layout.reference("v1")]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pull = pull.spawn().expect("kitfs");
        std::thread::sleep(Duration::from_millis(random.next() % 700));
        if cut % 2 == 0 {
            rustix::fs::sync();
        }
        let copy = folder.path().join("copy");
        std::fs::copy(&image, &copy).expect("room for two images");
        let after = Kitfs::new();
        // The key survives, like everything in the state directory that was written long ago.
        std::fs::copy(live.path("state/key"), after.path("state/key")).ok();
        let after = after.with("KITFS_CACHE_DIR", folder.path().join("after/cache"));
        {
            let _disk = Disk::mount(&copy, folder.path().join("after")).expect("a loop device, as before");
            for (layout, kit) in layouts.iter().zip(&kits) {
                check(&after, &layout.reference("v1"), kit, &format!("after cut {cut}"));
            }
        }
        pull.wait().expect("our own child");
    }
}
