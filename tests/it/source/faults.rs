//! A registry that fails, lies, stalls and floods: what a source makes of it, and that it ends.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use kitfs::buffers::BUFFER;
use kitfs::digest::Digest;
use kitfs::source::{METADATA_LIMIT, SourceError};

use super::super::support::faults::{Answer, Content, Faults};
use super::super::support::kit::noise;
use super::{SECONDS, check, descriptor, drain, kit_of, open, options};

/// What goes wrong, and how.
type Fault = (&'static str, fn(Answer) -> Answer);

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

/// A registry with one manifest and one layer.
fn content() -> (Content, Vec<u8>) {
    let layer = noise(3, BUFFER + 999);
    let mut content = Content::default();
    content.add(layer.clone());
    let manifest = content.add(MANIFEST);
    content.tag("v1", &manifest);
    (content, layer)
}

/// A server whose first `times` answers are `fault`s.
fn failing(times: usize, fault: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> (Faults, Vec<u8>) {
    let (content, layer) = content();
    let server = Faults::start(move |asked, before| {
        let answer = content.answer(asked);
        if before < times { fault(answer) } else { answer }
    });
    (server, layer)
}

#[tokio::test]
async fn a_range_survives_every_passing_fault() {
    let faults: [Fault; 8] = [
        ("503", |_| Answer::new(503)),
        ("a mirror that lags", |_| Answer::new(404)),
        ("429 with a wait", |_| Answer::new(429).header("Retry-After", "1")),
        ("502 until a date", |_| Answer::new(502).header("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT")),
        ("a cut body", |answer| answer.cut(1000)),
        ("a cut at once", |answer| answer.cut(0)),
        ("a stalled body", |answer| answer.stall(1000)),
        ("silence", |_| Answer::silence()),
    ];
    for (what, fault) in faults {
        let (server, layer) = failing(1, fault);
        let source = kit_of(&server, 6 * SECONDS).await;
        let bytes =
            source.range(&descriptor(&layer), 100..50_000).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        check(bytes, &layer[100..50_000]);
        assert_eq!(server.asked().len(), 2, "{what}");
    }
}

#[tokio::test]
async fn what_came_before_a_cut_is_not_asked_again() {
    let (server, layer) = failing(1, |answer| answer.cut(1000));
    let source = kit_of(&server, 6 * SECONDS).await;
    check(source.range(&descriptor(&layer), 100..50_000).await.unwrap(), &layer[100..50_000]);
    assert_eq!(server.asked()[1].range(), Some((1100, 49_999)));
}

#[tokio::test]
async fn retry_after_is_waited_for_and_never_beyond_the_deadline() {
    let (server, layer) = failing(1, |_| Answer::new(429).header("Retry-After", "1"));
    let began = Instant::now();
    let _ = kit_of(&server, 5 * SECONDS).await.range(&descriptor(&layer), 0..10).await.unwrap();
    assert!(began.elapsed() >= SECONDS);
    let (server, layer) = failing(1, |_| Answer::new(429).header("Retry-After", "3600"));
    let began = Instant::now();
    let error = kit_of(&server, 5 * SECONDS).await.range(&descriptor(&layer), 0..10).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }) && error.to_string().contains("429"), "{error}");
    assert!(began.elapsed() < 2 * SECONDS);
}

#[tokio::test]
async fn a_wrong_answer_to_a_range_is_not_used() {
    let faults: [Fault; 6] = [
        ("shifted", |answer| answer.header("Content-Range", "bytes 101-50000/1049575")),
        ("no Content-Range", |answer| answer.header("Content-Range", "")),
        ("unknown size", |answer| answer.header("Content-Range", "bytes 100-49999/*")),
        ("encoded", |answer| answer.header("Content-Encoding", "gzip")),
        ("longer than it says", |answer| answer.body(vec![0; 60_000])),
        ("longer, in chunks", |answer| answer.body(vec![0; 60_000]).chunked()),
    ];
    for (what, fault) in faults {
        let (server, layer) = failing(usize::MAX, fault);
        let source = kit_of(&server, 6 * SECONDS).await;
        let error = source.range(&descriptor(&layer), 100..50_000).await.unwrap_err();
        assert!(matches!(error, SourceError::NoRanges(_)), "{what}: {error}");
        let error =
            drain(source.stream_range(&descriptor(&layer), 100..50_000), &layer[100..50_000]).await.unwrap_err();
        assert!(matches!(error, SourceError::NoRanges(_)), "{what}: {error}");
    }
    let layer = content().1;
    let whole = layer.clone();
    let server = Faults::start(move |_, _| Answer::new(200).body(whole.clone()));
    let error = kit_of(&server, 6 * SECONDS).await.range(&descriptor(&layer), 100..50_000).await.unwrap_err();
    assert!(matches!(error, SourceError::NoRanges(_)), "{error}");
}

#[tokio::test]
async fn a_total_of_another_size_is_said_so() {
    let (server, layer) = failing(usize::MAX, |answer| answer.header("Content-Range", "bytes 100-49999/77"));
    let error = kit_of(&server, 6 * SECONDS).await.range(&descriptor(&layer), 100..50_000).await.unwrap_err();
    assert!(matches!(&error, SourceError::WrongSize { actual, .. } if actual == "77"), "{error}");
}

