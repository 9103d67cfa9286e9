//! A registry that speaks the OCI distribution protocol.
//!
//! One fetcher serves tags, manifests, blobs and ranges: it reads no more than was asked for, whatever
//! the registry sends, and ends in time. `oci-client` says what a refusal means, and does not fetch: it reads
//! manifests whole, whatever their size, and does not tell a token server that fails from one that refuses.

mod auth;
mod certificates;
mod failure;
mod filling;
mod http;
pub(super) mod push;
mod referrers;
mod request;
mod scheme;
pub(super) mod stream;
mod token;

use std::ops::Range;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::HeaderName;

use crate::buffers::Buffers;
use crate::digest::Digest;
use crate::kit::descriptor::Descriptor;
use crate::reference::RegistryReference;
use crate::source::METADATA_LIMIT;
use crate::source::Meter;
use crate::source::Options;
use crate::source::SourceError;
use crate::source::credentials::Credentials;
use crate::source::credentials::Visitor;
use crate::source::registry::auth::Login;
use crate::source::registry::failure::Failure;
use crate::source::registry::filling::Filling;
use crate::source::registry::http::Http;
use crate::source::registry::request::Part;
use crate::source::registry::request::Request;
use crate::source::registry::stream::BlobStream;
use crate::source::registry::stream::Ranges;
use crate::verify::Unverified;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The tag that is meant where none is given.
const DEFAULT_TAG: &str = "latest";

/// One repository in a registry. Clones share connections and the login.
#[derive(Clone, Debug)]
pub(super) struct Registry(Arc<Repository>);

#[derive(Debug)]
struct Repository {
    reference: RegistryReference,
    http: Http,
    login: Login,
}

impl Registry {
    /// Prepares to ask a registry; asks nothing yet.
    pub(super) async fn open(reference: &RegistryReference, options: &Options) -> Result<Self, SourceError> {
        let http = Http::new(&reference.host, options)?;
        Self::with(http, reference, options).await
    }

    /// Another repository; in the same registry it shares the connections of this one.
    pub(super) async fn sibling(&self, reference: &RegistryReference, options: &Options) -> Result<Self, SourceError> {
        if reference.host != self.0.reference.host {
            return Self::open(reference, options).await;
        }
        Self::with(self.0.http.clone(), reference, options).await
    }

    async fn with(http: Http, reference: &RegistryReference, options: &Options) -> Result<Self, SourceError> {
        let credentials = Credentials::open(options.registry_config.clone(), options.timeout).await?;
        let login = Login::new(credentials);
        Ok(Self(Arc::new(Repository { reference: reference.clone(), http, login })))
    }

    pub(super) fn reference(&self) -> RegistryReference {
        self.0.reference.clone()
    }

    pub(super) fn host(&self) -> &str {
        &self.0.reference.host
    }

    /// What the tag names now: by the header that registries send for it, else by the manifest itself.
    pub(super) async fn resolve(&self) -> Result<Digest, SourceError> {
        if let Some(digest) = self.0.reference.version.digest {
            return Ok(digest);
        }
        self.tag(self.0.reference.version.tag.as_deref().unwrap_or(DEFAULT_TAG)).await
    }

    /// What a tag of this repository names now.
    pub(super) async fn tag(&self, tag: &str) -> Result<Digest, SourceError> {
        let mut request = Request::new(self, format!("{}:{tag}", self.name()), format!("manifests/{tag}"));
        let mut method = Method::HEAD;
        loop {
            let failure = match request.send(method.clone(), Part::Whole).await {
                Ok(response) if method == Method::HEAD => {
                    let digest =
                        response.headers().get(CONTENT_DIGEST).and_then(|digest| digest.to_str().ok()?.parse().ok());
                    if let Some(digest) = digest {
                        return Ok(digest);
                    }
                    method = Method::GET;
                    continue;
                }
                Ok(response) => match request.body(response, METADATA_LIMIT).await {
                    Ok(bytes) => return Ok(Digest::of(&bytes)),
                    Err(failure) => failure,
                },
                // Not every registry knows HEAD.
                Err(Failure::Odd(_) | Failure::Refused(_)) if method == Method::HEAD => {
                    method = Method::GET;
                    continue;
                }
                Err(failure) => failure,
            };
            request.after(failure).await?;
        }
    }

