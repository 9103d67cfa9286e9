//! Logging in to a registry: once for all who wait, again when a token has expired.
//!
//! Nobody logs in before the registry asks for it. `oci-client` fetches Bearer tokens; Basic is a header.
//! What a token server answers other than a token is not told apart there, so that an answer in the
//! form of the protocol is a refusal at once, and any other one after a few more tries.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::Client;
use oci_client::Reference;
use oci_client::RegistryOperation;
use oci_client::client::Certificate;
use oci_client::client::CertificateEncoding;
use oci_client::client::ClientConfig;
use oci_client::client::ClientProtocol;
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use reqwest::header::HeaderValue;
use tokio::time::timeout;

use crate::source::SourceError;
use crate::source::credentials::Credential;
use crate::source::credentials::Credentials;
use crate::source::registry::Repository;
use crate::source::registry::failure::Failure;
use crate::source::registry::failure::Next;
use crate::source::registry::scheme;
use crate::source::registry::scheme::Scheme;

/// Tries of a login that is refused in a form that may mean an overloaded server.
const TRIES_REFUSED: u32 = 3;

/// The login of one repository.
#[derive(Debug)]
pub(super) struct Login {
    credentials: Credentials,
    state: Mutex<State>,
    /// Held by the one who logs in. It is taken before `state`, which is never held while waiting.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    authorization: Option<HeaderValue>,
    /// Counts logins, those that failed among them.
    number: u64,
    /// How the last login failed, for those who waited for it.
    failure: Option<SourceError>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, state: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// What to send as Authorization now, and the number of the login that it comes from.
    pub(super) fn current(&self) -> (Option<HeaderValue>, u64) {
        let state = self.state();
        (state.authorization.clone(), state.number)
    }

