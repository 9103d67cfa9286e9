//! Whom a source has let have a kit, and when. Users are kept as hashes under this host's key.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::store::Store;
use crate::store::read_whole;
use crate::store::write_whole;
use crate::verify::FromVerified;
use crate::verify::Unverified;

/// That a visitor was let have a kit. The seal is bound to both.
#[derive(Debug, Serialize, Deserialize)]
struct Admission {
    /// Seconds since 1970.
    at: u64,
}

impl FromVerified<Bytes> for Admission {
    type Error = postcard::Error;

    fn from_verified(content: &Bytes) -> Result<Self, postcard::Error> {
        postcard::from_bytes(content)
    }
}

impl Store {
    /// When the kit of one place, a reference by digest, was last given to a visitor.
    pub fn admitted(&self, place: &str, visitor: &[u8]) -> Option<SystemTime> {
        let (path, purpose) = self.access_path(place, visitor);
        let sealed = Unverified::new(read_whole(&path).ok()?);
        let admission = sealed.unseal(&self.key, &purpose).ok()?.parse::<Admission>().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(admission.at))
    }

    /// Remembers that a visitor was given the kit of one place now.
    pub fn keep_admitted(&self, place: &str, visitor: &[u8]) -> io::Result<()> {
        let (path, purpose) = self.access_path(place, visitor);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let admission = postcard::to_stdvec(&Admission { at }).map_err(io::Error::other)?;
        write_whole(&path, &self.key.seal(&admission, &purpose))
    }

    /// Forgets that a visitor was given the kit of one place.
    pub fn forget_admitted(&self, place: &str, visitor: &[u8]) {
        let (path, _) = self.access_path(place, visitor);
        // What is left counts until its time is up, as without a network.
        let _gone = std::fs::remove_file(path);
    }

    fn access_path(&self, place: &str, visitor: &[u8]) -> (PathBuf, String) {
        let who = hex::encode(self.key.hash(visitor, &format!("visitor of {place}")));
        (self.root.join("access").join(&who), format!("access {who}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::LocalKey;

    #[test]
    fn an_admission_is_one_visitors_to_one_place_on_this_host() {
        let folder = tempfile::tempdir().unwrap();
        let store = |key: u8| Store::open(folder.path(), LocalKey::new([key; 32])).unwrap();
        store(1).keep_admitted("a@sha256:0", b"TOPSECRET").unwrap();
        assert!(store(1).admitted("a@sha256:0", b"TOPSECRET").is_some());
        for (key, place, visitor) in
            [(1, "a@sha256:0", &b""[..]), (1, "b@sha256:0", b"TOPSECRET"), (2, "a@sha256:0", b"TOPSECRET")]
        {
            assert!(store(key).admitted(place, visitor).is_none());
        }
        let files = std::fs::read_dir(folder.path().join("v1/access")).unwrap();
        let [file] = <[_; 1]>::try_from(files.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()).unwrap();
        assert!(!std::fs::read(&file).unwrap().windows(9).any(|window| window == b"TOPSECRET"));
        let (other, _) = store(1).access_path("a@sha256:0", b"");
        std::fs::rename(&file, other).unwrap();
        assert!(store(1).admitted("a@sha256:0", b"").is_none(), "a file under another's name");
    }
}
