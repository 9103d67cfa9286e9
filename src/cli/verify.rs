//! `kitfs verify` and `kitfs pull`: everything of a kit, checked against its digests.
//!
//! Both print the same document, also where they fail: what held, what did not, and what is not known.
//! `verify` asks the source for every byte and keeps none; `pull` leaves a store behind that needs no
//! source any more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use crate::audit;
use crate::audit::Event;
use crate::cli::documents::Layer as LayerDocument;
use crate::cli::documents::LayerStatus;
use crate::cli::documents::Model;
use crate::cli::documents::Parent;
use crate::cli::documents::Verification;
use crate::cli::exit::Exit;
use crate::cli::failure::Error;
use crate::cli::index;
use crate::cli::kits::Kits;
use crate::cli::kits::PROVED_AT_ONCE;
use crate::cli::model_signature;
use crate::cli::print;
use crate::cli::progress;
use crate::cli::text;
use crate::config::Output;
use crate::digest::Digest;
use crate::fs::FsError;
use crate::fs::KitFs;
use crate::kit::descriptor::Descriptor;
use crate::kit::index::Index;
use crate::kit::index::Published;
use crate::layers::Layer;
use crate::layers::LayerError;
use crate::layers::Metadata;
use crate::layers::Workshop;
use crate::policy::Decision;
use crate::policy::Verdict;
use crate::reference::Reference;
use crate::resolve::Kit;
use crate::resolve::Link;
use crate::resolve::Resolved;
use crate::resolve::Seen;
use crate::resolve::Signatures;
use crate::resolve::Unresolved;
use crate::source::SourceError;
use crate::trust::SigningKey;
use crate::verify::LayerCheck;

/// What becomes of the bytes that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing: `verify`.
    Check,
    /// They are kept: `pull`.
    Keep,
}

/// What is left to do once everything held.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// A model signature is checked: one in a file, or at a path in the kit. Holders of certificates of the authorities
    /// in these files may have made it.
    CheckModel(&'a OsStr, &'a [PathBuf]),
    /// The index that the pass produced is pushed beside the kit, signed if there is a key.
    AttachIndex(Option<&'a SigningKey>),
}

/// Checks everything, and prints what held.
///
/// What is left to do then is done last, with the files that the layers hold.
pub async fn run(kits: &Kits, reference: &str, purpose: Purpose, then: Then<'_>) -> Result<(), Error> {
    let mut document = Verification::of(reference);
    let result = check(kits, reference, purpose, then, &mut document).await;
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

async fn check(
    kits: &Kits,
    reference: &str,
    purpose: Purpose,
    then: Then<'_>,
    document: &mut Verification,
) -> Result<(), Error> {
    let reference: Reference = reference.parse()?;
    let kit = match kits.look_up(&reference, kits.policies(), Signatures::All).await {
        Ok(kit) => kit,
        Err(Unresolved { error, seen, resolved, decisions }) => {
            describe(&seen, resolved, &decisions, document);
            return Err(error.into());
        }
    };
    describe(&kit.seen(), Some(kit.resolved), &kit.decisions, document);
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
    let files = KitFs::open_layers(Arc::clone(kits.workshop()), kit, layers.clone(), Metadata::Verified).await;
    let files = files.inspect_err(|error| {
        if let FsError::Refused { judgements, .. } = error {
            judgements.iter().for_each(|judgement| document.policy.join(judgement));
        }
    })?;
    files.judgements().iter().for_each(|judgement| document.policy.join(judgement));
    document.mountable = true;
    match then {
        Then::Nothing => {}
        Then::CheckModel(model, authorities) => {
            let held = model_signature::check(&files, kits.config(), model, authorities).await?;
            document.model_signature =
                Some(Model { signer: held.signer, directory: held.root.to_string(), files_outside: held.outside });
        }
        Then::AttachIndex(key) => {
            let Some(link) = files.kit().first() else { return Ok(()) };
            let own = layers.iter().take(link.contents.layers.len());
            let proved = own.filter_map(|layer| layer.proved()).map(|index| Index::clone(&index));
            let index = Published::new(proved)?;
            document.attached_index = Some(index::attach(link, &index, key).await?);
        }
    }
    Ok(())
}

/// Writes down what the manifests and the policies say, before a layer is looked at.
fn describe(seen: &[Seen], resolved: Option<Resolved>, decisions: &[Decision], document: &mut Verification) {
    document.digest = seen.first().map(|kit| kit.digest);
    document.resolved = resolved;
    for (number, kit) in seen.iter().enumerate() {
        if number > 0 {
            document.parents.push(Parent { reference: kit.reference.clone(), digest: kit.digest });
        }
        document.layers.extend(kit.layers.iter().map(|layer| LayerDocument {
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            size: layer.size,
            kit: kit.digest,
            status: LayerStatus::Unchecked,
            error: None,
        }));
    }
    if let Some(first) = decisions.first() {
        document.signatures = first.signatures().to_vec();
        document.attestations = first.attestations().to_vec();
    }
    let strictest = decisions.iter().map(Decision::verdict).max();
    document.policy.decision = strictest.unwrap_or(Verdict::None);
    let decisive = decisions.iter().filter(|decision| Some(decision.verdict()) == strictest);
    document.policy.reasons = decisive.flat_map(|decision| decision.reasons().iter().cloned()).collect();
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
        layer.agree_with_index(&index)?;
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
        Err(LayerError::Mismatch { source: mismatch, .. }) => {
            let event = Event::mismatch(&kit, Some(&layer), mismatch.expected, mismatch.actual, source);
            workshop.audit.record_soon(event);
        }
        Err(_) => {}
    }
}

