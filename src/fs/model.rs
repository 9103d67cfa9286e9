//! Model signatures against the files of a kit: read as readers would read them, proved piece by piece, and
//! kept nowhere but in the store.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;

use crate::audit;
use crate::audit::Event;
use crate::buffers::BUFFER;
use crate::fault::Fault;
use crate::fs::FsError;
use crate::fs::KitFs;
use crate::fs::ReadError;
use crate::kit::media::Role;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;
use crate::policy::Judgement;
use crate::policy::ModelDemand;
use crate::trust::ModelError;
use crate::trust::ModelSignature;
use crate::trust::Part;
use crate::trust::Plan;
use crate::verify::Verified;

/// How many buffers of a file are read ahead of the one that is used.
const READ_AHEAD: usize = 4;

/// Parts of files that are read at the same time.
const AT_ONCE: usize = 4;

impl KitFs {
    /// Some bytes of a file, which has at least so many, in order and in proved pieces.
    pub fn pieces(
        &self,
        inode: Inode,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Verified<Bytes>, ReadError>> + use<'_> {
        let size = range.end;
        let starts = range.step_by(BUFFER);
        let read = move |start: u64| async move {
            let mut pieces = Vec::new();
            let end = size.min(start + BUFFER as u64);
            let mut at = start;
            while at < end {
                let piece = self.read(inode, at..end).await?;
                at += piece.len() as u64;
                pieces.push(piece);
            }
            Ok::<_, ReadError>(stream::iter(pieces.into_iter().map(Ok)))
        };
        stream::iter(starts).map(read).buffered(READ_AHEAD).try_flatten()
    }

