//! What layers are made of: tar, gzip and zstd, held against themselves and against other decoders.

use std::io;
use std::io::{BufReader, Read, Write};

use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use flate2::write::GzEncoder;
use kitfs::kit::listing::{Certainty, Lister};
use kitfs::kit::media::Compression;
use kitfs::kit::seek::{Decoder, Progress, SeekPoint, SeekPoints};
use kitfs::kit::tar::{Event, Member, MemberKind, TarError, TarReader};

/// How a tar is read.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// In pieces of that many bytes.
    Pieces(usize),
    /// From header to header.
    Hops,
}

fn members(data: &[u8], way: Way) -> (Vec<Member>, Result<(), TarError>) {
    let mut reader = TarReader::new(Some(data.len() as u64));
    let mut members: Vec<Member> = Vec::new();
    let mut left = 0;
    let mut rest = data;
    let piece = if let Way::Pieces(len) = way { len } else { data.len() };
    while !rest.is_empty() {
        let (mut bytes, behind) = rest.split_at(piece.min(rest.len()));
        loop {
            match reader.next(&mut bytes) {
                Ok(Some(Event::Member(member))) => {
                    assert!(member.mode <= 0o777 && member.offset + member.size <= data.len() as u64);
                    assert!(member.kind == MemberKind::File || member.size == 0);
                    left = member.size;
                    members.push(member);
                }
                Ok(Some(Event::Data(data))) => left -= data.len() as u64,
                Ok(Some(Event::End)) => assert_eq!(left, 0, "the file is complete"),
                Ok(None) => break,
                Err(error) => return (members, Err(error)),
            }
            if matches!(way, Way::Hops) {
                let count = reader.skippable().min(bytes.len() as u64);
                reader.skip(count);
                bytes = &bytes[count as usize..];
                left = 0;
            }
        }
        rest = behind;
    }
    (members, reader.finish())
}

/// A tar: however it arrives, and whether its files are read or passed over, its members are the same.
pub fn tar(data: &[u8]) {
    let (whole, ended) = members(data, Way::Pieces(data.len().max(1)));
    for way in [Way::Pieces(1), Way::Pieces(513), Way::Hops] {
        let (same, end) = members(data, way);
        assert_eq!(same, whole, "{way:?}");
        assert_eq!(format!("{end:?}"), format!("{ended:?}"), "{way:?}");
    }
    let mut lister = Lister::default();
    if whole.into_iter().try_for_each(|member| lister.add(member)).is_ok() {
        let _ = lister.finish(Certainty::Provisional);
    }
}

/// More than this nobody decompresses here.
const LIMIT: usize = 4 << 20;

/// What came out of a decoder.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Whole(Vec<u8>),
    Refused,
    TooLong,
}

fn outcome(result: io::Result<Vec<u8>>) -> Outcome {
    match result {
        Ok(content) if content.len() > LIMIT => Outcome::TooLong,
        Ok(content) => Outcome::Whole(content),
        Err(_) => Outcome::Refused,
    }
}

fn run(decoder: &mut Decoder, blob: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    for mut input in blob.chunks(piece) {
        loop {
            let Progress { read, written } = decoder.decode(input, &mut buffer)?;
            if (read, written) == (0, 0) {
                break;
            }
            input = &input[read..];
            content.extend_from_slice(&buffer[..written]);
            if content.len() > LIMIT {
                return Ok(content);
            }
        }
    }
    Ok(content)
}

fn decode(compression: Compression, blob: &[u8], piece: usize) -> io::Result<(Vec<u8>, SeekPoints)> {
    let mut decoder = Decoder::new(compression)?;
    let content = run(&mut decoder, blob, piece)?;
    let points = if content.len() > LIMIT { SeekPoints::default() } else { decoder.finish()? };
    Ok((content, points))
}

/// Decodes in pieces of two sizes, and as somebody else does.
fn compare(compression: Compression, blob: &[u8], reference: io::Result<Vec<u8>>) {
    let reference = outcome(reference);
    for piece in [blob.len().max(1), 7] {
        let decoded = outcome(decode(compression, blob, piece).map(|(content, _)| content));
        let is_same = match (&decoded, &reference) {
            (Outcome::TooLong, _) | (_, Outcome::TooLong) => true,
            // libzstd holds the size that a frame claims against an empty one only if it has the whole frame at once.
            (Outcome::Refused, _) | (_, Outcome::Refused) if compression == Compression::Zstd => true,
            (decoded, reference) => decoded == reference,
        };
        assert!(is_same, "{decoded:?} in pieces of {piece}, and {reference:?}");
    }
}

fn at_most(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.take(LIMIT as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// A gzip layer; and the same bytes as what follows a seek point, whose bits and window they give too.
pub fn gzip(data: &[u8]) {
    compare(Compression::Gzip, data, at_most(MultiGzDecoder::new(BufReader::new(data))));
    let Some((first, rest)) = data.split_first() else { return };
    let window = if first & 8 == 0 { Bytes::new() } else { Bytes::copy_from_slice(rest) };
    let point = SeekPoint { content: 1, blob: 1, bits: first & 7, window };
    let Ok(mut decoder) = Decoder::at(Compression::Gzip, &point) else { return };
    let decoded = run(&mut decoder, rest, 7);
    if let (0, Ok(content)) = (first & 15, at_most(DeflateDecoder::new(rest)))
        && let Ok(decoded) = decoded
    {
        let len = content.len().min(LIMIT);
        assert!(decoded.get(..len) == content.get(..len), "deflate is read differently");
    }
}

/// A zstd layer.
pub fn zstd(data: &[u8]) {
    let reference = ::zstd::stream::read::Decoder::new(data).and_then(|mut decoder| {
        decoder.window_log_max(26)?;
        at_most(decoder)
    });
    compare(Compression::Zstd, data, reference);
}

/// Content that is compressed and then decompressed from every point: the first byte says how.
pub fn seek(data: &[u8]) {
    let Some((how, seed)) = data.split_first() else { return };
    let seed = seed.repeat(1 + 4096 / (seed.len() + 1));
    let mut content = Vec::with_capacity(LIMIT);
    while content.len() < 5 << 19 {
        content.extend_from_slice(&(content.len() as u32).to_le_bytes());
        content.extend_from_slice(&seed);
    }
    let (compression, blob) = match how & 1 {
        0 => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(u32::from(how >> 1) % 10));
            encoder.write_all(&content).expect("memory takes it");
            (Compression::Gzip, encoder.finish().expect("memory takes it"))
        }
        _ => {
            let frames = content.chunks(usize::from(*how) << 12);
            let frames = frames.map(|frame| ::zstd::bulk::compress(frame, 1).expect("memory takes it"));
            (Compression::Zstd, frames.collect::<Vec<_>>().concat())
        }
    };
    let (decoded, points) = decode(compression, &blob, blob.len()).expect("it was just compressed");
    assert!(decoded == content, "decompressed wrong");
    for point in points.points() {
        let mut decoder = Decoder::at(compression, point).expect("it was just noted");
        let start = usize::try_from(point.start()).expect("it is in the blob");
        let rest = run(&mut decoder, &blob[start..], 10_007).expect("it is a place to start");
        assert!(rest == content[point.content as usize..], "another content from {point:?}");
        decoder.finish().expect("it was whole");
    }
}
