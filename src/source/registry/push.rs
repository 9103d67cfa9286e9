//! Pushing to a registry: small blobs, manifests, and what refers to a manifest.
//!
//! `oci-client` speaks the protocol; where a registry has no referrers API, what refers to a manifest is
//! listed under a tag (distribution-spec, "Referrers Tag Schema"), which is read and written here.

use bytes::Bytes;
use oci_client::Client;
use oci_client::Reference;
use oci_client::RegistryOperation;
use oci_client::client::Certificate;
use oci_client::client::CertificateEncoding;
use oci_client::client::ClientConfig;
use oci_client::client::ClientProtocol;
use oci_client::errors::OciDistributionError;
use oci_client::errors::OciErrorCode;
use oci_client::secrets::RegistryAuth;
use reqwest::header::HeaderValue;
use serde_json::Value;
use serde_json::json;

use crate::digest::Digest;
use crate::kit::descriptor::Descriptor;
use crate::patience::Patience;
use crate::source::Options;
use crate::source::SourceError;
use crate::source::companions::Tags;
use crate::source::credentials::Credential;
use crate::source::registry::Registry;
use crate::source::registry::certificates;
use crate::source::registry::failure::Failure;
use crate::source::registry::request::INDEX;
use crate::source::registry::scheme;
use crate::source::registry::scheme::Scheme;

/// How often a list of referrers is written again that somebody else has written meanwhile.
const TRIES: u32 = 5;

/// One repository that is pushed to.
pub struct Publisher {
    registry: Registry,
    client: Client,
}

impl Publisher {
    /// Logs in for pushing, if the registry asks for that.
    pub(in crate::source) async fn open(registry: Registry, options: &Options) -> Result<Self, SourceError> {
        let host = registry.host();
        let auth = match registry.0.login.credential(host).await? {
            Some(Credential::Password { user, password }) => RegistryAuth::Basic(user, password),
            Some(Credential::IdentityToken(_)) => {
                let why = format!("the credentials for {host} are an identity token: log in with a password");
                return Err(SourceError::Denied { what: registry.name(), why });
            }
            None => RegistryAuth::Anonymous,
        };
        let scheme = registry.0.http.scheme().await.map_err(|failure| failure.into_error(registry.name(), 0))?;
        let publisher = Self { client: client(&registry, scheme, options)?, registry };
        let (at, what) = (publisher.reference("latest"), publisher.name());
        publisher.within(what, publisher.client.auth(&at, &auth, RegistryOperation::Push)).await?;
        Ok(publisher)
    }

    /// Pushes a blob.
    pub async fn push_blob(&self, digest: &Digest, bytes: impl Into<Bytes>) -> Result<(), SourceError> {
        let what = format!("blob {digest} in {}", self.name());
        let name = digest.to_string();
        self.within(what, self.client.push_blob(&self.reference("latest"), bytes, &name)).await.map(drop)
    }

    /// Pushes a manifest, under a tag or by its digest alone.
    pub async fn push_manifest(&self, tag: Option<&str>, kind: &str, bytes: Bytes) -> Result<(), SourceError> {
        let digest = Digest::of(&bytes);
        let at = match tag {
            Some(tag) => self.reference(tag),
            None => Reference::with_digest(self.host(), self.repository(), digest.to_string()),
        };
        let what = match tag {
            Some(tag) => format!("{}:{tag}", self.name()),
            None => format!("manifest {digest} in {}", self.name()),
        };
        let odd = |_| SourceError::Malformed { what: what.clone(), why: format!("{kind:?} is no media type") };
        let kind = HeaderValue::from_str(kind).map_err(odd)?;
        self.within(what.clone(), self.client.push_manifest_raw(&at, bytes, kind)).await.map(drop)
    }

    /// Sees to it that a manifest that was pushed is found as a referrer of its subject. A registry with a
    /// referrers API has listed it by itself; elsewhere it is added to the list under the fallback tag.
    pub async fn list_referrer(
        &self,
        subject: &Digest,
        referrer: &Descriptor,
        artifact_type: &str,
    ) -> Result<(), SourceError> {
        if self.registry.referrers(subject, 1).await?.is_some() {
            return Ok(());
        }
        let tag = Tags::of(subject).fallback;
        for _ in 0..TRIES {
            let mut list = self.fallback(&tag).await?;
            let name = Value::from(referrer.digest.to_string());
            let is_listed = |list: &Vec<Value>| list.iter().any(|listed| listed["digest"] == name);
            match list["manifests"].as_array_mut() {
                Some(manifests) if is_listed(manifests) => return Ok(()),
                Some(manifests) => manifests.push(json!({
                    "mediaType": referrer.media_type,
                    "digest": name,
                    "size": referrer.size,
                    "artifactType": artifact_type,
                })),
                None => {
                    let what = format!("{}:{tag}", self.name());
                    let why = "it names no list of referrers, and what it names would be lost".into();
                    return Err(SourceError::Malformed { what, why });
                }
            }
            self.push_manifest(Some(&tag), INDEX, list.to_string().into()).await?;
            // Whoever wrote at the same time may have been the last; then ours is missing.
        }
        let what = format!("{}:{tag}", self.name());
        Err(SourceError::Malformed { what, why: "somebody else writes it all the time".into() })
    }

