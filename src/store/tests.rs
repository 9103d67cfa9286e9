use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::buffers::Buffers;
use crate::kit::index::Content;
use crate::kit::index::IndexEntry;
use crate::kit::index::IndexKind;
use crate::kit::index::LayerBlob;
use crate::kit::media::Compression;
use crate::kit::media::Format;
use crate::kit::name::KitPath;
use crate::kit::seek::SeekPoints;
use crate::verify::LayerCheck;
use crate::verity::TreeBuilder;

const RAW: Reading = Reading { format: Format::Raw, compression: Compression::None };

fn store(folder: &Path) -> Arc<Store> {
    let key = local_key(&folder.join("state/key")).unwrap();
    Arc::new(Store::open(&folder.join("cache"), key).unwrap())
}

/// Keeps a raw layer with that content, as the layers do.
fn keep(store: &Arc<Store>, content: &[u8]) -> Verified<Index> {
    let layer = Digest::of(content);
    let mut check = LayerCheck::new(layer);
    let mut staging = store.staging(&layer).unwrap();
    let mut file = staging.file().unwrap();
    let mut tree = TreeBuilder::default();
    for piece in content.chunks(100_000) {
        file.append(piece).unwrap();
        check.update_with(piece, Some(&mut tree));
    }
    file.finish().unwrap();
    let kind = IndexKind::File { offset: 0, tree: tree.finish() };
    let entry = IndexEntry { path: KitPath::parse(b"model/w.bin").unwrap(), mode: 0o644, mtime: 0, kind };
    let size = content.len() as u64;
    let blob = LayerBlob { digest: layer, size, reading: RAW };
    let index = Index::new(blob, Content { digest: layer, size }, vec![entry], SeekPoints::default()).unwrap();
    staging.commit(&check.finish().unwrap(), index).unwrap()
}

fn read(store: &Store, index: &Verified<Index>) -> Option<Vec<u8>> {
    let tree = index.part(|index| index.tree(0)).unwrap();
    let witness = store.object(&tree)?;
    let buffers = Buffers::new(2);
    let mut content = Vec::new();
    while (content.len() as u64) < tree.size {
        let start = content.len() as u64;
        let end = tree.size.min(start + 300_000);
        content.extend_from_slice(&witness.read(start..end, &buffers).ok()?);
    }
    Some(content)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 977) as u8).collect()
}

fn object_file(store: &Store, index: &Verified<Index>) -> PathBuf {
    store.object_path(&index.trees().next().unwrap().verity)
}

#[test]
fn what_was_kept_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let content = pattern(3 << 20);
    keep(&store(folder.path()), &content);
    let again = store(folder.path());
    let index = again.index(&Digest::of(&content), RAW).unwrap();
    assert_eq!(read(&again, &index).unwrap(), content);
    let tree = index.part(|index| index.tree(0)).unwrap();
    assert!(again.object(&tree).unwrap().whole().is_some(), "an object that was not touched needs no second proof");
    assert_eq!(fs::read_dir(again.root.join("staging")).unwrap().count(), 0);
}

#[test]
fn a_flipped_bit_is_never_read() {
    let folder = tempfile::tempdir().unwrap();
    for len in [10, 5000, 3 << 20] {
        let content = pattern(len);
        let store = store(folder.path());
        let index = keep(&store, &content);
        let path = object_file(&store, &index);
        let mut damaged = content.clone();
        damaged[len / 2] ^= 1;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&damaged).unwrap();
        assert_eq!(read(&store, &index), None, "{len} bytes");
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&content).unwrap();
        assert_eq!(read(&store, &index).unwrap(), content, "the same bytes are proved again");
    }
}

#[test]
fn a_swapped_object_is_never_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let [one, other] = [keep(&store, &pattern(1 << 20)), keep(&store, &vec![7; 1 << 20])];
    fs::copy(object_file(&store, &other), folder.path().join("copy")).unwrap();
    fs::rename(folder.path().join("copy"), object_file(&store, &one)).unwrap();
    assert_eq!(read(&store, &one), None);
}

