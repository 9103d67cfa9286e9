//! A mount against a model of it: random operations, and the answers that a plain map of names to bytes gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Layout, Packing, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::mount::attribute;

/// What is done. Which file is meant is a share of all names, so that shrinking keeps its sense.
#[derive(Clone, Debug)]
enum Operation {
    Read { file: Index, at: Index, len: usize },
    ReadBehindTheEnd { file: Index, behind: u64 },
    Stat { name: Index },
    List { name: Index },
    Attribute { file: Index },
    Missing { name: Index },
    Map { file: Index, at: Index },
    Worker,
}

fn operation() -> impl Strategy<Value = Operation> {
    let index = any::<Index>;
    prop_oneof![
        8 => (index(), index(), 0..200_000usize).prop_map(|(file, at, len)| Operation::Read { file, at, len }),
        1 => (index(), 0..10_000u64).prop_map(|(file, behind)| Operation::ReadBehindTheEnd { file, behind }),
        3 => index().prop_map(|name| Operation::Stat { name }),
        3 => index().prop_map(|name| Operation::List { name }),
        1 => index().prop_map(|file| Operation::Attribute { file }),
        1 => index().prop_map(|name| Operation::Missing { name }),
        2 => (index(), index()).prop_map(|(file, at)| Operation::Map { file, at }),
        1 => Just(Operation::Worker),
    ]
}

/// The model: all files with their bytes, and all directories with the names in them.
struct Model {
    files: BTreeMap<String, Vec<u8>>,
    directories: BTreeMap<String, BTreeSet<String>>,
}

impl Model {
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let mut directories: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in files.keys() {
            let mut rest = path.as_str();
            while !rest.is_empty() {
                let (parent, name) = rest.rsplit_once('/').unwrap_or(("", rest));
                directories.entry(parent.to_owned()).or_default().insert(name.to_owned());
                rest = parent;
            }
        }
        Self { files, directories }
    }

    fn file(&self, index: &Index) -> (&String, &Vec<u8>) {
        index.get(&self.files.iter().collect::<Vec<_>>()).to_owned()
    }

    /// Does an operation on the mount, and compares.
    fn check(&self, root: &Path, operation: &Operation, kill: &dyn Fn()) -> Result<(), TestCaseError> {
        match operation {
            Operation::Read { file, at, len } => {
                let (path, bytes) = self.file(file);
                let at = at.index(bytes.len() + 1);
                let end = bytes.len().min(at + len);
                let mut read = vec![0xaa; *len];
                let mut got = 0;
                let open = File::open(root.join(path)).expect("open");
                while got < *len {
                    match open.read_at(&mut read[got..], (at + got) as u64).expect("read") {
                        0 => break,
                        more => got += more,
                    }
                }
                prop_assert!(read[..got] == bytes[at..end], "{path} at {at}: {got} bytes of {}", end - at);
            }
            Operation::ReadBehindTheEnd { file, behind } => {
                let (path, bytes) = self.file(file);
                let open = File::open(root.join(path)).expect("open");
                let got = open.read_at(&mut [0; 100], bytes.len() as u64 + behind).expect("read");
                prop_assert_eq!(got, 0);
            }
            Operation::Stat { name } => {
                let names: Vec<_> = self.files.keys().chain(self.directories.keys()).collect();
                let path = name.get(&names);
                let data = std::fs::symlink_metadata(root.join(path)).expect("stat");
                match self.files.get(*path) {
                    Some(bytes) => prop_assert_eq!((data.is_file(), data.size()), (true, bytes.len() as u64)),
                    None => prop_assert!(data.is_dir()),
                }
            }
            Operation::List { name } => {
                let names: Vec<_> = self.directories.iter().collect();
                let (path, expected) = name.get(&names);
                let listed = std::fs::read_dir(root.join(path)).expect("readdir").map(|entry| entry.expect("an entry"));
                let listed: Vec<_> = listed.map(|entry| entry.file_name().into_string().expect("our names")).collect();
                let set: BTreeSet<_> = listed.iter().filter(|name| *name != "Kitfile").cloned().collect();
                prop_assert!(set == **expected && listed.len() - set.len() <= 1, "{path}: {listed:?}");
            }
            Operation::Attribute { file } => {
                let layer = attribute(&root.join(self.file(file).0), "user.kitfs.layer").expect("getxattr");
                prop_assert!(layer.starts_with("sha256:"));
            }
            Operation::Missing { name } => {
                let names: Vec<_> = self.files.keys().collect();
                let path = root.join(format!("{}x", name.get(&names)));
                let error = std::fs::symlink_metadata(path).expect_err("no such name");
                prop_assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
            }
            Operation::Map { file, at } => {
                let (path, bytes) = self.file(file);
                if bytes.is_empty() {
                    return Ok(());
                }
                let open = File::open(root.join(path)).expect("open");
                let (len, at) = (bytes.len(), at.index(bytes.len()));
                let (prot, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::PRIVATE);
                // SAFETY: a new mapping of a file that nobody can write to, read within its length, and then removed.
                let byte = unsafe {
                    let start = rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, &open, 0).expect("mmap");
                    let byte = start.cast::<u8>().add(at).read_volatile();
                    rustix::mm::munmap(start, len).expect("munmap");
                    byte
                };
                prop_assert_eq!(byte, bytes[at]);
            }
            Operation::Worker => kill(),
        }
        Ok(())
    }
}

#[test]
fn a_mount_answers_as_its_model() {
    if !host::can_mount() {
        return;
    }
    let kitfs = Kitfs::new();
    for packing in [Packing::Tar(Compression::None), Packing::Tar(Compression::Gzip)] {
        let sizes = [0, 1, 4095, 4096, 4097, 524_287, 524_288, 524_289, 1_500_000];
        let path = |n: usize| format!("model/{}/{n}.bin", if n.is_multiple_of(2) { "even" } else { "odd/deep" });
        let files: BTreeMap<_, _> = sizes.iter().enumerate().map(|(n, len)| (path(n), noise(n as u64, *len))).collect();
        let entries: Vec<_> = files.iter().map(|(path, bytes)| file(path, bytes.clone())).collect();
        let kit = Kit::named("model").packing(packing).with(Base::Model, "model", entries).pack();
        let layout = kitfs.next_directory();
        let reference = Layout::of(layout, &kit).reference("v1");
        let model = Model::new(files);
        let mount = kitfs.mount(&reference);
        let kill = || {
            let worker = rustix::process::Pid::from_raw(mount.process("pid")).expect("a process id");
            rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("it runs");
        };
        let config = Config { cases: 16, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(
            config,
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        );
        let operations = proptest::collection::vec(operation(), 1..40);
        let outcome = runner.run(&operations, |operations| {
            operations.iter().try_for_each(|operation| model.check(mount.path(), operation, &kill))
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
        mount.unmount();
    }
}
