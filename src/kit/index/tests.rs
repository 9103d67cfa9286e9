use proptest::prelude::*;

use super::*;
use crate::kit::seek::SeekPoint;
use crate::kit::seek::WINDOW_LIMIT;
use crate::verify::Unverified;
use crate::verity::TreeBuilder;

const TAR: Reading = Reading { format: Format::Tar, compression: Compression::None };
const RAW: Reading = Reading { format: Format::Raw, compression: Compression::None };
const TAR_GZIP: Reading = Reading { format: Format::Tar, compression: Compression::Gzip };

fn tree(data: &[u8]) -> FileTree {
    let mut builder = TreeBuilder::default();
    builder.update_beside(&mut Digest::of(data).hasher(), data);
    builder.finish()
}

fn entry(path: &str, kind: IndexKind) -> IndexEntry {
    IndexEntry { path: KitPath::parse(path.as_bytes()).unwrap(), mode: 0o644, mtime: -1, kind }
}

fn file(offset: u64, data: &[u8]) -> IndexKind {
    IndexKind::File { offset, tree: tree(data) }
}

fn points() -> SeekPoints {
    let point = |content, blob, bits, window| SeekPoint { content, blob, bits, window: Bytes::from_static(window) };
    SeekPoints::new(vec![point(100_000, 500, 3, b"window"), point(500_000, 2_000, 0, b"")]).unwrap()
}

fn gzipped() -> Index {
    let entries = vec![
        entry(".", IndexKind::Dir),
        entry("d", IndexKind::Dir),
        entry("d/big", file(1024, &[7; 600_000])),
        entry("d/empty", file(602_112, b"")),
        entry("d/small", file(602_624, b"hello")),
    ];
    let layer = LayerBlob { digest: Digest::of(b"layer"), size: 3_000, reading: TAR_GZIP };
    Index::new(layer, Content { digest: Digest::of(b"content"), size: 604_160 }, entries, points()).unwrap()
}

fn plain(reading: Reading, size: u64, entries: Vec<IndexEntry>) -> Result<Index, IndexError> {
    let digest = Digest::of(b"plain");
    Index::new(LayerBlob { digest, size, reading }, Content { digest, size }, entries, SeekPoints::default())
}

fn sample() -> Published {
    Published::new([gzipped(), plain(RAW, 5, vec![entry("raw", file(0, b"hello"))]).unwrap()]).unwrap()
}

fn decode_as<T: FromVerified<Bytes> + Clone>(bytes: &[u8]) -> Result<T, T::Error> {
    let bytes = Bytes::copy_from_slice(bytes);
    let digest = Digest::of(&bytes);
    let verified = Unverified::new(bytes).verify(&digest).unwrap();
    verified.parse::<T>().map(|parsed| (*parsed).clone())
}

fn decode(bytes: &[u8]) -> Result<Published, IndexError> {
    decode_as(bytes)
}

#[test]
fn an_index_survives_a_round_trip() {
    let published = sample();
    assert_eq!(decode(&published.encode()).unwrap(), published);
    let index = gzipped();
    assert_eq!(decode_as::<Index>(&index.encode()).unwrap(), index);
    assert!(decode_as::<Index>(&published.encode()).is_err());
    let listing = index.listing();
    assert_eq!(listing.certainty(), Certainty::Verified);
    assert_eq!(listing.entries().len(), 5);
    assert_eq!(listing.entries()[2].kind, EntryKind::File { size: 600_000 });
    assert_eq!(index.tree(2), Some(&tree(&[7; 600_000])));
    assert_eq!((index.tree(0), index.tree(5)), (None, None));
}

#[test]
fn a_layer_is_found_as_it_is_read() {
    let published = sample();
    let blob = *gzipped().blob();
    assert_eq!(published.layer(&blob), Some(&gzipped()));
    assert_eq!(published.layer(&LayerBlob { reading: TAR, ..blob }), None);
    assert_eq!(published.layer(&LayerBlob { size: 3_001, ..blob }), None);
    assert_eq!(Published::new([gzipped(), gzipped()]).unwrap().layers().len(), 1);
}

/// The vectors that `docs/index-format.md` names: an index outlives the kitfs that wrote it.
#[test]
fn the_format_is_frozen() {
    let vectors =
        include_str!("vectors.jsonl").lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut good = 0;
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let bytes = hex::decode(vector["hex"].as_str().unwrap()).unwrap();
        let decoded = decode(&bytes);
        match &vector["layers"] {
            serde_json::Value::Null => assert!(decoded.is_err(), "{name}"),
            layers => {
                assert_eq!(describe(&decoded.unwrap_or_else(|error| panic!("{name}: {error}"))), *layers, "{name}");
                good += 1;
            }
        }
    }
    assert!(good >= 4);
}

fn describe(published: &Published) -> serde_json::Value {
    let entry = |entry: &IndexEntry| match &entry.kind {
        IndexKind::Dir => serde_json::json!({"path": entry.path.to_string(), "mode": entry.mode, "mtime": entry.mtime}),
        IndexKind::File { offset, tree } => serde_json::json!({
            "path": entry.path.to_string(), "mode": entry.mode, "mtime": entry.mtime,
            "offset": offset, "size": tree.size, "verity": tree.verity.hex(),
        }),
    };
    let point =
        |point: &SeekPoint| serde_json::json!([point.content, point.blob, point.bits, hex::encode(&point.window)]);
    let layer = |index: &Index| {
        serde_json::json!({
            "digest": index.layer().to_string(), "size": index.blob().size, "reading": index.reading().to_string(),
            "content": index.content().to_string(), "content_size": index.content_size(),
            "entries": index.entries().iter().map(entry).collect::<Vec<_>>(),
            "points": index.seek().points().iter().map(point).collect::<Vec<_>>(),
        })
    };
    published.layers().iter().map(layer).collect()
}