#[test]
fn an_index_counts_only_under_this_hosts_seal_and_for_its_layer() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (one, other) = (pattern(1000), pattern(2000));
    let [one, other] = [keep(&store, &one), keep(&store, &other)].map(|index| *index.layer());
    fs::copy(store.index_path(&one, RAW), store.index_path(&one, RAW).with_extension("x")).unwrap();
    fs::rename(store.index_path(&one, RAW).with_extension("x"), store.index_path(&other, RAW)).unwrap();
    assert!(store.index(&other, RAW).is_none(), "another layer's index");
    fs::remove_file(folder.path().join("state/key")).unwrap();
    let key = local_key(&folder.path().join("state/key")).unwrap();
    let stranger = Store::open(&folder.path().join("cache"), key).unwrap();
    assert!(store.index(&one, RAW).is_some() && stranger.index(&one, RAW).is_none(), "another host's index");
}

#[test]
fn a_record_does_not_outlive_its_boot() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let index = keep(&store, &pattern(2 << 20));
    let tree = index.part(|index| index.tree(0)).unwrap();
    let key = local_key(&folder.path().join("state/key")).unwrap();
    let mut rebooted = Store::open(&folder.path().join("cache"), key).unwrap();
    rebooted.boot = "another".into();
    assert!(rebooted.object(&tree).unwrap().whole().is_none());
    store.make_durable(&index).unwrap();
    assert!(rebooted.object(&tree).unwrap().whole().is_some(), "unless the object had reached the disk");
}

#[test]
fn eviction_takes_the_oldest_and_leaves_what_is_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let layers: Vec<_> = (0..3).map(|n| *keep(&store, &vec![n + 1; 1 << 20]).layer()).collect();
    let hour = std::time::Duration::from_secs(3600);
    for (age, layer) in [3u32, 2, 1].into_iter().zip(&layers) {
        let used = FileTimes::new().set_modified(SystemTime::now() - hour * age);
        let index = store.index(layer, RAW).unwrap();
        let object = object_file(&store, &index);
        for path in [&store.index_path(layer, RAW), &object] {
            File::open(path).unwrap().set_times(used.set_accessed(SystemTime::now() - hour * age)).unwrap();
        }
        let record = store.record_path(&index.trees().next().unwrap().verity);
        File::open(record).unwrap().set_times(used).unwrap();
    }
    let pin = store.pin(&layers[0]).unwrap();
    assert!(store.prune((2 << 20) + (100 << 10)).unwrap() >= 1 << 20);
    let kept = |store: &Store| layers.iter().map(|layer| store.index(layer, RAW).is_some()).collect::<Vec<_>>();
    assert_eq!(kept(&store), [true, false, true]);
    assert_eq!(store.usage().unwrap().objects, 2);
    store.prune(0).unwrap();
    assert_eq!(kept(&store), [true, false, false]);
    drop(pin);
    store.prune(0).unwrap();
    assert_eq!((kept(&store), store.usage().unwrap().objects), (vec![false; 3], 0));
}

#[test]
fn verification_finds_and_removes_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let index = keep(&store, &pattern(1 << 20));
    let blob = Unverified::new(&b"{}"[..]).verify(&Digest::of(b"{}")).unwrap();
    store.keep_blob(&Digest::of(b"{}"), &blob).unwrap();
    let buffers = Buffers::new(1);
    assert_eq!(store.verify(&buffers).unwrap().bad.len(), 0);
    fs::remove_file(object_file(&store, &index)).unwrap();
    fs::write(object_file(&store, &index), pattern(1000)).unwrap();
    fs::remove_file(store.blob_path(&Digest::of(b"{}"))).unwrap();
    fs::write(store.blob_path(&Digest::of(b"{}")), "{ }").unwrap();
    let result = store.verify(&buffers).unwrap();
    assert_eq!((result.checked, result.bad.len()), (3, 2), "{result:?}");
    assert_eq!(store.verify(&buffers).unwrap().bad.len(), 0);
}

#[test]
fn zeros_take_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let content = vec![0; 8 << 20];
    let index = keep(&store, &content);
    assert_eq!(read(&store, &index).unwrap(), content);
    assert!(store.usage().unwrap().bytes < 1 << 20);
}
