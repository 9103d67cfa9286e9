//! Logging in to a registry: once for all who wait, again when a token has expired.
//!
//! Nobody logs in before the registry asks for it. A Bearer token is fetched from where the registry says;
//! Basic is a header.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;

use crate::source::SourceError;
use crate::source::credentials::Credential;
use crate::source::credentials::Credentials;
use crate::source::credentials::Visitor;
use crate::source::registry::Repository;
use crate::source::registry::failure::Failure;
use crate::source::registry::token::Realm;
use crate::source::registry::token::secret_header;

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
    /// Whom the registry takes us for.
    visitor: Option<Visitor>,
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

    /// As whom the registry is asked now.
    pub(super) fn asked_as(&self) -> Visitor {
        self.state().visitor.clone().unwrap_or(Visitor::ANYBODY)
    }

    /// As whom it would be asked if it wanted a login.
    pub(super) async fn visitor(&self, host: &str) -> Result<Visitor, SourceError> {
        let credential = self.credentials.find(host).await?;
        Ok(credential.map_or(Visitor::ANYBODY, |credential| Visitor::known(host, &credential)))
    }

    /// The user name and password for a host, for whoever logs in by other means.
    pub(super) async fn credential(&self, host: &str) -> Result<Option<Credential>, SourceError> {
        self.credentials.find(host).await
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
            Ok((authorization, visitor)) => {
                state.authorization = Some(authorization);
                state.visitor = Some(visitor);
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

    async fn log_in(
        &self,
        repository: &Repository,
        challenges: &[String],
    ) -> Result<(HeaderValue, Visitor), SourceError> {
        let host = repository.http.host();
        let what = format!("{host}/{}", repository.reference.repository);
        let denied = |why: String| SourceError::Denied { what: what.clone(), why };
        let credential = self.credentials.find(host).await?;
        let basic = |user: &str, password: &str| {
            secret_header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
                .ok_or_else(|| denied("the user name and password cannot be sent".into()))
        };
        let visitor = credential.as_ref().map_or(Visitor::ANYBODY, |credential| Visitor::known(host, credential));
        let authorization = match (Challenge::of(challenges), credential) {
            (Some(Challenge::Bearer(_)), Some(Credential::IdentityToken(_))) => Err(denied(format!(
                "the credentials for {host} are an identity token, which kitfs cannot use: \
                 log in with a password or an access token"
            ))),
            (Some(Challenge::Bearer(realm)), Some(Credential::Password { user, password })) => {
                realm.token(repository, Some(&basic(&user, &password)?)).await
            }
            (Some(Challenge::Bearer(realm)), None) => realm.token(repository, None).await,
            (Some(Challenge::Basic), Some(Credential::Password { user, password })) => basic(&user, &password),
            (Some(Challenge::Basic), Some(Credential::IdentityToken(_))) => {
                Err(denied(format!("it asks for a password, and the credentials for {host} are an identity token")))
            }
            (Some(Challenge::Basic), None) => Err(denied(format!(
                "it asks for a user name and a password, and there are none for {host}: use kit login or docker login, \
                 or --registry-config"
            ))),
            (None, _) => Err(denied("the registry answers 401 Unauthorized, and does not say how to log in".into())),
        }?;
        Ok((authorization, visitor))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a registry wants to be told who we are; where it offers both, by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Bearer(Realm),
    Basic,
}

impl Challenge {
    fn of(headers: &[String]) -> Option<Self> {
        let offers: Vec<_> = headers.iter().filter_map(|header| http_auth::parse_challenges(header).ok()).collect();
        let mut offers = offers.iter().flatten();
        match offers.clone().find_map(Realm::of) {
            Some(realm) => Some(Self::Bearer(realm)),
            None => offers.any(|offer| offer.scheme.eq_ignore_ascii_case("Basic")).then_some(Self::Basic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_is_taken_where_it_is_offered() {
        let of =
            |headers: &[&str]| Challenge::of(&headers.iter().map(|header| (*header).to_owned()).collect::<Vec<_>>());
        let is_bearer = |headers: &[&str]| matches!(of(headers), Some(Challenge::Bearer(_)));
        assert!(is_bearer(&[r#"Bearer realm="https://a/token",service="s",scope="x""#]));
        assert!(is_bearer(&[r#"Basic realm="r", Bearer realm="https://b/""#]));
        assert!(is_bearer(&["Basic realm=\"r\"", "bearer realm=\"https://b/\""]));
        assert_eq!(of(&[r#"basic realm="r""#]), Some(Challenge::Basic));
        assert_eq!(of(&[r#"Bearer realm="nowhere", Basic realm="r""#]), Some(Challenge::Basic));
        assert_eq!(of(&["Bearer"]), None);
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&[]), None);
    }
}
