//! A blob in order over connections that may break: each is resumed where the last one ended.

use bytes::Buf;
use reqwest::Method;
use reqwest::Response;

use crate::source::SourceError;
use crate::source::registry::failure::Failure;
use crate::source::registry::filling::Filling;
use crate::source::registry::request::FLOOR;
use crate::source::registry::request::Part;
use crate::source::registry::request::Request;
use crate::source::registry::request::encoded;
use crate::source::registry::request::is_encoded;
use crate::verify::Unverified;

/// Part of one blob.
#[derive(Debug)]
pub(in crate::source) struct BlobStream {
    request: Request,
    filling: Filling,
    size: u64,
    body: Option<Body>,
    ranges: Ranges,
    /// Bytes that came since the request had all its time: the next [`FLOOR`] have to come within that. What the
    /// reader does between two pieces does not count.
    arrived: u64,
}

#[derive(Debug)]
struct Body {
    response: Response,
    /// Bytes still to come that have come before.
    skip: u64,
}

/// How the registry serves ranges of this blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source) enum Ranges {
    /// That will be seen. Where it ignores them a stream begins with what was not asked for.
    Hoped,
    /// It has to serve them.
    Needed,
    /// It ignores them.
    Ignored,
}

impl BlobStream {
    /// What `filling` wants of a blob of `size` bytes: up to the blob's end, unless ranges are needed.
    pub(super) fn new(request: Request, filling: Filling, size: u64, ranges: Ranges) -> Self {
        Self { request, filling, size, body: None, ranges, arrived: 0 }
    }

    /// The next piece, a full buffer unless it is the last; `None` at the end, which is exactly where it should
    /// be.
    pub(in crate::source) async fn next(&mut self) -> Option<Result<Unverified, SourceError>> {
        if let Some(piece) = self.filling.pop() {
            return Some(Ok(piece));
        }
        if self.filling.missing() == 0 && self.body.is_none() {
            return None;
        }
        loop {
            let failure = match self.piece().await {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => return None,
                Err(Stop::Failure(failure)) => failure,
                Err(Stop::Error(error)) => return Some(Err(error)),
            };
            self.body = None;
            if matches!(failure, Failure::NoRanges) && self.ranges == Ranges::Hoped {
                self.ranges = Ranges::Ignored;
            } else if let Err(error) = self.request.after(failure).await {
                return Some(Err(error));
            }
        }
    }

    /// The next piece of the connection that there is, or of a new one.
    async fn piece(&mut self) -> Result<Option<Unverified>, Stop> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.connect().await?,
        };
        loop {
            let mut chunk = match self.request.chunk(&mut body.response).await {
                Ok(Some(chunk)) => chunk,
                // Everything is here, however the connection ends.
                Ok(None) | Err(_) if self.filling.missing() == 0 => return Ok(None),
                Ok(None) => return Err(Failure::Short { got: self.filling.rest().start }.into()),
                Err(failure) => return Err(failure.into()),
            };
            self.arrive(chunk.len() as u64);
            let seen = body.skip.min(chunk.len() as u64);
            chunk.advance(seen as usize);
            body.skip -= seen;
            if chunk.len() as u64 > self.filling.missing() {
                return Err(match self.ranges {
                    Ranges::Needed => Failure::NoRanges.into(),
                    Ranges::Hoped | Ranges::Ignored => {
                        Failure::Size { actual: format!("more than {}", self.size) }.into()
                    }
                });
            }
            self.request.gain(chunk.len() as u64);
            self.filling.take(chunk).map_err(Stop::Error)?;
            if let Some(piece) = self.filling.pop() {
                self.body = Some(body);
                return Ok(Some(piece));
            }
        }
    }

    /// Asks for what is left: with a range, unless there is nothing to leave out or the registry ignores them.
    async fn connect(&mut self) -> Result<Body, Failure> {
        let rest = self.filling.rest();
        let (part, skip) = match self.ranges {
            Ranges::Hoped if rest.start == 0 => (Part::Whole, 0),
            Ranges::Hoped | Ranges::Needed => (Part::Range { range: rest, size: self.size }, 0),
            Ranges::Ignored => (Part::Whole, rest.start),
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
        Ok(Body { response, skip })
    }

    fn arrive(&mut self, bytes: u64) {
        self.arrived = self.arrived.saturating_add(bytes);
        if self.arrived >= FLOOR {
            self.arrived = 0;
            self.request.renew();
        }
    }
}

/// Why there is no next piece.
enum Stop {
    /// Of this try.
    Failure(Failure),
    /// Of all tries.
    Error(SourceError),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}
