//! The readers of the shared tools on a mount: every way Linux has of reading a file, and the programs that people use
//! on kits. Cold and warm, as root and as an ordinary user.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::host;
use crate::support::kit::{Base, File, Kit, Layout, Packed, directory, file, noise};
use crate::support::kitfs::{Kitfs, User, finish};
use crate::support::shared;

/// Runs a program to its end and fails unless it succeeds.
#[track_caller]
fn succeed(command: Command, what: &str, seconds: u64) -> String {
    let output = finish(command, what, Duration::from_secs(seconds));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tail: Vec<_> = text.lines().rev().take(80).collect();
    assert_eq!(output.code, 0, "{what}\n{}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"), output.stderr);
    text
}

/// Where the programs are built, once for all tests: kept between runs, because packages take a while to install.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("readers")
}

/// The compiled `torture`, if its source is there.
fn torture() -> Option<PathBuf> {
    let source = shared::shared("tools/readers/torture.c")?;
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if !host::has("cc") {
                return None;
            }
            std::fs::create_dir_all(tools()).expect("the target directory");
            let program = tools().join("torture");
            let mut compile = Command::new("cc");
            compile.args(["-O2", "-pthread", "-o"]).arg(&program).arg(&source);
            succeed(compile, "cc torture.c", 120);
            Some(program)
        })
        .clone()
}

/// A Python with what `ml_clients.py` imports, and the script.
fn clients() -> Option<(PathBuf, PathBuf)> {
    let script = shared::shared("tools/readers/ml_clients.py")?;
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let python = MADE
        .get_or_init(|| {
            let folder = tools().join("venv");
            let python = folder.join("bin/python");
            let done = folder.join("complete");
            if !done.exists() {
                std::fs::remove_dir_all(&folder).ok();
                let Some(system) = find_python() else {
                    host::skip("ml_clients.py needs Python 3.11 or newer with venv");
                    return None;
                };
                let mut venv = Command::new(system);
                venv.args(["-m", "venv"]).arg(&folder);
                succeed(venv, "python3 -m venv", 120);
                let mut pip = Command::new(&python);
                pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(script.with_file_name("requirements.txt"));
                let output = finish(pip, "pip install", Duration::from_secs(400));
                if output.code != 0 {
                    host::note(&format!("the packages of ml_clients.py cannot be installed: {}", output.stderr));
                    return None;
                }
                std::fs::write(&done, "").expect("the target directory");
            }
            Some(python)
        })
        .clone()?;
    Some((python, script))
}

fn find_python() -> Option<PathBuf> {
    let works = |program: &PathBuf| {
        let check = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))";
        Command::new(program).args(["-c", check]).output().is_ok_and(|output| output.status.success())
    };
    [PathBuf::from("/usr/bin/python3"), host::find("python3")?].into_iter().find(works)
}

/// Files of many sizes, for `torture`.
fn varied() -> Packed {
    let sizes = [0, 1, 4095, 4096, 4097, 65_537, 524_287, 524_288, 524_289, 3_000_001, 20_000_003];
    let big: Vec<File> = sizes.iter().map(|size| file(&format!("model/{size}"), noise(*size as u64, *size))).collect();
    let small: Vec<File> = (0..300).map(|n| file(&format!("data/{}/{n}", n % 7), noise(n, 37 * n as usize))).collect();
    Kit::named("varied").with(Base::Model, "model", big).with(Base::Dataset, "data", small).pack()
}

