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
use crate::fs::KitFs;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::reference::Reference;
use crate::resolve::Kit;

/// How many layers are proved at once. One alone is fetched in parallel already.
pub const PROVED_AT_ONCE: usize = 3;

/// A store, and how to reach sources.
#[derive(Debug)]
pub struct Kits {
    config: Config,
    workshop: Arc<Workshop>,
}

impl Kits {
    /// Opens the store that the configuration names.
    pub fn open(config: Config) -> Result<Self, Error> {
        let folders = &config.folders;
        let workshop = Workshop::open(
            &folders.cache,
            &folders.state,
            config.memory,
            config.source.timeout,
            config.audit.clone(),
        )?;
        Ok(Self { config, workshop })
    }

    /// How things were asked for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What layers share.
    pub fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    /// Bytes that the store may take.
    pub fn cache_limit(&self) -> io::Result<u64> {
        cache_limit(self.config.cache_size, self.workshop.store.root())
    }

    /// The kit that a reference names, after the filters. What its user should know is logged.
    pub async fn resolve(&self, reference: &str) -> Result<Kit, Error> {
        let reference: Reference = reference.parse()?;
        let (freshness, options) = (self.config.freshness, &self.config.source);
        let kit = Kit::resolve(&self.workshop, &reference, &self.config.filters, freshness, options).await?;
        kit.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(kit)
    }

    /// The files of a kit, listed.
    pub async fn files(&self, reference: &str) -> Result<KitFs, Error> {
        let kit = self.resolve(reference).await?;
        let layers = kit.layers(&self.workshop);
        let opening = KitFs::open_layers(Arc::clone(&self.workshop), kit, layers.clone(), self.config.metadata);
        Ok(progress::follow("listing", &layers, opening).await?)
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
