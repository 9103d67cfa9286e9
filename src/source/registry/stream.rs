//! A blob in order over connections that may break: each is resumed where the last one ended.

use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use reqwest::Method;
use reqwest::Response;
use tokio::time::Instant;

use crate::buffers::BUFFER;
use crate::kit::descriptor::Descriptor;
use crate::source::SourceError;
use crate::source::registry::Registry;
use crate::source::registry::failure::Failure;
use crate::source::registry::request::Part;
use crate::source::registry::request::Request;
use crate::source::registry::request::encoded;
use crate::source::registry::request::is_encoded;
use crate::verify::Unverified;

/// Bytes that must arrive within each timeout, so that a trickle ends, and bytes after which a broken
/// connection counts as a new misfortune and not as one more of the same.
pub(super) const FLOOR: u64 = 64 * 1024;

/// The rest of one blob.
#[derive(Debug)]
pub(in crate::source) struct BlobStream {
    request: Request,
    /// The next byte to hand out.
    at: u64,
    size: u64,
    body: Option<Body>,
    ranges: Ranges,
    /// How long the reader may still wait for the next [`FLOOR`] bytes. What it does between two pieces
    /// does not count.
    patience: Duration,
    /// Bytes that came since patience was full.
    arrived: u64,
    /// Bytes handed out since the tries were counted from 0.
    handed_out: u64,
}

#[derive(Debug)]
struct Body {
    response: Response,
    /// Bytes still to come that were handed out already.
    skip: u64,
    /// What came in one piece with what was handed out last.
    rest: Bytes,
}

/// What is known about how the registry serves ranges of this blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranges {
    Hoped,
    Ignored,
}

impl BlobStream {
    pub(super) fn new(registry: Registry, blob: &Descriptor, from: u64) -> Self {
        let request = registry.blob_request(blob);
        Self {
            patience: request.time(),
            request,
            at: from.min(blob.size),
            size: blob.size,
            body: None,
            ranges: Ranges::Hoped,
            arrived: 0,
            handed_out: 0,
        }
    }

    /// The next piece; `None` at the end, which is exactly at the blob's size.
    pub(in crate::source) async fn next(&mut self) -> Option<Result<Unverified, SourceError>> {
        if self.at == self.size && self.body.is_none() {
            return None;
        }
        self.request.set_deadline(Instant::now() + self.patience);
        let next = loop {
            let failure = match self.piece().await {
                Ok(Some(piece)) => break Some(Ok(Unverified::new(piece))),
                Ok(None) => break None,
                Err(failure) => failure,
            };
            self.body = None;
            if matches!(failure, Failure::NoRanges) && self.ranges == Ranges::Hoped {
                self.ranges = Ranges::Ignored;
            } else if let Err(error) = self.request.after(failure).await {
                break Some(Err(error));
            }
        };
        self.patience = self.request.deadline().saturating_duration_since(Instant::now());
        next
    }

    /// The next piece of the connection that there is, or of a new one.
    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.connect().await?,
        };
        loop {
            if body.rest.is_empty() {
                match self.request.chunk(&mut body.response).await {
                    Ok(Some(chunk)) => body.rest = chunk,
                    // Everything is here, however the connection ends.
                    Ok(None) | Err(_) if self.at == self.size => return Ok(None),
                    Ok(None) => return Err(Failure::Short { got: self.at }),
                    Err(failure) => return Err(failure),
                }
                self.arrive(body.rest.len() as u64);
            }
            let seen = body.skip.min(body.rest.len() as u64);
            body.rest.advance(seen as usize);
            body.skip -= seen;
            if body.rest.is_empty() {
                continue;
            }
            let piece = body.rest.split_to(body.rest.len().min(BUFFER));
            let end = self.at + piece.len() as u64;
            if end > self.size {
                return Err(Failure::Size { actual: format!("more than {}", self.size) });
            }
            self.hand_out(end);
            self.body = Some(body);
            return Ok(Some(piece));
        }
    }

    /// Asks for what is left: with a range, unless there is nothing to leave out or the registry ignores them.
    async fn connect(&mut self) -> Result<Body, Failure> {
        let (part, skip) = match self.ranges {
            _ if self.at == 0 => (Part::Whole, 0),
            Ranges::Hoped => (Part::Range { range: self.at..self.size, size: self.size }, 0),
            Ranges::Ignored => (Part::Whole, self.at),
        };
        let is_whole = matches!(part, Part::Whole);
        let response = self.request.send(Method::GET, part).await?;
        if is_whole {
            match response.content_length() {
                Some(length) if length != self.size => return Err(Failure::Size { actual: length.to_string() }),
                None if is_encoded(response.headers()) => return Err(encoded()),
                _ => {}
            }
        }
        Ok(Body { response, skip, rest: Bytes::new() })
    }

    fn arrive(&mut self, bytes: u64) {
        self.arrived = self.arrived.saturating_add(bytes);
        if self.arrived >= FLOOR {
            self.arrived = 0;
            self.request.set_deadline(Instant::now() + self.request.time());
        }
    }

    fn hand_out(&mut self, end: u64) {
        self.handed_out += end - self.at;
        self.at = end;
        if self.handed_out >= FLOOR {
            self.handed_out = 0;
            self.request.start_over();
        }
    }
}
