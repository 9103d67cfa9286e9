//! `kitfs cat`: one file of a kit on standard output, verified bytes only.

use std::ffi::OsStr;
use std::io;
use std::io::Write;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::TryStreamExt;

use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::ls;
use crate::cli::progress;
use crate::fs::KitFs;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;
use crate::verify::Verified;

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
    files.pieces(inode, 0..size).map_err(move |source| Error::Read { path: path_of(files, inode), source })
}

/// The path of an inode that the tree has.
pub fn path_of(files: &KitFs, inode: Inode) -> KitPath {
    files.tree().path(inode).unwrap_or_else(KitPath::root)
}
