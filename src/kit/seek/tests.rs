use std::io::Write;

use flate2::write::GzEncoder;

use super::*;

/// Half noise, half text that repeats what came tens of kilobytes before.
fn content(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut bytes = Vec::with_capacity(len + 4096);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let back = (state >> 40) as usize % 40_000;
        match (state >> 33) % 4 {
            0 if bytes.len() > back + 700 => bytes.extend_from_within(bytes.len() - back - 700..bytes.len() - back),
            1 => bytes.extend_from_slice(format!("{} tensors in {back} shards; ", bytes.len()).as_bytes()),
            _ => bytes.extend((0..40).map(|at| (state >> (at % 50)) as u8 ^ (at * 31) as u8)),
        }
    }
    bytes.truncate(len);
    bytes
}

fn gzip(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Everything that comes out of a decoder, given its input in pieces of one size.
fn run(decoder: &mut Decoder, blob: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 50_000];
    for mut input in blob.chunks(piece) {
        loop {
            let Progress { read, written } = decoder.decode(input, &mut buffer)?;
            if read == 0 && written == 0 {
                break;
            }
            input = &input[read..];
            content.extend_from_slice(&buffer[..written]);
        }
    }
    Ok(content)
}

/// Decompresses a layer, and again from every point that was noted; returns the points.
#[track_caller]
fn check(compression: Compression, blob: &[u8], content: &[u8]) -> Vec<SeekPoint> {
    let mut noted = None;
    for piece in [1 << 20, 4093] {
        let mut decoder = Decoder::new(compression).unwrap();
        assert!(run(&mut decoder, blob, piece).unwrap() == content, "decompressed wrong");
        noted = Some(decoder.finish().unwrap());
    }
    let points = noted.unwrap().0;
    for point in &points {
        let mut decoder = Decoder::at(compression, point).unwrap();
        let rest = run(&mut decoder, &blob[point.start() as usize..], 10_007).unwrap();
        assert!(rest == content[point.content as usize..], "another content from {point:?}");
        decoder.finish().unwrap();
    }
    points
}

#[test]
fn gzip_goes_on_from_every_point() {
    let content = content(9 << 20);
    for level in [2, 6, 9] {
        let points = check(Compression::Gzip, &gzip(&content, level), &content);
        let at: Vec<_> = points.iter().map(|point| (point.content, point.window.len())).collect();
        assert!(!points.is_empty(), "{level}: {at:?}");
        let windows: usize = points.iter().map(|point| point.window.len()).sum();
        assert!(windows as u64 <= content.len() as u64 / SPACING_PER_WINDOW + WINDOW_LIMIT as u64);
    }
}

/// The fastest level of some encoders writes one block, however long.
#[test]
fn one_block_has_no_points() {
    let content = content(5 << 20);
    assert!(check(Compression::Gzip, &gzip(&content, 1), &content).is_empty());
}

#[test]
fn points_on_every_bit_are_found() {
    let content = content(24 << 20);
    let points = check(Compression::Gzip, &gzip(&content, 2), &content);
    let mut bits: Vec<_> = points.iter().map(|point| point.bits).collect();
    bits.sort_unstable();
    bits.dedup();
    assert!(bits.len() > 4, "{bits:?}");
}

#[test]
fn members_of_gzip_are_one_stream() {
    let content = content(9 << 20);
    let (one, rest) = content.split_at(3 << 20);
    let (two, three) = rest.split_at(2_500_000);
    let blob = [one, two, b"", three].map(|part| gzip(part, 6)).concat();
    assert!(!check(Compression::Gzip, &blob, &content).is_empty());
}

#[test]
fn content_that_is_not_compressed_needs_no_window() {
    let mut state = 1_u64;
    let noise = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<_> = (0..6 << 20).map(noise).collect();
    let points = check(Compression::Gzip, &gzip(&noise, 6), &noise);
    assert_eq!(points.len(), 2);
    assert!(points.iter().all(|point| point.window.len() < 200), "{points:?}");
}

#[test]
fn zstd_goes_on_from_a_frame() {
    let content = content(9 << 20);
    let frames = content.chunks(1 << 20).map(|part| zstd::encode_all(part, 3).unwrap());
    let blob: Vec<_> = frames.collect::<Vec<_>>().concat();
    let points = check(Compression::Zstd, &blob, &content);
    assert_eq!(points.iter().map(|point| point.content >> 20).collect::<Vec<_>>(), [2, 4, 6, 8]);
    assert!(check(Compression::Zstd, &zstd::encode_all(&content[..], 3).unwrap(), &content).is_empty());
}

#[test]
fn a_layer_that_breaks_off_or_goes_on_is_refused() {
    let content = content(100_000);
    for (compression, blob) in
        [(Compression::Gzip, gzip(&content, 6)), (Compression::Zstd, zstd::encode_all(&content[..], 3).unwrap())]
    {
        let decode = |blob: &[u8]| {
            let mut decoder = Decoder::new(compression)?;
            run(&mut decoder, blob, 1000)?;
            decoder.finish()
        };
        assert!(decode(&blob).is_ok());
        for end in [0, 1, 9, blob.len() / 2, blob.len() - 1] {
            assert!(decode(&blob[..end]).is_err(), "{compression:?} {end}");
        }
        assert!(decode(&[&blob[..], b"more"].concat()).is_err(), "{compression:?}");
    }
}

#[test]
fn a_point_that_is_none_is_an_error_and_no_panic() {
    let content = content(5 << 20);
    let blob = gzip(&content, 6);
    let point = check(Compression::Gzip, &blob, &content).remove(0);
    for bits in 0..8 {
        for window in [&b""[..], b"no zstd", &zstd::bulk::compress(&[1; WINDOW + 1], 3).unwrap()] {
            let wrong =
                SeekPoint { bits, window: Bytes::copy_from_slice(window), blob: point.blob + 1, ..point.clone() };
            let Ok(mut decoder) = Decoder::at(Compression::Gzip, &wrong) else { continue };
            let _other_bytes = run(&mut decoder, &blob[wrong.start() as usize..], 1000);
        }
    }
}

fn point(content: u64, blob: u64) -> SeekPoint {
    SeekPoint { content, blob, bits: 0, window: Bytes::new() }
}

#[test]
fn decoding_begins_at_the_last_point_that_is_not_behind() {
    let points = SeekPoints::new(vec![point(100, 10), point(200, 20), point(300, 30)]).unwrap();
    for (content, begin, end) in [
        (0..50, None, Some(10)),
        (0..100, None, Some(10)),
        (99..101, None, Some(20)),
        (100..200, Some(10), Some(20)),
        (150..300, Some(10), Some(30)),
        (299..301, Some(20), None),
        (500..501, Some(30), None),
    ] {
        let around = points.around(&content);
        assert_eq!((around.0.map(|point| point.blob), around.1), (begin, end), "{content:?}");
    }
}

#[test]
fn points_rise() {
    assert!(SeekPoints::new(vec![point(100, 10), point(100, 20)]).is_none());
    assert!(SeekPoints::new(vec![point(100, 10), point(200, 10)]).is_none());
    assert!(SeekPoints::new(vec![point(0, 10)]).is_none() && SeekPoints::new(vec![point(1, 0)]).is_none());
    assert!(SeekPoints::new(vec![SeekPoint { bits: 8, ..point(100, 10) }]).is_none());
}
