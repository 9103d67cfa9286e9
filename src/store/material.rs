//! Signature material, kept beside the kit that it is about (the same kit elsewhere may have other signatures), so that a mount without network can be
//! decided about again.
//!
//! It is sealed like everything that kitfs writes for itself. The seal is no proof of what it says: it is
//! examined each time it is used, by the policy of that time.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::digest::Digest;
use crate::store::Store;
use crate::store::read_whole;
use crate::store::write_whole;
use crate::verify::Unverified;
use crate::verify::Verified;

impl Store {
    /// The material about a manifest in one place that was kept last. `place` is the reference by digest.
    pub fn material(&self, place: &str) -> Option<Verified<Bytes>> {
        let sealed = Unverified::new(read_whole(&self.material_path(place)).ok()?);
        sealed.unseal(&self.key, &purpose(place)).ok()
    }

    /// Keeps the material about a manifest in one place, instead of what was kept before.
    pub fn keep_material(&self, place: &str, material: &[u8]) -> io::Result<()> {
        write_whole(&self.material_path(place), &self.key.seal(material, &purpose(place)))
    }

    fn material_path(&self, place: &str) -> PathBuf {
        self.root.join("material").join(Digest::of(place.as_bytes()).hex())
    }
}

fn purpose(place: &str) -> String {
    format!("material {place}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::LocalKey;

    #[test]
    fn material_belongs_to_its_place_and_to_this_host() {
        let folder = tempfile::tempdir().unwrap();
        let store = |key: u8| Store::open(folder.path(), LocalKey::new([key; 32])).unwrap();
        store(1).keep_material("a@sha256:0", b"first").unwrap();
        store(1).keep_material("a@sha256:0", b"then").unwrap();
        assert_eq!(store(1).material("a@sha256:0").unwrap()[..], *b"then");
        assert!(store(1).material("b@sha256:0").is_none());
        assert!(store(2).material("a@sha256:0").is_none());
        std::fs::copy(store(1).material_path("a@sha256:0"), store(1).material_path("b@sha256:0")).unwrap();
        assert!(store(1).material("b@sha256:0").is_none());
    }
}