/// Proves a layer into the store, and what the store had of it before.
async fn keep(layer: &Arc<Layer>, workshop: &Arc<Workshop>) -> Result<(), Arc<LayerError>> {
    let Some(index) = layer.proved() else { return kept(layer, layer.prove().await) };
    layer.agree_with_index(&index)?;
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
        Ok(false) | Err(_) => kept(layer, layer.prove_again().await),
    }
}

/// A proof that left nothing in the store is none for who wants to read the kit without its source.
fn kept<T>(layer: &Layer, proved: Result<T, Arc<LayerError>>) -> Result<(), Arc<LayerError>> {
    proved?;
    match layer.unkept() {
        None => Ok(()),
        Some(why) => {
            let source = io::Error::new(why.kind(), why.to_string());
            Err(Arc::new(LayerError::Store { layer: *layer.digest(), source }))
        }
    }
}

fn status(outcome: &Outcome) -> LayerStatus {
    match outcome.as_ref().map_err(|error| &**error) {
        // Every byte was seen and the digest was right; what is wrong is what the bytes say.
        Ok(())
        | Err(
            LayerError::Malformed { .. }
            | LayerError::OtherStory { .. }
            | LayerError::OtherIndex { .. }
            | LayerError::FalseIndex { .. }
            | LayerError::Store { .. },
        ) => LayerStatus::Verified,
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
    for (word, list) in [("signature", &document.signatures), ("attested", &document.attestations)] {
        list.iter().try_for_each(|shown| print::signature(out, word, shown))?;
    }
    if document.policy.decision != Verdict::None {
        writeln!(out, "policy     {}", document.policy.decision.name())?;
        document.policy.reasons.iter().try_for_each(|reason| writeln!(out, "           {}", text::line(reason)))?;
    }
    if let Some(model) = &document.model_signature {
        writeln!(out, "model      {} signed by {}", text::line(&model.directory), model.signer)?;
        if model.files_outside > 0 {
            writeln!(out, "           {} files lie outside of it", model.files_outside)?;
        }
    }
    match document.digest {
        Some(digest) if document.ok => writeln!(out, "ok         {digest} {}", text::line(&document.reference)),
        _ => Ok(()),
    }
}
