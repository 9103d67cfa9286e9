//! What the commands over kits share: the store, a kit from its reference, its files.

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;

use crate::cli::failure::Error;
use crate::cli::progress;
use crate::config::Config;
use crate::fs::FsError;
use crate::fs::KitFs;
use crate::layers::Beginning;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::policy;
use crate::policy::Policies;
use crate::policy::Verdict;
use crate::reference::Reference;
use crate::resolve::Documents;
use crate::resolve::Freshness;
use crate::resolve::Kit;
use crate::resolve::Link;
use crate::resolve::Query;
use crate::resolve::Signatures;
use crate::resolve::Unresolved;
use crate::trust::Material;

/// How many layers are proved at once. One alone is fetched in parallel already.
pub const PROVED_AT_ONCE: usize = 3;

/// A store, and how to reach sources.
#[derive(Debug)]
pub struct Kits {
    config: Config,
    workshop: Arc<Workshop>,
    policies: Policies,
}

impl Kits {
    /// Opens the store that the configuration names, and reads the policies.
    pub fn open(config: Config) -> Result<Self, Error> {
        let folders = &config.folders;
        let workshop = Workshop::open(
            Beginning::New,
            &folders.cache,
            &folders.state,
            config.memory,
            config.source.timeout,
            config.prefetch,
            config.audit.clone(),
        )?;
        let policies = Policies::load(&config.policy)?;
        if let Ok(limit) = cache_limit(config.cache_size, workshop.store.root()) {
            workshop.store.set_limit(limit);
        }
        Ok(Self { config, workshop, policies })
    }

    /// The same for a command whose options name who signed a model, and ask for no signature of the kit.
    pub fn open_for_model(config: Config) -> Result<Self, Error> {
        let options =
            policy::Options { keys: Vec::new(), identity: policy::Identity::default(), ..config.policy.clone() };
        let policies = Policies::load(&options)?;
        Ok(Self { policies, ..Self::open(config)? })
    }

    /// How things were asked for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What layers share.
    pub fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    /// What lies beside a kit's manifest, by its source now.
    pub async fn material(&self, link: &Link) -> Result<Material, Error> {
        let collected = Material::collect(&link.source, &link.digest, &self.config.limits).await;
        collected.map_err(|error| Error::Resolve(error.into()))
    }

    /// Bytes that the store may take.
    pub fn cache_limit(&self) -> io::Result<u64> {
        cache_limit(self.config.cache_size, self.workshop.store.root())
    }

    /// Who decides about kits.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The kit that a reference names, after the filters, if the policies let it through. What its user
    /// should know is logged.
    pub async fn resolve(&self, reference: &str) -> Result<Kit, Error> {
        let reference: Reference = reference.parse()?;
        Ok(self.look_up(&reference, &self.policies, Signatures::Needed).await.map_err(|unresolved| unresolved.error)?)
    }

    /// The same for whoever shows what is known of a kit that is refused.
    pub async fn look_up(
        &self,
        reference: &Reference,
        policies: &Policies,
        signatures: Signatures,
    ) -> Result<Kit, Unresolved> {
        let query = Query {
            reference,
            names: &policy::names(reference),
            filters: &self.config.filters,
            freshness: self.config.freshness,
            source: &self.config.source,
            access_ttl: self.config.access_ttl,
            policies,
            limits: &self.config.limits,
            signatures,
            documents: match (signatures, self.config.freshness) {
                (Signatures::Needed, _) | (_, Freshness::Offline) => Documents::Kept,
                (Signatures::All, _) => Documents::Asked,
            },
            indexes: &self.config.indexes,
        };
        let kit = Kit::resolve(&self.workshop, &query).await?;
        kit.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(kit)
    }

    /// The files of a kit, listed.
    pub async fn files(&self, reference: &str) -> Result<KitFs, Error> {
        let kit = self.resolve(reference).await?;
        let files = self.open_files(kit).await?;
        let warned = files.judgements().iter().filter(|judgement| judgement.verdict == Verdict::Warn);
        warned.for_each(|judgement| tracing::warn!("policy: {reference}: {}", judgement.reason()));
        Ok(files)
    }

    /// The files of a kit that was looked up, listed.
    pub async fn open_files(&self, kit: Kit) -> Result<KitFs, FsError> {
        let layers = kit.layers(&self.workshop);
        let opening = KitFs::open_layers(Arc::clone(&self.workshop), kit, layers.clone(), self.config.metadata);
        progress::follow("listing", &layers, opening).await
    }

    /// Proves layers, each whole, into the store.
    pub async fn prove(&self, layers: &[Arc<Layer>]) -> Result<(), Error> {
        let proving = stream::iter(layers)
            .map(|layer| async move { layer.prove().await.map(drop) })
            .buffer_unordered(PROVED_AT_ONCE)
            .try_collect::<()>();
        Ok(progress::follow("verifying", layers, proving).await?)
    }
}

/// Bytes that a store may take: as configured, else 80 % of its file system.
pub fn cache_limit(configured: Option<u64>, store: &Path) -> io::Result<u64> {
    if let Some(limit) = configured {
        return Ok(limit);
    }
    let file_system = rustix::fs::statvfs(store)?;
    Ok(file_system.f_blocks.saturating_mul(file_system.f_frsize) / 100 * 80)
}
