//! What can go wrong with one try, and what that says about the next.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use reqwest::header::RETRY_AFTER;

use crate::source::Cause;
use crate::source::SourceError;

/// Why one try gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: refused, no such host, no handshake.
    Connect(io::Error),
    /// The same, seen by the HTTP client.
    Unconnected(reqwest::Error),
    /// The peer is not who it should be. Another try would see the same.
    Certificate(reqwest::Error),
    /// A redirect that is not followed.
    Redirect(reqwest::Error),
    /// The connection broke.
    Broken(reqwest::Error),
    /// A wait was too long.
    Late(&'static str),
    /// 429 or 5xx, with what `Retry-After` says.
    Busy(StatusCode, Option<Duration>),
    /// 401 of the registry, with its challenges.
    Unauthorized(Vec<String>),
    /// 401 or 403 of where the registry redirected to: what it signed has expired.
    Expired(StatusCode),
    /// 403, or 401 where there is nothing to be done about it.
    Denied(String),
    /// 404.
    Missing,
    /// 404 to a digest: somebody has named it, and a mirror may only be late.
    Behind,
    /// Another answer of the 4xx kind: the registry does not do what it was asked to.
    Refused(StatusCode),
    /// An answer that the protocol does not have.
    Odd(String),
    /// A body that ended early, and properly.
    Short { got: u64 },
    /// A body longer than it may be.
    Longer,
    /// The blob has another size than its descriptor.
    Size { actual: String },
    /// The range was ignored, or answered with another one.
    NoRanges,
    /// The deadline of the whole request has passed.
    Deadline,
    /// Already an error of the source, such as that of a login.
    Final(SourceError),
}

/// What to do after a failed try.
pub(super) enum Next {
    /// Try again, not sooner than after that.
    Again(Duration),
    /// Log in, with these challenges, and try again.
    LogIn(Vec<String>),
    /// Give up.
    Stop,
}

/// Tries where another one rarely helps: nobody answers at all, or a body ends as if it were whole. It
/// should not take long to learn of that.
const TRIES_FEW: u32 = 4;

/// Tries where something answers, but not well.
const TRIES: u32 = 7;

/// Tries of what is not there and should be, and the least time between two of them.
const TRIES_BEHIND: u32 = 4;
const PAUSE_BEHIND: Duration = Duration::from_millis(300);

/// Tries of a redirect whose target refuses us.
const TRIES_EXPIRED: u32 = 3;

