//! The HTTP client, how long each of its waits may be, and where a registry is.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use tokio::sync::OnceCell;

use crate::source::Options;
use crate::source::SourceError;
use crate::source::registry::certificates;
use crate::source::registry::failure::Failure;
use crate::source::registry::scheme;
use crate::source::registry::scheme::Scheme;

/// Redirects that one request follows.
const REDIRECTS: usize = 10;

/// The connection to one host. Clones share the pool and what was learned about the host.
#[derive(Clone, Debug)]
pub(super) struct Http(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    /// As the reference has it.
    host: String,
    timeouts: Timeouts,
    /// Decided once, at the first request.
    scheme: OnceCell<Scheme>,
}

/// How long to wait, in all and for each step. A step leaves time for another try.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// One request with all its tries.
    pub(super) whole: Duration,
    /// TCP and TLS.
    pub(super) connect: Duration,
    /// From the request to the head of the answer.
    pub(super) headers: Duration,
    /// Between two pieces of a body.
    pub(super) idle: Duration,
}

impl Timeouts {
    fn within(whole: Duration) -> Self {
        let step = whole / 3;
        Self {
            whole,
            connect: step.min(Duration::from_secs(10)),
            headers: step.min(Duration::from_secs(20)),
            idle: step.min(Duration::from_secs(15)),
        }
    }
}

impl Http {
    pub(super) fn new(host: &str, options: &Options) -> Result<Self, SourceError> {
        let certificates = certificates::read(&options.ca_cert)?;
        let timeouts = Timeouts::within(options.timeout);
        let client = build(host, &certificates, &timeouts)?;
        let scheme = OnceCell::new();
        if let Some(known) = scheme::without_asking(host, options) {
            // The cell is new and empty.
            let _ = scheme.set(known);
        }
        Ok(Self(Arc::new(Inner { client, host: host.to_owned(), timeouts, scheme })))
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.0.timeouts
    }

    /// The host, as credentials are kept for it.
    pub(super) fn host(&self) -> &str {
        &self.0.host
    }

    /// The host that serves: Docker Hub's is not the one in its references.
    pub(super) fn server(&self) -> &str {
        match self.host() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// How to speak to the host, asking it the first time.
    pub(super) async fn scheme(&self) -> Result<Scheme, Failure> {
        self.0.scheme.get_or_try_init(|| scheme::ask(self.server(), self.0.timeouts.connect)).await.copied()
    }
}

fn build(host: &str, certificates: &[CertificateDer<'static>], timeouts: &Timeouts) -> Result<Client, SourceError> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("kitfs/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeouts.connect)
            .pool_idle_timeout(Duration::from_secs(30))
            .referer(false)
            .redirect(redirects());
        // Go, and so kit and docker, never asks a proxy for this machine.
        if scheme::is_loopback(host) { builder.no_proxy() } else { builder }
    };
    let extra = certificates.iter().map(|certificate| reqwest::Certificate::from_der(certificate));
    let extra = extra.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    match builder().tls_certs_merge(extra).build() {
        Ok(client) => Ok(client),
        // A host without any root certificates can still speak plain HTTP, and gets a clear error for HTTPS.
        Err(_) if certificates.is_empty() => builder().tls_certs_only([]).build().map_err(unusable),
        Err(error) => Err(unusable(error)),
    }
}

fn unusable(error: reqwest::Error) -> SourceError {
    let why = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    SourceError::Configuration { what: "the HTTP client of this host".into(), why }
}

/// Authorization stays behind when host, port or scheme change; `reqwest` sees to that.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let downgrade =
            attempt.url().scheme() != "https" && attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS {
            attempt.error(InvalidRedirect::TooMany)
        } else if downgrade {
            attempt.error(InvalidRedirect::Downgrade)
        } else {
            attempt.follow()
        }
    })
}

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
enum InvalidRedirect {
    /// It never ends.
    #[error("more than {REDIRECTS} redirects")]
    TooMany,
    /// It would send the rest of the way in the clear.
    #[error("a redirect from HTTPS to plain HTTP")]
    Downgrade,
}
