//! `kitfs cat`: one file of a kit on standard output, verified bytes only.

use std::ffi::OsStr;
use std::io;
use std::io::Write;
use std::ops::Range;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;

use crate::buffers::BUFFER;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::ls;
use crate::cli::progress;
use crate::fs::KitFs;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;
use crate::verify::Verified;

/// How many buffers are read ahead of the one that is being written.
const READ_AHEAD: usize = 4;

/// Writes the file at `path`.
pub async fn run(kits: &Kits, reference: &str, path: &OsStr) -> Result<(), Error> {
    let files = kits.files(reference).await?;
    let inode = ls::find(&files, reference, path)?;
    let node = files.tree().node(inode);
    if let Some(NodeKind::Dir { .. }) = node.map(|node| node.kind) {
        return Err(Error::IsDirectory { path: path_of(&files, inode) });
    }
    let writing = async {
        let mut pieces = std::pin::pin!(pieces(&files, inode));
        let mut out = io::stdout();
        while let Some(piece) = pieces.try_next().await? {
            match out.write_all(&piece).and_then(|()| out.flush()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Err(Error::Output(error)),
            }
        }
        Ok(())
    };
    progress::follow("verifying", files.layers(), writing).await
}

/// The content of a file in order, in proved pieces.
pub fn pieces(files: &KitFs, inode: Inode) -> impl Stream<Item = Result<Verified<Bytes>, Error>> {
    let size = files.tree().node(inode).map_or(0, |node| node.size);
    pieces_of(files, inode, 0..size)
}

/// Some bytes of a file, which has at least so many, in order and in proved pieces.
pub fn pieces_of(files: &KitFs, inode: Inode, range: Range<u64>) -> impl Stream<Item = Result<Verified<Bytes>, Error>> {
    let size = range.end;
    let starts = range.step_by(BUFFER);
    let read = move |start: u64| async move {
        let mut pieces = Vec::new();
        let end = size.min(start + BUFFER as u64);
        let mut at = start;
        while at < end {
            let piece = files.read(inode, at..end).await;
            let piece = piece.map_err(|source| Error::Read { path: path_of(files, inode), source })?;
            at += piece.len() as u64;
            pieces.push(piece);
        }
        Ok::<_, Error>(stream::iter(pieces.into_iter().map(Ok)))
    };
    stream::iter(starts).map(read).buffered(READ_AHEAD).try_flatten()
}

/// The path of an inode that the tree has.
pub fn path_of(files: &KitFs, inode: Inode) -> KitPath {
    files.tree().path(inode).unwrap_or_else(KitPath::root)
}
