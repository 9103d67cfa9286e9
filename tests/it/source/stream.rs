//! A blob as one stream, over connections that break.

use std::time::Duration;

use kitfs::buffers::BUFFER;
use kitfs::source::SourceError;

use super::super::support::faults::{Answer, Asked, Content, Faults};
use super::super::support::kit::noise;
use super::{SECONDS, descriptor, drain, kit_of};

fn layer() -> Vec<u8> {
    noise(5, 2 * BUFFER + 77)
}

/// A server whose answers come out of `change`.
fn serving(change: impl Fn(&Asked, usize, Answer) -> Answer + Send + Sync + 'static) -> Faults {
    let mut content = Content::default();
    content.add(layer());
    Faults::start(move |asked, before| change(asked, before, content.answer(asked)))
}

#[tokio::test]
async fn is_resumed_with_a_range_where_it_broke() {
    let server = serving(|_, before, answer| if before < 3 { answer.cut(300_000) } else { answer });
    drain(kit_of(&server, 5 * SECONDS).await.stream(&descriptor(&layer()), 0), &layer()).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].range(), None);
    assert!(asked[1..].iter().all(|asked| asked.range().is_some_and(|(first, _)| first > 0)), "{asked:?}");
}

#[tokio::test]
async fn starts_again_and_leaves_out_what_was_seen_where_ranges_are_ignored() {
    for chunked in [Answer::chunked as fn(Answer) -> Answer, std::convert::identity] {
        let server = Faults::start(move |_, before| {
            let answer = Answer::new(200).body(layer());
            if before == 0 { answer.cut(700_000) } else { chunked(answer) }
        });
        drain(kit_of(&server, 5 * SECONDS).await.stream(&descriptor(&layer()), 0), &layer()).await.unwrap();
        drain(kit_of(&server, 5 * SECONDS).await.stream(&descriptor(&layer()), 123_456), &layer()[123_456..])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_range_that_is_another_one_is_not_used() {
    let server = serving(|asked, _, answer| match asked.range() {
        Some(_) => answer.header("Content-Range", format!("bytes 0-9/{}", layer().len())),
        None => answer,
    });
    drain(kit_of(&server, 5 * SECONDS).await.stream(&descriptor(&layer()), 5000), &layer()[5000..]).await.unwrap();
}

#[tokio::test]
async fn a_body_of_another_length_is_refused() {
    for (what, extra) in [("longer", 1_i64), ("shorter", -1)] {
        for chunked in [Answer::chunked as fn(Answer) -> Answer, std::convert::identity] {
            let server = Faults::start(move |_, _| {
                let mut body = layer();
                body.resize((body.len() as i64 + extra) as usize, 0);
                chunked(Answer::new(200).body(body))
            });
            let source = kit_of(&server, 10 * SECONDS).await;
            let mut stream = source.stream(&descriptor(&layer()), 0);
            let error = loop {
                match stream.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("a {what} body was taken"),
                }
            };
            assert!(matches!(error, SourceError::WrongSize { .. }), "{what}: {error}");
            assert!(stream.next().await.is_none());
        }
    }
}

#[tokio::test]
async fn time_that_the_reader_takes_does_not_count() {
    let server = serving(|_, _, answer| answer);
    let source = kit_of(&server, SECONDS).await;
    let blob = descriptor(&layer());
    let mut stream = source.stream(&blob, 0);
    let mut seen = 0;
    while let Some(piece) = stream.next().await {
        if seen == 0 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        seen += piece.unwrap().len();
    }
    assert_eq!(seen, layer().len());
}

#[tokio::test]
async fn nothing_is_asked_for_an_empty_blob() {
    let server = serving(|_, _, answer| answer);
    drain(kit_of(&server, SECONDS).await.stream(&descriptor(b""), 0), b"").await.unwrap();
    assert!(server.asked().is_empty());
}
