//! Blobs in local files: found by digest, opened without harm, read with deadlines.
//!
//! A name in a layout may lead anywhere: to a FIFO that blocks, to a device that reacts to being
//! opened. So a file is opened only when `stat` calls it a regular file, without blocking, and is looked
//! at again once it is open. All reading is positioned, in threads where it may block.

use std::collections::HashMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::buffers::BUFFER;
use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::patience::Patience;
use crate::source::SourceError;
use crate::verify::Unverified;

/// Where the blobs of a layout are.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    place: Place,
    /// What messages call the layout.
    name: String,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Place {
    /// The folder that holds `blobs/`.
    Directory(PathBuf),
    /// A tar, and where each member's content lies in it.
    Tar(Arc<File>, Arc<HashMap<String, Range<u64>>>),
}

impl Blobs {
    /// Blobs beneath `root/blobs`. No read takes longer than `timeout`.
    pub(super) fn in_directory(root: PathBuf, name: String, timeout: Duration) -> Self {
        Self { place: Place::Directory(root), name, timeout }
    }

    /// Blobs in a tar whose members were found by [`crate::source::tarball::members`].
    pub(super) fn in_tar(file: File, members: HashMap<String, Range<u64>>, name: String, timeout: Duration) -> Self {
        Self { place: Place::Tar(Arc::new(file), Arc::new(members)), name, timeout }
    }

    /// Where the blob of that digest is; [`SourceError::NotFound`] if it is not there.
    pub(super) async fn find(&self, digest: &Digest) -> Result<Extent, SourceError> {
        let what = format!("blob {digest} in {}", self.name);
        let member = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        match &self.place {
            Place::Directory(root) => {
                let path = root.join(member);
                let opened = blocking(self.timeout, &what, move || open_regular(&path)).await?;
                let (file, len) = opened.map_err(|error| local(what.clone(), error))?;
                Ok(Extent { file: Arc::new(file), range: 0..len, what, timeout: self.timeout })
            }
            Place::Tar(file, members) => {
                let range = members.get(&member).ok_or_else(|| SourceError::NotFound(what.clone()))?.clone();
                Ok(Extent { file: Arc::clone(file), range, what, timeout: self.timeout })
            }
        }
    }

    /// The SHA-256 blobs that are not larger than `limit`, by their names; nothing of them is read.
    pub(super) async fn small(&self, limit: u64) -> Result<Vec<Digest>, SourceError> {
        const FOLDER: &str = "blobs/sha256";
        let parse = |name: &str| format!("sha256:{name}").parse().ok();
        match &self.place {
            Place::Directory(root) => {
                let (folder, what) = (root.join(FOLDER), format!("the blobs of {}", self.name));
                let list = move || -> io::Result<Vec<Digest>> {
                    let mut small = Vec::new();
                    for entry in std::fs::read_dir(folder)? {
                        let entry = entry?;
                        let digest = entry.file_name().to_str().and_then(parse);
                        if let (Some(digest), Ok(metadata)) = (digest, entry.metadata())
                            && metadata.len() <= limit
                        {
                            small.push(digest);
                        }
                    }
                    small.sort_unstable();
                    Ok(small)
                };
                blocking(self.timeout, &what, list).await?.map_err(|error| local(what, error))
            }
            Place::Tar(_, members) => {
                let small = members.iter().filter(|(_, range)| range.end - range.start <= limit);
                let mut small: Vec<_> =
                    small.filter_map(|(name, _)| parse(name.strip_prefix(FOLDER)?.strip_prefix('/')?)).collect();
                small.sort_unstable();
                Ok(small)
            }
        }
    }

