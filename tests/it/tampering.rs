//! Every place that bytes come from, tampered with at every moment: no reader ever sees a wrong byte, a cache that was
//! tampered with heals by itself, and a source is an error with both digests.
//!
//! Most of it happens in this process, over the same file system that a mount serves, because thousands of rounds are
//! worth more than the kernel between them and the test; one mount has them all as well.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use kitfs::audit;
use kitfs::fs::{FsError, Handover, KitFs, TakeoverError};
use kitfs::kit::tree::{Inode, NodeKind};
use kitfs::layers::{Beginning, Metadata, Prefetch, Workshop};
use kitfs::policy::Policies;
use kitfs::reference::Reference;
use kitfs::resolve::{Documents, Freshness, Kit as Resolved, Query, Signatures};
use kitfs::source;
use kitfs::trust::Limits;

use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Layout, Packed, Packing, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::random::Random;
use crate::support::tree::{Content, Node, Tree, sha256};

/// Flips in all, at least.
const FLIPS: usize = 10_000;

/// What is done to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tampering {
    Flip,
    Truncate,
    Extend,
    Swap,
    Replay,
}

const TAMPERINGS: [Tampering; 5] =
    [Tampering::Flip, Tampering::Truncate, Tampering::Extend, Tampering::Swap, Tampering::Replay];

/// When it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeMount,
    WhileMounted,
    BetweenBlockReads,
    AcrossRestart,
    DuringEviction,
}

const MOMENTS: [Moment; 5] = [
    Moment::BeforeMount,
    Moment::WhileMounted,
    Moment::BetweenBlockReads,
    Moment::AcrossRestart,
    Moment::DuringEviction,
];

/// A kit and an older one under the same tag, a cache and a state directory.
struct Bench {
    folder: TempDir,
    layout: Layout,
    new: Packed,
    old: Packed,
    /// What files of cache and state held while the older kit was the newest.
    replayed: BTreeMap<PathBuf, Vec<u8>>,
    runtime: tokio::runtime::Runtime,
}

fn kit(seed: u64) -> Packed {
    let base = Kit::named("tampered")
        .with(
            Base::Model,
            "model",
            [file("model/a.bin", noise(seed, 600_000)), file("model/b.bin", noise(seed + 1, 5000))],
        )
        .with(Base::Docs, "README.md", [file("README.md", noise(seed + 2, 100))])
        .with(Base::Code, "src", [file("src/x.py", noise(seed + 3, 40)), file("src/y.py", noise(3, 4097))]);
    if seed.is_multiple_of(2) { base.pack() } else { base.packing(Packing::Tar(Compression::Gzip)).pack() }
}

