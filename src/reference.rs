//! References: what a person types to name a kit.
//!
//! `registry/repo[:tag][@digest]`, `oci:PATH[:tag|@digest]`, `kit:NAME[:tag][@digest]`. Parsing knows
//! nothing of networks or disks. Grammar of names and tags: OCI distribution specification, "Pulling
//! manifests". A host is told from a name as KitOps does it: it has a `.` or a `:`, or is `localhost`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;

/// A parsed reference. It prints as it would be typed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A repository in a registry.
    Registry(RegistryReference),
    /// An OCI image layout on this machine: a directory, or a tar of one.
    Layout {
        /// Where the layout is.
        path: PathBuf,
        /// Which of its manifests.
        version: Version,
    },
    /// A kit in KitOps' own local store.
    Kitops {
        /// Registry and repository under which KitOps keeps it.
        name: KitopsName,
        /// Which of its manifests.
        version: Version,
    },
}

/// A repository in a registry, and which manifest of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    /// Host name or address, with the port if one was given.
    pub host: String,
    /// The repository, without the host.
    pub repository: String,
    /// Which of its manifests.
    pub version: Version,
}

/// The tag and the digest of a reference. With both, the digest decides and the tag is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version {
    /// The tag that was given; none given is `None`, and its source says what that means.
    pub tag: Option<String>,
    /// The digest that was given.
    pub digest: Option<Digest>,
}

/// A name in KitOps' store: `localhost/NAME` for what was packed here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KitopsName {
    /// The registry, `localhost` for local names.
    pub host: String,
    /// The repository.
    pub repository: String,
}

impl KitopsName {
    /// The name of the repository as the store's file names hold it, before base64.
    pub fn full(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl Reference {
    /// Parses the reference to a parent, as the `model.path` of a Kitfile holds it.
    ///
    /// KitOps reads a name without a host as one in its local store; such a parent has the host
    /// `localhost`. `oci:` and `kit:` are no references to KitOps, and refused here.
    pub fn parse_parent(text: &str) -> Result<RegistryReference, InvalidReference> {
        if text.starts_with("oci:") || text.starts_with("kit:") {
            return Err(InvalidReference::new(text, "a parent must be in a registry or beside its kit"));
        }
        Self::parse_name(text)
    }

    /// Parses a name as KitOps does: without a host, it is one in the local store.
    fn parse_name(text: &str) -> Result<RegistryReference, InvalidReference> {
        let (name, version) = split_version(text, text)?;
        let (host, repository) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => ("localhost", name),
        };
        check_name(text, host, repository)?;
        Ok(RegistryReference { host: host.into(), repository: repository.into(), version })
    }

    /// The tag and digest of this reference, wherever it points.
    pub fn version(&self) -> &Version {
        match self {
            Self::Registry(reference) => &reference.version,
            Self::Layout { version, .. } | Self::Kitops { version, .. } => version,
        }
    }

    fn parse_layout(text: &str, rest: &str) -> Result<Self, InvalidReference> {
        let file_at = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (folder, last) = rest.split_at(file_at);
        let (last, digest) = match last.split_once('@') {
            Some((name, digest)) if digest.contains(':') => (name, Some(parse_digest(text, digest)?)),
            _ => (last, None),
        };
        let (last, tag) = match last.rsplit_once(':') {
            Some((_, "")) => return Err(InvalidReference::new(text, "the tag is empty")),
            Some((name, tag)) => (name, Some(tag.to_owned())),
            None => (last, None),
        };
        let path = PathBuf::from(format!("{folder}{last}"));
        if path.as_os_str().is_empty() {
            return Err(InvalidReference::new(text, "the path of the layout is empty"));
        }
        Ok(Self::Layout { path, version: Version { tag, digest } })
    }

    fn parse_kitops(text: &str, rest: &str) -> Result<Self, InvalidReference> {
        let RegistryReference { host, repository, version } = Self::parse_name(rest)
            .map_err(|InvalidReference { why, .. }| InvalidReference { text: text.into(), why })?;
        Ok(Self::Kitops { name: KitopsName { host, repository }, version })
    }

    fn parse_registry(text: &str) -> Result<Self, InvalidReference> {
        let (name, version) = split_version(text, text)?;
        match name.split_once('/') {
            Some((host, repository)) if is_host(host) => {
                check_name(text, host, repository)?;
                let (host, repository) = (host.into(), repository.into());
                Ok(Self::Registry(RegistryReference { host, repository, version }))
            }
            _ => Err(InvalidReference::new(
                text,
                "a registry reference starts with a host that has a '.' or a ':' or is 'localhost'; \
                 for a kit in KitOps' local store write kit:NAME, for a layout oci:PATH",
            )),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.contains('\0') {
            return Err(InvalidReference::new(text, "it contains a NUL"));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            Self::parse_layout(text, rest)
        } else if let Some(rest) = text.strip_prefix("kit:") {
            Self::parse_kitops(text, rest)
        } else {
            Self::parse_registry(text)
        }
    }
}

/// Splits `name[:tag][@digest]`; the name comes back unchecked.
fn split_version<'t>(whole: &str, text: &'t str) -> Result<(&'t str, Version), InvalidReference> {
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(parse_digest(whole, digest)?)),
        None => (text, None),
    };
    let last_at = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match text[last_at..].find(':') {
        Some(colon) => (&text[..last_at + colon], Some(&text[last_at + colon + 1..])),
        None => (text, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        let why = format!("{tag:?} is not a tag: up to 128 letters, digits, '_', '.' and '-'");
        return Err(InvalidReference::new(whole, why));
    }
    Ok((name, Version { tag: tag.map(str::to_owned), digest }))
}

