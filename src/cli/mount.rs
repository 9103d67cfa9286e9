//! `kitfs mount`, `umount` and `status`: settings in, what the mount's processes say out.

use std::io;
use std::io::Write;
use std::path::Path;

use crate::cli::doctor;
use crate::cli::documents::MountList;
use crate::cli::documents::Mounted;
use crate::cli::documents::Unmounted;
use crate::cli::documents::Upgrade;
use crate::cli::documents::UpgradeList;
use crate::cli::failure::Error;
use crate::cli::log;
use crate::cli::print;
use crate::cli::progress;
use crate::cli::text;
use crate::config;
use crate::config::Config;
use crate::config::Output;
use crate::mounts;
use crate::mounts::AbsolutePath;
use crate::mounts::AuditSettings;
use crate::mounts::Decision;
use crate::mounts::Landlock;
use crate::mounts::LogSettings;
use crate::mounts::LogTarget;
use crate::mounts::MountOptions;
use crate::mounts::MountRequest;
use crate::mounts::PolicySettings;
use crate::mounts::Presence;
use crate::mounts::Privileges;
use crate::mounts::Progress;
use crate::mounts::SourceSettings;
use crate::mounts::Status;
use crate::policy;
use crate::policy::Policies;
use crate::reference::Reference;
use crate::source;

/// Mounts a kit, and stays if that was asked for.
pub fn mount(config: &Config, reference: &str, directory: &Path) -> Result<(), Error> {
    let request = request(config, reference, directory)?;
    if request.presence == Presence::Background {
        log::check(&config.log, &config.folders.state).map_err(Error::Log)?;
    }
    let directory = request.directory.to_string_lossy().into_owned();
    let mut bar = progress::Bar::new("mounting");
    let mounted = mounts::mount(request, |progress| match progress {
        Progress::Step(step) => bar.say(&step),
        Progress::Bytes { done, total } => bar.set(done, total),
        Progress::Warning(warning) => bar.warn(&warning),
    });
    bar.finish();
    let mounted = mounted?;
    if config.output == Output::Json {
        let (digest, resolved) = (mounted.summary.digest, mounted.summary.resolved);
        print::json(&Mounted { directory, reference: reference.into(), digest, resolved })?;
    }
    mounted.stay().map_err(Error::Stay)
}

/// All that the processes of the mount need. They work in `/`, so every path is made absolute.
fn request(config: &Config, reference: &str, directory: &Path) -> Result<MountRequest, Error> {
    let absolute = |path: &Path| AbsolutePath::new(path).map_err(|source| Error::Path { path: path.into(), source });
    // A policy that is none is told now, while somebody looks.
    Policies::load(&config.policy)?;
    let reference: Reference = reference.parse()?;
    let names = policy::names(&reference);
    let reference = match reference {
        Reference::Layout { path, version } => Reference::Layout { path: absolute(&path)?.to_path_buf(), version },
        reference => reference,
    };
    let folders = &config.folders;
    let presence = if config.mount.foreground { Presence::Foreground } else { Presence::Background };
    let target = match (&config.log.target, presence) {
        (Some(config::LogTarget::File(path)), _) => LogTarget::File(absolute(path)?),
        (Some(config::LogTarget::Syslog), _) => LogTarget::Syslog,
        (Some(config::LogTarget::Journal), _) => LogTarget::Journal,
        (None, Presence::Foreground) => LogTarget::Stderr,
        (None, Presence::Background) => LogTarget::File(absolute(&log::default_file(&folders.state))?),
    };
    let level = config.log.level.unwrap_or(match presence {
        Presence::Foreground => tracing::Level::WARN,
        Presence::Background => tracing::Level::INFO,
    });
    let source = &config.source;
    Ok(MountRequest {
        reference: reference.to_string(),
        directory: absolute(directory)?,
        options: MountOptions {
            noexec: config.mount.noexec,
            allow_other: config.mount.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root()),
        },
        filters: config.filters.clone(),
        metadata: config.metadata,
        prefetch: config.prefetch,
        source: SourceSettings {
            plain_http: source.plain_http,
            ca_cert: source.ca_cert.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            registry_config: source.registry_config.as_deref().map(absolute).transpose()?,
            helpers: match &reference {
                Reference::Registry(kit) => source::asks_helpers(source.registry_config.as_deref(), &kit.host),
                Reference::Layout { .. } | Reference::Kitops { .. } => false,
            },
            access_ttl: config.access_ttl,
            freshness: config.freshness,
        },
        policy: PolicySettings {
            names,
            standing: config.policy.standing.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            file: config.policy.file.as_deref().map(absolute).transpose()?,
            keys: config.policy.keys.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            identity: config.policy.identity.clone(),
            index_keys: config.policy.index_keys.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            trusted_root: config.policy.trusted_root.as_deref().map(absolute).transpose()?,
            limits: config.limits,
            allow_refused: config.policy.allow_refused.clone(),
            firm: config.policy.firm.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
            installed_root: config.policy.installed_root.as_deref().map(absolute).transpose()?,
        },
        indexes: config.indexes.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
        cache_dir: absolute(&folders.cache)?,
        state_dir: absolute(&folders.state)?,
        runtime_dir: absolute(&folders.runtime)?,
        cache_size: config.cache_size,
        memory: config.memory,
        passthrough: config.mount.passthrough,
        stack_depth: if doctor::lies_on_overlay(&folders.cache) { 2 } else { 1 },
        read_timeout: source.timeout,
        log: LogSettings { target, level: level.to_string() },
        audit: AuditSettings { file: absolute(&config.audit.file)?, copies: config.audit.copies.clone() },
        presence,
    })
}

