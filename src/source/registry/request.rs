//! One request to a registry, with its tries: what is sent, what counts as an answer, and when it ends.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::ACCEPT;
use reqwest::header::ACCEPT_ENCODING;
use reqwest::header::AUTHORIZATION;
use reqwest::header::CONTENT_ENCODING;
use reqwest::header::CONTENT_RANGE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderName;
use reqwest::header::RANGE;
use reqwest::header::WWW_AUTHENTICATE;

use crate::patience::Patience;
use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::registry::Registry;
use crate::source::registry::Repository;
use crate::source::registry::failure;
use crate::source::registry::failure::Failure;
use crate::source::registry::failure::Next;

/// What a manifest may be; registries without this send conversions to old formats.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// What a list of referrers is (distribution-spec, "Listing Referrers").
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Bytes that must arrive within each timeout, so that a trickle ends, and bytes after which a broken
/// connection counts as a new misfortune and not as one more of the same.
pub(super) const FLOOR: u64 = 64 * 1024;

/// What part of a thing is asked for.
#[derive(Debug)]
pub(super) enum Part {
    Whole,
    /// These bytes of a blob of `size` bytes.
    Range {
        range: Range<u64>,
        size: u64,
    },
}

/// A request with all its tries, which end together.
#[derive(Debug)]
pub(super) struct Request {
    repository: Arc<Repository>,
    /// What messages call that which is asked for.
    what: String,
    path: String,
    /// The size of the blob that is asked for, or the most that is read of anything else.
    size: u64,
    /// For all tries together.
    patience: Patience,
    tries: u32,
    /// New bytes since the tries were counted from 0.
    gained: u64,
    /// Which login the last try was sent with.
    login: u64,
    logged_in: LoggedIn,
}

/// Whether this request has already led to a login: a second 401 is an answer.
#[derive(Debug, PartialEq, Eq)]
enum LoggedIn {
    No,
    Yes,
}

impl Request {
    /// A request for `path` below the repository.
    pub(super) fn new(registry: &Registry, what: String, path: String) -> Self {
        let repository = Arc::clone(&registry.0);
        let patience = Patience::new(repository.http.timeouts().whole);
        let (size, logged_in) = (METADATA_LIMIT, LoggedIn::No);
        Self { repository, what, path, size, patience, tries: 0, gained: 0, login: 0, logged_in }
    }

    /// Says how large the blob is that is asked for.
    pub(super) fn of_size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Notes that bytes came which had not come before: after [`FLOOR`] of them the tries and the login that
    /// there were are forgotten. What comes again does not count: a body that ends too early each time would
    /// never be given up.
    pub(super) fn gain(&mut self, bytes: u64) {
        self.gained += bytes;
        if self.gained >= FLOOR {
            self.gained = 0;
            self.tries = 0;
            self.logged_in = LoggedIn::No;
        }
    }

    /// Gives the tries all their time again.
    pub(super) fn renew(&mut self) {
        self.patience = Patience::new(self.repository.http.timeouts().whole);
    }

    /// Whether a blob or a manifest is asked for by its digest: a tag has no colon.
    fn is_by_digest(&self) -> bool {
        self.path.starts_with("blobs/") || self.path.starts_with("manifests/") && self.path.contains(':')
    }

    fn error(&self, failure: Failure) -> SourceError {
        failure.into_error(self.what.clone(), self.size)
    }

    /// Makes one try, up to the head of a good answer: 200, or for a range 206 with exactly that range.
    pub(super) async fn send(&mut self, method: Method, part: Part) -> Result<Response, Failure> {
        self.tries += 1;
        let mut patience = self.patience;
        let sent = patience.wait_for(self.send_now(method, &part)).await;
        self.patience = patience;
        accept(sent.map_err(|_| Failure::Deadline)??, &part)
    }