impl Failure {
    /// Says what an error of the HTTP client is. Its URL is taken off: where a redirect leads to is
    /// often signed, and so a secret.
    pub(super) fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_redirect() {
            Self::Redirect(error)
        } else if matches!(tls_error(&error), Some(rustls::Error::InvalidCertificate(_))) {
            Self::Certificate(error)
        } else if error.is_connect() {
            Self::Unconnected(error)
        } else {
            Self::Broken(error)
        }
    }

    /// What follows after the `tries`-th try of a request.
    pub(super) fn next(&self, tries: u32) -> Next {
        let again = |limit: u32, at_least: Duration| match tries < limit {
            true => Next::Again(at_least.max(backoff(tries))),
            false => Next::Stop,
        };
        match self {
            Self::Connect(_) | Self::Unconnected(_) | Self::Short { .. } => again(TRIES_FEW, Duration::ZERO),
            Self::Broken(_) | Self::Late(_) => again(TRIES, Duration::ZERO),
            Self::Busy(_, wait) => again(TRIES, wait.unwrap_or_default()),
            Self::Behind => again(TRIES_BEHIND, PAUSE_BEHIND),
            Self::Expired(_) => again(TRIES_EXPIRED, Duration::ZERO),
            Self::Unauthorized(challenges) => Next::LogIn(challenges.clone()),
            Self::Certificate(_)
            | Self::Redirect(_)
            | Self::Denied(_)
            | Self::Missing
            | Self::Refused(_)
            | Self::Odd(_)
            | Self::Longer
            | Self::Size { .. }
            | Self::NoRanges
            | Self::Deadline
            | Self::Final(_) => Next::Stop,
        }
    }

    /// The error that a request ends with. `size` is the blob's, where a blob was asked for.
    pub(super) fn into_error(self, what: String, size: u64) -> SourceError {
        let unreachable =
            |why: String, source: Option<Cause>| SourceError::Unreachable { what: what.clone(), why, source };
        match self {
            Self::Connect(error) => unreachable("no connection".into(), Some(Arc::new(error))),
            Self::Unconnected(error) => match tls_error(&error) {
                Some(rustls::Error::InvalidMessage(_)) => unreachable(
                    "it does not speak TLS; if it is meant to be reached without, give --plain-http".into(),
                    Some(Arc::new(error)),
                ),
                Some(tls) => unreachable(format!("no TLS connection: {tls}"), Some(Arc::new(error))),
                None => unreachable("no connection".into(), Some(Arc::new(error))),
            },
            Self::Certificate(error) => unreachable(
                "its certificate is not trusted; if it should be, name the certificate of its authority with --ca-cert"
                    .into(),
                Some(Arc::new(error)),
            ),
            Self::Redirect(error) => SourceError::Malformed { what, why: deepest(&error) },
            Self::Broken(error) => unreachable("the connection broke".into(), Some(Arc::new(error))),
            Self::Late(why) => unreachable(why.into(), None),
            Self::Deadline => unreachable("the time for it is up".into(), None),
            Self::Busy(status, Some(wait)) => {
                unreachable(format!("it answers {status}, and asks to come back in {wait:?}"), None)
            }
            Self::Busy(status, None) => unreachable(format!("it answers {status}"), None),
            Self::Unauthorized(_) => {
                SourceError::Denied { what, why: "the registry answers 401 Unauthorized also to a new login".into() }
            }
            Self::Expired(status) => {
                SourceError::Denied { what, why: format!("the place that the registry redirects to answers {status}") }
            }
            Self::Denied(why) => SourceError::Denied { what, why },
            Self::Missing | Self::Behind => SourceError::NotFound(what),
            Self::Refused(status) => SourceError::Malformed { what, why: format!("the registry answers {status}") },
            Self::Odd(why) => SourceError::Malformed { what, why },
            Self::Short { got } => SourceError::WrongSize { what, expected: size, actual: got.to_string() },
            Self::Longer => {
                SourceError::Malformed { what, why: format!("it is longer than the {size} bytes that are read of it") }
            }
            Self::Size { actual } => SourceError::WrongSize { what, expected: size, actual },
            Self::NoRanges => SourceError::NoRanges(what),
            Self::Final(error) => error,
        }
    }
}

/// The pause before try `tries` + 1: doubling from 100 ms to 5 s, of which a random half is left out, so
/// that many clients of one registry do not come back all at once.
fn backoff(tries: u32) -> Duration {
    let most =
        Duration::from_millis(100).saturating_mul(1 << tries.saturating_sub(1).min(10)).min(Duration::from_secs(5));
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    most.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// `Retry-After` in either form of RFC 9110, 10.2.3: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    wait_until(headers.get(RETRY_AFTER)?.to_str().ok()?.trim(), Timestamp::now())
}

fn wait_until(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// The error of TLS inside an error, if that is what it is about.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An io::Error does not count what it wraps as its source, but that thing's source.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:37Z".parse().unwrap();
        assert_eq!(wait_until("120", now), Some(Duration::from_secs(120)));
        assert_eq!(wait_until("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(wait_until("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(wait_until("soon", now), None);
        assert_eq!(wait_until("-1", now), None);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        for (tries, most) in [(1, 100), (2, 200), (3, 400), (7, 5000), (u32::MAX, 5000)] {
            let pause = backoff(tries).as_millis();
            assert!(pause <= most && pause >= most / 2, "{tries}: {pause}");
        }
    }
}