#[tokio::test]
async fn nothing_is_read_beyond_the_limit() {
    let flood = vec![b' '; METADATA_LIMIT as usize + 1];
    for chunked in [Answer::chunked as fn(Answer) -> Answer, std::convert::identity] {
        let body = flood.clone();
        let server = Faults::start(move |_, _| chunked(Answer::new(200).body(body.clone())));
        let source = kit_of(&server, 10 * SECONDS).await;
        let error = source.manifest(&Digest::of(MANIFEST)).await.unwrap_err();
        assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
        let error = source.resolve().await.unwrap_err();
        assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
        let error = source.blob(&descriptor(MANIFEST)).await.unwrap_err();
        assert!(matches!(error, SourceError::WrongSize { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_tag_is_resolved_without_the_digest_header_and_without_head() {
    for status in [200, 405, 501] {
        let server = Faults::start(move |asked, _| match asked.method.as_str() {
            "HEAD" => Answer::new(status),
            _ => Answer::new(200).body(MANIFEST),
        });
        assert_eq!(kit_of(&server, 10 * SECONDS).await.resolve().await.unwrap(), Digest::of(MANIFEST), "{status}");
    }
}

#[tokio::test]
async fn every_wait_has_an_end() {
    let faults: [Fault; 3] = [
        ("silence", |_| Answer::silence()),
        ("a stall", |answer| answer.stall(10)),
        ("a trickle", |answer| answer.trickle(Duration::from_millis(100))),
    ];
    for (what, fault) in faults {
        let (server, layer) = failing(usize::MAX, fault);
        let source = kit_of(&server, SECONDS).await;
        let layer = descriptor(&layer);
        let stream = async {
            let mut stream = source.stream(&layer, 0);
            loop {
                match stream.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("{what}: all of it"),
                }
            }
        };
        let began = Instant::now();
        let (range, blob, manifest, stream) =
            tokio::join!(source.range(&layer, 0..1000), source.blob(&layer), source.manifest(&layer.digest), stream,);
        for error in [range.unwrap_err(), blob.unwrap_err(), manifest.unwrap_err(), stream] {
            assert!(matches!(error, SourceError::Unreachable { .. }), "{what}: {error}");
        }
        assert!(began.elapsed() < 3 * SECONDS, "{what}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_known_soon() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    for plain_http in [false, true] {
        let mut options = options(60 * SECONDS);
        options.plain_http = plain_http;
        let began = Instant::now();
        let error = open(&format!("127.0.0.1:{port}/kit:v1"), &options).await.unwrap().resolve().await.unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}/kit:v1")), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        assert!(began.elapsed() < 5 * SECONDS);
    }
}

#[tokio::test]
async fn answers_mean_what_they_say() {
    let expect = async |status: u16| {
        let server = Faults::start(move |_, _| Answer::new(status));
        kit_of(&server, 3 * SECONDS).await.manifest(&Digest::of(MANIFEST)).await.unwrap_err()
    };
    assert!(matches!(expect(404).await, SourceError::NotFound(_)));
    assert!(matches!(expect(403).await, SourceError::Denied { .. }));
    assert!(matches!(expect(401).await, SourceError::Denied { .. }));
    assert!(matches!(expect(500).await, SourceError::Unreachable { .. }));
    assert!(matches!(expect(400).await, SourceError::Malformed { .. }));
}

#[tokio::test]
async fn silence_at_the_handshake_never_leads_to_plain_http() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let heard = std::thread::spawn(move || {
        let mut starts = Vec::new();
        let end = Instant::now() + 3 * SECONDS;
        listener.set_nonblocking(true).unwrap();
        let mut peers = Vec::new();
        while Instant::now() < end {
            if let Ok((mut peer, _)) = listener.accept() {
                peer.set_nonblocking(false).unwrap();
                peer.set_read_timeout(Some(SECONDS)).unwrap();
                let mut start = [0; 1];
                if peer.read_exact(&mut start).is_ok() {
                    starts.push(start[0]);
                }
                peers.push(peer);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        starts
    });
    let error = open(&format!("{host}/kit:v1"), &options(2 * SECONDS)).await.unwrap().resolve().await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    let starts = heard.join().unwrap();
    assert!(!starts.is_empty() && starts.iter().all(|start| *start == 0x16), "{starts:x?}");
}

#[tokio::test]
async fn files_that_are_no_layout_are_refused_and_a_fifo_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), "not a layout").unwrap();
    std::fs::create_dir_all(at("empty")).unwrap();
    std::fs::create_dir_all(at("fifo/blobs/sha256")).unwrap();
    std::fs::write(at("fifo/index.json"), r#"{"manifests":[]}"#).unwrap();
    let blob = descriptor(b"x");
    let fifo = at("fifo/blobs/sha256").join(blob.digest.hex());
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();

    let options = options(5 * SECONDS);
    let open_at = async |name: &str| open(&format!("oci:{}", at(name).display()), &options).await;
    assert!(matches!(open_at("text").await, Err(SourceError::Malformed { .. })));
    assert!(matches!(open_at("zero").await, Err(SourceError::Malformed { .. })));
    assert!(matches!(open_at("empty").await, Err(SourceError::NotFound(_))));
    assert!(matches!(open_at("missing").await, Err(SourceError::NotFound(_))));
    let source = open_at("fifo").await.unwrap();
    assert!(matches!(source.resolve().await, Err(SourceError::NotFound(_))));
    let began = Instant::now();
    assert!(matches!(source.blob(&blob).await, Err(SourceError::Malformed { .. })));
    assert!(began.elapsed() < SECONDS);
}
