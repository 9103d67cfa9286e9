//! The sample kit of `scripts/demo`: in the repository, small, and exactly what the writer of these tests packs.
//!
//! `KITFS_WRITE_SAMPLE=1 cargo test --test it sample::` writes it anew.

use std::path::{Path, PathBuf};

use crate::support::kit::{Base, Kit, Layout, Packed, file, noise};
use crate::support::kitfs::Kitfs;
use crate::support::tree::{Tree, sha256};

const WEIGHTS: &str = "model/weights.safetensors";

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// A file in the shape of safetensors: the length of a JSON header, the header, the tensors.
fn weights() -> Vec<u8> {
    let header = serde_json::json!({
        "__metadata__": {"format": "pt"},
        "embedding.weight": {"dtype": "F16", "shape": [512, 192], "data_offsets": [0, 196_608]},
        "head.weight": {"dtype": "F16", "shape": [192, 256], "data_offsets": [196_608, 294_912]}
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(noise(42, 294_912));
    bytes
}

fn sample() -> Packed {
    let card = b"# A very small model\n\nIt knows nothing. It is here to be mounted.\n";
    let script = b"#!/usr/bin/env python3\nprint(\"read me from a mount\")\n";
    Kit::named("sample")
        .with(Base::Model, "model", [file(WEIGHTS, weights()), file("model/config.json", *b"{\"hidden_size\": 192}\n")])
        .with(Base::Code, "src", [file("src/run.py", *script).mode(0o755)])
        .with(Base::Dataset, "data", [file("data/train.csv", *b"text,label\nhello,0\nworld,1\n")])
        .with(Base::Docs, "README.md", [file("README.md", *card)])
        .pack()
}

#[test]
fn the_sample_in_the_repository_is_what_the_writer_packs() {
    let folder = data().join("sample");
    let fresh = tempfile::tempdir().expect("a temporary directory");
    let checksum = format!("{}  {WEIGHTS}\n", sha256(&weights()));
    if std::env::var_os("KITFS_WRITE_SAMPLE").is_some() {
        std::fs::remove_dir_all(&folder).ok();
        Layout::of(folder.clone(), &sample());
        std::fs::write(data().join("sample.sha256"), &checksum).expect("the repository");
    }
    Layout::of(fresh.path().join("sample"), &sample());
    let modes_aside = |mut tree: Tree| {
        tree.0.values_mut().for_each(|entry| entry.mode = 0);
        tree
    };
    let wanted = modes_aside(Tree::read(&fresh.path().join("sample")));
    modes_aside(Tree::read(&folder)).assert_is(&wanted, "tests/data/sample");
    assert_eq!(std::fs::read_to_string(data().join("sample.sha256")).expect("beside the sample"), checksum);
}

#[test]
fn the_sample_verifies_and_reads() {
    let kitfs = Kitfs::new();
    let reference = format!("oci:{}:v1", data().join("sample").display());
    kitfs.run(&["verify", &reference]).expect(0);
    assert_eq!(kitfs.run(&["cat", &reference, WEIGHTS]).expect(0).stdout, weights());
}
