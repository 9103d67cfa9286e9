//! `kitfs export`: a kit's files written into a directory, as `kit unpack` does, but verified.
//!
//! Every layer is proved before the directory is touched, and the directory gets its files when all of
//! them are written. Whatever goes wrong before that leaves nothing.

mod target;

use std::io::Write;
use std::path::Path;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::cli::cat;
use crate::cli::documents::Export;
use crate::cli::export::target::Target;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::print;
use crate::config::Output;
use crate::fs::KitFs;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;

/// Exports a kit. Ended by a signal, it leaves nothing either.
pub async fn run(kits: &Kits, reference: &str, directory: &Path) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let document = tokio::select! {
        exported = export(kits, reference, directory) => exported?,
        _ = interrupt.recv() => return Err(Error::Interrupted),
        _ = terminate.recv() => return Err(Error::Interrupted),
    };
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => Ok(()),
    }
}

async fn export(kits: &Kits, reference: &str, directory: &Path) -> Result<Export, Error> {
    Target::check(directory)?;
    let files = kits.files(reference).await?;
    kits.prove(files.layers()).await?;
    let mut target = Target::make(directory)?;
    let mut document = Export {
        reference: reference.into(),
        digest: files.kit().first().map(|link| link.digest),
        directory: directory.to_string_lossy().into_owned(),
        files: 0,
        bytes: 0,
    };
    for inode in files.tree().walk(Inode::ROOT).skip(1) {
        let Some(node) = files.tree().node(inode) else { continue };
        if let NodeKind::Dir { .. } = node.kind {
            target.make_dir(files.tree(), inode)?;
            continue;
        }
        write(&files, inode, &mut target).await?;
        document.files += 1;
        document.bytes += node.size;
    }
    target.publish(files.tree())?;
    Ok(document)
}

async fn write(files: &KitFs, inode: Inode, target: &mut Target) -> Result<(), Error> {
    let mut file = target.make_file(files.tree(), inode)?;
    let mut pieces = pin!(cat::pieces(files, inode));
    while let Some(piece) = pieces.try_next().await? {
        file.write_all(&piece).map_err(|error| target.failed(files.tree(), inode, error))?;
    }
    Ok(())
}
