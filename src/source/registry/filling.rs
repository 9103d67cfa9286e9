//! Part of a blob on its way into buffers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::buffers::Buffer;
use crate::buffers::Buffers;
use crate::source::Meter;
use crate::source::SourceError;
use crate::verify::Unverified;

/// Puts what arrives in pieces of any size into buffers, in order. The pieces are given up at once, so
/// that the HTTP library fills the same memory again and again.
#[derive(Debug)]
pub(super) struct Filling {
    /// What has not arrived yet.
    rest: Range<u64>,
    full: VecDeque<Unverified>,
    /// The buffer that is being filled, and how far it is.
    open: Option<(Buffer, usize)>,
    buffers: Buffers,
    meter: Meter,
}

impl Filling {
    /// Begins at the start of a range of a blob.
    pub(super) fn new(range: Range<u64>, buffers: &Buffers, meter: &Meter) -> Self {
        let (buffers, meter) = (buffers.clone(), meter.clone());
        Self { rest: range, full: VecDeque::new(), open: None, buffers, meter }
    }

    /// What has not arrived yet.
    pub(super) fn rest(&self) -> Range<u64> {
        self.rest.clone()
    }

    /// How many bytes have not arrived yet.
    pub(super) fn missing(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    /// Takes what arrived, of which what lies behind the end of the range is left out. Says whether that
    /// filled a buffer.
    pub(super) fn take(&mut self, mut chunk: Bytes) -> Result<bool, SourceError> {
        let before = self.full.len();
        while self.missing() > 0 && !chunk.is_empty() {
            let (mut buffer, filled) = match self.open.take() {
                Some(open) => open,
                None => {
                    let mut buffer = self.buffers.take().map_err(|error| SourceError::Local {
                        what: "memory for a range".into(),
                        source: Arc::new(error),
                    })?;
                    buffer.truncate(usize::try_from(self.missing()).unwrap_or(usize::MAX));
                    (buffer, 0)
                }
            };
            let len = chunk.len().min(buffer.len() - filled);
            buffer[filled..filled + len].copy_from_slice(&chunk.split_to(len));
            self.rest.start += len as u64;
            self.meter.add(len as u64);
            if filled + len == buffer.len() {
                self.full.push_back(Unverified::new(buffer.freeze()));
            } else {
                self.open = Some((buffer, filled + len));
            }
        }
        Ok(self.full.len() > before)
    }

    /// The next full buffer.
    pub(super) fn pop(&mut self) -> Option<Unverified> {
        self.full.pop_front()
    }

    /// All full buffers: the whole range, once nothing is missing.
    pub(super) fn into_pieces(self) -> Vec<Unverified> {
        self.full.into()
    }
}
