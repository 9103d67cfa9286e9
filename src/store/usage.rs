//! How much the store holds, whether it is whole, and what goes when there is too much.
//!
//! Layers are evicted, least recently used first, and never one that a mount has pinned; objects go when
//! no index names them any more. Eviction only unlinks: whoever has a file open keeps it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::kit::media::Reading;
use crate::store::Store;
use crate::store::open_file;
use crate::verify::Verified;
use crate::verify::WitnessError;
use crate::verity::FileTree;
use crate::verity::VerityDigest;

/// A staging area that nobody wrote to for this long was left by a crash.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of the layers that mounts have pinned.
    pub pinned: u64,
}

/// One layer that is kept.
#[derive(Clone, Debug)]
pub struct KeptLayer {
    /// The digest of the layer.
    pub digest: Digest,
    /// How it was read.
    pub reading: Reading,
    /// Bytes in its files.
    pub bytes: u64,
    /// Files in it.
    pub files: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether a mount uses it.
    pub pinned: bool,
}

/// The result of proving everything that is kept.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Files that were checked.
    pub checked: u64,
    /// Files that were not what they should be. They have been removed.
    pub bad: Vec<BadObject>,
}

/// A file that was not what it should be.
#[derive(Clone, Debug)]
pub struct BadObject {
    /// What it should have been.
    pub digest: String,
    /// What it was.
    pub error: String,
}

impl Store {
    /// Counts what the store holds, by looking at every file in it.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for folder in ["access", "blobs", "layers", "material", "objects", "partial", "records", "tags", "staging"] {
            walk(&self.root.join(folder), &mut |_, metadata| {
                usage.bytes += std::os::unix::fs::MetadataExt::blocks(metadata) * 512;
                usage.objects += u64::from(folder == "objects");
            })?;
        }
        usage.pinned = self.layers()?.iter().filter(|layer| layer.pinned).map(|layer| layer.bytes).sum();
        Ok(usage)
    }

    /// The layers that are kept, the one that was used longest ago first.
    pub fn layers(&self) -> io::Result<Vec<KeptLayer>> {
        let mut layers = Vec::new();
        for path in self.index_files()? {
            let Some(index) = self.index_file(&name_of(&path)) else { continue };
            layers.push(KeptLayer {
                digest: *index.layer(),
                reading: index.reading(),
                files: index.trees().count() as u64,
                bytes: index.trees().map(|tree| tree.size).sum(),
                used: fs::metadata(&path)?.modified()?,
                pinned: self.try_lock_unpinned(index.layer())?.is_none(),
            });
        }
        layers.sort_by_key(|layer| layer.used);
        Ok(layers)
    }

    /// Proves everything that is kept, and removes what is not what it should be.
    pub fn verify(&self, buffers: &Buffers) -> io::Result<Verification> {
        let mut result = Verification::default();
        self.verify_blobs(&mut result)?;
        let mut seen = HashSet::new();
        for path in self.index_files()? {
            result.checked += 1;
            let name = name_of(&path);
            let Some(index) = self.index_file(&name) else {
                result.bad.push(BadObject { digest: name, error: "the seal of the index is broken".into() });
                fs::remove_file(&path)?;
                continue;
            };
            for entry in 0..index.entries().len() as u32 {
                let Some(tree) = index.part(|index| index.tree(entry)) else { continue };
                if seen.insert(tree.verity) {
                    self.verify_object(&tree, buffers, &mut result);
                }
            }
        }
        Ok(result)
    }

    /// The files of all indexes; what is being written is passed over.
    fn index_files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.root.join("layers"))?.map(|entry| Ok(entry?.path()));
        entries.filter(|path| !path.as_ref().is_ok_and(|path| name_of(path).starts_with('.'))).collect()
    }

    fn verify_blobs(&self, result: &mut Verification) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("blobs"))? {
            let path = entry?.path();
            let name = name_of(&path).replacen('-', ":", 1);
            let Ok(digest) = name.parse::<Digest>() else { continue };
            result.checked += 1;
            let checked = self.blob(&digest).map(|blob| blob.verify(&digest));
            if let Some(Err(error)) = checked {
                result.bad.push(BadObject { digest: name, error: error.to_string() });
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn verify_object(&self, tree: &Verified<FileTree>, buffers: &Buffers, result: &mut Verification) {
        if !self.has_object(&tree.verity) {
            return;
        }
        result.checked += 1;
        let proved = match self.unproved_object(tree) {
            Some(witness) => witness.prove_whole(buffers).map(|()| witness),
            None => Err(io::Error::other("the file has another size or kind").into()),
        };
        match proved {
            Ok(witness) => self.note_proved(&witness),
            Err(error) => {
                let error = match error {
                    WitnessError::Mismatch(mismatch) => mismatch.to_string(),
                    WitnessError::Io(error) => format!("cannot be read: {error}"),
                };
                result.bad.push(BadObject { digest: tree.verity.to_string(), error });
                self.discard_object(&tree.verity);
            }
        }
    }

    /// Evicts layers if the store holds more than `limit` bytes.
    pub fn keep_within(&self, limit: u64) -> io::Result<()> {
        if self.usage()?.bytes > limit {
            self.prune(limit)?;
        }
        Ok(())
    }

    /// Evicts layers until the store holds at most `limit` bytes, and removes what nothing names any
    /// more. Pinned layers stay. Returns how many bytes went.
    pub fn prune(&self, limit: u64) -> io::Result<u64> {
        let before = self.usage()?.bytes;
        let mut excess = before.saturating_sub(limit);
        for layer in self.layers()? {
            if excess == 0 {
                break;
            }
            if let Some(_unpinned) = self.try_lock_unpinned(&layer.digest)? {
                fs::remove_file(self.index_path(&layer.digest, layer.reading))?;
                excess = excess.saturating_sub(layer.bytes);
            }
        }
        self.sweep()?;
        Ok(before.saturating_sub(self.usage()?.bytes))
    }

    /// Removes the objects and records that no index names, and what crashes left behind.
    fn sweep(&self) -> io::Result<()> {
        let _alone = self.lock_sweeping()?;
        let mut named: HashSet<VerityDigest> = HashSet::new();
        for path in self.index_files()? {
            let Some(index) = self.index_file(&name_of(&path)) else { continue };
            named.extend(index.trees().map(|tree| tree.verity));
        }
        for folder in ["objects", "records"] {
            walk(&self.root.join(folder), &mut |path, _| {
                if !name_of(path).parse::<VerityDigest>().is_ok_and(|verity| named.contains(&verity)) {
                    let _gone = fs::remove_file(path);
                }
            })?;
        }
        for entry in fs::read_dir(self.root.join("staging"))? {
            let entry = entry?;
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > ABANDONED {
                let _gone = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn unproved_object(&self, tree: &Verified<FileTree>) -> Option<crate::verify::Witness> {
        let file = open_file(&self.object_path(&tree.verity)).ok()?;
        let is_as_long = file.metadata().ok()?.len() == tree.size;
        is_as_long.then(|| crate::verify::Witness::new(file, tree.clone()).ok())?
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Calls `visit` for every file below `folder`; what vanishes meanwhile is passed over.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, visit)?,
            Ok(metadata) => visit(&path, &metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
