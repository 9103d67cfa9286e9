//! The command line as plain data: which commands there are, what they take, and what `--help` says.
//!
//! Nothing is looked at here but the arguments themselves; `config` says what settings mean, the
//! commands say what references and paths mean. The options of every command come from the one table of
//! settings, so that an option without its variable and its key cannot exist.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgAction;
use clap::ArgMatches;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use clap::builder::ValueParser;
use clap::parser::ValueSource;

use crate::audit;
use crate::config::Kind;
use crate::config::SETTINGS;
use crate::config::Scope;
use crate::config::Setting;
use crate::config::Settings;

/// Mounts ModelKits: read-only, and verified before a byte is read.
#[derive(Debug, Parser)]
#[command(
    name = "kitfs",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    args_override_self = true,
    after_help = "\
A reference (REF) is one of
  registry/repo[:tag][@digest]       a kit in a registry
  oci:DIR_OR_TAR[:tag|@digest]       a kit in an OCI image layout
  kit:NAME[:tag][@digest]            a kit in KitOps' own local store

Each option --a-b can also be set by the variable KITFS_A_B, and by the key a-b of a TOML file:
--config FILE, else /etc/kitfs/config.toml, then $XDG_CONFIG_HOME/kitfs/config.toml.

Exit codes: 0 done; 1 another failure; 2 wrong usage, reference or configuration; 3 not found;
4 access denied by the source; 5 content does not match its digest; 6 refused by policy;
7 the source cannot be reached in time."
)]
struct Arguments {
    /// Settings from this TOML file in place of the default ones [variable: KITFS_CONFIG]
    #[arg(long, value_name = "FILE", global = true, help_heading = "General")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Task {
    /// Mount a kit on an empty directory
    ///
    /// Returns when the tree can be listed, and serves it in the background. Nothing of the kit is read
    /// before its digest was checked. The same kit already mounted there is no error.
    Mount {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// An empty directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Unmount, in bounded time, whether the source answers or not
    Umount {
        /// Where the kit is mounted
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Move running mounts to this binary: their readers notice nothing
    Upgrade,
    /// Show mounts: reference, digest, bytes verified, last error
    Status {
        /// Only the mount on this directory
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// List the files of a kit, without a mount
    Ls {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// A file or directory in the kit [default: all of it]
        #[arg(value_name = "PATH")]
        path: Option<OsString>,
        /// With mode, size, state and layer
        #[arg(short = 'l')]
        long: bool,
        /// With everything in subdirectories
        #[arg(short = 'R')]
        recursive: bool,
    },
    /// Write a file of a kit to standard output: verified bytes only, without a mount
    Cat {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// The file in the kit
        #[arg(value_name = "PATH")]
        path: OsString,
    },
    /// Write all files of a kit into a directory, verified
    ///
    /// What `kit unpack` does; nothing is left in the directory if anything did not match.
    Export {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// A directory that is empty or not there
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Show the manifest, the Kitfile, the layers, the signatures and the attestations of a kit
    Inspect {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// Fetch and check everything of a kit, and say what held and what did not
    Verify {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// Check the files against this OpenSSF model signature too
        ///
        /// A file, or a path in the kit. --key and the identity options then say who must have signed the model;
        /// of the signatures of the kit, only what policy files ask for is asked.
        #[arg(long, value_name = "FILE_OR_PATH_IN_KIT")]
        model_signature: Option<OsString>,
        /// Certificates of authorities whose holders may have signed the model: PEM (repeatable: any of them)
        #[arg(long, value_name = "FILE", env = "KITFS_MODEL_CA", requires = "model_signature")]
        model_ca: Vec<PathBuf>,
    },
    /// Verify everything of a kit into the cache, so that a later mount needs no network
    Pull {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
        /// Publish the index that this produces as a referrer of the kit, for those who let the signer
        #[arg(long, env = "KITFS_ATTACH_INDEX")]
        attach_index: bool,
        /// Sign that index with this private key: PEM PKCS#8, or cosign's with COSIGN_PASSWORD
        #[arg(long, value_name = "FILE", env = "KITFS_SIGN_KEY", requires = "attach_index")]
        sign_key: Option<PathBuf>,
    },
    /// Make the index of a kit, with which it is mounted at once and read lazily
    ///
    /// Every byte of the kit is fetched and checked first. Without a place for the index it is only described.
    Index(IndexTask),
    /// Look after the store
    #[command(subcommand, arg_required_else_help = true)]
    Cache(CacheTask),
    /// Try policies: is one well formed, what would it say, do its cases hold
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyTask),
    /// Check one Sigstore bundle against a file or a digest
    ///
    /// Asks no network. With --key the key has to be the signer, else the holder of a certificate has to be whom
    /// the identity options name.
    VerifyBundle(VerifyBundle),
    /// The Sigstore roots in use
    #[command(subcommand, arg_required_else_help = true)]
    TrustedRoot(TrustedRootTask),
    /// Read and check the audit log
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditTask),
    /// Say what this host can do, and what to change
    Doctor,
}

/// What becomes of the index of a kit.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct IndexTask {
    /// The kit
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Push it as a referrer of the kit, which stays as it is
    #[arg(long, env = "KITFS_ATTACH")]
    pub attach: bool,
    /// Push the kit's manifest once more under this tag, with annotations that name the index
    #[arg(long, value_name = "TAG", env = "KITFS_EMBED")]
    pub embed: Option<String>,
    /// Write it to this file
    #[arg(id = "file", long = "output", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Sign what is pushed or written with this private key: PEM PKCS#8, or cosign's with COSIGN_PASSWORD
    #[arg(long, value_name = "FILE", env = "KITFS_SIGN_KEY")]
    pub sign_key: Option<PathBuf>,
}

/// What is to be done with a policy.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum PolicyTask {
    /// Read a policy and everything that it names
    Check {
        /// The policy
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show what the policies say of a kit, condition by condition, and why
    Explain {
        /// The kit
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// Run the cases in a file against the policy that it names
    Test {
        /// The cases
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// What is to be done with the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum AuditTask {
    /// Show what happened, the first first
    Show(Filters),
    /// Check that no line was changed, removed, added or moved, and print the head
    Verify {
        /// A head that the log had once, kept elsewhere: it must still be in the log
        #[arg(long, value_name = "sha256:HEX", env = "KITFS_HEAD")]
        head: Option<String>,
        /// The head of the files that were archived and are not here any more: the log must begin behind it
        #[arg(long, value_name = "sha256:HEX", env = "KITFS_START")]
        start: Option<String>,
        /// Sign the head with this private key: PEM, PKCS#8, or cosign's with COSIGN_PASSWORD
        #[arg(long, value_name = "FILE", env = "KITFS_SIGN_KEY")]
        sign_key: Option<PathBuf>,
    },
}

/// Which lines of the audit log are shown: those that meet every filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Filters {
    /// Of this kit: a reference, or the beginning of one up to a `:`, `@` or `/`
    #[arg(long, value_name = "REF", env = "KITFS_KIT")]
    pub kit: Option<String>,
    /// With this digest, or the beginning of one, for kit, layer or content
    #[arg(long, value_name = "DIGEST", env = "KITFS_DIGEST")]
    pub digest: Option<String>,
    /// Not before: 2026-01-31T12:00:00Z, 2026-01-31, or a time ago (2h)
    #[arg(long, value_name = "TIME", env = "KITFS_SINCE")]
    pub since: Option<String>,
    /// Before
    #[arg(long, value_name = "TIME", env = "KITFS_UNTIL")]
    pub until: Option<String>,
    /// Of this kind (repeatable)
    #[arg(long, value_name = "EVENT", env = "KITFS_EVENT", value_parser = PossibleValuesParser::new(audit::NAMES))]
    pub event: Vec<String>,
}

/// What is to be done with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum CacheTask {
    /// Show how much it holds
    Info,
    /// List the layers in it
    List,
    /// Check everything in it against its digest; what is bad is removed
    Verify,
    /// Remove what no mount uses
    Prune,
}

/// What `verify-bundle` checks, and against whom.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct VerifyBundle {
    /// The bundle
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// A PEM public key that may be the signer (repeatable)
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// The signer's name in the certificate
    #[arg(long, value_name = "TEXT", conflicts_with = "certificate_identity_regexp")]
    pub certificate_identity: Option<String>,
    /// A regular expression that matches the whole of the signer's name
    #[arg(long, value_name = "REGEXP")]
    pub certificate_identity_regexp: Option<String>,
    /// Who vouches for the name
    #[arg(long, value_name = "URL", conflicts_with = "certificate_oidc_issuer_regexp")]
    pub certificate_oidc_issuer: Option<String>,
    /// A regular expression that matches the whole of who vouches for the name
    #[arg(long, value_name = "REGEXP")]
    pub certificate_oidc_issuer_regexp: Option<String>,
    /// Trust this Sigstore instance in place of the public one
    #[arg(long, value_name = "FILE")]
    pub trusted_root: Option<PathBuf>,
    /// What was signed
    #[arg(value_name = "FILE_OR_DIGEST")]
    pub artifact: String,
}

/// What is to be done about the Sigstore roots.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum TrustedRootTask {
    /// Show whose certificates, logs and timestamps count
    Show {
        /// This one in place of the one in use
        #[arg(long, value_name = "FILE")]
        trusted_root: Option<PathBuf>,
    },
    /// Fetch the root of the public instance over TUF, or take it from a file
    ///
    /// It is kept as STATE_DIR/trusted_root.json and counts from then on in place of the embedded one.
    Update {
        /// Take this file in place of asking the network
        #[arg(long, value_name = "FILE", conflicts_with_all = ["mirror", "root"])]
        from: Option<PathBuf>,
        /// Ask this TUF repository in place of the public one
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
        /// Trust this TUF root to begin with, in place of the public one: what `cosign initialize --root` takes
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
}

/// A command line that is well formed.
#[derive(Debug)]
pub struct Invocation {
    /// What is to be done.
    pub task: Task,
    /// The options that were given.
    pub settings: Settings,
    /// The file that `--config` names.
    pub config: Option<PathBuf>,
}

impl Invocation {
    /// Reads a command line, program name first. The error is help or a complaint, as clap has it.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        let Arguments { config, task } = Arguments::from_arg_matches(&matches)?;
        let mut innermost = &matches;
        while let Some((_, matches)) = innermost.subcommand() {
            innermost = matches;
        }
        Ok(Self { task, settings: given(innermost), config })
    }
}