fn check_torture(user: User) {
    let can = match user {
        User::Caller => host::can_mount(),
        User::Nobody => host::ordinary_user_can_mount(),
    };
    let Some(program) = torture().filter(|_| can) else { return };
    let kitfs = Kitfs::of(user);
    let copy = kitfs.path("torture");
    std::fs::copy(&program, &copy).expect("our own directory");
    let reference = Layout::of(kitfs.path("layout"), &varied()).reference("v1");
    let plain = kitfs.path("plain");
    kitfs.own(&kitfs.path("scratch"));
    // What the mount is compared with: written by `export`, which other tests compare with what was packed.
    kitfs.own(&plain);
    kitfs.run(&["export", &reference, plain.to_str().expect("a plain name")]).expect(0);
    std::fs::remove_dir_all(kitfs.path("cache")).expect("our own directory");
    kitfs.own(&kitfs.path("cache"));
    for time in ["cold", "warm"] {
        let mount = kitfs.mount(&reference);
        let mut run = kitfs.other(&copy);
        run.args(["--seconds", "6", "--timeout", "150", "--tmp"]).arg(kitfs.path("scratch"));
        run.args([mount.path(), &plain]);
        let said = succeed(run, &format!("torture, {time}"), 200);
        assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
        mount.unmount();
    }
}

#[test]
fn every_way_of_reading_gives_the_same_bytes_to_root() {
    check_torture(User::Caller);
}

#[test]
fn every_way_of_reading_gives_the_same_bytes_to_an_ordinary_user() {
    check_torture(User::Nobody);
}

/// A kit of a directory, which its Kitfile describes as `make --kitfile` wrote it: model, code, datasets, docs.
fn kit_of(root: &Path) -> Packed {
    let below = |name: &str| {
        let mut files = Vec::new();
        let mut open = vec![PathBuf::from(name)];
        while let Some(path) = open.pop() {
            let full = root.join(&path);
            let mode = std::fs::metadata(&full).expect("made").permissions().mode() & 0o777;
            let name = path.to_str().expect("UTF-8");
            if full.is_dir() {
                files.push(directory(name).mode(mode));
                open.extend(
                    std::fs::read_dir(&full).expect("made").flatten().map(|entry| path.join(entry.file_name())),
                );
            } else {
                files.push(file(name, std::fs::read(&full).expect("made")).mode(mode));
            }
        }
        files
    };
    let mut names: Vec<_> = std::fs::read_dir(root).expect("made").flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| name != OsStr::new("Kitfile"));
    names.sort();
    let mut kit = Kit::named("clients");
    for name in names {
        let name = name.to_str().expect("UTF-8");
        let base = match name {
            "model" => Base::Model,
            "code" => Base::Code,
            "data" | "datasets" => Base::Dataset,
            _ => Base::Docs,
        };
        kit = kit.with(base, name, below(name));
    }
    kit.pack()
}

fn check_clients(user: User) {
    let can = match user {
        User::Caller => host::can_mount(),
        User::Nobody => host::ordinary_user_can_mount(),
    };
    if !can {
        return;
    }
    let Some((python, script)) = clients() else { return };
    let kitfs = Kitfs::of(user);
    let plain = kitfs.path("plain");
    // Some of its files are private, so it belongs to whoever will read it.
    kitfs.own(&plain);
    let mut make = kitfs.other(&python);
    make.arg(&script).args(["make", plain.to_str().expect("a plain name")]);
    succeed(make, "ml_clients.py make", 120);
    let reference = Layout::of(kitfs.path("layout"), &kit_of(&plain)).reference("v1");
    kitfs.own(&kitfs.path("scratch"));
    for time in ["cold", "warm"] {
        let mount = kitfs.mount(&reference);
        // git refuses repositories of other owners: both trees are read as what they are, their owner aside.
        let mut run = kitfs.other(&python);
        run.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
        run.arg(&script).arg("check").args([mount.path(), &plain]);
        run.args(["--ignore", "Kitfile", "--timeout", "120", "--scratch"]).arg(kitfs.path("scratch"));
        let said = succeed(run, &format!("ml_clients.py, {time}"), 400);
        assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
        mount.unmount();
    }
}

#[test]
fn programs_read_what_they_read_from_a_plain_directory() {
    check_clients(User::Caller);
}

#[test]
fn programs_of_an_ordinary_user_read_the_same() {
    check_clients(User::Nobody);
}
