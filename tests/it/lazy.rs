//! Layers that are indexed and not here: any part of any file is fetched and proved alone, once, and kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::faults::{Answer, Asked, Content, Faults};
use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Packed, Packing, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::mount::attribute;
use crate::support::tree::Tree;

pub const UNIT: u64 = 512 * 1024;
const EIO: i32 = 5;

/// A kit with one file of `units` units and a few bytes.
pub fn large(units: usize) -> (Vec<u8>, Packed) {
    let bytes = noise(3, units * UNIT as usize + 777);
    let kit = Kit::named("large").with(Base::Model, "model", [file("model/weights.bin", bytes.clone())]);
    (bytes, kit.pack())
}

/// An installation that knows what is in a kit and has nothing of it, and the kit's registry.
pub struct Indexed {
    pub kitfs: Kitfs,
    server: Faults,
    pub reference: String,
    is_up: Arc<AtomicBool>,
    spoil: Arc<Mutex<Option<u64>>>,
}

impl Indexed {
    pub fn new(kit: &Packed) -> Self {
        Self::with(kit, |_, answer| answer)
    }

    /// The same, with answers that come out of `change`.
    fn with(kit: &Packed, change: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> Self {
        let content = Content::of(kit);
        let (is_up, spoil) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(None::<u64>)));
        let (up, spoilt) = (Arc::clone(&is_up), Arc::clone(&spoil));
        let server = Faults::start(move |asked, _| match up.load(Ordering::Relaxed) {
            false => Answer::new(503),
            true => {
                let answer = content.answer(asked);
                let place = spoilt.lock().expect("no test panics there").zip(asked.range());
                let inside = place.filter(|(at, (first, last))| (*first as u64..=*last as u64).contains(at));
                change(
                    asked,
                    match inside {
                        Some((at, (first, _))) => answer.flip(at as usize - first),
                        None => answer,
                    },
                )
            }
        });
        let kitfs = Kitfs::new();
        let reference = format!("{}/kit:v1", server.host());
        kitfs.run(&["pull", &reference]).expect(0);
        let indexed = Self { kitfs, server, reference, is_up, spoil };
        indexed.empty();
        indexed
    }

    /// Leaves the indexes in the store, and no file.
    fn empty(&self) {
        for folder in ["objects", "records", "partial"] {
            std::fs::remove_dir_all(self.store().join(folder)).expect("a folder of the store");
        }
    }

    fn store(&self) -> PathBuf {
        self.kitfs.path("cache/v1")
    }

    /// The ranges that were asked for since `before` requests, as first byte and length.
    pub fn ranges(&self, before: usize) -> Vec<(u64, u64)> {
        let ranges = self.server.asked().split_off(before);
        let ranges = ranges.iter().filter(|asked| asked.path.contains("/blobs/")).filter_map(Asked::range);
        ranges.map(|(first, last)| (first as u64, (last - first + 1) as u64)).collect()
    }

    pub fn asked(&self) -> usize {
        self.server.asked().len()
    }
}

pub fn read_at(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// No byte twice.
#[track_caller]
pub fn assert_disjoint(mut ranges: Vec<(u64, u64)>) {
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "fetched twice: {ranges:?}");
}

#[test]
fn random_reads_fetch_one_unit_each_and_nothing_twice() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(40);
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount(&indexed.reference);
    let path = mount.at("model/weights.bin");
    assert_eq!(attribute(&path, "user.kitfs.state").unwrap(), "absent");
    let before = indexed.asked();
    let places: Vec<u64> = [3, 20, 9, 33, 14, 38, 1, 26].map(|unit| unit * UNIT + 4096 * (unit % 9 + 1)).to_vec();
    for place in places.iter().chain(&places) {
        let there = *place as usize;
        assert!(read_at(&path, *place, 4096).unwrap() == bytes[there..there + 4096], "wrong bytes at {place}");
    }
    let ranges = indexed.ranges(before);
    assert!(ranges.len() <= places.len(), "{ranges:?}");
    assert!(ranges.iter().all(|(_, len)| *len <= UNIT), "{ranges:?}");
    assert_disjoint(ranges);
    assert_eq!(attribute(&path, "user.kitfs.state").unwrap(), "partial");
    mount.unmount();
}