    /// A small file whole.
    pub async fn read_whole(&self, inode: Inode) -> Result<Vec<u8>, FsError> {
        let size = self.tree.node(inode).map_or(0, |node| node.size);
        let mut content = Vec::new();
        let mut pieces = pin!(self.pieces(inode, 0..size));
        while let Some(piece) = pieces.try_next().await.map_err(|source| self.unread(inode, source))? {
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }

    /// Every file, with its size.
    pub fn files(&self) -> BTreeMap<KitPath, u64> {
        let listed = self.tree.walk(Inode::ROOT).filter_map(|inode| {
            let node = self.tree.node(inode)?;
            let is_dir = matches!(node.kind, NodeKind::Dir { .. });
            if is_dir { None } else { Some((self.tree.path(inode)?, node.size)) }
        });
        listed.collect()
    }

    /// Reads what was signed of a model, and compares.
    pub async fn check_model(&self, plan: &Plan) -> Result<(), ModelFailure> {
        let checks = plan.parts.iter().map(|part| self.check_part(part));
        stream::iter(checks).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn check_part(&self, part: &Part) -> Result<(), ModelFailure> {
        let Some(inode) = self.tree.find(&part.path) else { return Ok(part.check().finish()?) };
        let mut check = part.check();
        let mut pieces = pin!(self.pieces(inode, part.range.clone()));
        while let Some(piece) = pieces.try_next().await.map_err(|source| self.unread(inode, source))? {
            check.update(&piece);
        }
        Ok(check.finish()?)
    }

    fn unread(&self, inode: Inode, source: ReadError) -> FsError {
        FsError::Read { path: self.tree.path(inode).unwrap_or_else(KitPath::root), source }
    }

    /// What the policies say of the files, of each kit of the chain by its own rule.
    pub(super) async fn judge(mut self) -> Result<Self, FsError> {
        for number in 0..self.kit.links.len() {
            let Some(link) = self.kit.links.get(number) else { break };
            let kit = audit::Kit { reference: link.reference.clone(), digest: link.digest };
            for demand in link.models.clone() {
                let judgement = self.judgement(number, &demand).await?;
                self.tell(&kit, &judgement).await?;
                let Some(link) = self.kit.links.get_mut(number) else { break };
                let admitted = link.admitted.clone().after(&judgement);
                self.judgements.push(judgement);
                let Some(admitted) = admitted else {
                    let audit::Kit { reference, digest } = kit;
                    return Err(FsError::Refused { reference, digest, judgements: self.judgements });
                };
                link.admitted = admitted;
            }
        }
        Ok(self)
    }

    /// What one demand says of the files of a kit of the chain, the kit itself being the first. Nothing follows from it
    /// here, and nothing is written down.
    pub async fn judgement(&self, link: usize, demand: &ModelDemand) -> Result<Judgement, FsError> {
        let files = self.files();
        let model = self.model_files(link);
        let mut misses = Vec::new();
        if model.is_empty() {
            misses.push("no file of a model is left that could be signed".into());
        }
        let signatures: Vec<_> = files.iter().filter(|(path, _)| is_called(path, demand.file())).collect();
        if signatures.is_empty() {
            misses.push(format!("the kit has no {}", demand.file()));
        }
        let mut held: Vec<(ModelSignature, KitPath)> = Vec::new();
        for (path, size) in signatures.into_iter().take(demand.limits().signatures) {
            let Some(inode) = self.tree.find(path) else { continue };
            if *size > demand.limits().attestation {
                misses.push(format!("{path} has {size} bytes, and at most {} are read", demand.limits().attestation));
                continue;
            }
            let (accepted, others) = demand.examine(&self.read_whole(inode).await?, &path.to_string());
            misses.extend(others);
            for signature in accepted {
                let checked = match signature.manifest.plan(&files, Some(path)) {
                    Ok(plan) => self.check_model(&plan).await.map(|()| plan.root),
                    Err(error) => Err(error.into()),
                };
                match checked {
                    Ok(root) => held.push((signature, root)),
                    Err(ModelFailure::Model(error)) => misses.push(error.to_string()),
                    Err(ModelFailure::Fs(error)) => return Err(error),
                }
            }
        }
        // Whoever signed one directory of the model has not signed another.
        let complete = held.iter().filter(|(signature, _)| {
            let by = signature.endorsement.signer();
            let roots: Vec<_> =
                held.iter().filter(|(it, _)| it.endorsement.signer() == by).map(|(_, root)| root).collect();
            let outside = model.iter().find(|path| !roots.iter().any(|root| path.starts_with(root)));
            misses.extend(outside.map(|path| format!("{path} is a file of the model that {} did not sign", by.name())));
            outside.is_none() && !model.is_empty()
        });
        let complete: Vec<_> = complete.map(|(signature, _)| signature.clone()).collect();
        Ok(demand.conclude(&complete, &misses))
    }

    /// The files of the model that a kit has, itself or through the kits that it builds on.
    fn model_files(&self, link: usize) -> BTreeSet<KitPath> {
        let before: usize = self.kit.links.iter().take(link).map(|link| link.contents.layers.len()).sum();
        let of_model = self.tree.inodes().filter(|inode| match self.tree.node(*inode).map(|node| node.kind) {
            Some(NodeKind::File { layer, .. }) => {
                let role = self.layer(layer).map(|layer| layer.spec.role);
                layer.0 as usize >= before && matches!(role, Some(Role::Model | Role::ModelPart))
            }
            _ => false,
        });
        of_model.filter_map(|inode| self.tree.path(inode)).collect()
    }

    async fn tell(&self, kit: &audit::Kit, judgement: &Judgement) -> Result<(), FsError> {
        let event = Event::Decision {
            kit: kit.clone(),
            verdict: judgement.verdict.name().into(),
            rules: vec![judgement.rule.clone()],
            identities: judgement.signers.clone(),
            reasons: vec![judgement.reason()],
        };
        let audit = Arc::clone(&self.workshop.audit);
        let recording = tokio::task::spawn_blocking(move || audit.record(event));
        Ok(recording.await.map_err(|_| FsError::Stopped)??)
    }
}

/// Whether a path is the one that is asked for, or ends with the name.
fn is_called(path: &KitPath, file: &str) -> bool {
    let shown = path.to_string();
    shown == file || !file.contains('/') && shown.rsplit('/').next() == Some(file)
}

/// Why the files are not the model that was signed.
#[derive(Debug, thiserror::Error)]
pub enum ModelFailure {
    /// They are others.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Nobody can say: they cannot be read.
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl ModelFailure {
    /// What kind of failure this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Model(error) => error.fault(),
            Self::Fs(error) => error.fault(),
        }
    }
}
