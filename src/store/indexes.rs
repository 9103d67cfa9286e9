//! Published indexes: what was found beside a kit, and which of them turned out to be false.
//!
//! The indexes themselves are blobs. That one is kept says nothing about whether it counts: that is
//! decided each time, by the policy of that time.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::store::Store;
use crate::store::file_name;
use crate::store::read_whole;
use crate::store::write_whole;
use crate::verify::Unverified;

impl Store {
    /// Remembers that an index does not say what its layer holds: it is never used again here.
    pub fn condemn_index(&self, index: &Digest) -> io::Result<()> {
        write_whole(&self.condemned_path(index), &self.key.seal(b"", &purpose(index)))
    }

    /// Whether an index was found to be false here.
    pub fn is_condemned(&self, index: &Digest) -> bool {
        let Ok(sealed) = read_whole(&self.condemned_path(index)) else { return false };
        Unverified::new(sealed).unseal(&self.key, &purpose(index)).is_ok()
    }

    /// Whether something is kept as the index of a layer that was proved here. What it says is told by
    /// [`Store::index`].
    pub fn has_index(&self, layer: &Digest, reading: crate::kit::media::Reading) -> bool {
        fs::symlink_metadata(self.index_path(layer, reading)).is_ok()
    }

    fn condemned_path(&self, index: &Digest) -> PathBuf {
        self.root.join("condemned").join(file_name(index))
    }
}

fn purpose(index: &Digest) -> String {
    format!("condemned {index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::LocalKey;

    #[test]
    fn a_false_index_stays_condemned_on_this_host() {
        let folder = tempfile::tempdir().unwrap();
        let store = |key: u8| Store::open(folder.path(), LocalKey::new([key; 32])).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        store(1).condemn_index(&one).unwrap();
        assert!(store(1).is_condemned(&one) && !store(1).is_condemned(&two));
        assert!(!store(2).is_condemned(&one));
        fs::rename(store(1).condemned_path(&one), store(1).condemned_path(&two)).unwrap();
        assert!(!store(1).is_condemned(&two));
    }
}
