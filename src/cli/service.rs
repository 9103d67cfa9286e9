//! What a mount serves: a kit, through FUSE. Joins the processes of a mount, which know nothing of kits,
//! with the file system, which knows nothing of processes.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::audit;
use crate::audit::Audit;
use crate::cli::kits;
use crate::cli::log;
use crate::cli::log::Place;
use crate::cli::runtime;
use crate::cli::text;
use crate::config;
use crate::fault::Fault;
use crate::fs::FsError;
use crate::fs::Handover;
use crate::fs::KitFs;
use crate::fs::Passthrough;
use crate::fs::TakeoverError;
use crate::fuse::Adapter;
use crate::fuse::backing::Backing;
use crate::fuse::beat::Beat;
use crate::fuse::opens::Opens;
use crate::kit::tree::Inode;
use crate::layers::Beginning;
use crate::layers::Layer;
use crate::layers::Workshop;
use crate::ledger::Counters;
use crate::ledger::Trouble;
use crate::mounts::AbsolutePath;
use crate::mounts::Decision;
use crate::mounts::LastError;
use crate::mounts::LogSettings;
use crate::mounts::MountFailure;
use crate::mounts::MountRequest;
use crate::mounts::Predecessor;
use crate::mounts::Prepared;
use crate::mounts::Progress;
use crate::mounts::Served;
use crate::mounts::Snapshot;
use crate::mounts::State;
use crate::mounts::Summary;
use crate::mounts::Unprepared;
use crate::mounts::tree_file;
use crate::policy;
use crate::policy::Policies;
use crate::policy::PolicyError;
use crate::policy::Verdict;
use crate::reference::Reference;
use crate::resolve::Documents;
use crate::resolve::Kit;
use crate::resolve::Query;
use crate::resolve::ResolveError;
use crate::resolve::Signatures;
use crate::source;
use crate::store;
use crate::store::Store;

/// How often a person who waits for a mount is told how far it is.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// A kit that is mounted.
#[derive(Debug)]
pub struct Service {
    fs: Arc<KitFs>,
    runtime: Runtime,
    /// What workers before this one have counted.
    before: Counters,
    /// The last error of the worker before this one.
    error_before: Option<LastError>,
    passthrough: (Passthrough, u32),
    /// What is open, once requests are answered.
    opens: OnceLock<Arc<Opens>>,
}

impl Served for Service {
    type Filesystem = Adapter;

    fn start_log(settings: &LogSettings, state_dir: &Path) {
        let (place, target) = settings_of(settings);
        let level = settings.level.parse().ok();
        // A log that cannot be written to is no reason to let go of a mount; that it can was checked
        // before the mount was made.
        let _silent = log::start(&config::Log { target, level }, place, state_dir);
    }

    fn directories(request: &MountRequest) -> Vec<PathBuf> {
        Store::folders(&request.cache_dir).collect()
    }

