//! `kitfs inspect`: what a kit says of itself. No layer is fetched.

use std::io;
use std::io::Write;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::cli::documents::InspectedIndex;
use crate::cli::documents::InspectedLayer;
use crate::cli::documents::Inspection;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::print;
use crate::cli::text;
use crate::config::Output;
use crate::resolve::Link;
use crate::resolve::Signatures;
use crate::resolve::Voucher;
use crate::verify::Verified;

/// Shows manifest, Kitfile and layers.
pub async fn run(kits: &Kits, reference: &str) -> Result<(), Error> {
    let parsed = reference.parse()?;
    // What is refused is shown too, with what was found beside it.
    let policies = kits.policies().that_warn();
    let kit = kits.look_up(&parsed, &policies, Signatures::All).await.map_err(|unresolved| unresolved.error)?;
    let Some(link) = kit.first() else { return Ok(()) };
    let layers = kit.links.iter().flat_map(|link| {
        link.manifest.layers.iter().map(|layer| InspectedLayer {
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            size: layer.size,
            kit: link.digest,
        })
    });
    let decision = kit.decisions.first();
    let document = Inspection {
        reference: reference.into(),
        digest: link.digest,
        manifest: raw(&manifest(kits, link).await?),
        kitfile: link.kitfile_json().and_then(raw),
        layers: layers.collect(),
        index: inspected_index(link),
        signatures: decision.map(|decision| decision.signatures().to_vec()).unwrap_or_default(),
        attestations: decision.map(|decision| decision.attestations().to_vec()).unwrap_or_default(),
    };
    match kits.config().output {
        Output::Json => print::json(&document),
        Output::Text => print::text(|out| write(out, &document, kit.kitfile())),
    }
}

/// The index that counts, else the first that does not.
fn inspected_index(link: &Link) -> Option<InspectedIndex> {
    let seen = link.indexes_seen.iter().min_by_key(|seen| seen.error.is_some())?;
    let (by, signers) = match &seen.voucher {
        Some(Voucher::Manifest) => (Some("manifest"), Vec::new()),
        Some(Voucher::Signers(signers)) => (Some("signature"), signers.clone()),
        None => (None, Vec::new()),
    };
    Some(InspectedIndex { digest: seen.digest, admitted: seen.error.is_none(), by, signers, error: seen.error.clone() })
}

/// The manifest as its source has it.
async fn manifest(kits: &Kits, link: &Link) -> Result<Verified<Bytes>, Error> {
    if let Some(Ok(kept)) = kits.workshop().store.blob(&link.digest).map(|kept| kept.verify(&link.digest)) {
        return Ok(kept);
    }
    let fetched = link.source.manifest(&link.digest).await?;
    fetched.verify(&link.digest).map_err(|source| Error::Manifest { reference: link.reference.clone(), source })
}

/// JSON as it stands.
fn raw(json: &[u8]) -> Option<Box<RawValue>> {
    RawValue::from_string(String::from_utf8(json.to_vec()).ok()?).ok()
}

fn write(out: &mut dyn Write, document: &Inspection, kitfile: Option<Verified<Bytes>>) -> io::Result<()> {
    writeln!(out, "reference  {}", text::line(&document.reference))?;
    writeln!(out, "digest     {}", document.digest)?;
    for layer in &document.layers {
        let size = print::size(layer.size);
        writeln!(out, "layer      {} {size:>10}  {}", layer.digest, text::name(layer.media_type.as_bytes()))?;
    }
    if let Some(index) = &document.index {
        let digest = index.digest.map(|digest| digest.to_string()).unwrap_or_default();
        let signers = index.signers.join(", ");
        match (index.by, &index.error) {
            (_, Some(error)) => writeln!(out, "index      {digest} not used: {}", text::line(error))?,
            (Some("manifest"), None) => writeln!(out, "index      {digest} named by the manifest")?,
            (_, None) => writeln!(out, "index      {digest} signed by {}", text::line(&signers))?,
        }
    }
    for (word, list) in [("signature", &document.signatures), ("attested", &document.attestations)] {
        list.iter().try_for_each(|shown| print::signature(out, word, shown))?;
    }
    let Some(kitfile) = kitfile else { return Ok(()) };
    writeln!(out)?;
    String::from_utf8_lossy(&kitfile).lines().try_for_each(|line| writeln!(out, "{}", text::line(line)))
}
