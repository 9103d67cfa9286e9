//! The bytes of an index that are still to be read, and the numbers in them.

use bytes::Bytes;

use crate::kit::index::IndexError;

/// What is left of an index.
pub(super) struct Input(pub(super) Bytes);

impl Input {
    /// The next `len` bytes, without copying them.
    pub(super) fn take(&mut self, len: usize) -> Result<Bytes, IndexError> {
        if len > self.0.len() {
            return Err(IndexError::CutOff);
        }
        Ok(self.0.split_to(len))
    }

    pub(super) fn byte(&mut self) -> Result<u8, IndexError> {
        let byte = self.0.first().copied().ok_or(IndexError::CutOff)?;
        self.0 = self.0.slice(1..);
        Ok(byte)
    }

    /// An unsigned LEB128 of at most ten bytes.
    pub(super) fn number(&mut self) -> Result<u64, IndexError> {
        let mut value = 0;
        for place in 0..10 {
            let byte = u64::from(self.byte()?);
            if place == 9 && byte > 1 {
                break;
            }
            value |= (byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(IndexError::Damaged("a number has more than 64 bits"))
    }

    /// A count of things of at least `least` bytes each, no more than are left.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, IndexError> {
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if count > self.0.len() / least { Err(IndexError::CutOff) } else { Ok(count) }
    }

    /// A signed number: zigzag, so that small negative ones stay short.
    pub(super) fn signed(&mut self) -> Result<i64, IndexError> {
        let folded = self.number()?;
        Ok((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<Bytes, IndexError> {
        let len = self.count(1)?;
        self.take(len)
    }
}

pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_number(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn numbers_survive_a_round_trip(number: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            put_signed(&mut bytes, signed);
            let mut input = Input(bytes.into());
            assert_eq!((input.number().unwrap(), input.signed().unwrap()), (number, signed));
            assert!(input.0.is_empty());
        }
    }

    #[test]
    fn a_number_has_64_bits_at_most() {
        let read = |bytes: &'static [u8]| Input(Bytes::from_static(bytes)).number();
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).unwrap(), u64::MAX);
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).is_err());
        assert!(read(&[0x80; 11]).is_err() && read(&[0x80]).is_err());
    }
}