impl Bench {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (new, old) = (kit(seed), kit(seed + 100));
        let layout = Layout::of(folder.path().join("layout"), &old);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut bench = Self { folder, layout, new, old, replayed: BTreeMap::new(), runtime };
        bench.check(&bench.open(Metadata::Provisional).expect("a good kit"));
        for file in bench.files("cache") {
            bench.replayed.insert(file.clone(), std::fs::read(&file).expect("our own file"));
        }
        let index = bench.layout.path().join("index.json");
        bench.replayed.insert(index.clone(), std::fs::read(index).expect("our own file"));
        bench.new.write(&bench.layout, Some("v1"));
        bench.check(&bench.open(Metadata::Provisional).expect("a good kit"));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files below a directory of this bench.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        files(&self.path(name))
    }

    fn workshop(&self) -> Arc<Workshop> {
        let audit = audit::Settings { file: self.path("state/audit.log"), copies: Vec::new(), directory: None };
        let timeout = Duration::from_secs(20);
        Workshop::open(
            Beginning::New,
            &self.path("cache"),
            &self.path("state"),
            16 << 20,
            timeout,
            Prefetch::None,
            audit,
        )
        .expect("a store")
    }

    /// What the source has under its tag, as a mount has it.
    fn open(&self, metadata: Metadata) -> Result<KitFs, String> {
        let reference: Reference = self.layout.reference("v1").parse().expect("a reference");
        let (policies, limits) = (Policies::none(), Limits::default());
        let query = Query {
            reference: &reference,
            names: &[],
            filters: &[],
            freshness: Freshness::Prefer,
            source: &options(),
            access_ttl: Duration::ZERO,
            policies: &policies,
            limits: &limits,
            signatures: Signatures::Needed,
            documents: Documents::Kept,
            indexes: &[],
        };
        let workshop = self.workshop();
        let opening = async {
            let kit = Resolved::resolve(&workshop, &query).await.map_err(|unresolved| chain(&unresolved.error))?;
            let fs = KitFs::open(Arc::clone(&workshop), kit, metadata).await.map_err(|error| chain(&error))?;
            fs.pin();
            Ok(fs)
        };
        self.runtime.block_on(opening)
    }

    fn take_over(&self, handover: Handover) -> KitFs {
        let options = options();
        let fs = KitFs::take_over(self.workshop(), handover, &[], &options);
        self.runtime.block_on(fs).expect("what was mounted is mounted again")
    }

    /// Reads everything. No byte may be wrong; returns what could not be read, and why.
    #[track_caller]
    fn read(&self, fs: &KitFs) -> Vec<String> {
        let digest = fs.kit().digest().expect("a kit").to_string();
        let kit = [&self.new, &self.old].into_iter().find(|kit| kit.digest() == digest).expect("one of our kits");
        let mut errors = Vec::new();
        for inode in fs.tree().inodes() {
            let Some(NodeKind::File { .. }) = fs.tree().node(inode).map(|node| node.kind) else { continue };
            let path = fs.tree().path(inode).expect("a file has a path").to_string();
            match self.content(fs, inode) {
                Ok(bytes) => {
                    let entry = kit.tree.0.get(path.as_bytes());
                    let true_bytes = Node::File(bytes.len() as u64, Content::Sha256(sha256(&bytes)));
                    assert_eq!(entry.map(|entry| &entry.node), Some(&true_bytes), "{path}");
                }
                Err(error) => errors.push(format!("{path}: {error}")),
            }
        }
        errors
    }

    fn content(&self, fs: &KitFs, inode: Inode) -> Result<Vec<u8>, String> {
        let size = fs.tree().node(inode).map_or(0, |node| node.size);
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let range = bytes.len() as u64..size;
            let piece = match fs.ready(inode, range.clone()) {
                Some(piece) => piece,
                None => self.runtime.block_on(fs.read(inode, range)).map_err(|error| chain(&error))?,
            };
            assert!(!piece.is_empty(), "a short read");
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Reads everything, which must be there.
    #[track_caller]
    fn check(&self, fs: &KitFs) {
        assert_eq!(self.read(fs), Vec::<String>::new());
    }

    /// Tampers with a file, if that changes it; says how many bits it flipped.
    fn tamper(&self, path: &Path, how: Tampering, random: &mut Random) -> usize {
        // It may be gone by now, such as an object that was found to be spoilt.
        let Ok(before) = std::fs::read(path) else { return 0 };
        let (mut bytes, mut flips) = (before.clone(), 0);
        match how {
            Tampering::Flip if bytes.is_empty() => {}
            Tampering::Flip => {
                flips = 1 + random.below(8);
                for _ in 0..flips {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            Tampering::Truncate => bytes.truncate(random.below(bytes.len().max(1))),
            Tampering::Extend => bytes.extend(noise(random.next(), 1 + random.below(5000))),
            Tampering::Swap => {
                let mut others: Vec<_> = std::fs::read_dir(path.parent().expect("a file is in a directory"))
                    .expect("our own directory")
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|other| other != path && other.is_file())
                    .collect();
                others.sort();
                if others.is_empty() {
                    return 0;
                }
                bytes = std::fs::read(&others[random.below(others.len())]).expect("our own file");
            }
            Tampering::Replay => match self.replayed.get(path) {
                Some(old) => bytes = old.clone(),
                None => return 0,
            },
        }
        // Half of it in place, as a disk or an intruder with a descriptor does it, half as another file.
        if random.below(2) == 0 {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("our own file");
        } else {
            std::fs::remove_file(path).expect("our own file");
        }
        std::fs::write(path, &bytes).expect("our own file");
        if bytes == before { 0 } else { flips }
    }

    /// Opens, tampers at the moment, and reads; says what could not be read.
    fn round(&self, moment: Moment, metadata: Metadata, tamper: &mut dyn FnMut()) -> Result<Vec<String>, String> {
        if moment == Moment::BeforeMount {
            tamper();
        }
        let fs = self.open(metadata)?;
        match moment {
            Moment::BeforeMount => Ok(self.read(&fs)),
            Moment::WhileMounted => {
                tamper();
                Ok(self.read(&fs))
            }
            Moment::BetweenBlockReads => {
                for inode in fs.tree().inodes() {
                    let _first_block = fs.ready(inode, 0..4096);
                }
                tamper();
                Ok(self.read(&fs))
            }
            Moment::AcrossRestart => {
                let handover = fs.handover();
                drop(fs);
                tamper();
                Ok(self.read(&self.take_over(handover)))
            }
            Moment::DuringEviction => {
                tamper();
                self.workshop().store.prune(0).expect("a store that can be walked");
                Ok(self.read(&fs))
            }
        }
    }
}

/// As by a program that numbers the same files in another way: the kernel would be shown one for another.
#[test]
fn a_tree_with_other_numbers_is_not_taken_over() {
    let bench = Bench::new(1);
    let fs = bench.open(Metadata::Provisional).expect("a good kit");
    // The digest of the tree comes last, as text.
    let mut handover = postcard::to_stdvec(&fs.handover()).expect("it can be written");
    let digit = handover.last_mut().expect("it is not empty");
    *digit = if *digit == b'0' { b'1' } else { b'0' };
    let other = postcard::from_bytes(&handover).expect("it is a handover still");
    let options = options();
    let refused = bench.runtime.block_on(KitFs::take_over(bench.workshop(), other, &[], &options));
    assert!(matches!(refused, Err(TakeoverError::Fs(FsError::OtherTree))), "{refused:?}");
    bench.check(&bench.take_over(fs.handover()));
}

/// The regular files below a folder, in a fixed order, without those that only are locked.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("our own directory").flatten() {
            match entry.file_type().expect("it is there") {
                kind if kind.is_dir() && entry.file_name() != "locks" => open.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

fn options() -> source::Options {
    source::Options { plain_http: false, ca_cert: Vec::new(), registry_config: None, timeout: Duration::from_secs(20) }
}

/// All that an error says.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

#[test]
fn a_cache_that_is_tampered_with_heals_and_is_never_shown() {
    let mut random = Random::new(1);
    let benches = [Bench::new(2), Bench::new(5)];
    let (mut flips, mut rounds) = (0, 0);
    while flips < FLIPS - 1000 {
        for (moment, how) in MOMENTS.into_iter().flat_map(|moment| TAMPERINGS.map(|how| (moment, how))) {
            let bench = &benches[rounds % 2];
            rounds += 1;
            let metadata = if random.below(2) == 0 { Metadata::Provisional } else { Metadata::Verified };
            let files = bench.files("cache");
            let shown = format!("round {rounds}: {how:?} {moment:?}");
            let errors = bench.round(moment, metadata, &mut || {
                // Flips are cheap, so there are many.
                let count = if how == Tampering::Flip { files.len() } else { 1 + random.below(3) };
                for _ in 0..count {
                    flips += bench.tamper(&files[random.below(files.len())], how, &mut random);
                }
            });
            assert_eq!(errors, Ok(Vec::new()), "{shown}");
        }
    }
    for bench in &benches {
        bench.workshop().store.verify(&kitfs::buffers::Buffers::new(1)).expect("a store that can be walked");
        bench.check(&bench.open(Metadata::Verified).expect("a good kit"));
    }
    assert!(rounds >= 100, "{rounds}");
}

#[test]
fn objects_in_progress_that_are_tampered_with_are_never_shown() {
    let mut random = Random::new(4);
    let mut bench = Bench::new(2);
    let unit = kitfs::verity::UNIT;
    let (mut flips, mut rounds) = (0, 0);
    while flips < 1000 {
        for (moment, how) in MOMENTS.into_iter().flat_map(|moment| TAMPERINGS.map(|how| (moment, how))) {
            rounds += 1;
            // The layers' indexes stay, so that units are fetched alone. What is settling may be written meanwhile.
            for folder in ["objects", "records", "partial"].map(|folder| bench.path("cache/v1").join(folder)) {
                assert!(host::soon(10, || !folder.exists() || std::fs::remove_dir_all(&folder).is_ok()));
            }
            let fs = bench.open(Metadata::Verified).expect("a good kit");
            let large = |inode: &Inode| fs.tree().node(*inode).is_some_and(|node| node.size > unit);
            let large = fs.tree().inodes().find(large).expect("a file of two units");
            // One unit in the first round, the other one in all later ones, so that the first is there to be replayed.
            let at = if rounds == 1 { 0 } else { unit };
            bench.runtime.block_on(fs.read(large, at..at + 4096)).expect("a good source");
            drop(fs);
            let files = bench.files("cache/v1/partial");
            assert_eq!(files.len(), 2, "an object in progress, and its map: {files:?}");
            if rounds == 1 {
                bench.replayed.extend(files.iter().map(|file| (file.clone(), std::fs::read(file).expect("our own"))));
            }
            let errors = bench.round(moment, Metadata::Verified, &mut || {
                for path in &files {
                    flips += bench.tamper(path, how, &mut random);
                }
            });
            assert_eq!(errors, Ok(Vec::new()), "round {rounds}: {how:?} {moment:?}");
        }
    }
    assert!(rounds >= 100, "{rounds}");
}

#[test]
fn a_source_that_is_tampered_with_is_an_error_with_both_digests() {
    let mut random = Random::new(2);
    let bench = Bench::new(8);
    let blobs: Vec<_> = bench.files("layout");
    let (mut flips, mut refusals) = (0, 0);
    while flips < 1000 {
        for (moment, how) in MOMENTS.into_iter().flat_map(|moment| TAMPERINGS.map(|how| (moment, how))) {
            // What is proved is made durable behind everybody's back, which may write meanwhile.
            let cache = bench.path("cache");
            assert!(host::soon(10, || !cache.exists() || std::fs::remove_dir_all(&cache).is_ok()));
            let path = &blobs[random.below(blobs.len())];
            let before = std::fs::read(path).expect("our own file");
            let shown = format!("{how:?} {moment:?} of {}", path.display());
            let outcome = bench.round(moment, Metadata::Provisional, &mut || {
                for _ in 0..if how == Tampering::Flip { 10 } else { 1 } {
                    flips += bench.tamper(path, how, &mut random);
                }
            });
            let after = std::fs::read(path).expect("our own file");
            let is_layer = bench.new.layers.iter().any(|layer| bench.layout.blob(&layer.digest) == *path);
            let errors = outcome.unwrap_or_else(|error| vec![error]);
            // Later some of it may have been proved already.
            if is_layer && before != after && moment == Moment::BeforeMount {
                assert!(!errors.is_empty(), "{shown}: the layer that was tampered with was not needed");
            }
            let same_len = before.len() == after.len();
            for error in errors {
                refusals += 1;
                let digests = error.matches("sha256:").count();
                assert!(!(is_layer && same_len) || digests >= 2 && error.contains("expected"), "{shown}: {error}");
            }
            std::fs::remove_file(path).expect("our own file");
            std::fs::write(path, before).expect("our own directory");
        }
    }
    assert!(refusals > 10, "{refusals}");
    bench.check(&bench.open(Metadata::Verified).expect("a source that is mended"));
}

#[test]
fn what_a_mount_writes_about_itself_may_be_tampered_with() {
    if !host::can_mount() {
        return;
    }
    let mut random = Random::new(3);
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let reference = Layout::of(kitfs.path("layout"), &kit).reference("v1");
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "cold");
    // All of the state: the records of mounts, the key, the log, the audit log; and all of the cache.
    for path in ["state", "cache"].into_iter().flat_map(|folder| files(&kitfs.path(folder))) {
        let mut bytes = std::fs::read(&path).expect("our own file");
        if !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("our own file");
        std::fs::write(&path, bytes).expect("our own file");
    }
    let worker = rustix::process::Pid::from_raw(mount.process("pid")).expect("a process id");
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("it runs");
    // New descriptors, and pages that the kernel has let go of.
    std::fs::write("/proc/sys/vm/drop_caches", "1").ok();
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "tampered with, after a takeover");
    kitfs.run(&["audit", "verify"]).expect(5);
    mount.unmount();
    let again = kitfs.mount(&reference);
    Tree::read(again.path()).without("Kitfile").assert_is(&kit.tree, "mounted again");
    again.unmount();
}