#[test]
fn a_compressed_layer_is_read_from_the_next_seek_point() {
    if !host::can_mount() {
        return;
    }
    // What compresses a little: its blocks end where no unit does.
    let bytes: Vec<u8> = noise(3, 40 * UNIT as usize + 777).iter().map(|byte| b'a' + byte % 26).collect();
    let files = [file("model/weights.bin", bytes.clone()), file("model/small", *b"small")];
    let packing = Packing::Tar(Compression::Gzip);
    let kit = Kit::named("packed").packing(packing).with(Base::Model, "model", files).pack();
    let indexed = Indexed::new(&kit);
    let whole = kit.layers[0].bytes.len() as u64;
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--prefetch", "none"]);
    let path = mount.at("model/weights.bin");
    for unit in [30, 7, 39, 22] {
        let before = indexed.asked();
        let place = (unit * UNIT + 5000) as usize;
        assert!(read_at(&path, place as u64, 4096).unwrap() == bytes[place..place + 4096], "wrong bytes at {place}");
        let fetched: u64 = indexed.ranges(before).iter().map(|(_, len)| len).sum();
        assert!(fetched < whole / 4, "{fetched} of {whole} bytes for one unit");
    }
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "compressed, from seek points");
    mount.unmount();
}

#[test]
fn a_file_that_was_read_whole_is_an_object_and_every_byte_came_once() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(37);
    let indexed = Indexed::new(&kit);
    let before = indexed.asked();
    let mount = indexed.kitfs.mount(&indexed.reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "read lazily");
    assert_disjoint(indexed.ranges(before));
    let path = mount.at("model/weights.bin");
    assert!(host::soon(10, || attribute(&path, "user.kitfs.state").unwrap() == "verified"));
    mount.unmount();
    indexed.is_up.store(false, Ordering::Relaxed);
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--offline"]);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with the registry down");
    mount.unmount();
    indexed.kitfs.run(&["cache", "verify"]).expect(0);
}

#[test]
fn what_is_there_is_served_after_a_restart_with_the_registry_down() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(8);
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount(&indexed.reference);
    assert!(read_at(&mount.at("model/weights.bin"), 3 * UNIT, 4096).is_ok());
    mount.unmount();
    indexed.is_up.store(false, Ordering::Relaxed);
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--offline", "--read-timeout", "2s"]);
    let path = mount.at("model/weights.bin");
    let there = 3 * UNIT as usize;
    assert!(read_at(&path, 3 * UNIT + 100, 50_000).unwrap() == bytes[there + 100..there + 50_100]);
    assert_eq!(read_at(&path, 6 * UNIT, 4096).unwrap_err().raw_os_error(), Some(EIO));
    indexed.is_up.store(true, Ordering::Relaxed);
    assert!(host::soon(20, || read_at(&path, 6 * UNIT, 4096).is_ok()), "it never comes back");
    mount.unmount();
}

#[test]
fn a_unit_that_the_source_has_changed_is_refused_alone() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(20);
    let indexed = Indexed::new(&kit);
    *indexed.spoil.lock().unwrap() = Some(5 * UNIT + 4000);
    let mount = indexed.kitfs.mount(&indexed.reference);
    let path = mount.at("model/weights.bin");
    // The headers of the tar lie before the file, so the byte is in unit 4 or 5, whichever these are.
    for unit in 0..20 {
        let place = unit * UNIT + 2048;
        match read_at(&path, place, 4096) {
            Ok(read) => assert!(read == bytes[place as usize..place as usize + 4096], "wrong bytes in {unit}"),
            Err(error) => assert!(error.raw_os_error() == Some(EIO) && (4..=5).contains(&unit), "{unit}: {error}"),
        }
    }
    let error = mount.status()["last_error"].clone();
    assert_eq!(error["kind"], "mismatch", "{error}");
    assert!(error["expected"].is_string() && error["actual"].is_string() && error["layer"].is_string(), "{error}");
    *indexed.spoil.lock().unwrap() = None;
    let mount_again = indexed.kitfs.mount(&indexed.reference);
    Tree::read(mount_again.path()).without("Kitfile").assert_is(&kit.tree, "once the source is healed");
    mount_again.unmount();
    mount.unmount();
}

