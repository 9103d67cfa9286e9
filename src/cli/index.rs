//! `kitfs index`: makes the index of a kit, and keeps or publishes it.

use std::io;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;

use crate::cli::arguments::IndexTask;
use crate::cli::documents::Indexed;
use crate::cli::documents::NamedIndex;
use crate::cli::documents::Tagged;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::kits::PROVED_AT_ONCE;
use crate::cli::print;
use crate::cli::progress;
use crate::cli::signer;
use crate::cli::text;
use crate::config::Output;
use crate::digest::Digest;
use crate::kit::index::Index;
use crate::kit::index::Published;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::reference;
use crate::reference::Reference;
use crate::resolve;
use crate::resolve::Link;
use crate::resolve::Publication;
use crate::trust::SigningKey;

/// Makes the index of a kit after every byte of its layers was checked, and does with it what was asked.
pub async fn run(kits: &Kits, task: &IndexTask) -> Result<(), Error> {
    let IndexTask { reference, attach, embed, file, sign_key } = task;
    if *attach {
        needs_registry(reference, "--attach")?;
    }
    if let Some(tag) = embed {
        needs_registry(reference, "--embed")?;
        if !reference::is_tag(tag) {
            return Err(Error::Usage(format!("--embed: {tag:?} is no tag")));
        }
    }
    if sign_key.is_some() && !attach && embed.is_none() && file.is_none() {
        return Err(Error::Usage("--sign-key signs what --attach, --embed or --output leaves".into()));
    }
    let key = sign_key.as_deref().map(signer::signing_key).transpose()?;
    let kit = kits.resolve(reference).await?;
    let layers = kit.layers(kits.workshop());
    let Some(link) = kit.first() else { return Ok(()) };
    let own = &layers[..link.contents.layers.len()];
    let making = stream::iter(own).map(index_of).buffered(PROVED_AT_ONCE).try_collect::<Vec<_>>();
    let index = Published::new(progress::follow("indexing", own, making).await?)?;
    let bytes = index.encode();
    let mut document = Indexed {
        reference: reference.clone(),
        digest: link.digest,
        index: NamedIndex { digest: Digest::of(&bytes), size: bytes.len() as u64 },
        layers: index.layers().len(),
        files: index.layers().iter().map(|layer| layer.trees().count()).sum(),
        file: None,
        attached: None,
        embedded: None,
        signed_by: key.as_ref().map(|key| key.public().fingerprint()),
    };
    if let Some(path) = file {
        write_file(path, &bytes, key.as_ref())?;
        document.file = Some(path.clone());
    }
    if *attach {
        document.attached = Some(self::attach(link, &index, key.as_ref()).await?);
    }
    if let Some(tag) = embed {
        let digest = Publication::new(link, &index, key.as_ref()).await?.embed(tag).await?;
        document.embedded = Some(Tagged { tag: tag.clone(), digest });
    }
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| write(out, &document)),
    }
}

/// Only a registry can be pushed to.
pub fn needs_registry(reference: &str, option: &str) -> Result<(), Error> {
    match reference.parse()? {
        Reference::Registry(_) => Ok(()),
        Reference::Layout { .. } | Reference::Kitops { .. } => {
            Err(Error::Usage(format!("{option} pushes to a registry, and {reference} is in none")))
        }
    }
}

/// Pushes the index of a kit beside it.
pub async fn attach(link: &Link, index: &Published, key: Option<&SigningKey>) -> Result<Digest, Error> {
    Ok(Publication::new(link, index, key).await?.attach().await?)
}

/// What the layer is: as it was proved here before, else by fetching every byte of it and keeping none.
async fn index_of(layer: &Arc<Layer>) -> Result<Index, Arc<LayerError>> {
    match layer.proved() {
        Some(index) => Ok((**index).clone()),
        None => Ok((*layer.check().await?).clone()),
    }
}

/// Writes the index, and beside it the bundle that signs it.
fn write_file(path: &Path, bytes: &[u8], key: Option<&SigningKey>) -> Result<(), Error> {
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|source| Error::Keep { path: path.to_owned(), source })
    };
    write(path, bytes)?;
    let Some(key) = key else { return Ok(()) };
    write(&resolve::bundle_beside(path), &key.endorse(&Digest::of(bytes))?)
}

fn write(out: &mut dyn Write, document: &Indexed) -> io::Result<()> {
    let NamedIndex { digest, size } = &document.index;
    writeln!(out, "index      {digest} {}", print::size(*size))?;
    writeln!(out, "           {} files in {} layers of {}", document.files, document.layers, document.digest)?;
    if let Some(path) = &document.file {
        writeln!(out, "written    {}", text::line(&path.to_string_lossy()))?;
    }
    if let Some(digest) = &document.attached {
        writeln!(out, "attached   {digest}")?;
    }
    if let Some(Tagged { tag, digest }) = &document.embedded {
        writeln!(out, "embedded   {digest} as {}", text::line(tag))?;
    }
    match &document.signed_by {
        Some(signer) => writeln!(out, "signed     {signer}"),
        None => Ok(()),
    }
}
