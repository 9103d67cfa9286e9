//! Files that loaders read whole once they know what is in them.

/// The longest header that safetensors allows (its README, "Format").
const SAFETENSORS_HEADER_LIMIT: u64 = 100_000_000;

/// Where a loader of this file is done with its header, by the first bytes of the file; `None` if it is not
/// of a format whose loaders then read the tensors, in the order in which they lie in the file.
///
/// safetensors: eight bytes of length, little-endian, and that much JSON. GGUF has no such length; a loader
/// that goes on behind the first request of the kernel is reading the metadata, and the tensors follow.
pub(super) fn header_end(start: &[u8], size: u64) -> Option<u64> {
    const FIRST_REQUEST: u64 = 128 * 1024;
    if start.starts_with(b"GGUF") {
        return Some(FIRST_REQUEST.max(start.len() as u64) + 1).filter(|end| *end < size);
    }
    let (length, json) = start.split_first_chunk()?;
    let length = u64::from_le_bytes(*length);
    let end = length.checked_add(8)?;
    let is_header = json.first() == Some(&b'{') && (2..=SAFETENSORS_HEADER_LIMIT).contains(&length);
    (is_header && end < size).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_weights_are_known_by_their_first_bytes() {
        let safetensors = [&300_u64.to_le_bytes()[..], br#"{"__metadata__":{}}"#].concat();
        assert_eq!(header_end(&safetensors, 1 << 30), Some(308));
        assert_eq!(header_end(&safetensors, 308), None);
        assert_eq!(header_end(b"GGUF\x03\0\0\0", 1 << 30), Some(128 * 1024 + 1));
        assert_eq!(header_end(b"GGUF\x03\0\0\0", 1000), None);
        for other in [&b""[..], b"PK\x03\x04abcdefgh", &u64::MAX.to_le_bytes(), b"{\"a\": 1234567}"] {
            assert_eq!(header_end(other, 1 << 30), None, "{other:?}");
        }
    }
}