    /// Whether there is a blob of that digest.
    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, SourceError> {
        match self.find(digest).await {
            Ok(_) => Ok(true),
            Err(SourceError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The bytes of one blob in an open file.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    file: Arc<File>,
    range: Range<u64>,
    what: String,
    timeout: Duration,
}

impl Extent {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// All of the bytes. The caller has looked at [`Extent::len`].
    pub(super) async fn read_whole(&self) -> Result<Unverified, SourceError> {
        let (file, start, len) = (Arc::clone(&self.file), self.range.start, self.len());
        let read = move || {
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
            file.read_exact_at(&mut bytes, start).map(|()| Unverified::new(bytes))
        };
        blocking(self.timeout, &self.what, read).await?.map_err(|error| self.failed(error))
    }

    /// The bytes of `range`, which lies inside the extent and is at most one buffer long.
    pub(super) async fn read(&self, range: Range<u64>, buffers: &Buffers) -> Result<Unverified, SourceError> {
        let (file, buffers) = (Arc::clone(&self.file), buffers.clone());
        // Inside the file, whose size is an i64: the sum cannot overflow.
        let start = self.range.start + range.start;
        let len = (range.end - range.start).min(BUFFER as u64) as usize;
        let read = move || {
            let mut buffer = buffers.take()?;
            buffer.truncate(len);
            file.read_exact_at(&mut buffer, start).map(|()| Unverified::new(buffer.freeze()))
        };
        blocking(self.timeout, &self.what, read).await?.map_err(|error| self.failed(error))
    }

    /// The bytes from `from` on.
    pub(super) fn stream(self, range: Range<u64>, buffers: Buffers) -> ExtentStream {
        ExtentStream { rest: range, extent: self, buffers }
    }

    fn failed(&self, error: io::Error) -> SourceError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let what = self.what.clone();
            return SourceError::WrongSize { what, expected: self.len(), actual: "fewer".into() };
        }
        SourceError::Local { what: self.what.clone(), source: Arc::new(error) }
    }
}

/// Reads an extent in order, a buffer at a time.
#[derive(Debug)]
pub(super) struct ExtentStream {
    extent: Extent,
    rest: Range<u64>,
    buffers: Buffers,
}

impl ExtentStream {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Unverified, SourceError>> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.end.min(self.rest.start.saturating_add(BUFFER as u64));
        let piece = self.extent.read(self.rest.start..end, &self.buffers).await;
        self.rest.start = end;
        Some(piece)
    }
}

/// Opens a file for reading if it is a regular one, and tells its size.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if !std::fs::metadata(path)?.is_file() {
        return Err(not_regular());
    }
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(not_regular()) }
}

/// Reads a small file whole: [`SourceError::Malformed`] beyond `limit`, `NotFound` if it is not there.
pub(super) async fn read_small(path: PathBuf, limit: u64, timeout: Duration) -> Result<Vec<u8>, SourceError> {
    let what = path.display().to_string();
    let read = move || {
        let (file, len) = open_regular(&path)?;
        if len > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    blocking(timeout, &what, read).await?.map_err(|error| local(what.clone(), error))
}

/// Says what an error of the system means for what was looked for.
pub(super) fn local(what: String, error: io::Error) -> SourceError {
    use io::ErrorKind::*;
    match error.kind() {
        NotFound | NotADirectory | InvalidFilename => SourceError::NotFound(what),
        PermissionDenied => SourceError::Denied { what, why: error.to_string() },
        InvalidInput | UnexpectedEof => SourceError::Malformed { what, why: error.to_string() },
        FileTooLarge => SourceError::Malformed { what, why: "it is larger than what is read of its kind".into() },
        _ => SourceError::Local { what, source: Arc::new(error) },
    }
}

/// Runs what may block in a thread made for that, and waits for it no longer than `timeout`.
pub(super) async fn blocking<T: Send + 'static>(
    timeout: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SourceError> {
    let late = |why: String| SourceError::Unreachable { what: what.to_owned(), why, source: None };
    match Patience::new(timeout).wait_for(tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(stopped)) => Err(late(stopped.to_string())),
        Err(_) => Err(late(format!("the disk did not answer within {timeout:?}"))),
    }
}