    fn prepare(
        request: &MountRequest,
        predecessor: Option<Predecessor>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Prepared<Self>, Unprepared> {
        if !request.source.helpers {
            source::hold_helpers_back();
        }
        let prepared = Self::get_ready(request, predecessor, progress);
        // Parents may be at other registries than their kit.
        if source::needs_helpers() { Err(Unprepared::NeedsHelpers) } else { Ok(prepared?) }
    }

    fn mounted(&self) -> Result<(), MountFailure> {
        let Some(link) = self.fs.kit().first() else { return Ok(()) };
        let kit = audit::Kit { reference: link.reference.clone(), digest: link.digest };
        let recorded = self.fs.workshop().audit.record(audit::Event::Mounted { kit });
        recorded.map_err(|error| MountFailure::new(error.fault().exit_code(), text::chain(&*error)))
    }

    fn unmounted(request: &MountRequest, summary: &Summary) {
        let kit = audit::Kit { reference: request.reference.clone(), digest: summary.digest };
        match store::local_key(&request.state_dir.join("key")) {
            Ok(key) => {
                let audit = Audit::new(audit_settings(request), &request.state_dir, key);
                audit.record_soon(audit::Event::Unmounted { kit });
                audit.flush();
            }
            Err(error) => tracing::error!("the end of the mount is not in the audit log: {}", text::chain(&error)),
        }
    }

    fn filesystem(self: &Arc<Self>, beat: Beat, opens: Arc<Opens>) -> Adapter {
        let (fs, runtime) = (Arc::clone(&self.fs), self.runtime.handle().clone());
        let opens = Arc::clone(self.opens.get_or_init(|| opens));
        Adapter::new(fs, runtime, opens, self.passthrough, beat)
    }

    fn backing(&self, inode: u64) -> Option<impl Backing> {
        self.fs.whole(Inode(inode), self.passthrough.0)
    }

    fn touched(&self, inode: u64) {
        self.fs.report_touched(Inode(inode));
    }

    fn snapshot(&self) -> Snapshot {
        let ledger = &self.fs.workshop().ledger;
        let counters = ledger.counters();
        Snapshot {
            state: if self.fs.is_degraded() { State::Degraded } else { State::Ready },
            bytes_verified: counters.verified,
            bytes_fetched: self.before.fetched + counters.fetched,
            cache_hits: self.before.cache_hits + counters.cache_hits,
            passthrough: self.opens.get().is_some_and(|opens| opens.passes_through()),
            last_error: ledger.last_error().map(last_error).or_else(|| self.error_before.clone()),
        }
    }

    fn ended(&self) {
        self.fs.workshop().audit.flush();
        source::end_helpers();
        tracing::info!("the mount has ended");
    }
}

impl Service {
    /// Opens the kit, or goes on with what another worker had.
    fn get_ready(
        request: &MountRequest,
        predecessor: Option<Predecessor>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Prepared<Self>, MountFailure> {
        let failed =
            |fault: Fault, error: &dyn std::error::Error| MountFailure::new(fault.exit_code(), text::chain(error));
        let runtime = runtime::start().map_err(|error| failed(Fault::Other, &error))?;
        let audit = audit_settings(request);
        let beginning = if predecessor.is_some() { Beginning::Again } else { Beginning::New };
        let workshop = Workshop::open(
            beginning,
            &request.cache_dir,
            &request.state_dir,
            request.memory,
            request.read_timeout,
            request.prefetch,
            audit,
        )
        .map_err(|error| failed(Fault::Other, &error))?;
        let options = source::Options {
            plain_http: request.source.plain_http,
            ca_cert: request.source.ca_cert.iter().map(|path| path.to_path_buf()).collect(),
            registry_config: request.source.registry_config.as_ref().map(|path| path.to_path_buf()),
            timeout: request.read_timeout,
        };
        let (fs, before, error_before) = match predecessor {
            Some(predecessor) => {
                let handover = read_handover(predecessor.tree).map_err(|error| failed(Fault::Other, &error))?;
                let fs = runtime
                    .block_on(KitFs::take_over(workshop, handover, &request.filters, &options))
                    .map_err(|error| failed(fault_of_takeover(&error), &error))?;
                let snapshot = predecessor.snapshot;
                let before = snapshot.as_ref().map_or_else(Counters::default, |snapshot| Counters {
                    verified: 0,
                    fetched: snapshot.bytes_fetched,
                    cache_hits: snapshot.cache_hits,
                });
                (fs, before, snapshot.and_then(|snapshot| snapshot.last_error))
            }
            None => {
                let opening = open(request, workshop, &options, progress);
                let fs = runtime.block_on(opening).map_err(|error| failed(error.fault(), &error))?;
                (fs, Counters::default(), None)
            }
        };
        fs.pin();
        fs.prefetch();
        evict_in_background(request, &fs);
        let tree = postcard::to_stdvec(&fs.handover())
            .map_err(std::io::Error::other)
            .and_then(|handover| tree_file(&handover))
            .map_err(|error| failed(Fault::Other, &error))?;
        let summary = summary(&fs).ok_or_else(|| MountFailure::new(1, "the reference names no kit"))?;
        let passthrough = (request.passthrough, request.stack_depth);
        let (fs, opens) = (Arc::new(fs), OnceLock::new());
        Ok(Prepared { served: Self { fs, runtime, before, error_before, passthrough, opens }, tree, summary })
    }
}

/// Opens a kit for the first worker of a mount, and tells how far it is.
async fn open(
    request: &MountRequest,
    workshop: Arc<Workshop>,
    options: &source::Options,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<KitFs, OpenError> {
    let reference: Reference = request.reference.parse()?;
    let settings = &request.policy;
    let owned = |path: &AbsolutePath| path.to_path_buf();
    let policies = Policies::load(&policy::Options {
        standing: settings.standing.iter().map(owned).collect(),
        file: settings.file.as_ref().map(owned),
        keys: settings.keys.iter().map(owned).collect(),
        identity: settings.identity.clone(),
        index_keys: settings.index_keys.iter().map(owned).collect(),
        trusted_root: settings.trusted_root.as_ref().map(owned),
        installed_root: settings.installed_root.as_ref().map(owned),
        allow_refused: settings.allow_refused.clone(),
        firm: settings.firm.iter().map(owned).collect(),
    })?;
    let query = Query {
        reference: &reference,
        names: &settings.names,
        filters: &request.filters,
        freshness: request.source.freshness,
        source: options,
        access_ttl: request.source.access_ttl,
        policies: &policies,
        limits: &settings.limits,
        signatures: Signatures::Needed,
        documents: Documents::Kept,
        indexes: &request.indexes.iter().map(owned).collect::<Vec<_>>(),
    };
    let kit = Kit::resolve(&workshop, &query).await.map_err(|unresolved| unresolved.error)?;
    kit.warnings.iter().for_each(|warning| {
        tracing::warn!("{warning}");
        progress(Progress::Warning(warning.clone()));
    });
    if let Some(error) = workshop.audit.trouble() {
        progress(Progress::Warning(format!("events are missing from the audit log: {}", text::chain(&*error))));
    }
    let layers = kit.layers(&workshop);
    let mut opening = std::pin::pin!(KitFs::open_layers(workshop, kit, layers.clone(), request.metadata));
    loop {
        match tokio::time::timeout(TOLD_EVERY, &mut opening).await {
            Ok(opened) => {
                let opened = opened?;
                let warned = opened.judgements().iter().filter(|judgement| judgement.verdict == Verdict::Warn);
                for judgement in warned {
                    let warning = format!("policy: {}: {}", request.reference, judgement.reason());
                    tracing::warn!("{warning}");
                    progress(Progress::Warning(warning));
                }
                return Ok(opened);
            }
            Err(_elapsed) => progress(Progress::Bytes {
                done: layers.iter().map(|layer| layer.received()).sum(),
                total: layers.iter().filter(|layer| layer.received() > 0).map(|layer| size(layer)).sum(),
            }),
        }
    }
}

fn audit_settings(request: &MountRequest) -> audit::Settings {
    audit::Settings {
        file: request.audit.file.to_path_buf(),
        copies: request.audit.copies.clone(),
        directory: Some(request.directory.to_path_buf()),
    }
}

fn size(layer: &Layer) -> u64 {
    layer.spec.descriptor.size
}

fn summary(fs: &KitFs) -> Option<Summary> {
    let kit = fs.kit();
    Some(Summary {
        digest: kit.digest()?,
        resolved: kit.resolved,
        signers: kit.first()?.admitted.signers().to_vec(),
        policy: match kit.links.iter().map(|link| link.admitted.verdict()).max()? {
            Verdict::None => Decision::None,
            Verdict::Allow => Decision::Allow,
            // What is refused is not mounted.
            Verdict::Warn | Verdict::Deny => Decision::Warn,
        },
        bytes_total: fs.layers().iter().map(|layer| size(layer)).sum(),
        comes_in_parts: fs.layers().iter().any(|layer| layer.comes_in_parts()),
    })
}

/// Keeps the store within its limit, off the way to the mount.
fn evict_in_background(request: &MountRequest, fs: &KitFs) {
    let store = &fs.workshop().store;
    match kits::cache_limit(request.cache_size, store.root()) {
        Ok(limit) => store.set_limit(limit),
        Err(error) => tracing::warn!(%error, "cannot tell how much the store may take"),
    }
    store.look();
}

fn read_handover(mut tree: File) -> std::io::Result<Handover> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    // The position is shared with the worker that wrote it.
    tree.rewind()?;
    tree.read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(std::io::Error::other)
}

fn settings_of(settings: &LogSettings) -> (Place, Option<config::LogTarget>) {
    use crate::mounts::LogTarget;
    match &settings.target {
        LogTarget::Stderr => (Place::Foreground, None),
        LogTarget::File(path) => (Place::Background, Some(config::LogTarget::File(path.to_path_buf()))),
        LogTarget::Syslog => (Place::Background, Some(config::LogTarget::Syslog)),
        LogTarget::Journal => (Place::Background, Some(config::LogTarget::Journal)),
    }
}

fn last_error(trouble: Trouble) -> LastError {
    let time = jiff::Timestamp::try_from(trouble.time).unwrap_or_default();
    LastError {
        time: time.to_string(),
        kind: trouble.kind,
        path: trouble.path,
        layer: trouble.layer,
        expected: trouble.expected,
        actual: trouble.actual,
        source: trouble.source,
        message: trouble.message,
    }
}

fn fault_of_takeover(error: &TakeoverError) -> Fault {
    match error {
        TakeoverError::Resolve(error) => error.fault(),
        TakeoverError::Fs(error) => error.fault(),
    }
}

/// Why a kit could not be opened for a mount.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Reference(#[from] crate::reference::InvalidReference),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl OpenError {
    fn fault(&self) -> Fault {
        match self {
            Self::Reference(_) | Self::Policy(_) => Fault::Usage,
            Self::Resolve(error) => error.fault(),
            Self::Fs(error) => error.fault(),
        }
    }
}