/// The options that were given on the command line.
fn given(matches: &ArgMatches) -> Settings {
    let mut settings = Settings::default();
    for setting in SETTINGS {
        // A setting that the command does not have is no argument of it, and asking for it is an error.
        let values = matches.try_get_raw(setting.name).ok().flatten();
        if let Some(values) = values
            && matches.value_source(setting.name) == Some(ValueSource::CommandLine)
        {
            settings.give_flag(setting, values.map(Into::into).collect());
        }
    }
    settings
}

fn command() -> clap::Command {
    let globals = SETTINGS.iter().filter(|setting| setting.name != OUTPUT);
    let command = globals.fold(Arguments::command(), |command, setting| match setting.scope {
        Scope::Every(heading) => command.arg(argument(setting).global(true).help_heading(heading)),
        Scope::Only(commands) => commands.iter().fold(command, |command, path| {
            let path: Vec<_> = path.split(' ').collect();
            with_argument(command, &path, setting)
        }),
    });
    command.mut_subcommands(with_output)
}

/// Adds an option to the command that a path of names leads to.
fn with_argument(command: clap::Command, path: &[&'static str], setting: &Setting) -> clap::Command {
    match path {
        [name, rest @ ..] => command.mut_subcommand(name, |command| with_argument(command, rest, setting)),
        [] => command.arg(argument(setting)),
    }
}

const OUTPUT: &str = "output";

/// Adds `--output`, which has its short form wherever `-o` is free.
fn with_output(command: clap::Command) -> clap::Command {
    if command.has_subcommands() {
        return command.mut_subcommands(with_output);
    }
    let settings = SETTINGS.iter().filter(|setting| setting.name == OUTPUT);
    // There it is the file that the index goes to.
    if command.get_name() == "index" {
        return command;
    }
    let short = (command.get_name() != "mount").then_some('o');
    settings.fold(command, |command, setting| command.arg(argument(setting).short(short).help_heading("General")))
}

fn argument(setting: &Setting) -> clap::Arg {
    let argument = clap::Arg::new(setting.name).long(setting.name).help(setting.help);
    let argument = match setting.kind {
        Kind::Switch => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true)
            .value_name("BOOL")
            .value_parser(ValueParser::string()),
        Kind::One(name) => argument.action(ArgAction::Set).value_name(name).value_parser(ValueParser::os_string()),
        Kind::Many(name) => argument.action(ArgAction::Append).value_name(name).value_parser(ValueParser::os_string()),
        Kind::Choice(words) => argument
            .action(ArgAction::Set)
            .value_name("WORD")
            .value_parser(PossibleValuesParser::new(words.iter().copied())),
    };
    match setting.name {
        "options" => argument.short('o'),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::Environment;
    use crate::config::Output;
    use crate::kit::filter::Filter;

    fn parse(line: &str) -> Result<Invocation, clap::Error> {
        Invocation::parse(std::iter::once("kitfs").chain(line.split_whitespace()).map(OsString::from))
    }

    fn config(line: &str) -> Config {
        let home = (OsString::from("HOME"), OsString::from("/home/jo"));
        let environment = Environment::new([home], rustix::process::geteuid().into());
        Config::load(parse(line).unwrap().settings, Some("/dev/null".as_ref()), &environment).unwrap()
    }

    #[test]
    fn the_definitions_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_behind_the_command() {
        let task = Task::Mount { reference: "kit:a".into(), directory: "/mnt".into() };
        for line in
            ["--memory 64MiB mount kit:a /mnt", "mount --memory=64MiB kit:a /mnt", "mount kit:a /mnt --memory 64MiB"]
        {
            assert_eq!(parse(line).unwrap().task, task);
            assert_eq!(config(line).memory, 64 << 20);
        }
    }

    #[test]
    fn the_short_o_is_mount_options_for_mount_and_output_elsewhere() {
        let mounted = config("mount -o noexec,noallow_other -o noexec kit:a /mnt --output json --foreground");
        assert!(mounted.mount.noexec && mounted.mount.foreground);
        assert_eq!((mounted.mount.allow_other, mounted.output), (Some(false), Output::Json));
        for line in ["ls -o json -lR kit:a dir", "cache info -o json", "doctor -o json", "status -o json"] {
            assert_eq!(config(line).output, Output::Json, "{line}");
        }
    }

    #[test]
    fn repeated_options_add_up_or_the_last_one_counts() {
        let config = config("ls kit:a --filter model --filter code:x,y --memory 64MiB --plain-http --plain-http=false");
        let filters: Vec<Filter> = ["model", "code:x,y"].map(|text| text.parse().unwrap()).into();
        assert_eq!(config.filters, filters);
        assert!(!config.source.plain_http);
    }

    #[test]
    fn what_does_not_exist_is_wrong_usage() {
        for line in [
            "mount kit:a",
            "mount kit:a /mnt extra",
            "umount /mnt --policy p.toml",
            "status --key k.pub",
            "policy check",
            "policy check p.toml --key k.pub",
            "policy frobnicate p.toml",
            "mount kit:a /mnt --hosts-dir /etc",
            "verify kit:a --filter model",
            "umount /mnt -o noexec",
            "umount",
            "ls kit:a --output yaml",
            "index",
            "index kit:a --attach=x",
            "pull kit:a --sign-key k",
            "serve",
            "cache forget",
            "cat kit:a",
            "ls kit:a --mem 64MiB",
            "frobnicate",
            "",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("mount --help").unwrap_err().exit_code(), 0);
    }
}