#[test]
fn a_partial_object_that_was_tampered_with_heals() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(6);
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount(&indexed.reference);
    assert!(read_at(&mount.at("model/weights.bin"), 2 * UNIT, 100_000).is_ok());
    let partial = files_below(&indexed.store().join("partial")).into_iter();
    let data = partial.filter(|path| path.extension().is_none()).collect::<Vec<_>>();
    assert_eq!(data.len(), 1, "{data:?}");
    let file = File::options().write(true).open(&data[0]).unwrap();
    file.write_all_at(&[0x55; 4096], 2 * UNIT + 8192).unwrap();
    // Another mount, because the kernel keeps the pages of the first.
    let second = indexed.kitfs.mount(&indexed.reference);
    let there = 2 * UNIT as usize;
    assert!(read_at(&second.at("model/weights.bin"), 2 * UNIT, 100_000).unwrap() == bytes[there..there + 100_000]);
    file.write_all_at(&[0x77; 4096], 2 * UNIT + 300_000).unwrap();
    for mount in [&mount, &second] {
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a tampered partial object");
    }
    second.unmount();
    mount.unmount();
    indexed.kitfs.run(&["cache", "verify"]).expect(0);
}

#[test]
fn two_mounts_that_read_the_same_fetch_it_once() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(30);
    let indexed = Indexed::new(&kit);
    let before = indexed.asked();
    let (one, two) = (indexed.kitfs.mount(&indexed.reference), indexed.kitfs.mount(&indexed.reference));
    std::thread::scope(|scope| {
        for mount in [&one, &two] {
            scope.spawn(|| Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "beside another mount"));
        }
    });
    assert_disjoint(indexed.ranges(before));
    one.unmount();
    two.unmount();
}

#[test]
fn a_worker_that_is_killed_while_it_fetches_leaves_what_it_had() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(40);
    let slow = |_: &Asked, answer: Answer| answer.link(Duration::from_millis(20), 20e6);
    let indexed = Indexed::with(&kit, slow);
    let mount = indexed.kitfs.mount(&indexed.reference);
    std::thread::scope(|scope| {
        let reading =
            scope.spawn(|| Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "through a kill"));
        let weights = mount.at("model/weights.bin");
        assert!(host::soon(20, || attribute(&weights, "user.kitfs.state").is_ok_and(|state| state == "partial")));
        // SAFETY: a plain system call; the worker is a process of this test's own installation.
        unsafe { libc::kill(mount.process("pid"), libc::SIGKILL) };
        reading.join().unwrap();
    });
    mount.unmount();
    indexed.kitfs.run(&["cache", "verify"]).expect(0);
}

#[test]
fn threads_that_read_at_random_through_one_descriptor_are_served_side_by_side() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(64);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, peak) = (Arc::clone(&now), Arc::clone(&most));
    let indexed = Indexed::with(&kit, move |asked, answer| {
        if asked.range().is_some() {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Until all of them are here, or somebody has waited in vain.
            host::soon(5, || peak.load(Ordering::SeqCst) >= 8);
            inside.fetch_sub(1, Ordering::SeqCst);
        }
        answer
    });
    most.store(0, Ordering::SeqCst);
    let mount = indexed.kitfs.mount(&indexed.reference);
    let file = File::open(mount.at("model/weights.bin")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (file, bytes) = (&file, &bytes);
            scope.spawn(move || {
                let place = (thread * 7 + 1) * UNIT;
                let mut read = vec![0; UNIT as usize];
                file.read_exact_at(&mut read, place).unwrap();
                assert!(read == bytes[place as usize..][..UNIT as usize], "wrong bytes at {place}");
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) >= 8, "at most {} requests at once", most.load(Ordering::SeqCst));
    drop(file);
    mount.unmount();
}

#[test]
fn nobody_waits_for_the_rest_of_a_request() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(40);
    let (stalls, stalled) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (now, seen) = (Arc::clone(&stalls), Arc::clone(&stalled));
    // What is read ahead comes for a mebibyte and a little, and no further.
    let indexed = Indexed::with(&kit, move |asked, answer| match asked.range() {
        Some((first, last)) if now.load(Ordering::SeqCst) && last - first > 3 * UNIT as usize => {
            seen.lock().unwrap().push((first as u64, last as u64));
            answer.stall(2 * UNIT as usize + 1000)
        }
        _ => answer,
    });
    let mount = indexed.kitfs.mount(&indexed.reference);
    let path = mount.at("model/weights.bin");
    // What is read ahead is given up with the last descriptor.
    let reader = File::open(&path).unwrap();
    stalls.store(true, Ordering::SeqCst);
    let (first, last) = (0..)
        .find_map(|piece| {
            assert!(piece < 32, "nothing was read ahead");
            reader.read_exact_at(&mut vec![0; UNIT as usize / 2], piece * UNIT / 2).unwrap();
            stalled.lock().unwrap().first().copied()
        })
        .unwrap();
    let place = first / UNIT * UNIT;
    let file = File::open(&path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut read = vec![0; 4096];
    file.read_exact_at(&mut read, place).unwrap();
    assert!(read == bytes[place as usize..][..4096], "wrong bytes at {place}");
    let again = indexed.ranges(0).into_iter().find(|(start, len)| *start > first && start + len == last + 1);
    assert_eq!(again, None, "the first unit came with the second try for the others");
    drop((file, reader));
    mount.unmount();
}

