//! How much the store holds, and whether it is whole.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::kit::media::Reading;
use crate::store::Store;
use crate::store::open_file;
use crate::verify::Verified;
use crate::verify::WitnessError;
use crate::verity::FileTree;

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Objects.
    pub objects: u64,
    /// Objects in progress.
    pub partial: u64,
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
    /// Bytes of its files that are here.
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
        for folder in
            ["access", "blobs", "layers", "named", "material", "objects", "partial", "records", "tags", "staging"]
        {
            walk(&self.root.join(folder), &mut |path, metadata| {
                usage.bytes += std::os::unix::fs::MetadataExt::blocks(metadata) * 512;
                usage.objects += u64::from(folder == "objects");
                usage.partial += u64::from(folder == "partial" && path.extension().is_none());
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
                bytes: index.trees().map(|tree| self.bytes_of(tree)).sum(),
                used: fs::metadata(&path)?.modified()?,
                pinned: self.try_lock_unpinned(index.layer())?.is_none(),
            });
        }
        layers.sort_by_key(|layer| layer.used);
        Ok(layers)
    }

    /// How many bytes of a file the store has.
    pub fn bytes_of(&self, tree: &FileTree) -> u64 {
        if self.has_object(&tree.verity) { tree.size } else { self.partial_bytes(tree) }
    }

    /// Proves everything that is kept, and removes what is not what it should be.
    pub fn verify(self: &Arc<Self>, buffers: &Buffers) -> io::Result<Verification> {
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
                    self.verify_partial(&tree, buffers, &mut result);
                }
            }
        }
        Ok(result)
    }

    /// The files of all indexes; what is being written is passed over.
    pub(super) fn index_files(&self) -> io::Result<Vec<PathBuf>> {
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

    /// Units of an object in progress that are not what they should be are fetched again: nothing is lost.
    fn verify_partial(self: &Arc<Self>, tree: &Verified<FileTree>, buffers: &Buffers, result: &mut Verification) {
        if !self.has_partial(&tree.verity) {
            return;
        }
        result.checked += 1;
        let Ok(partial) = self.partial(tree) else { return self.discard_partial(&tree.verity) };
        for error in partial.verify(buffers) {
            result.bad.push(BadObject { digest: tree.verity.to_string(), error: error.to_string() });
        }
    }

    fn unproved_object(&self, tree: &Verified<FileTree>) -> Option<crate::verify::Witness> {
        let file = open_file(&self.object_path(&tree.verity)).ok()?;
        let is_as_long = file.metadata().ok()?.len() == tree.size;
        is_as_long.then(|| crate::verify::Witness::new(file, tree.clone()).ok())?
    }
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Calls `visit` for every file below `folder`; what vanishes meanwhile is passed over.
pub(super) fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
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
