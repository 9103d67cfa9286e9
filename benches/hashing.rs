//! The inner loops of proving: `cargo bench --bench hashing`. Before criterion's figures it prints what counts,
//! ratios of the best of runs in turns.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kitfs::digest::Digest;
use kitfs::sha256;
use kitfs::sha256::Sha256;
use kitfs::verity;
use kitfs::verity::TreeBuilder;
use sha2::Digest as _;

/// What comes from a source at once.
const PIECE: usize = 1024 * 1024;

fn piece() -> Vec<u8> {
    (0..PIECE).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// The least that proves a layer whole.
fn flat(bytes: &[u8]) {
    black_box(sha2::Sha256::digest(bytes));
}

/// The leaves of an fs-verity tree alone, with the library.
fn leaves(bytes: &[u8]) {
    bytes.chunks(verity::BLOCK).for_each(flat);
}

/// A layer's digest and the tree of the file in it, as the splitter computes them.
fn both(bytes: &[u8]) {
    let (mut hasher, mut tree) = (Digest::of(b"").hasher(), TreeBuilder::default());
    tree.update_beside(&mut hasher, bytes);
    black_box((hasher.finish(), tree.finish()));
}

/// Units as they are proved that come from a cache or in a range.
fn units(bytes: &[u8]) {
    for unit in bytes.chunks(verity::UNIT as usize) {
        black_box(verity::unit_hash(unit, PIECE as u64));
    }
}

/// The best times of two functions that take turns.
fn in_turns(first: fn(&[u8]), second: fn(&[u8]), bytes: &[u8]) -> (Duration, Duration) {
    let time = |work: fn(&[u8])| {
        let start = Instant::now();
        work(bytes);
        start.elapsed()
    };
    (0..200).fold((Duration::MAX, Duration::MAX), |(a, b), _| (a.min(time(first)), b.min(time(second))))
}

fn ratios(bytes: &[u8]) {
    let print = |what: &str, (first, second): (Duration, Duration)| {
        println!("{what}: {:.2} times", second.as_secs_f64() / first.as_secs_f64());
    };
    print("digest and tree together, against the digest alone by sha2", in_turns(flat, both, bytes));
    print("the units of a tree, against their leaves alone by sha2", in_turns(leaves, units, bytes));
}

fn hashing(criterion: &mut Criterion) {
    let bytes = piece();
    ratios(&bytes);
    let mut group = criterion.benchmark_group("hashing");
    group.throughput(Throughput::Bytes(PIECE as u64));
    group.bench_function("flat, sha2", |bencher| bencher.iter(|| flat(&bytes)));
    group.bench_function("flat, kitfs", |bencher| bencher.iter(|| black_box(Sha256::of(&bytes))));
    group.bench_function("leaves, sha2", |bencher| bencher.iter(|| leaves(&bytes)));
    group.bench_function("flat and tree together", |bencher| bencher.iter(|| both(&bytes)));
    group.bench_function("units", |bencher| bencher.iter(|| units(&bytes)));
    let (first, second) = bytes.split_at(PIECE / 2);
    group.bench_function("two streams", |bencher| bencher.iter(|| black_box(sha256::of_two(first, second))));
    group.finish();
}

criterion_group!(benches, hashing);
criterion_main!(benches);
