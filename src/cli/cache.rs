//! `kitfs cache`: how much the store holds, what, whether it is whole, and making room.

use std::time::SystemTime;

use crate::cli::arguments::CacheTask;
use crate::cli::doctor;
use crate::cli::documents::BadObject;
use crate::cli::documents::CacheInfo;
use crate::cli::documents::CacheList;
use crate::cli::documents::CachePruning;
use crate::cli::documents::CacheVerification;
use crate::cli::documents::CachedLayer;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::print;
use crate::config::Output;

/// Does it.
pub fn run(kits: &Kits, task: CacheTask) -> Result<(), Error> {
    match task {
        CacheTask::Info => info(kits),
        CacheTask::List => list(kits),
        CacheTask::Verify => verify(kits),
        CacheTask::Prune => prune(kits),
    }
}

fn info(kits: &Kits) -> Result<(), Error> {
    let store = &kits.workshop().store;
    let usage = store.usage().map_err(Error::Look)?;
    let document = CacheInfo {
        bytes: usage.bytes,
        objects: usage.objects,
        partial: usage.partial,
        limit: kits.cache_limit().map_err(Error::Look)?,
        pinned: usage.pinned,
        fs_verity: doctor::can_seal(store.root()),
    };
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| {
            writeln!(out, "folder     {}", store.root().display())?;
            writeln!(out, "holds      {} in {} files", print::size(document.bytes), document.objects)?;
            writeln!(out, "partial    {} files", document.partial)?;
            writeln!(out, "limit      {}", print::size(document.limit))?;
            writeln!(out, "in use     {}", print::size(document.pinned))?;
            writeln!(out, "fs-verity  {}", if document.fs_verity { "yes" } else { "no" })
        }),
    }
}

fn list(kits: &Kits) -> Result<(), Error> {
    let layers = kits.workshop().store.layers().map_err(Error::Look)?;
    // The store lists them in the order in which they would go; a reader looks for the latest.
    let layers = layers.into_iter().rev().map(|layer| CachedLayer {
        digest: layer.digest,
        bytes: layer.bytes,
        files: layer.files,
        used_at: rfc3339(layer.used),
        pinned: layer.pinned,
    });
    let document = CacheList { layers: layers.collect() };
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| {
            document.layers.iter().try_for_each(|layer| {
                let pinned = if layer.pinned { "  in use" } else { "" };
                let size = print::size(layer.bytes);
                writeln!(out, "{} {size:>10} {:>7} files  {}{pinned}", layer.digest, layer.files, layer.used_at)
            })
        }),
    }
}

fn verify(kits: &Kits) -> Result<(), Error> {
    let workshop = kits.workshop();
    let result = workshop.store.verify(&workshop.buffers).map_err(Error::Look)?;
    let bad = result.bad.into_iter().map(|bad| BadObject { digest: bad.digest, error: bad.error });
    let bad: Vec<_> = bad.collect();
    let document = CacheVerification { ok: bad.is_empty(), checked: result.checked, bad };
    match kits.config().output {
        Output::Json => print::json(&document)?,
        Output::Text => print::text(|out| {
            document.bad.iter().try_for_each(|bad| writeln!(out, "bad        {}: {}", bad.digest, bad.error))?;
            writeln!(out, "checked    {}", document.checked)
        })?,
    }
    match document.bad.first() {
        None => Ok(()),
        Some(bad) => {
            Err(Error::Damaged { count: document.bad.len(), digest: bad.digest.clone(), error: bad.error.clone() })
        }
    }
}

fn prune(kits: &Kits) -> Result<(), Error> {
    let store = &kits.workshop().store;
    let removed = store.prune(0).and_then(|freed| Ok((freed, store.usage()?.bytes)));
    let (freed, bytes) = removed.map_err(Error::Look)?;
    match kits.config().output {
        Output::Json => print::json(&CachePruning { freed, bytes }),
        Output::Text => print::text(|out| writeln!(out, "freed {}, {} stay", print::size(freed), print::size(bytes))),
    }
}

fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.0}"))
}
