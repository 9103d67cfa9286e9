//! `kitfs verify` and `kitfs pull`: everything of a kit, checked against its digests.
//!
//! Both print the same document, also where they fail: what held, what did not, and what is not known.
//! `verify` asks the source for every byte and keeps none; `pull` leaves a store behind that needs no
//! source any more.

use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use crate::audit;
use crate::audit::Event;
use crate::cli::documents::Layer as LayerDocument;
use crate::cli::documents::LayerStatus;
use crate::cli::documents::Parent;
use crate::cli::documents::Verification;
use crate::cli::exit::Exit;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::kits::PROVED_AT_ONCE;
use crate::cli::print;
use crate::cli::progress;
use crate::cli::text;
use crate::config::Output;
use crate::digest::Digest;
use crate::fs::KitFs;
use crate::kit::descriptor::Descriptor;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::Metadata;
use crate::layers::Workshop;
use crate::resolve::Kit;
use crate::resolve::Link;
use crate::source::SourceError;
use crate::verify::LayerCheck;

/// What becomes of the bytes that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing: `verify`.
    Check,
    /// They are kept: `pull`.
    Keep,
}

/// Checks everything, and prints what held.
pub async fn run(kits: &Kits, reference: &str, purpose: Purpose) -> Result<(), Error> {
    let mut document = Verification::of(reference);
    let result = check(kits, reference, purpose, &mut document).await;
    report(&mut document, &result, kits.config().output)?;
    result
}

/// Prints what is known after a command ended so.
pub fn report(document: &mut Verification, result: &Result<(), Error>, output: Output) -> Result<(), Error> {
    document.ok = result.is_ok();
    document.error = result.as_ref().err().map(|error| text::chain(error));
    match output {
        Output::Json => print::json(document),
        Output::Text => print::text(|out| write(out, document)),
    }
}

async fn check(kits: &Kits, reference: &str, purpose: Purpose, document: &mut Verification) -> Result<(), Error> {
    let kit = kits.resolve(reference).await?;
    describe(&kit, document);
    let layers = kit.layers(kits.workshop());
    let outcomes = progress::follow("verifying", &layers, check_layers(kits, &kit, &layers, purpose)).await;
    for layer in &mut document.layers {
        if let Some(outcome) = outcomes.get(&layer.digest) {
            layer.status = status(outcome);
            layer.error = outcome.as_ref().err().map(|error| text::chain(error));
        }
    }
    let worst = outcomes.into_values().filter_map(Result::err).max_by_key(|error| Exit::from(error.fault()).rank());
    if let Some(error) = worst {
        return Err(error.into());
    }
    // Whether the layers make one tree shows when they are put together: in memory, nothing is mounted.
    KitFs::open_layers(Arc::clone(kits.workshop()), kit, layers, Metadata::Verified).await?;
    document.mountable = true;
    Ok(())
}

/// Writes down what the manifests say, before a layer is looked at.
fn describe(kit: &Kit, document: &mut Verification) {
    document.digest = kit.first().map(|link| link.digest);
    document.resolved = Some(kit.resolved);
    for (number, link) in kit.links.iter().enumerate() {
        if number > 0 {
            document.parents.push(Parent { reference: link.reference.clone(), digest: link.digest });
        }
        document.layers.extend(needed(kit, link).map(|layer| LayerDocument {
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            size: layer.size,
            kit: link.digest,
            status: LayerStatus::Unchecked,
            error: None,
        }));
    }
}

/// The layers of a link that are checked: of the kit itself all, of a parent those that the kit takes.
fn needed<'a>(kit: &Kit, link: &'a Link) -> Box<dyn Iterator<Item = &'a Descriptor> + 'a> {
    match kit.first() {
        Some(first) if first.digest == link.digest => Box::new(link.manifest.layers.iter()),
        _ => Box::new(link.contents.layers.iter().map(|layer| &layer.descriptor)),
    }
}

type Outcome = Result<(), Arc<LayerError>>;

/// Checks every layer once, whoever names it, also those that the Kitfile leaves out.
async fn check_layers(kits: &Kits, kit: &Kit, layers: &[Arc<Layer>], purpose: Purpose) -> HashMap<Digest, Outcome> {
    let mut named = HashMap::new();
    for layer in layers {
        named.entry(*layer.digest()).or_insert_with(Vec::new).push(layer);
    }
    let shown = named.into_values().map(|same| Job::Shown { same, purpose });
    let left_out = kit.first().into_iter().flat_map(|link| {
        let is_shown = |digest| layers.iter().any(|layer| layer.digest() == digest);
        let layers = link.manifest.layers.iter().filter(move |layer| !is_shown(&layer.digest));
        layers.map(move |layer| Job::LeftOut { link, layer })
    });
    let jobs = shown.chain(left_out).map(|job| job.run(kits.workshop()));
    stream::iter(jobs).buffer_unordered(PROVED_AT_ONCE).collect().await
}

