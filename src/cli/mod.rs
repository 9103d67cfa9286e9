//! The command `kitfs`: arguments in, text or JSON out, and an exit code.
//!
//! Nothing is decided here about kits: the commands ask the modules below and show what they say. What
//! goes wrong is printed here, once, as one line.

mod arguments;
mod audit;
mod cache;
mod cat;
mod doctor;
mod documents;
mod exit;
mod export;
mod failure;
mod index;
mod inspect;
mod kits;
mod log;
mod ls;
mod model_signature;
mod mount;
mod policy;
mod print;
mod progress;
mod runtime;
mod service;
mod signer;
mod text;
mod trusted_root;
mod verify;
mod verify_bundle;

use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cli::arguments::Invocation;
use crate::cli::arguments::PolicyTask;
use crate::cli::arguments::Task;
use crate::cli::documents::Verification;
use crate::cli::exit::Exit;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::log::Place;
use crate::cli::ls::Depth;
use crate::cli::ls::Detail;
use crate::cli::service::Service;
use crate::cli::verify::Purpose;
use crate::cli::verify::Then;
use crate::config::Config;
use crate::config::Environment;
use crate::config::Output;
use crate::mounts;

/// Bytes of the stack that a command runs on, as many as the first thread of a program usually may have.
const COMMAND_STACK: usize = 8 << 20;

/// Runs the command line, program name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    // Memory may hold passwords and private content, and a core dump would be read by others. Where this is refused
    // there is no limit to lower.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Some(exit) = mounts::background::<Service>(arguments.iter().cloned()) {
        return exit;
    }
    let result = match Invocation::parse(arguments) {
        Ok(invocation) => carry_out(invocation),
        Err(error) => help_or_complaint(&error),
    };
    match result {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            let _nobody_reads = writeln!(io::stderr(), "kitfs: {}", text::chain(&error));
            Exit::from(&error).into()
        }
    }
}

fn carry_out(invocation: Invocation) -> Result<(), Error> {
    let Invocation { task, settings, config } = invocation;
    let config = Config::load(settings, config.as_deref(), &Environment::current())?;
    log::start(&config.log, Place::Command, &config.folders.state).map_err(Error::Log)?;
    match task {
        Task::Doctor => diagnose(&config),
        Task::VerifyBundle(task) => verify_bundle::run(&config, &task),
        Task::TrustedRoot(task) => trusted_root::run(&config, task),
        Task::Mount { reference, directory } => mount::mount(&config, &reference, &directory),
        Task::Umount { directory } => mount::umount(&config, &directory),
        Task::Upgrade => mount::upgrade(&config),
        Task::Status { directory } => mount::status(&config, directory.as_deref()),
        Task::Cache(task) => cache::run(&Kits::open(config)?, task),
        Task::Policy(PolicyTask::Check { file }) => policy::check(&file, config.output),
        Task::Audit(task) => audit::run(&config, task),
        // The first thread's stack grows as it is used, and where memory is limited that ends in a crash. This one is
        // whole from the start, or there is an error.
        task => std::thread::scope(|threads| {
            let command = std::thread::Builder::new().stack_size(COMMAND_STACK);
            let command = command.spawn_scoped(threads, || run_to_end(config, task)).map_err(Error::Start)?;
            command.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }),
    }
}

fn run_to_end(config: Config, task: Task) -> Result<(), Error> {
    let runtime = runtime::start().map_err(Error::Start)?;
    let result = runtime.block_on(with_kits(config, task));
    // What is still being fetched is nobody's any more.
    runtime.shutdown_background();
    result
}

async fn with_kits(config: Config, task: Task) -> Result<(), Error> {
    let output = config.output;
    let open = match &task {
        // The options name who signed the model: that is all they ask for.
        Task::Verify { model_signature: Some(_), .. } => Kits::open_for_model,
        _ => Kits::open,
    };
    let kits = match (open(config), &task) {
        (Ok(kits), _) => kits,
        (Err(error), Task::Verify { reference, .. } | Task::Pull { reference, .. }) => {
            let result = Err(error);
            verify::report(&mut Verification::of(reference), &result, output)?;
            return result;
        }
        (Err(error), _) => return Err(error),
    };
    let result = carry_out_with(&kits, task).await;
    kits.workshop().audit.flush();
    result
}

async fn carry_out_with(kits: &Kits, task: Task) -> Result<(), Error> {
    match task {
        Task::Ls { reference, path, long, recursive } => {
            let detail = if long { Detail::Long } else { Detail::Path };
            let depth = if recursive { Depth::Everything } else { Depth::Children };
            ls::run(kits, &reference, path.as_deref(), detail, depth).await
        }
        Task::Cat { reference, path } => cat::run(kits, &reference, &path).await,
        Task::Export { reference, directory } => export::run(kits, &reference, &directory).await,
        Task::Inspect { reference } => inspect::run(kits, &reference).await,
        Task::Verify { reference, model_signature, model_ca } => {
            let check = |file| Then::CheckModel(file, &model_ca);
            let task = model_signature.as_deref().map_or(Then::Nothing, check);
            verify::run(kits, &reference, Purpose::Check, task).await
        }
        Task::Pull { reference, attach_index, sign_key } => {
            if attach_index {
                index::needs_registry(&reference, "--attach-index")?;
            }
            let key = sign_key.as_deref().map(signer::signing_key).transpose()?;
            let then = if attach_index { Then::AttachIndex(key.as_ref()) } else { Then::Nothing };
            verify::run(kits, &reference, Purpose::Keep, then).await
        }
        Task::Index(task) => index::run(kits, &task).await,
        Task::Policy(PolicyTask::Explain { reference }) => policy::explain(kits, &reference).await,
        Task::Policy(PolicyTask::Test { file }) => policy::test(kits, &file).await,
        Task::Mount { .. }
        | Task::Umount { .. }
        | Task::Upgrade
        | Task::Status { .. }
        | Task::Cache(_)
        | Task::Audit(_)
        | Task::Policy(PolicyTask::Check { .. })
        | Task::VerifyBundle(_)
        | Task::TrustedRoot(_)
        | Task::Doctor => Ok(()),
    }
}

/// Prints help that was asked for; everything else that clap says becomes one line.
fn help_or_complaint(error: &clap::Error) -> Result<(), Error> {
    let rendered = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print::text(|out| out.write_all(rendered.as_bytes())),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _nobody_reads = io::stderr().write_all(rendered.as_bytes());
            Err(Error::Usage("a command is missing".into()))
        }
        _ => {
            let said = rendered.split("\n\n").next().unwrap_or_default();
            let said = said.strip_prefix("error: ").unwrap_or(said);
            let words: Vec<_> = said.split_whitespace().collect();
            Err(Error::Usage(format!("{} (see kitfs --help)", words.join(" "))))
        }
    }
}

fn diagnose(config: &Config) -> Result<(), Error> {
    let diagnosis = doctor::diagnose(&config.folders);
    match config.output {
        Output::Json => print::json(&diagnosis)?,
        Output::Text => print::text(|out| {
            for check in &diagnosis.checks {
                let word = if check.ok { "ok" } else { "--" };
                writeln!(out, "{word:<3} {:<15} {}", check.name, check.detail)?;
                if let Some(fix) = &check.fix {
                    writeln!(out, "{:<19} fix: {fix}", "")?;
                }
            }
            Ok(())
        })?,
    }
    if diagnosis.ok { Ok(()) } else { Err(Error::CannotMount) }
}
