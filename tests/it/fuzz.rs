//! The fuzz targets over their seeds, and over some mutations of them, the same every time. `fuzz/` runs on from there.

use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Mutations of each seed, where one takes no time.
const MUTATIONS: u64 = 60;

/// A generator of numbers that every run repeats (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// One to four small changes: a bit, a byte, a piece cut out, doubled or moved.
fn mutated(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let start = numbers.below(bytes.len());
        let end = (start + 1 + numbers.below(32)).min(bytes.len());
        match numbers.below(5) {
            0 => bytes[start] ^= 1 << numbers.below(8),
            1 => bytes[start] = b"\0\xff\"{}[],:=9"[numbers.below(12) % 11],
            2 => drop(bytes.drain(start..end)),
            3 => {
                let piece = bytes[start..end].to_vec();
                bytes.splice(start..start, piece);
            }
            _ => {
                let piece: Vec<_> = bytes.drain(start..end).collect();
                let at = numbers.below(bytes.len() + 1);
                bytes.splice(at..at, piece);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

fn check(name: &str, target: fn(&[u8])) {
    check_some(name, target, MUTATIONS);
}

fn check_some(name: &str, target: fn(&[u8]), mutations: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut seeds: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    target(b"");
    for seed in seeds {
        let seed = std::fs::read(seed).unwrap();
        target(&seed);
        for number in 1..=mutations {
            target(&mutated(&seed, &mut Numbers(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        }
    }
}

#[test]
fn bundles() {
    check("bundle", targets::bundle);
}

#[test]
fn certificates() {
    check("certificate", targets::certificate);
    let seed = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/certificate");
        std::fs::read(folder.join(name)).unwrap()
    };
    let holder = "release@acme.example (https://accounts.acme.example)";
    assert_eq!(targets::holder(&seed("email")).as_deref(), Some(holder));
    for unseen in ["uri", "user"] {
        assert_eq!(targets::holder(&seed(unseen)), None, "{unseen}");
    }
}

#[test]
fn stored_signatures() {
    check("material", targets::material);
}

#[test]
fn policies() {
    check("policy", targets::policy);
}

#[test]
fn documents() {
    check("document", targets::document);
}

#[test]
fn audit_logs() {
    check("audit", targets::audit);
}

#[test]
fn manifests() {
    check("manifest", targets::manifest);
}

#[test]
fn configs() {
    check("config", targets::config);
}

#[test]
fn published_indexes() {
    check("index", targets::index);
}

#[test]
fn references() {
    check("reference", targets::reference);
}

#[test]
fn layouts() {
    check("layout", targets::layout);
}

#[test]
fn tars_of_layouts() {
    check("tarball", targets::tarball);
}

#[test]
fn tars() {
    check("tar", targets::tar);
}

#[test]
fn gzip() {
    check("gzip", targets::gzip);
}

#[test]
fn zstd() {
    check("zstd", targets::zstd);
}

#[test]
fn seek_points() {
    // Megabytes are compressed for each.
    check_some("seek", targets::seek, 6);
}

#[test]
fn what_somebody_signed() {
    check("signature", targets::signature);
}