    async fn send_now(&mut self, method: Method, part: &Part) -> Result<Response, Failure> {
        let repository = Arc::clone(&self.repository);
        let http = &repository.http;
        let scheme = http.scheme().await?.name();
        let url = format!("{scheme}://{}/v2/{}/{}", http.server(), repository.reference.repository, self.path);
        let url: Url = url.parse().map_err(|error| Failure::Odd(format!("{url:?} is no URL: {error}")))?;
        let origin = url.origin();
        let mut request = http.client().request(method, url).header(ACCEPT_ENCODING, "identity");
        if self.path.starts_with("manifests/") {
            request = request.header(ACCEPT, MANIFESTS);
        } else if self.path.starts_with("referrers/") {
            request = request.header(ACCEPT, INDEX);
        }
        if let Part::Range { range, .. } = part {
            // The caller asks for no empty range.
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let (authorization, login) = repository.login.current();
        self.login = login;
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let limit = http.timeouts().connect + http.timeouts().headers;
        let response = match Patience::new(limit).wait_for(request.send()).await {
            Ok(response) => response.map_err(Failure::of)?,
            Err(_) => return Err(Failure::Late("the registry did not answer in time")),
        };
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            // Some object stores answer 400 to a signature that has expired.
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
                if response.url().origin() != origin =>
            {
                Err(Failure::Expired(status))
            }
            StatusCode::UNAUTHORIZED => {
                let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
                Err(Failure::Unauthorized(
                    challenges.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect(),
                ))
            }
            StatusCode::FORBIDDEN => Err(Failure::Denied("the registry answers 403 Forbidden".into())),
            StatusCode::NOT_FOUND if self.is_by_digest() => Err(Failure::Behind),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Failure::Missing),
            status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) => {
                Err(Failure::Busy(status, failure::retry_after(response.headers())))
            }
            // Not a trouble that passes, but a method that is not known.
            status @ StatusCode::NOT_IMPLEMENTED => Err(Failure::Odd(format!("the registry answers {status}"))),
            status if status.is_server_error() => Err(Failure::Busy(status, failure::retry_after(response.headers()))),
            status if status.is_client_error() => Err(Failure::Refused(status)),
            status => Err(Failure::Odd(format!("the registry answers {status}"))),
        }
    }

    /// Does what a failed try asks for: waits, logs in, or ends with the error of the request.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), SourceError> {
        match failure.next(self.tries) {
            // There is no use in waiting for a try that comes too late.
            Next::Again(pause) if self.patience.pause(pause).await => {
                tracing::debug!(what = %self.what, ?failure, ?pause, "trying again");
                Ok(())
            }
            Next::LogIn(challenges) if self.logged_in == LoggedIn::No => {
                self.logged_in = LoggedIn::Yes;
                let repository = Arc::clone(&self.repository);
                let renewed = repository.login.renew(&repository, self.login, &challenges);
                match self.patience.wait_for(renewed).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(failure)) => Err(self.error(failure)),
                    Err(_) => Err(self.error(Failure::Late("the login did not end in time"))),
                }
            }
            Next::Again(_) | Next::LogIn(_) | Next::Stop => Err(self.error(failure)),
        }
    }

    /// Reads a whole body of at most `limit` bytes; a longer one is [`Failure::Longer`].
    pub(super) async fn body(&mut self, mut response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        if is_encoded(response.headers()) {
            return Err(encoded());
        }
        let expected = response.content_length().unwrap_or(0);
        if expected > limit {
            return Err(Failure::Longer);
        }
        let mut body = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(Failure::Longer);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads the whole body of a blob, which has exactly the size that was told.
    pub(super) async fn whole_blob(&mut self, response: Response) -> Result<Vec<u8>, Failure> {
        if let Some(length) = response.content_length().filter(|length| *length != self.size) {
            return Err(Failure::Size { actual: length.to_string() });
        }
        match self.body(response, self.size).await {
            Ok(bytes) if bytes.len() as u64 == self.size => Ok(bytes),
            Ok(bytes) => Err(Failure::Short { got: bytes.len() as u64 }),
            Err(Failure::Longer) => Err(Failure::Size { actual: format!("more than {}", self.size) }),
            Err(failure) => Err(failure),
        }
    }

    /// The next piece of a body, within the time between two pieces and that of the whole request.
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let idle = self.repository.http.timeouts().idle;
        match self.patience.wait_for(Patience::new(idle).wait_for(response.chunk())).await {
            Ok(Ok(chunk)) => chunk.map_err(Failure::of),
            Ok(Err(_)) => Err(Failure::Late("the body stalled")),
            Err(_) => Err(Failure::Deadline),
        }
    }
}

/// Decides whether an answer is one to what was asked.
fn accept(response: Response, part: &Part) -> Result<Response, Failure> {
    let status = response.status();
    let Part::Range { range, size } = part else {
        return match status {
            StatusCode::OK => Ok(response),
            status => Err(Failure::Odd(format!("the registry answers {status} to a request without a range"))),
        };
    };
    let served = header(response.headers(), &CONTENT_RANGE).and_then(ContentRange::parse);
    match (status, served) {
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange { range: Some(served), size: Some(total) }))
            if served == *range && !is_encoded(response.headers()) =>
        {
            if total != *size {
                return Err(Failure::Size { actual: total.to_string() });
            }
            let len = range.end - range.start;
            if response.content_length().is_some_and(|length| length != len) {
                Err(Failure::NoRanges)
            } else {
                Ok(response)
            }
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { size: Some(total), .. })) if total != *size => {
            Err(Failure::Size { actual: total.to_string() })
        }
        _ => Err(Failure::NoRanges),
    }
}

/// Whether a body is something else than the bytes that were asked for.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|encoding| encoding != "identity")
}

/// An answer in an encoding that was not asked for.
pub(super) fn encoded() -> Failure {
    Failure::Odd("the registry answers with a Content-Encoding where it was asked for none".into())
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// RFC 9110, 14.4: `bytes first-last/size`, or `bytes */size`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Option<Range<u64>>,
    size: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
        let number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let range = match range {
            "*" => None,
            range => {
                let (first, last) = range.split_once('-')?;
                Some(number(first)?..number(last)?.checked_add(1)?)
            }
        };
        let size = if size == "*" { None } else { Some(number(size)?) };
        Some(Self { range, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_parsed_exactly() {
        let parsed = |text| ContentRange::parse(text);
        assert_eq!(parsed("bytes 0-9/100"), Some(ContentRange { range: Some(0..10), size: Some(100) }));
        assert_eq!(parsed("bytes 5-5/*"), Some(ContentRange { range: Some(5..6), size: None }));
        assert_eq!(parsed("bytes */100"), Some(ContentRange { range: None, size: Some(100) }));
        for text in
            ["", "bytes", "0-9/100", "bytes 0-9", "bytes a-9/1", "bytes +0-9/100", "bytes 0-18446744073709551615/1"]
        {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
