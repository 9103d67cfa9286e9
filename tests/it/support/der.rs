//! DER (X.690), as much as certificates and timestamps need.

use x509_cert::der::{Encode, asn1::ObjectIdentifier};

/// One value with its tag and length.
pub fn tlv(tag: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let len = content.len().to_be_bytes();
    let len = &len[len.iter().position(|byte| *byte > 0).unwrap_or(len.len() - 1)..];
    let mut value = vec![tag];
    if content.len() > 127 {
        value.push(0x80 | len.len() as u8);
    }
    value.extend(len);
    value.extend(content);
    value
}

/// SEQUENCE.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts.concat())
}

/// SET OF, in the order that DER wants.
pub fn set(parts: &[&[u8]]) -> Vec<u8> {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    tlv(0x31, parts.concat())
}

/// OBJECT IDENTIFIER.
pub fn oid(dotted: &str) -> Vec<u8> {
    dotted.parse::<ObjectIdentifier>().unwrap().to_der().unwrap()
}

/// INTEGER, of a number that is positive and small.
pub fn integer(number: u8) -> Vec<u8> {
    tlv(2, [number & 0x7f])
}

/// OCTET STRING.
pub fn octets(content: impl AsRef<[u8]>) -> Vec<u8> {
    tlv(4, content)
}

/// BIT STRING of whole bytes.
pub fn bits(content: &[u8]) -> Vec<u8> {
    tlv(3, [&[0], content].concat())
}

/// GeneralizedTime, of a time in seconds.
pub fn time(second: i64) -> Vec<u8> {
    tlv(0x18, format_time("%Y%m%d%H%M%SZ", second))
}

/// UTCTime, as certificates have it before 2050.
pub fn short_time(second: i64) -> Vec<u8> {
    tlv(0x17, format_time("%y%m%d%H%M%SZ", second))
}

fn format_time(format: &str, second: i64) -> String {
    jiff::Timestamp::from_second(second).unwrap().strftime(format).to_string()
}

/// A name with nothing but a common name.
pub fn name(common: &str) -> Vec<u8> {
    sequence(&[&set(&[&sequence(&[&oid("2.5.4.3"), &tlv(0x0c, common)])])])
}

/// An extension of a certificate.
pub fn extension(id: &str, is_critical: bool, value: impl AsRef<[u8]>) -> Vec<u8> {
    let critical: &[u8] = if is_critical { &[1, 1, 0xff] } else { &[] };
    sequence(&[&oid(id), critical, &octets(value)])
}