#[test]
fn nobody_waits_for_what_others_will_read() {
    if !host::can_mount() {
        return;
    }
    // Whoever reads the header of such a file will read all of it.
    let mut bytes = [&2_u64.to_le_bytes()[..], b"{}"].concat();
    bytes.extend(noise(3, 96 * UNIT as usize));
    let kit = Kit::named("large").with(Base::Model, "model", [file("model/weights.safetensors", bytes.clone())]);
    // Of much that is read ahead comes a unit and a little, and no more.
    let (stalls, stalled) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None::<(u64, u64)>)));
    let (now, seen) = (Arc::clone(&stalls), Arc::clone(&stalled));
    let indexed = Indexed::with(&kit.pack(), move |asked, answer| match asked.range() {
        Some((first, last)) if now.load(Ordering::SeqCst) && last - first > 8 * UNIT as usize => {
            seen.lock().unwrap().get_or_insert((first as u64, last as u64));
            answer.stall(UNIT as usize + 1000)
        }
        _ => answer,
    });
    let mount = indexed.kitfs.mount(&indexed.reference);
    stalls.store(true, Ordering::SeqCst);
    let file = File::open(mount.at("model/weights.safetensors")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
    assert!(host::soon(60, || stalled.lock().unwrap().is_some()), "nothing was read far ahead");
    let (first, last) = stalled.lock().unwrap().unwrap();
    let before = indexed.asked();
    let place = (first / UNIT + 7) * UNIT;
    let mut read = vec![0; 4096];
    file.read_exact_at(&mut read, place).unwrap();
    assert!(read == bytes[place as usize..][..4096], "wrong bytes at {place}");
    let ranges = indexed.ranges(before);
    assert!(ranges.contains(&(first + 7 * UNIT, UNIT)), "{ranges:?} while {first} to {last} come");
    drop(file);
    mount.unmount();
}

#[test]
fn small_files_that_lie_side_by_side_come_together() {
    if !host::can_mount() {
        return;
    }
    let files: Vec<_> = (0..600).map(|number| file(&format!("data/{number:03}"), noise(number, 3000))).collect();
    let kit = Kit::named("many").with(Base::Dataset, "data", files).pack();
    let indexed = Indexed::new(&kit);
    let before = indexed.asked();
    let mount = indexed.kitfs.mount(&indexed.reference);
    let mut names: Vec<_> = kit.tree.files();
    names.sort();
    for name in &names {
        std::fs::read(mount.at(name)).unwrap();
    }
    let ranges = indexed.ranges(before);
    assert!(ranges.len() < 20, "{} requests for {} files", ranges.len(), names.len());
    assert_disjoint(ranges);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "many small files");
    mount.unmount();
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

#[test]
fn prefetch_fetches_what_it_was_asked_to() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(40);
    let indexed = Indexed::new(&kit);
    let weights = |mount: &crate::support::mount::Mount<'_>| mount.at("model/weights.bin");
    let before = indexed.asked();
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--prefetch", "none"]);
    let file = File::open(weights(&mount)).unwrap();
    // Else the kernel reads ahead by itself.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    file.read_exact_at(&mut vec![0; 5 * UNIT as usize], 0).unwrap();
    drop(file);
    mount.unmount();
    assert_eq!(indexed.ranges(before).iter().map(|(_, len)| len).sum::<u64>(), 5 * UNIT);
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--prefetch", "all"]);
    let state = || attribute(&weights(&mount), "user.kitfs.state").unwrap();
    assert!(host::soon(30, || state() == "verified"), "{}", state());
    assert_disjoint(indexed.ranges(before));
    mount.unmount();
}