#[test]
fn an_index_that_does_not_fit_together_is_refused() {
    let bytes = sample().encode();
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "{len}");
    }
    assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    assert!(decode(&[&bytes[..], &[0; 32]].concat()).is_err());
    let mut other = bytes;
    other[8] = 2;
    assert!(matches!(decode(&other), Err(IndexError::Version(2))));
}

#[test]
fn files_lie_inside_their_layer_and_apart() {
    for offset in [96, u64::MAX] {
        let outside = plain(TAR, 100, vec![entry("a", file(offset, b"hello"))]);
        assert!(matches!(outside, Err(IndexError::Outside { .. })));
    }
    let overlap = plain(TAR, 100, vec![entry("a", file(20, b"hello")), entry("b", file(24, b"x"))]);
    assert!(matches!(overlap, Err(IndexError::Overlap { .. })));
    let twice = plain(TAR, 100, vec![entry("a", IndexKind::Dir), entry("a", file(0, b""))]);
    assert!(matches!(twice, Err(IndexError::Listing(_))));
}

#[test]
fn a_raw_layer_is_one_file_and_a_plain_one_is_its_content() {
    for entries in [vec![], vec![entry("a", IndexKind::Dir)], vec![entry("a", file(0, b"hell"))]] {
        assert!(plain(RAW, 5, entries).is_err());
    }
    let (digest, other) = (Digest::of(b"a"), Digest::of(b"b"));
    let layer = LayerBlob { digest, size: 5, reading: TAR };
    assert!(Index::new(layer, Content { digest: other, size: 5 }, Vec::new(), SeekPoints::default()).is_err());
    assert!(Index::new(layer, Content { digest, size: 6 }, Vec::new(), SeekPoints::default()).is_err());
    assert!(Index::new(layer, Content { digest, size: 5 }, Vec::new(), points()).is_err());
}

#[test]
fn seek_points_lie_inside_the_layer() {
    let with = |content, blob| {
        let last = SeekPoint { content, blob, bits: 0, window: Bytes::new() };
        let index = gzipped();
        Index::new(index.layer, index.content, index.entries, SeekPoints::new(vec![last]).unwrap())
    };
    assert!(with(604_159, 2_999).is_ok());
    assert!(with(604_160, 2_999).is_err() && with(604_159, 3_000).is_err());
    let mut index = gzipped();
    let window = Bytes::from(vec![0; WINDOW_LIMIT + 1]);
    index.seek = SeekPoints::new(vec![SeekPoint { content: 1, blob: 1, bits: 0, window }]).unwrap();
    assert!(decode(&index.encode()).is_err());
}

#[test]
fn two_indexes_say_the_same_of_the_files_or_not() {
    let index = gzipped();
    let change = |change: &dyn Fn(&mut Index)| {
        let mut other = gzipped();
        change(&mut other);
        index.says_the_same(&other)
    };
    assert!(change(&|other| other.seek = SeekPoints::default()));
    assert!(change(&|other| other.content.digest = Digest::of(b"by another algorithm")));
    assert!(!change(&|other| other.content.size += 1));
    assert!(!change(&|other| other.layer.size += 1));
    assert!(!change(&|other| other.entries[4].mode = 0o600));
    assert!(!change(&|other| other.entries[4].kind = file(602_624, b"hallo")));
    assert!(!change(&|other| drop(other.entries.pop())));
    let [one, two] = ["a", "b"].map(|path| plain(RAW, 5, vec![entry(path, file(0, b"hello"))]).unwrap());
    assert!(one.says_the_same(&two));
}

/// Counts are held against what is there before memory is taken for them.
#[test]
fn a_few_bytes_claim_no_memory() {
    let head = [&b"kitindex\x01\0"[..], &[1, 71], Digest::of(b"").to_string().as_bytes(), &[5, 0, 0]].concat();
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert!(matches!(decode(&[&head[..], &huge].concat()), Err(IndexError::CutOff)));
    assert!(matches!(decode(&[&b"kitindex\x01\0"[..], &huge].concat()), Err(IndexError::CutOff)));
    // A file of 2^64 - 1 bytes, without its units.
    let record = [&head[..], &[1, 1, b'a', 0x80, 0x04, 0, 0], &huge].concat();
    assert!(matches!(decode(&record), Err(IndexError::CutOff)));
    let entries = u64::try_from(ENTRY_LIMIT).unwrap() + 1;
    let mut many = head;
    input::put_number(&mut many, entries);
    many.resize(many.len() + 5 * ENTRY_LIMIT, 0);
    assert!(matches!(decode(&many), Err(IndexError::Listing(ListingError::TooLarge))));
}

proptest! {
    #[test]
    fn no_damage_makes_it_panic(place: prop::sample::Index, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = sample().encode();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let _ = decode(&bytes);
        bytes.truncate(place);
        bytes.extend_from_slice(&tail);
        let _ = decode(&bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&[&b"kitindex\x01\0"[..], &bytes].concat());
    }
}
