//! Who we are to a registry: tokens, passwords, helpers, and where none of it may go.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use kitfs::source::{Options, SourceError};

use super::super::support::faults::{Answer, Asked, Content, Faults};
use super::super::support::host;
use super::super::support::kit::noise;
use super::{SECONDS, check, descriptor, drain, open, options, rerun};

const USER: &str = "reader";
const PASSWORD: &str = "TOPSECRET:x";

fn basic() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

fn layer() -> Vec<u8> {
    noise(11, 3_000_000)
}

fn content() -> Content {
    let mut content = Content::default();
    content.add(layer());
    content
}

/// Options with a password for a host.
fn known(host: &str) -> (Options, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let auth = basic().split_off(6);
    std::fs::write(file.path(), format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    let mut options = options(10 * SECONDS);
    options.registry_config = Some(file.path().to_owned());
    (options, file)
}

/// A registry that wants tokens, and gives them itself: each is good for `uses` requests.
fn with_tokens(uses: usize) -> (Faults, Arc<AtomicUsize>) {
    with_tokens_and(uses, std::convert::identity)
}

/// The same, with answers that are changed.
fn with_tokens_and(uses: usize, change: fn(Answer) -> Answer) -> (Faults, Arc<AtomicUsize>) {
    let logins = Arc::new(AtomicUsize::new(0));
    let (count, used, content) = (Arc::clone(&logins), AtomicUsize::new(0), content());
    let server = Faults::start(move |asked: &Asked, _| {
        if asked.path.starts_with("/token") {
            // So that others come while the first one waits.
            std::thread::sleep(Duration::from_millis(100));
            if asked.header("authorization") != Some(&basic()) {
                return Answer::new(401).body(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
            }
            used.store(0, Ordering::SeqCst);
            return Answer::new(200).body(format!(r#"{{"token":"t{}"}}"#, count.fetch_add(1, Ordering::SeqCst) + 1));
        }
        let good = format!("Bearer t{}", count.load(Ordering::SeqCst));
        if asked.header("authorization") == Some(&good) && used.fetch_add(1, Ordering::SeqCst) < uses {
            return change(content.answer(asked));
        }
        let host = asked.header("host").unwrap_or_default();
        Answer::new(401).header("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token",service="s""#))
    });
    (server, logins)
}

#[tokio::test]
async fn many_who_wait_for_a_token_ask_for_one() {
    let (server, logins) = with_tokens(usize::MAX);
    let (options, _file) = known(&server.host());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    let layer = layer();
    let blob = descriptor(&layer);
    let ranges = (0..8u64).map(|lane| source.range(&blob, lane * 1000..lane * 1000 + 1000));
    for (lane, bytes) in futures_util::future::join_all(ranges).await.into_iter().enumerate() {
        check(bytes.unwrap(), &layer[lane * 1000..lane * 1000 + 1000]);
    }
    assert_eq!(logins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_token_that_expires_is_renewed_also_in_the_middle_of_a_blob() {
    let (server, logins) = with_tokens(2);
    let (options, _file) = known(&server.host());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    let layer = layer();
    for start in (0..6000).step_by(1000) {
        check(
            source.range(&descriptor(&layer), start as u64..start as u64 + 1000).await.unwrap(),
            &layer[start..start + 1000],
        );
    }
    assert!(logins.load(Ordering::SeqCst) >= 3);
}

/// A registry that wants tokens of a server that answers with `answer`; its argument counts the tokens asked for.
fn with_token_server(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> (Faults, Faults) {
    let tokens = Faults::start(move |_, before| answer(before));
    let (content, realm) = (content(), format!("http://{}/token", tokens.host()));
    let registry = Faults::start(move |asked, _| match asked.header("authorization") {
        Some("Bearer good") => content.answer(asked),
        _ => Answer::new(401).header("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="s",scope="a b""#)),
    });
    (registry, tokens)
}

#[tokio::test]
async fn a_token_server_that_stumbles_is_asked_again() {
    for stumble in [
        Answer::new(503).header("Retry-After", "1"),
        Answer::new(429).body(r#"{"errors":[{"code":"DENIED"}]}"#),
        Answer::new(500).body(r#"{"errors":[{"code":"DENIED"}]}"#),
        Answer::new(200).body(r#"{"token":"good"}"#).cut(5),
        Answer::silence(),
    ] {
        let (registry, tokens) = with_token_server(move |before| match before {
            0 => stumble.clone(),
            _ => Answer::new(200).body(r#"{"access_token":"good","expires_in":300}"#),
        });
        let source = open(&format!("{}/kit:v1", registry.host()), &options(6 * SECONDS)).await.unwrap();
        check(source.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
        let asked = tokens.asked();
        assert!(asked.len() == 2 && asked[0].path == "/token?scope=a+b&service=s", "{asked:?}");
    }
}

#[tokio::test]
async fn a_token_server_that_fails_is_out_of_reach_and_one_that_refuses_denies() {
    let error = async |answer: Answer| {
        let (registry, _tokens) = with_token_server(move |_| answer.clone());
        let source = open(&format!("{}/kit:v1", registry.host()), &options(2 * SECONDS)).await.unwrap();
        source.range(&descriptor(&layer()), 0..10).await.unwrap_err()
    };
    let refusal = r#"{"errors":[{"code":"DENIED","message":"no"}]}"#;
    for answer in [Answer::new(500).body(refusal), Answer::new(502), Answer::new(429), Answer::silence()] {
        let error = error(answer).await;
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    }
    for answer in [Answer::new(401), Answer::new(403).body(refusal), Answer::new(400)] {
        let error = error(answer).await;
        assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    }
    for body in ["", "[]", "{}", r#"{"token":1}"#, "{\"token\":\"a\\nb\"}"] {
        let error = error(Answer::new(200).body(body)).await;
        assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_token_that_expires_at_every_break_gets_a_range_to_its_end() {
    let (server, logins) = with_tokens_and(1, |answer| answer.cut(700_000));
    let (options, _file) = known(&server.host());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    check(source.range(&descriptor(&layer()), 0..3_000_000).await.unwrap(), &layer());
    assert!(logins.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn a_wrong_password_is_refused_once_and_never_shown() {
    let (server, _) = with_tokens(usize::MAX);
    let mut options = options(10 * SECONDS);
    let file = tempfile::NamedTempFile::new().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode("reader:WRONGSECRET");
    std::fs::write(file.path(), format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, server.host())).unwrap();
    options.registry_config = Some(file.path().to_owned());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    let error = source.range(&descriptor(&layer()), 0..10).await.unwrap_err();
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    let printed = format!("{error} {error:?} {source:?}");
    assert!(!printed.contains("WRONGSECRET") && !printed.contains(&auth), "{printed}");
    assert_eq!(server.asked().iter().filter(|asked| asked.path.starts_with("/token")).count(), 1);
}

#[tokio::test]
async fn a_password_serves_manifests_and_blobs_and_is_sent_to_nobody_unasked() {
    let content = content();
    let server = Faults::start(move |asked, _| match asked.header("authorization") {
        Some(sent) if sent == basic() => content.answer(asked),
        _ => Answer::new(401).header("WWW-Authenticate", r#"Basic realm="kits""#),
    });
    let (options, _file) = known(&server.host());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    drain(source.stream(&descriptor(&layer()), 0), &layer()).await.unwrap();
    check(source.range(&descriptor(&layer()), 5..50).await.unwrap(), &layer()[5..50]);
    assert_eq!(server.asked()[0].header("authorization"), None);
    let stranger = open(&format!("{}/kit:v1", server.host()), &super::options(5 * SECONDS)).await.unwrap();
    let error = stranger.manifest(&descriptor(&layer()).digest).await.unwrap_err();
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_elsewhere_gets_no_authorization_and_may_expire() {
    let content = content();
    let storage = Faults::start(move |asked, before| match before {
        // The signature of the first redirect has expired; after the fourth, each has.
        1..4 => content.answer(asked),
        _ => Answer::new(403),
    });
    let target = storage.host();
    let server = Faults::start(move |asked, _| match asked.header("authorization") {
        Some(sent) if sent == basic() => {
            Answer::new(307).header("Location", format!("http://{target}{}?signature=TOPSECRET", asked.path))
        }
        _ => Answer::new(401).header("WWW-Authenticate", r#"Basic realm="kits""#),
    });
    let (options, _file) = known(&server.host());
    let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
    check(source.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
    let asked = storage.asked();
    assert_eq!(asked.len(), 2, "the second redirect was asked for anew");
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
    check(source.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
    check(source.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
    let error = source.range(&descriptor(&layer()), 0..10).await.unwrap_err();
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    assert!(!format!("{error:?}").contains("TOPSECRET"), "{error:?}");
}

#[tokio::test]
async fn redirects_end() {
    let server = Faults::start(|asked, _| Answer::new(307).header("Location", asked.path.clone()));
    let source = open(&format!("{}/kit:v1", server.host()), &options(5 * SECONDS)).await.unwrap();
    let error = source.range(&descriptor(&layer()), 0..10).await.unwrap_err();
    assert!(matches!(error, SourceError::Malformed { .. }) && error.to_string().contains("redirects"), "{error}");
    assert!(server.asked().len() <= 12);
}

#[test]
fn helpers_are_asked_and_one_that_hangs_dies_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let helper = |name: &str, script: &str| {
        let path = folder.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    helper(
        "good",
        &format!(
            "read server; echo \"{{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"{USER}\\\",\\\"Secret\\\":\\\"{PASSWORD}\\\"}}\""
        ),
    );
    helper("none", "echo credentials not found in native keychain; exit 1");
    helper("token", "echo '{\"Username\":\"<token>\",\"Secret\":\"TOPSECRET\"}'");
    helper("junk", "echo TOPSECRET");
    helper("hang", "echo $$ > \"$KITFS_TEST_FOLDER/pid\"; sleep 1000 & sleep 1000; true");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    rerun("helper", &[("PATH", path.as_ref()), ("KITFS_TEST_FOLDER", folder.path())]);
}

pub async fn with_helpers() {
    let (server, _) = with_tokens(usize::MAX);
    let folder = PathBuf::from(std::env::var_os("KITFS_TEST_FOLDER").unwrap());
    let ask = async |helper: &str| {
        let file = folder.join(format!("{helper}.json"));
        std::fs::write(&file, format!(r#"{{"credHelpers":{{"{}":"{helper}"}}}}"#, server.host())).unwrap();
        let mut options = options(3 * SECONDS);
        options.registry_config = Some(file);
        let source = open(&format!("{}/kit:v1", server.host()), &options).await.unwrap();
        source.range(&descriptor(&layer()), 0..10).await
    };
    check(ask("good").await.unwrap(), &layer()[..10]);
    assert!(matches!(ask("none").await, Err(SourceError::Denied { .. })));
    let token = ask("token").await.unwrap_err();
    assert!(matches!(token, SourceError::Denied { .. }) && token.to_string().contains("identity token"), "{token}");
    let junk = ask("junk").await.unwrap_err();
    assert!(
        matches!(junk, SourceError::Configuration { .. }) && !format!("{junk:?}").contains("TOPSECRET"),
        "{junk:?}"
    );
    let began = Instant::now();
    let hang = ask("hang").await.unwrap_err();
    assert!(began.elapsed() < 5 * SECONDS, "{:?}", began.elapsed());
    assert!(hang.to_string().contains("docker-credential-hang"), "{hang}");
    let pid = std::fs::read_to_string(folder.join("pid")).unwrap().trim().to_owned();
    assert!(host::soon(5, || group_is_gone(&pid)), "the helper or its child lives on");
}

/// Whether no process, zombies aside, is left in a process group.
fn group_is_gone(group: &str) -> bool {
    let of_group = |stat: String| {
        let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        let fields: Vec<_> = rest.split(' ').collect();
        fields.get(2) == Some(&group) && fields.first() != Some(&"Z")
    };
    !std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|entry| std::fs::read_to_string(entry.path().join("stat")).is_ok_and(of_group))
}

#[test]
fn a_proxy_is_asked_for_others_and_never_for_this_machine() {
    let content = content();
    let proxy = Faults::start(move |asked, _| content.answer(asked));
    let address = PathBuf::from(format!("http://{}", proxy.host()));
    rerun("proxy", &[("HTTP_PROXY", &address), ("HTTPS_PROXY", &address), ("NO_PROXY", "direct.invalid".as_ref())]);
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|asked| asked.path.contains("kits.invalid")), "{asked:?}");
}

pub async fn through_proxy() {
    let mut plain = options(5 * SECONDS);
    plain.plain_http = true;
    let source = open("kits.invalid/kit:v1", &plain).await.unwrap();
    check(source.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
    let direct = open("direct.invalid/kit:v1", &plain).await.unwrap();
    assert!(matches!(direct.resolve().await, Err(SourceError::Unreachable { .. })));
    let server = Faults::honest(content());
    let here = open(&format!("{}/kit:v1", server.host()), &options(5 * SECONDS)).await.unwrap();
    check(here.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
    let (server, _) = with_tokens(usize::MAX);
    let (known, _file) = known(&server.host());
    let here = open(&format!("{}/kit:v1", server.host()), &known).await.unwrap();
    check(here.range(&descriptor(&layer()), 0..10).await.unwrap(), &layer()[..10]);
}
