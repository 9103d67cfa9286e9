//! `scripts/demo`, which is the first thing that a newcomer runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::host;
use crate::support::kitfs::finish;

#[test]
fn the_demo_shows_what_it_says_and_leaves_nothing_behind() {
    if !host::can_mount() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut demo = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo"));
    demo.args(["--with", env!("CARGO_BIN_EXE_kitfs")]).env("TMPDIR", folder.path()).current_dir("/");
    let output = finish(demo, "scripts/demo", Duration::from_secs(120)).expect(0);
    assert!(output.text().contains("That is kitfs."), "{output}");
    assert!(output.text().contains("wrote not one byte"), "{output}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("our own directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}\n{output}");
    assert!(host::mounts_below(folder.path()).is_empty(), "{output}");
    let name = folder.path().to_str().expect("a plain name");
    assert!(host::soon(60, || host::processes_with(name).is_empty()), "{:?}", host::processes_with(name));
}