/// One layer to check.
enum Job<'a> {
    Shown { same: Vec<&'a Arc<Layer>>, purpose: Purpose },
    LeftOut { link: &'a Link, layer: &'a Descriptor },
}

impl Job<'_> {
    async fn run(self, workshop: &Arc<Workshop>) -> (Digest, Outcome) {
        match self {
            Self::Shown { same, purpose } => {
                let [layer, ..] = same[..] else { return (Digest::of(b""), Ok(())) };
                let outcome = match purpose {
                    Purpose::Keep => keep(layer, workshop).await,
                    Purpose::Check => check_shown(layer, &same).await.map_err(Arc::new),
                };
                (*layer.digest(), outcome)
            }
            Self::LeftOut { link, layer } => {
                let outcome = check_left_out(link, layer).await;
                tell(workshop, link, layer, &outcome);
                (layer.digest, outcome.map_err(Arc::new))
            }
        }
    }
}

/// Fetches a layer and checks it. Those that are the same get the listing, so that the tree can be made.
async fn check_shown(layer: &Layer, same: &[&Arc<Layer>]) -> Result<(), LayerError> {
    let index = layer.check().await?;
    for layer in same {
        layer.adopt_listing(layer.shown(&index)?);
    }
    Ok(())
}

/// Fetches a layer that the Kitfile does not name and checks its digest. What is in it nobody will see.
async fn check_left_out(link: &Link, descriptor: &Descriptor) -> Result<(), LayerError> {
    let layer = descriptor.digest;
    let mut check = LayerCheck::new(layer);
    let mut stream = link.source.stream(descriptor, 0);
    while let Some(piece) = stream.next().await {
        check.update(&piece.map_err(|source| LayerError::Source { layer, source })?);
    }
    let from = || link.source.name();
    check.finish().map(drop).map_err(|source| LayerError::Mismatch { layer, from: from(), source })
}

/// Writes down in the audit log what became of a layer that only this command looks at.
fn tell(workshop: &Workshop, link: &Link, descriptor: &Descriptor, outcome: &Result<(), LayerError>) {
    let kit = audit::Kit { reference: link.reference.clone(), digest: link.digest };
    let (layer, size, source) = (descriptor.digest, descriptor.size, link.source.name());
    match outcome {
        Ok(()) => workshop.audit.record_soon(Event::LayerProved { kit, layer, size, source, repeated: 0 }),
        Err(LayerError::Mismatch { source: mismatch, .. }) => workshop.audit.record_soon(Event::Mismatch {
            reference: kit.reference,
            digest: Some(kit.digest),
            layer: Some(layer),
            expected: mismatch.expected.to_string(),
            actual: mismatch.actual.to_string(),
            source,
            repeated: 0,
        }),
        Err(_) => {}
    }
}

/// Proves a layer into the store, and what the store had of it before.
async fn keep(layer: &Arc<Layer>, workshop: &Arc<Workshop>) -> Result<(), Arc<LayerError>> {
    let Some(index) = layer.index() else { return layer.prove().await.map(drop) };
    let (store, buffers) = (Arc::clone(&workshop.store), workshop.buffers.clone());
    let proving = tokio::task::spawn_blocking(move || {
        let mut entries = 0..index.entries().len() as u32;
        entries.all(|entry| match index.part(|index| index.tree(entry)) {
            Some(tree) => store.object(&tree).is_some_and(|object| object.prove_whole(&buffers).is_ok()),
            None => true,
        })
    });
    match proving.await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => layer.prove_again().await.map(drop),
    }
}

fn status(outcome: &Outcome) -> LayerStatus {
    match outcome.as_ref().map_err(|error| &**error) {
        // Every byte was seen and the digest was right; what is wrong is what the bytes say.
        Ok(()) | Err(LayerError::Malformed { .. } | LayerError::OtherStory { .. } | LayerError::Store { .. }) => {
            LayerStatus::Verified
        }
        Err(LayerError::Mismatch { .. } | LayerError::Source { source: SourceError::WrongSize { .. }, .. }) => {
            LayerStatus::Mismatch
        }
        Err(LayerError::Source { source: SourceError::NotFound(_), .. }) => LayerStatus::Missing,
        Err(LayerError::Source { .. } | LayerError::Silent { .. }) => LayerStatus::Unreadable,
        Err(LayerError::Stopped { .. }) => LayerStatus::Unchecked,
    }
}

fn write(out: &mut dyn Write, document: &Verification) -> io::Result<()> {
    for layer in &document.layers {
        let size = print::size(layer.size);
        let media_type = text::name(layer.media_type.as_bytes());
        writeln!(out, "{:<10} {} {size:>10}  {media_type}", layer.status.name(), layer.digest)?;
    }
    for parent in &document.parents {
        writeln!(out, "parent     {} {}", parent.digest, text::line(&parent.reference))?;
    }
    match document.digest {
        Some(digest) if document.ok => writeln!(out, "ok         {digest} {}", text::line(&document.reference)),
        _ => Ok(()),
    }
}
