use std::path::Path;

use super::folders::User;
use super::*;

const HOME: (&str, &str) = ("HOME", "/home/jo");

fn environment(user: User, variables: &[(&str, &str)]) -> Environment {
    Environment::new(variables.iter().map(|(name, value)| (name.into(), value.into())), user)
}

fn flags(given: &[(&'static str, &str)]) -> Settings {
    let mut settings = Settings::default();
    for (name, value) in given {
        let setting = SETTINGS.iter().find(|setting| setting.name == *name).unwrap();
        let mut values: Vec<OsString> = settings.given(name).map(|given| given.values.clone()).unwrap_or_default();
        values.push(value.into());
        settings.give_flag(setting, values);
    }
    settings
}

/// The configuration of flags, variables and the text of a file.
fn load(given: &[(&'static str, &str)], variables: &[(&str, &str)], file: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, file).unwrap();
    let variables = [&[HOME], variables].concat();
    Config::load(flags(given), Some(&path), &environment(User::Other, &variables)).map_err(|error| error.to_string())
}

#[test]
fn flags_count_before_variables_and_variables_before_files() {
    let file =
        "memory = \"10MiB\"\nread-timeout = '1s'\ncache_size = 1000\nfilter = ['model', 'code']\nplain-http = true";
    let config = load(
        &[("memory", "30MiB"), ("plain-http", "false")],
        &[("KITFS_MEMORY", "20MiB"), ("KITFS_READ_TIMEOUT", "2s"), ("KITFS_LOG_LEVEL", "")],
        file,
    )
    .unwrap();
    assert_eq!(config.memory, 30 << 20);
    assert_eq!(config.source.timeout, Duration::from_secs(2));
    assert_eq!(config.cache_size, Some(1000));
    assert_eq!(config.filters.len(), 2);
    assert!(!config.source.plain_http);
    assert_eq!(config.log.level, None);
}

#[test]
fn defaults() {
    let config = load(&[], &[], "").unwrap();
    assert_eq!((config.memory, config.cache_size), (128 << 20, None));
    assert_eq!(config.source.timeout, Duration::from_secs(60));
    assert_eq!((config.freshness, config.metadata), (Freshness::Prefer, Metadata::Provisional));
    assert_eq!(config.prefetch, Prefetch::Auto);
    assert_eq!((config.output, config.busy), (Output::Text, Busy::Refuse));
    let passthrough = Passthrough::Auto;
    assert_eq!(config.mount, MountOptions { noexec: false, allow_other: None, foreground: false, passthrough });
}

#[test]
fn every_setting_has_its_variable_and_its_key() {
    for setting in SETTINGS {
        let variable = format!("KITFS_{}", setting.name.to_uppercase().replace('-', "_"));
        let value = match setting.kind {
            Kind::Switch => "true",
            Kind::One("SIZE") => "10MiB",
            Kind::One("DURATION") => "8s",
            Kind::One("FILE") | Kind::Many("FILE") => "/dev/null/none",
            Kind::One("N") => "7",
            Kind::Many("DIGEST") => "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            Kind::One(_) => "/tmp",
            Kind::Many("OPT[,OPT…]") => "noexec",
            Kind::Many(_) => "model",
            Kind::Choice(words) => words[0],
        };
        let toml = match setting.kind {
            Kind::Switch => format!("{} = true", setting.name),
            _ => format!("{} = \"{value}\"", setting.name),
        };
        for (result, origin) in
            [(load(&[], &[(&variable, value)], ""), variable.clone()), (load(&[], &[], &toml), setting.name.into())]
        {
            // The files do not exist, and the complaint names where they were given: so it was read. What a
            // policy is made of is read with it, later.
            match setting.kind {
                _ if matches!(setting.name, "policy" | "key" | "trusted-root" | "index" | "index-key") => {
                    assert!(result.is_ok(), "{}", setting.name)
                }
                Kind::One("FILE") | Kind::Many("FILE") => assert!(result.unwrap_err().contains(&origin)),
                _ => assert!(result.is_ok(), "{}: {:?}", setting.name, result.unwrap_err()),
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (given, variables, file, expected) in [
        (&[("memory", "10 apples")][..], &[][..], "", "--memory: \"10 apples\" is not a size"),
        (&[("memory", "1MiB")], &[], "", "--memory: \"1MiB\" is too little"),
        (&[], &[("KITFS_READ_TIMEOUT", "8")], "", "KITFS_READ_TIMEOUT: \"8\" is not a duration"),
        (&[], &[("KITFS_PLAIN_HTTP", "maybe")], "", "KITFS_PLAIN_HTTP: \"maybe\" is neither"),
        (&[], &[("KITFS_OUTPUT", "yaml")], "", "KITFS_OUTPUT: \"yaml\" is not one of text, json"),
        (&[("options", "noexec,suid")], &[], "", "--options: \"suid\" is not one of"),
        (&[("options", "allow_other,noallow_other")], &[], "", "exclude each other"),
        (&[("offline", "true")], &[("KITFS_REQUIRE_FRESH", "1")], "", "--offline and KITFS_REQUIRE_FRESH exclude"),
        (&[("filter", "mdel")], &[], "", "--filter: "),
        (&[("cache-dir", "")], &[], "", "--cache-dir: the path is empty"),
        (&[], &[], "hosts-dir = 'x'", "\"hosts-dir\", which is no setting"),
        (
            &[("certificate-identity", "a"), ("certificate-identity-regexp", "b")],
            &[],
            "",
            "--certificate-identity and --certificate-identity-regexp exclude",
        ),
        (&[], &[], "memory = true", "memory in "),
        (&[], &[], "plain-http = 'yes'", "expected true or false"),
        (&[], &[], "filter = [1]", "expected strings"),
        (&[], &[], "cache-dir = 'a'\ncache_dir = 'b'", "twice"),
        (&[], &[], "memory = 'a'\n]", "is not TOML, line 2"),
        (&[], &[], "[memory]", "memory in "),
    ] {
        let error = load(given, variables, file).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let error = Config::load(Settings::default(), Some(Path::new("/nonexistent.toml")), &environment(User::Root, &[]));
    assert!(error.unwrap_err().to_string().contains("/nonexistent.toml"));
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "state-dir = 'state'\nlog-file = 'journal'").unwrap();
    let config = Config::load(Settings::default(), Some(&path), &environment(User::Root, &[])).unwrap();
    assert_eq!(config.folders.state, folder.path().join("state"));
    assert_eq!(config.log.target, Some(LogTarget::Journal));
}

#[test]
fn folders_follow_user_and_options() {
    let xdg = [HOME, ("XDG_CACHE_HOME", "/x/cache"), ("XDG_STATE_HOME", "/x/state"), ("XDG_RUNTIME_DIR", "/x/run")];
    let relative = [HOME, ("XDG_CACHE_HOME", "cache")];
    for (user, variables, given, expected) in [
        (User::Root, &xdg[..], &[][..], ["/var/cache/kitfs", "/var/lib/kitfs", "/run/kitfs"]),
        (User::Other, &xdg, &[], ["/x/cache/kitfs", "/x/state/kitfs", "/x/run/kitfs"]),
        (
            User::Other,
            &relative,
            &[],
            ["/home/jo/.cache/kitfs", "/home/jo/.local/state/kitfs", "/home/jo/.local/state/kitfs/run"],
        ),
        (User::Root, &[], &[("state-dir", "/s")], ["/var/cache/kitfs", "/s", "/s/run"]),
        (User::Other, &xdg, &[("state-dir", "/s")], ["/x/cache/kitfs", "/s", "/s/run"]),
        (User::Other, &xdg, &[("state-dir", "/s"), ("runtime-dir", "/r")], ["/x/cache/kitfs", "/s", "/r"]),
        (User::Other, &[], &[("state-dir", "/s"), ("cache-dir", "/c")], ["/c", "/s", "/s/run"]),
    ] {
        let config = Config::of(&flags(given), &environment(user, variables)).unwrap();
        let [cache, state, runtime] = expected.map(PathBuf::from);
        assert_eq!(config.folders, Folders { cache, state, runtime });
    }
    let error = Config::of(&Settings::default(), &environment(User::Other, &[])).unwrap_err();
    assert_eq!(error.to_string(), "HOME is not set: name the folder with --cache-dir");
}
