//! Tokens, from the server that a registry names in its challenge (distribution, "Token Authentication").
//!
//! A token server that fails is one that cannot be reached; only its 400, 401 or 403 is a refusal. The
//! password goes over TLS, unless the registry itself is spoken to without.

use http_auth::ChallengeRef;
use oci_client::errors::OciEnvelope;
use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use crate::patience::Patience;
use crate::source::SourceError;
use crate::source::registry::Repository;
use crate::source::registry::failure;
use crate::source::registry::failure::Failure;
use crate::source::registry::failure::Next;
use crate::source::registry::scheme::Scheme;

/// More than a token server has to say. Tokens of some clouds have tens of KiB.
const ANSWER_LIMIT: usize = 1024 * 1024;

/// Where a token is had, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm {
    url: Url,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Realm {
    /// What a Bearer challenge names; `None` if it is another challenge, or names nothing.
    pub(super) fn of(challenge: &ChallengeRef<'_>) -> Option<Self> {
        let value = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let url = challenge.scheme.eq_ignore_ascii_case("Bearer").then(|| value("realm"))??;
        Some(Self { url: url.parse().ok()?, service: value("service"), scope: value("scope") })
    }

    /// Fetches a token for pulling from the repository, as whom `authorization` says or as anybody.
    pub(super) async fn token(
        &self,
        repository: &Repository,
        authorization: Option<&HeaderValue>,
    ) -> Result<HeaderValue, SourceError> {
        let http = &repository.http;
        let of = format!("{}/{}", http.host(), repository.reference.repository);
        let what = format!("the token server of {of}");
        let scheme = http.scheme().await.map_err(|failure| failure.into_error(of.clone(), 0))?;
        if scheme == Scheme::Https && self.url.scheme() != "https" {
            let why = "the registry is reached over TLS and wants tokens to be had without".into();
            return Err(SourceError::Denied { what: of, why });
        }
        let limit = http.timeouts().connect + http.timeouts().headers;
        let mut tries = 0;
        loop {
            tries += 1;
            let asked = Patience::new(limit).wait_for(self.ask(repository, authorization)).await;
            let failure = match asked.unwrap_or(Err(Failure::Late("it did not answer in time"))) {
                Ok(token) => return Ok(token),
                Err(failure) => failure,
            };
            match failure.next(tries) {
                Next::Again(pause) => tokio::time::sleep(pause).await,
                Next::LogIn(_) | Next::Stop => return Err(failure.into_error(what, 0)),
            }
        }
    }

    async fn ask(&self, repository: &Repository, authorization: Option<&HeaderValue>) -> Result<HeaderValue, Failure> {
        let mut url = self.url.clone();
        let scope =
            self.scope.clone().unwrap_or_else(|| format!("repository:{}:pull", repository.reference.repository));
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = repository.http.client().request(Method::GET, url);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(Failure::of)?;
        match response.status() {
            StatusCode::OK => {}
            status @ (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                let who = if authorization.is_some() { "the login that is stored" } else { "an anonymous login" };
                let code = code(&mut response).await.map(|code| format!(" ({code})")).unwrap_or_default();
                return Err(Failure::Denied(format!("it refuses {who}: {status}{code}")));
            }
            status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) => {
                return Err(Failure::Busy(status, failure::retry_after(response.headers())));
            }
            status if status.is_server_error() => {
                return Err(Failure::Busy(status, failure::retry_after(response.headers())));
            }
            status => return Err(Failure::Odd(format!("it answers {status}"))),
        }
        let answer = body(&mut response).await?;
        // The parser's own words can quote a value, and values here are secrets.
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| Failure::Odd("its answer is not understood".into()))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            return Err(Failure::Odd("its answer has no token".into()));
        }
        secret_header(&format!("Bearer {token}")).ok_or_else(|| Failure::Odd("its token cannot be sent on".into()))
    }
}

/// A header whose value `reqwest` does not print.
pub(super) fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// The code of a refusal (distribution-spec, "Error Codes"), if it is told.
async fn code(response: &mut Response) -> Option<String> {
    let refusal: OciEnvelope = serde_json::from_slice(&body(response).await.ok()?).ok()?;
    refusal.errors.first().map(|error| format!("{:?}", error.code))
}

async fn body(response: &mut Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Failure::of)? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(Failure::Odd("its answer is too long".into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
