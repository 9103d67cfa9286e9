//! `kitfs verify --model-signature`: the files of a kit against an OpenSSF model signature.
//!
//! The files are read as a mount would show them, proved piece by piece, and kept nowhere.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::cat;
use crate::cli::failure::Error;
use crate::cli::ls;
use crate::cli::signer;
use crate::cli::signer::Wanted;
use crate::cli::text;
use crate::cli::trusted_root;
use crate::config::Config;
use crate::fs::KitFs;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::trust;
use crate::trust::ModelSignature;
use crate::trust::ModelSigners;

/// A model signature that holds for the files of a kit.
#[derive(Debug)]
pub struct Held {
    /// Who signed.
    pub signer: String,
    /// The directory of the kit that was signed.
    pub root: KitPath,
    /// Files of the kit that lie outside of it.
    pub outside: usize,
}

/// Checks the files against the signature in `given`: a file of this host, else a path in the kit.
pub async fn check(files: &KitFs, config: &Config, given: &OsStr, authorities: &[PathBuf]) -> Result<Held, Error> {
    let wanted = Wanted::of_model(&config.policy.keys, authorities, &config.policy.identity)?;
    let root = trusted_root::in_use(config, config.policy.trusted_root.as_deref())?;
    let limits = &config.limits;
    let (bundle, within) = match Path::new(given).is_file() {
        true => {
            let bundle = signer::read(Path::new(given), limits.attestation)?;
            let copy = copy_in_kit(files, Path::new(given), &bundle).await?;
            (bundle, copy)
        }
        false => {
            let (bundle, path) = read_in_kit(files, given, limits.attestation).await?;
            (bundle, Some(path))
        }
    };
    let found = given.to_string_lossy();
    let signers = ModelSigners { keys: &wanted.keys, authorities: &wanted.authorities };
    let refused = |why: String| Error::Bundle { bundle: given.into(), why };
    let (signatures, rejected) = trust::examine_model(&bundle, &found, signers, &root, limits);
    let (by_wanted, by_others): (Vec<_>, Vec<_>) =
        signatures.into_iter().partition(|signature| wanted.accepts(signature.endorsement.signer()));
    let Some(ModelSignature { endorsement, manifest }) = by_wanted.into_iter().next() else {
        let others = by_others
            .iter()
            .map(|other| format!("it is by {}, who is not asked for", other.endorsement.signer().name()));
        let reasons: Vec<_> = rejected.into_iter().map(|rejected| rejected.reason).chain(others).collect();
        return Err(refused(reasons.join("; ")));
    };
    let plan = manifest.plan(&files.files(), within.as_ref())?;
    files.check_model(&plan).await?;
    Ok(Held { signer: text::line(&endorsement.signer().name()), root: plan.root, outside: plan.outside })
}

/// Where in the kit the same signature lies too, under the same name: it cannot have signed itself.
async fn copy_in_kit(files: &KitFs, given: &Path, bundle: &[u8]) -> Result<Option<KitPath>, Error> {
    let Some(name) = given.file_name() else { return Ok(None) };
    for inode in files.tree().walk(Inode::ROOT) {
        let is_like = files.tree().node(inode).is_some_and(|node| node.size == bundle.len() as u64);
        if is_like && files.tree().name(inode) == Some(name.as_bytes()) && files.read_whole(inode).await? == bundle {
            return Ok(files.tree().path(inode));
        }
    }
    Ok(None)
}

async fn read_in_kit(files: &KitFs, path: &OsStr, limit: u64) -> Result<(Vec<u8>, KitPath), Error> {
    let reference = files.kit().first().map(|link| link.reference.clone()).unwrap_or_default();
    let inode = ls::find(files, &reference, path)?;
    let size = files.tree().node(inode).map_or(0, |node| node.size);
    if size > limit {
        let why = format!("it has {size} bytes, and at most {limit} are read");
        return Err(Error::Bundle { bundle: path.into(), why });
    }
    Ok((files.read_whole(inode).await?, cat::path_of(files, inode)))
}