    /// The list under a fallback tag, an empty one if there is none.
    async fn fallback(&self, tag: &str) -> Result<Value, SourceError> {
        let digest = match self.registry.tag(tag).await {
            Ok(digest) => digest,
            Err(SourceError::NotFound(_)) => {
                return Ok(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}));
            }
            Err(error) => return Err(error),
        };
        let malformed = |why: String| SourceError::Malformed { what: format!("{}:{tag}", self.name()), why };
        let bytes = self.registry.manifest(&digest).await?.verify(&digest);
        let bytes = bytes.map_err(|mismatch| malformed(mismatch.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
    }

    async fn within<T>(
        &self,
        what: String,
        request: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, SourceError> {
        match Patience::new(self.registry.0.http.timeouts().whole).wait_for(request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(failure(what, error)),
            Err(_) => Err(Failure::Deadline.into_error(what, 0)),
        }
    }

    fn reference(&self, tag: &str) -> Reference {
        Reference::with_tag(self.host(), self.repository(), tag.into())
    }

    fn host(&self) -> String {
        self.registry.0.http.server().into()
    }

    fn repository(&self) -> String {
        self.registry.0.reference.repository.clone()
    }

    fn name(&self) -> String {
        self.registry.name()
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// A client that reaches the registry as the fetcher does.
fn client(registry: &Registry, scheme: Scheme, options: &Options) -> Result<Client, SourceError> {
    let http = &registry.0.http;
    let certificates = certificates::read(&options.ca_cert)?;
    let certificate = |der: &[u8]| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() };
    let protocol = match scheme {
        Scheme::Https => ClientProtocol::Https,
        Scheme::Http => ClientProtocol::HttpsExcept(vec![http.server().to_owned()]),
    };
    // A proxy that is never used turns off those of the environment, which nobody asks for this machine.
    let proxy = scheme::is_loopback(http.host()).then(|| "http://localhost".to_owned());
    let config = ClientConfig {
        protocol,
        extra_root_certificates: certificates.iter().map(|der| certificate(der)).collect(),
        connect_timeout: Some(http.timeouts().connect),
        user_agent: concat!("kitfs/", env!("CARGO_PKG_VERSION")),
        https_proxy: proxy.clone(),
        // The star is every name, and no address.
        no_proxy: proxy.map(|_| "*,127.0.0.0/8,::1".to_owned()),
        use_monolithic_push: true,
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| SourceError::Configuration {
        what: "the HTTP client for pushing".into(),
        why: error.to_string(),
    })
}

/// What a failed push is. The URL is left out: where an upload leads to is often signed, and so a secret.
fn failure(what: String, error: OciDistributionError) -> SourceError {
    let denied = |why: String| SourceError::Denied { what: what.clone(), why };
    match error {
        OciDistributionError::RequestError(error) => Failure::of(error).into_error(what, 0),
        OciDistributionError::AuthenticationFailure(_) => denied("the token server refuses the login".into()),
        OciDistributionError::UnauthorizedError { .. } => denied("the registry answers 401 Unauthorized".into()),
        OciDistributionError::RegistryError { envelope, .. } => {
            let codes = [OciErrorCode::Denied, OciErrorCode::Unauthorized];
            match envelope.errors.iter().any(|error| codes.contains(&error.code)) {
                true => denied(envelope.to_string()),
                false => SourceError::Malformed { what, why: envelope.to_string() },
            }
        }
        OciDistributionError::ServerError { code: 401 | 403, .. } => denied("the registry lets nobody push".into()),
        OciDistributionError::ServerError { code, .. } if code >= 500 || code == 429 => {
            SourceError::Unreachable { what, why: format!("the registry answers {code}"), source: None }
        }
        OciDistributionError::ServerError { code, .. } => {
            SourceError::Malformed { what, why: format!("the registry answers {code}") }
        }
        other => SourceError::Malformed { what, why: other.to_string() },
    }
}
