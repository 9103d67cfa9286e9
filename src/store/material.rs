//! Signature material, kept beside the kit that it is about, so that a mount without network can be
//! decided about again.
//!
//! It is sealed like everything that kitfs writes for itself. The seal is no proof of what it says: it is
//! examined each time it is used, by the policy of that time.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::digest::Digest;
use crate::store::Store;
use crate::store::file_name;
use crate::store::read_whole;
use crate::store::write_whole;
use crate::verify::Unverified;
use crate::verify::Verified;

impl Store {
    /// The material about a manifest that was kept last.
    pub fn material(&self, manifest: &Digest) -> Option<Verified<Bytes>> {
        let sealed = Unverified::new(read_whole(&self.material_path(manifest)).ok()?);
        sealed.unseal(&self.key, &purpose(manifest)).ok()
    }

    /// Keeps the material about a manifest in place of what was kept before.
    pub fn keep_material(&self, manifest: &Digest, material: &[u8]) -> io::Result<()> {
        write_whole(&self.material_path(manifest), &self.key.seal(material, &purpose(manifest)))
    }

    fn material_path(&self, manifest: &Digest) -> PathBuf {
        self.root.join("material").join(file_name(manifest))
    }
}

fn purpose(manifest: &Digest) -> String {
    format!("material {manifest}")
}
