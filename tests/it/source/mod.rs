//! Where kits come from: the contract that every source keeps, and a registry's ways to break it.

mod contract;
mod faults;
mod login;
mod stream;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kitfs::buffers::BUFFER;
use kitfs::buffers::Buffers;
use kitfs::digest::Digest;
use kitfs::kit::descriptor::Descriptor;
use kitfs::source::{ByteStream, Options, Source, SourceError};
use kitfs::verify::Unverified;

use super::support::faults::Faults;

/// Options for tests: no waiting for long.
fn options(timeout: Duration) -> Options {
    Options { plain_http: false, ca_cert: Vec::new(), registry_config: Some(no_credentials()), timeout }
}

/// A credentials file without any, so that those of whoever runs the tests are not used.
fn no_credentials() -> PathBuf {
    static FILE: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    FILE.get_or_init(|| tempfile::NamedTempFile::new().expect("a temporary file")).path().to_owned()
}

const SECONDS: Duration = Duration::from_secs(1);

async fn open(reference: &str, options: &Options) -> Result<Source, SourceError> {
    Source::open(&reference.parse().expect("a reference"), options, &Buffers::new(4)).await
}

/// The repository of a server in this test.
async fn kit_of(server: &Faults, timeout: Duration) -> Source {
    open(&format!("{}/kit:v1", server.host()), &options(timeout)).await.expect("nothing is asked yet")
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: Default::default(),
    }
}

/// Fails unless these are exactly those bytes.
#[track_caller]
fn check(bytes: impl Into<Answer>, expected: &[u8]) {
    let Answer(pieces) = bytes.into();
    assert_eq!(pieces.iter().map(Unverified::len).sum::<usize>(), expected.len());
    let mut rest = expected;
    for (number, piece) in pieces.iter().enumerate() {
        let is_last = number + 1 == pieces.len();
        assert!(is_last || expected.len() <= BUFFER || piece.len() == BUFFER, "a piece of {} bytes", piece.len());
        let (here, behind) = rest.split_at(piece.len());
        piece.clone().verify(&Digest::of(here)).expect("the right bytes");
        rest = behind;
    }
}

/// What a source answers: one piece, or several in order.
struct Answer(Vec<Unverified>);

impl From<Unverified> for Answer {
    fn from(bytes: Unverified) -> Self {
        Self(vec![bytes])
    }
}

impl From<Vec<Unverified>> for Answer {
    fn from(pieces: Vec<Unverified>) -> Self {
        Self(pieces)
    }
}

/// Reads a stream to its end, which must be that of `expected`.
async fn drain(mut stream: ByteStream, expected: &[u8]) -> Result<(), SourceError> {
    let mut at = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        assert!(!piece.is_empty() && piece.len() <= BUFFER, "a piece of {} bytes", piece.len());
        let end = at + piece.len();
        check(piece, &expected[at..end]);
        at = end;
    }
    assert_eq!(at, expected.len());
    assert!(stream.next().await.is_none());
    Ok(())
}

/// Runs one case of [`in_another_environment`] in a process of its own: the environment is the process's.
fn rerun(case: &str, variables: &[(&str, &std::path::Path)]) {
    let mut command = Command::new(std::env::current_exe().expect("the test's program"));
    command.args(["--exact", "source::in_another_environment", "--nocapture"]).env("KITFS_TEST_CASE", case);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"] {
        command.env_remove(name);
    }
    for (name, value) in variables {
        command.env(name, value);
    }
    let output = command.output().expect("the test's program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{case}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "{case} did not run: {}", text(&output.stdout));
}

#[tokio::test]
async fn in_another_environment() {
    match std::env::var("KITFS_TEST_CASE").as_deref() {
        Ok("store") => contract::in_store().await,
        Ok("helper") => login::with_helpers().await,
        Ok("proxy") => login::through_proxy().await,
        Ok(other) => panic!("there is no case {other}"),
        // In the run of all tests there is nothing to do.
        Err(_) => {}
    }
}
