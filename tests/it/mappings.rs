//! Files that are mapped rather than read: the kernel asks for more than the page at which somebody faults.

use std::fs::File;

use rustix::mm::{MapFlags, ProtFlags};

use crate::lazy::{Indexed, UNIT, assert_disjoint, large};
use crate::support::host;

/// The bytes at `places` of a mapping.
fn touch(file: &File, len: usize, places: &[usize]) -> Vec<u8> {
    // SAFETY: a new mapping at an address of the kernel's choice, read inside its bounds, and gone at the end; nobody
    // changes what it shows.
    unsafe {
        let start = rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0);
        let start = start.expect("mmap");
        let bytes = places.iter().map(|place| start.cast::<u8>().add(*place).read_volatile()).collect();
        rustix::mm::munmap(start, len).expect("munmap");
        bytes
    }
}

#[test]
fn faults_at_random_fetch_one_unit_each() {
    if !host::can_mount() {
        return;
    }
    let (bytes, kit) = large(40);
    let indexed = Indexed::new(&kit);
    let mount = indexed.kitfs.mount(&indexed.reference);
    let before = indexed.asked();
    let places = [3, 20, 9, 33, 14, 38, 1, 26].map(|unit| (unit * UNIT + UNIT / 2) as usize);
    let file = File::open(mount.at("model/weights.bin")).expect("it is there");
    assert_eq!(touch(&file, bytes.len(), &places), places.map(|place| bytes[place]));
    let ranges = indexed.ranges(before);
    assert!(ranges.len() <= places.len() && ranges.iter().all(|(_, len)| *len <= UNIT), "{ranges:?}");
    assert_disjoint(ranges);
    drop(file);
    mount.unmount();
}
