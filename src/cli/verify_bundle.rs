//! `kitfs verify-bundle`: one Sigstore bundle against a file or a digest, as the client protocol of the
//! public conformance suite asks for it (sigstore-conformance, "cli_protocol.md").
//!
//! Stricter than a policy over a kit: what comes along with a signature by a key, such as a log entry, must hold
//! too, unless it is of a log that nobody named a root for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use crate::cli::arguments::VerifyBundle;
use crate::cli::failure::Error;
use crate::cli::print;
use crate::cli::signer;
use crate::cli::signer::Wanted;
use crate::cli::text;
use crate::cli::trusted_root;
use crate::config::Config;
use crate::config::Output;
use crate::digest::Digest;
use crate::policy::Identity;
use crate::trust;
use crate::trust::Endorsement;
use crate::trust::Limits;
use crate::trust::Material;
use crate::trust::Message;
use crate::trust::Origin;
use crate::trust::TrustedRoot;

/// A file up to this size is held whole, because signatures by pure Ed25519 need it.
const WHOLE: u64 = 256 << 20;

/// What `verify-bundle` prints.
#[derive(Debug, Serialize)]
struct Document {
    ok: bool,
    error: Option<String>,
    signer: Option<String>,
    logged_at: Option<String>,
    predicate_type: Option<String>,
}

/// Checks the bundle.
pub fn run(config: &Config, task: &VerifyBundle) -> Result<(), Error> {
    let result = check(config, task);
    let document = Document {
        ok: result.is_ok(),
        error: result.as_ref().err().map(|error| text::chain(error)),
        signer: result.as_ref().ok().map(|endorsement| endorsement.signer().name()),
        logged_at: result.as_ref().ok().and_then(Endorsement::logged_at).map(|time| time.to_string()),
        predicate_type: result.as_ref().ok().and_then(Endorsement::attestation).map(|it| it.predicate_type.clone()),
    };
    match (config.output, &document.signer) {
        (Output::Json, _) => print::json(&document)?,
        (Output::Text, Some(signer)) => print::text(|out| writeln!(out, "ok {}", text::line(signer)))?,
        (Output::Text, None) => {}
    }
    result.map(drop)
}

fn check(config: &Config, task: &VerifyBundle) -> Result<Endorsement, Error> {
    let identity = Identity {
        identity: task.certificate_identity.clone(),
        identity_regexp: task.certificate_identity_regexp.clone(),
        issuer: task.certificate_oidc_issuer.clone(),
        issuer_regexp: task.certificate_oidc_issuer_regexp.clone(),
    };
    let wanted = Wanted::new(&task.key, &identity)?;
    let root = trusted_root::in_use(config, task.trusted_root.as_deref())?;
    let limits = &config.limits;
    let bundle = signer::read(&task.bundle, limits.attestation)?;
    let material = Material::of_bundle(bundle, task.bundle.display().to_string());
    let findings = match task.artifact.parse::<Digest>() {
        Ok(digest @ Digest::Sha256(_)) if !Path::new(&task.artifact).exists() => {
            trust::examine_artifact(&material, &Message::of_digest(&digest), &wanted.keys, &root, limits)
        }
        _ => examine_file(&wanted, &material, Path::new(&task.artifact), &root, limits)?,
    };
    let refused = |why: String| Error::Bundle { bundle: task.bundle.clone(), why };
    let mut reasons: Vec<_> = findings.rejected.into_iter().map(|rejected| rejected.reason).collect();
    for endorsement in findings.endorsements {
        let doubt = endorsement.doubts().next().map(str::to_owned);
        // A log that the built-in root does not know may be anybody's; one that is not in a given root is wrong.
        let must_hold = endorsement.has_flaw() || *root.origin() != Origin::Embedded;
        match doubt {
            Some(why) if must_hold => reasons.push(why),
            _ if !wanted.accepts(endorsement.signer()) => {
                reasons.push(format!("it is by {}, who is not asked for", text::line(&endorsement.signer().name())));
            }
            _ => return Ok(endorsement),
        }
    }
    Err(refused(reasons.join("; ")))
}

/// Checks against a file, which is held whole where it is not too large for that.
fn examine_file(
    wanted: &Wanted,
    material: &Material,
    path: &Path,
    root: &TrustedRoot,
    limits: &Limits,
) -> Result<trust::Findings, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > WHOLE {
        let message = Message::read(file).map_err(failed)?;
        return Ok(trust::examine_artifact(material, &message, &wanted.keys, root, limits));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(failed)?;
    Ok(trust::examine_artifact(material, &Message::of(&content), &wanted.keys, root, limits))
}