#[test]
fn weights_are_fetched_whole_once_a_loader_has_read_their_header() {
    if !host::can_mount() {
        return;
    }
    let header = format!("{{\"t\":{{\"dtype\":\"U8\",\"shape\":[{0}],\"data_offsets\":[0,{0}]}}}}", 20 * UNIT);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&noise(9, 20 * UNIT as usize));
    let kit = Kit::named("weights").with(Base::Model, "model", [file("model/w.safetensors", bytes)]).pack();
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount(&indexed.reference);
    let loader = File::open(mount.at("model/w.safetensors")).unwrap();
    loader.read_exact_at(&mut [0; 8], 0).unwrap();
    loader.read_exact_at(&mut vec![0; header.len()], 8).unwrap();
    let state = || attribute(&mount.at("model/w.safetensors"), "user.kitfs.state").unwrap();
    assert!(host::soon(30, || state() == "verified"), "{}", state());
    drop(loader);
    mount.unmount();
}

/// A file system over a directory, until it is dropped.
pub struct Over<'p>(&'p Path);

impl<'p> Over<'p> {
    fn tmpfs(at: &'p Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("none", at, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
        Self(at)
    }

    pub fn read_only(at: &'p Path) -> Self {
        rustix::mount::mount_bind(at, at).unwrap();
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(at, flags, c"").unwrap();
        Self(at)
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

/// A kit of several shapes of file, larger than the disks of these tests.
pub fn roomy() -> Packed {
    let files: Vec<_> = (0..50).map(|number| file(&format!("data/{number:02}"), noise(number, 9000))).collect();
    Kit::named("roomy")
        .with(Base::Model, "model", [file("model/weights.bin", noise(3, 24 * UNIT as usize + 5))])
        .with(Base::Dataset, "data", files)
        .pack()
}

#[test]
fn a_full_disk_costs_fetches_and_no_errors() {
    if !host::can_mount() {
        return;
    }
    let kit = roomy();
    let server = Faults::honest(Content::of(&kit));
    let kitfs = Kitfs::new();
    let cache = kitfs.path("cache");
    let small = Over::tmpfs(&cache, "5m");
    // Nothing is indexed: the layer is proved in one pass that keeps its index alone.
    let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "on a full disk");
    assert_eq!(mount.status()["last_error"]["kind"], "store");
    mount.unmount();
    // From now on it is.
    let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "on a full disk, indexed");
    mount.unmount();
    kitfs.run(&["pull", &format!("{}/kit:v1", server.host())]).expect(1);
    drop(small);
}

#[test]
fn a_store_keeps_within_its_limit_what_is_mounted() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(200);
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount_with(&indexed.reference, &["--cache-size", "10MiB"]);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "with a store that is too small");
    mount.unmount();
    let info = indexed.kitfs.run(&["cache", "info", "--output", "json"]).expect(0).json();
    // What is noticed only after the fact is one step of counting.
    assert!(info["bytes"].as_u64().unwrap() < 90 << 20, "{info}");
}

#[test]
fn a_compressed_layer_is_read_on_a_full_disk() {
    if !host::can_mount() {
        return;
    }
    for compression in [Compression::Gzip, Compression::Zstd] {
        let entry = [file("model/weights.bin", noise(3, 6 << 20)), file("model/small", *b"small")];
        let packing = Packing::Tar(compression);
        let kit = Kit::named("packed").packing(packing).with(Base::Model, "model", entry).pack();
        let server = Faults::honest(Content::of(&kit));
        let kitfs = Kitfs::new();
        let cache = kitfs.path("cache");
        let small = Over::tmpfs(&cache, "3m");
        let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
        Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "compressed, on a full disk");
        mount.unmount();
        drop(small);
    }
}

#[test]
fn a_source_without_ranges_is_read_whole() {
    if !host::can_mount() {
        return;
    }
    let (_, kit) = large(6);
    let content = Content::of(&kit);
    let server = Faults::start(move |asked, _| content.answer(&asked.without_range()));
    let kitfs = Kitfs::new();
    let reference = format!("{}/kit:v1", server.host());
    kitfs.run(&["pull", &reference]).expect(0);
    for folder in ["objects", "records"] {
        std::fs::remove_dir_all(kitfs.path("cache/v1").join(folder)).unwrap();
    }
    let mount = kitfs.mount(&reference);
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "from a source without ranges");
    mount.unmount();
}
