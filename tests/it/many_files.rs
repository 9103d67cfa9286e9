//! A kit of a hundred thousand files: it lists, and its worker stays small. No time is judged here.

use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, file};
use crate::support::kitfs::Kitfs;

const FILES: usize = 100_000;
/// The most that a process of the mount may have had resident, in KiB.
const MEMORY_KIB: u64 = 150 * 1024;

#[test]
fn a_hundred_thousand_files_list_in_bounded_memory() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    let files: Vec<_> = (0..FILES).map(|n| file(&format!("d/{:03}/{n:06}.txt", n / 500), format!("{n}"))).collect();
    let kit = Kit::named("many").with(Base::Dataset, "d", files).pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let layer = kit.layers[0].digest.clone();
    drop(kit);
    let listed = kitfs.command(&["ls", "-R", &reference]).within(120).run().expect(0);
    assert!(listed.text().lines().count() > FILES, "every file has a line");
    for time in ["cold", "warm"] {
        let mount = kitfs.mount(&reference);
        let count = |what: &str| {
            let found = kitfs.other("find").arg(mount.path()).args(["-type", what, "-size", "-2"]).output();
            found.expect("find").stdout.split(|byte| *byte == b'\n').count() - 1
        };
        assert_eq!(count("f"), FILES + 1, "{time}: and the Kitfile");
        for number in [0, 1, 49_999, 99_999] {
            let path = mount.at(format!("d/{:03}/{number:06}.txt", number / 500));
            assert_eq!(std::fs::read(&path).expect("a good kit"), number.to_string().into_bytes(), "{time}");
            let attribute = crate::support::mount::attribute(&path, "user.kitfs.layer");
            assert_eq!(attribute.as_deref(), Ok(layer.as_str()), "{time}");
        }
        for key in ["pid", "holder_pid"] {
            let peak = host::peak_memory(mount.process(key)).expect("it runs");
            assert!(peak < MEMORY_KIB, "{time}: {key} has had {} MiB", peak / 1024);
        }
        mount.unmount();
    }
}