    /// Logs in, unless somebody has done so since login `seen`, whose request was answered with `challenges`.
    pub(super) async fn renew(&self, repository: &Repository, seen: u64, challenges: &[String]) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        {
            let state = self.state();
            if state.number != seen {
                return state.failure.clone().map_or(Ok(()), |error| Err(Failure::Final(error)));
            }
        }
        let result = self.log_in(repository, challenges).await;
        let mut state = self.state();
        state.number += 1;
        match result {
            Ok(authorization) => {
                state.authorization = Some(authorization);
                state.failure = None;
                Ok(())
            }
            Err(error) => {
                state.authorization = None;
                state.failure = Some(error.clone());
                Err(Failure::Final(error))
            }
        }
    }

    async fn log_in(&self, repository: &Repository, challenges: &[String]) -> Result<HeaderValue, SourceError> {
        let host = repository.http.host();
        let what = format!("{host}/{}", repository.reference.repository);
        let denied = |why: String| SourceError::Denied { what: what.clone(), why };
        let credential = self.credentials.find(host).await?;
        match (Challenge::of(challenges), credential) {
            (Some(Challenge::Bearer), Some(Credential::IdentityToken(_))) => Err(denied(format!(
                "the credentials for {host} are an identity token, which kitfs cannot use: \
                 log in with a password or an access token"
            ))),
            (Some(Challenge::Bearer), Some(Credential::Password { user, password })) => {
                bearer(repository, &what, RegistryAuth::Basic(user, password)).await
            }
            (Some(Challenge::Bearer), None) => bearer(repository, &what, RegistryAuth::Anonymous).await,
            (Some(Challenge::Basic), Some(Credential::Password { user, password })) => {
                secret_header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
                    .ok_or_else(|| denied("the user name and password cannot be sent".into()))
            }
            (Some(Challenge::Basic), Some(Credential::IdentityToken(_))) => {
                Err(denied(format!("it asks for a password, and the credentials for {host} are an identity token")))
            }
            (Some(Challenge::Basic), None) => Err(denied(format!(
                "it asks for a user name and a password, and there are none for {host}: use kit login or docker login, \
                 or --registry-config"
            ))),
            (None, _) => Err(denied("the registry answers 401 Unauthorized, and does not say how to log in".into())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a registry wants to be told who we are; where it offers both, Bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Challenge {
    Bearer,
    Basic,
}

impl Challenge {
    /// RFC 9110, 11.6.1: the name of a scheme starts a header, or follows a comma.
    fn of(challenges: &[String]) -> Option<Self> {
        let offers = |scheme: &str| {
            challenges.iter().flat_map(|header| header.split(',')).any(|part| {
                let word = part.split_whitespace().next().unwrap_or_default();
                word.eq_ignore_ascii_case(scheme)
            })
        };
        match (offers("bearer"), offers("basic")) {
            (true, _) => Some(Self::Bearer),
            (false, true) => Some(Self::Basic),
            (false, false) => None,
        }
    }
}

/// Fetches a token for pulling from the repository.
async fn bearer(repository: &Repository, what: &str, auth: RegistryAuth) -> Result<HeaderValue, SourceError> {
    let denied = |why: String| SourceError::Denied { what: what.to_owned(), why };
    let http = &repository.http;
    let scheme = http.scheme().await.map_err(|failure| failure.into_error(what.to_owned(), 0))?;
    let client = client(repository, scheme)?;
    let (server, name) = (http.server().to_owned(), repository.reference.repository.clone());
    let reference = Reference::with_tag(server, name, "latest".into());
    let limit = http.timeouts().connect + http.timeouts().headers;
    let mut tries = 0;
    loop {
        tries += 1;
        let asked = timeout(limit, client.auth(&reference, &auth, RegistryOperation::Pull)).await;
        let failure = match asked {
            Ok(Ok(Some(token))) => {
                let header = secret_header(&format!("Bearer {token}"));
                return header.ok_or_else(|| denied("the token server sent a token that cannot be sent on".into()));
            }
            Ok(Ok(None)) => return Err(denied("its /v2/ asks for no token, but the kit does".into())),
            Ok(Err(OciDistributionError::RequestError(error))) => Failure::of(error),
            Ok(Err(OciDistributionError::AuthenticationFailure(answer)))
                if tries < TRIES_REFUSED && !is_refusal(&answer) =>
            {
                Failure::Late("the token server refuses")
            }
            Ok(Err(OciDistributionError::AuthenticationFailure(_))) => {
                let who =
                    if auth == RegistryAuth::Anonymous { "an anonymous login" } else { "the login that is stored" };
                return Err(denied(format!("the token server refuses {who}")));
            }
            Ok(Err(error)) => {
                let what = format!("the answer of the token server of {what}");
                return Err(SourceError::Malformed { what, why: error.to_string() });
            }
            Err(_) => Failure::Late("the token server did not answer in time"),
        };
        match failure.next(tries) {
            Next::Again(pause) => tokio::time::sleep(pause).await,
            Next::LogIn(_) | Next::Stop => return Err(failure.into_error(format!("the token server of {what}"), 0)),
        }
    }
}

/// A client that reaches the registry as the fetcher does.
fn client(repository: &Repository, scheme: Scheme) -> Result<Client, SourceError> {
    let http = &repository.http;
    let certificate = |der: &[u8]| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() };
    let protocol = match scheme {
        Scheme::Https => ClientProtocol::Https,
        Scheme::Http => ClientProtocol::HttpsExcept(vec![http.server().to_owned()]),
    };
    // A proxy that is never used turns off those of the environment, which nobody asks for this machine.
    let no_proxy = scheme::is_loopback(http.host()).then(|| "http://localhost".to_owned());
    let config = ClientConfig {
        protocol,
        extra_root_certificates: http.certificates().iter().map(|der| certificate(der)).collect(),
        connect_timeout: Some(http.timeouts().connect),
        read_timeout: Some(http.timeouts().idle),
        user_agent: concat!("kitfs/", env!("CARGO_PKG_VERSION")),
        https_proxy: no_proxy.clone(),
        no_proxy: no_proxy.map(|_| "*".to_owned()),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| SourceError::Configuration {
        what: "the HTTP client for logins".into(),
        why: error.to_string(),
    })
}

/// Whether what a token server answers has the form of a refusal: JSON, as the protocol wants it.
fn is_refusal(answer: &str) -> bool {
    matches!(serde_json::from_str(answer), Ok(serde_json::Value::Object(_)))
}

/// A header whose value `reqwest` does not print.
fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_taken_where_it_is_offered() {
        let of =
            |headers: &[&str]| Challenge::of(&headers.iter().map(|header| (*header).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[r#"Bearer realm="https://a/token",service="s",scope="x""#]), Some(Challenge::Bearer));
        assert_eq!(of(&[r#"basic realm="r""#]), Some(Challenge::Basic));
        assert_eq!(of(&[r#"Basic realm="r", Bearer realm="b""#]), Some(Challenge::Bearer));
        assert_eq!(of(&["Basic realm=\"r\"", "bearer realm=\"b\""]), Some(Challenge::Bearer));
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&[]), None);
    }
}