/// Unmounts. Who still uses the mount in a place of its own is told.
pub fn umount(config: &Config, directory: &Path) -> Result<(), Error> {
    let busy = match config.busy {
        config::Busy::Refuse => mounts::Busy::Keep,
        config::Busy::Detach => mounts::Busy::Detach,
    };
    let unmounted = mounts::umount(directory, busy)?;
    if !unmounted.used_by.is_empty() {
        let pids = unmounted.used_by.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let _nobody_reads = writeln!(
            io::stderr(),
            "kitfs: {} is unmounted, and served on for whoever still uses it: process {pids}",
            text::line(&directory.to_string_lossy())
        );
    }
    match config.output {
        Output::Json => {
            print::json(&Unmounted { directory: directory.to_string_lossy().into_owned(), used_by: unmounted.used_by })
        }
        Output::Text => Ok(()),
    }
}

/// Moves the mounts of the state directory to this program.
pub fn upgrade(config: &Config) -> Result<(), Error> {
    let upgraded = mounts::upgrade(&config.folders.state)?;
    let list = upgraded.iter().map(|mount| Upgrade {
        directory: mount.directory.to_string_lossy().into_owned(),
        error: mount.result.as_ref().err().map(|error| text::chain(error)),
    });
    let list = UpgradeList { mounts: list.collect() };
    match config.output {
        Output::Json => print::json(&list)?,
        Output::Text => print::text(|out| {
            list.mounts.iter().try_for_each(|mount| {
                let said = mount.error.as_deref().unwrap_or("moved");
                writeln!(out, "{}  {}", text::name(mount.directory.as_bytes()), text::line(said))
            })
        })?,
    }
    let failed = list.mounts.iter().filter(|mount| mount.error.is_some()).count();
    if failed == 0 { Ok(()) } else { Err(Error::Upgrade { failed, mounts: list.mounts.len() }) }
}

/// Shows one mount, or those of the state directory.
pub fn status(config: &Config, directory: Option<&Path>) -> Result<(), Error> {
    let mounts = match directory {
        Some(directory) => vec![mounts::status(directory)?],
        None => mounts::status_of_all(&config.folders.state)?,
    };
    match config.output {
        Output::Json => print::json(&MountList { mounts }),
        Output::Text => print::text(|out| mounts.iter().try_for_each(|mount| write_status(out, mount))),
    }
}

/// What is left to the process that answers the kernel.
fn may(privileges: &Privileges) -> String {
    let capabilities = match privileges.capabilities.as_slice() {
        [] => "no capabilities".to_owned(),
        left => left.join(", "),
    };
    let programs = if privileges.no_new_privs { ", no_new_privs" } else { "" };
    let writes = match privileges.landlock {
        Landlock::Enforced => "writes to its own directories only (Landlock)",
        Landlock::Inherited => "writes to its own directories only (Landlock, by the workers before it)",
        Landlock::Unsupported => "writes where its user may: this kernel has no Landlock",
        Landlock::Helpers => "writes where its user may, for credential helpers of its registries do (no Landlock)",
        Landlock::Failed => "writes where its user may: Landlock failed (the log tells why)",
    };
    format!("{capabilities}{programs}; {writes}")
}

fn write_status(out: &mut dyn Write, mount: &Status) -> io::Result<()> {
    let state = serde_json::to_value(mount.state).unwrap_or_default();
    writeln!(out, "{}  {}", text::name(mount.directory.as_bytes()), state.as_str().unwrap_or_default())?;
    writeln!(out, "  kit       {}", text::line(&mount.reference))?;
    writeln!(out, "  digest    {}", mount.digest)?;
    for signer in &mount.signers {
        writeln!(out, "  signed    {}", text::line(signer))?;
    }
    if mount.policy != Decision::None {
        let word = serde_json::to_value(mount.policy).unwrap_or_default();
        writeln!(out, "  policy    {}", word.as_str().unwrap_or_default())?;
    }
    let (verified, total) = (print::size(mount.bytes_verified), print::size(mount.bytes_total));
    writeln!(out, "  verified  {verified} of {total}, {} fetched", print::size(mount.bytes_fetched))?;
    writeln!(out, "  cache     {} hits", mount.cache_hits)?;
    if mount.passthrough {
        writeln!(out, "  kernel    reads large verified files by itself")?;
    }
    writeln!(out, "  process   {} held by {}, {} takeovers", mount.pid, mount.holder_pid, mount.takeovers)?;
    if let Some(privileges) = &mount.privileges {
        writeln!(out, "  may       {}", may(privileges))?;
    }
    writeln!(out, "  since     {}", mount.mounted_at)?;
    match &mount.last_error {
        Some(error) => writeln!(out, "  error     {} {}", error.time, text::line(&error.message)),
        None => Ok(()),
    }
}