fn parse_digest(whole: &str, digest: &str) -> Result<Digest, InvalidReference> {
    digest.parse().map_err(|error| InvalidReference::new(whole, format!("{error}")))
}

fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

/// Whether this may be a tag (distribution-spec, "Pulling manifests").
pub fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.len() <= 128
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks host and repository by the grammar of the distribution specification.
fn check_name(text: &str, host: &str, repository: &str) -> Result<(), InvalidReference> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let name_is_good = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None if ends_in_number(name) => name.parse::<std::net::Ipv4Addr>().is_ok(),
        None => {
            !name.is_empty()
                && name.split('.').all(|label| {
                    !label.is_empty()
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
        }
    };
    let port_is_good = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if !name_is_good || !port_is_good {
        return Err(InvalidReference::new(text, format!("{host:?} is not a host")));
    }
    if repository.len() > 255 || !repository.split('/').all(is_path_component) {
        return Err(InvalidReference::new(
            text,
            format!(
                "{repository:?} is not a repository: lower-case letters and digits, joined by single '.', '_', '__' or dashes"
            ),
        ));
    }
    Ok(())
}

/// Whether a host is an IPv4 address to whoever reads URLs, `127.1` and `0x7f000001` among them (URL Standard, "ends
/// in a number").
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    hex.map_or(!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()), |digits| {
        digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let separators_are_good = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'));
    bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric) && separators_are_good
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.repository, self.version)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { path, version } => write!(f, "oci:{}{version}", Path::display(path)),
            Self::Kitops { name, version } if name.host == "localhost" => {
                write!(f, "kit:{}{version}", name.repository)
            }
            Self::Kitops { name, version } => write!(f, "kit:{}{version}", name.full()),
        }
    }
}

/// Text that is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a reference: {why}")]
pub struct InvalidReference {
    text: String,
    why: String,
}

impl InvalidReference {
    fn new(text: &str, why: impl Into<String>) -> Self {
        Self { text: text.into(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in [
            "ghcr.io/acme/kit:v1",
            "localhost/kit",
            "127.0.0.1:5000/a/b__c/d-e:latest",
            "[::1]:5000/kit:v1",
            &format!("ghcr.io/acme/kit:v1@{DIGEST}"),
            &format!("ghcr.io/acme/kit@{DIGEST}"),
            "oci:/tmp/a.b/layout:v1",
            "oci:layout",
            &format!("oci:./x:y/layout@{DIGEST}"),
            "kit:child:v1",
            "kit:kit:v1",
            &format!("kit:ghcr.io/acme/child@{DIGEST}"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, why) in [
            ("kit", "kit:NAME"),
            ("acme/kit:v1", "kit:NAME"),
            ("ghcr.io/Acme/kit", "not a repository"),
            ("ghcr.io/acme//kit", "not a repository"),
            ("ghcr.io/acme/../kit", "not a repository"),
            ("ghcr.io/acme/kit:", "not a tag"),
            ("ghcr.io/acme/kit:a b", "not a tag"),
            ("ghcr.io/acme/kit@sha256:12", "not a digest"),
            ("ghcr.io:99999/kit", "not a host"),
            ("127.0.0.256/kit", "not a host"),
            ("127.1:5000/kit", "not a host"),
            ("1.2.3.0x4/kit", "not a host"),
            ("user@ghcr.io/kit", "not a digest"),
            ("oci:", "empty"),
            ("oci:layout:", "empty"),
            ("kit:", "not a repository"),
            ("https://ghcr.io/acme/kit", "not a"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_parent_is_in_a_registry_or_local() {
        let parent = Reference::parse_parent("base-model:v2").unwrap();
        assert_eq!((parent.host.as_str(), parent.repository.as_str()), ("localhost", "base-model"));
        assert!(Reference::parse_parent("oci:/some/dir:v1").is_err());
        assert!(Reference::parse_parent("kit:base:v1").is_err());
    }
}