    /// Whether the registry lets us have a manifest.
    pub(super) async fn admits(&self, digest: &Digest) -> Result<(), SourceError> {
        let what = format!("manifest {digest} in {}", self.name());
        let mut request = Request::new(self, what, format!("manifests/{digest}"));
        let mut method = Method::HEAD;
        loop {
            match request.send(method.clone(), Part::Whole).await {
                Ok(_) => return Ok(()),
                // Not every registry knows HEAD.
                Err(Failure::Odd(_) | Failure::Refused(_)) if method == Method::HEAD => method = Method::GET,
                Err(failure) => request.after(failure).await?,
            }
        }
    }

    /// As whom the registry is asked now.
    pub(super) fn asked_as(&self) -> Visitor {
        self.0.login.asked_as()
    }

    /// As whom it would be asked if it wanted a login.
    pub(super) async fn visitor(&self) -> Result<Visitor, SourceError> {
        self.0.login.visitor(self.host()).await
    }

    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Unverified, SourceError> {
        let mut request =
            Request::new(self, format!("manifest {digest} in {}", self.name()), format!("manifests/{digest}"));
        loop {
            let failure = match request.send(Method::GET, Part::Whole).await {
                Ok(response) => match request.body(response, METADATA_LIMIT).await {
                    Ok(bytes) => return Ok(Unverified::new(bytes)),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            request.after(failure).await?;
        }
    }

    /// All of a blob, whose size the caller has looked at.
    pub(super) async fn blob(&self, blob: &Descriptor) -> Result<Unverified, SourceError> {
        let mut request = self.blob_request(blob);
        loop {
            let failure = match request.send(Method::GET, Part::Whole).await {
                Ok(response) => match request.whole_blob(response).await {
                    Ok(bytes) => return Ok(Unverified::new(bytes)),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            request.after(failure).await?;
        }
    }

    /// Part of a blob by one request, straight into as many buffers as it takes. What arrived before a
    /// connection broke is kept, and each buffer has the time of a request of its own.
    pub(super) async fn range(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
        buffers: &Buffers,
        meter: &Meter,
    ) -> Result<Vec<Unverified>, SourceError> {
        let mut request = self.blob_request(blob);
        let mut filling = Filling::new(range.clone(), buffers, meter);
        loop {
            let part = Part::Range { range: filling.rest(), size: blob.size };
            let failure = match request.send(Method::GET, part).await {
                Ok(mut response) => loop {
                    match request.chunk(&mut response).await {
                        Ok(Some(chunk)) if chunk.len() as u64 > filling.missing() => break Failure::NoRanges,
                        Ok(Some(chunk)) => {
                            request.gain(chunk.len() as u64);
                            if filling.take(chunk)? {
                                request.renew();
                            }
                        }
                        Ok(None) => break Failure::Short { got: filling.rest().start - range.start },
                        Err(failure) => break failure,
                    }
                    if filling.missing() == 0 {
                        return Ok(filling.into_pieces());
                    }
                },
                Err(failure) => failure,
            };
            request.after(failure).await?;
        }
    }

    pub(super) fn stream(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
        ranges: Ranges,
        buffers: &Buffers,
        meter: &Meter,
    ) -> BlobStream {
        BlobStream::new(self.blob_request(blob), Filling::new(range, buffers, meter), blob.size, ranges)
    }

    fn blob_request(&self, blob: &Descriptor) -> Request {
        let what = format!("blob {} in {}", blob.digest, self.name());
        Request::new(self, what, format!("blobs/{}", blob.digest)).of_size(blob.size)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.0.reference.host, self.0.reference.repository)
    }
}
