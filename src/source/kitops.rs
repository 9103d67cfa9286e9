//! KitOps' own local store, read as `kit` 1.x writes it: one image layout for all kits, and beside it
//! two files for each repository, which say what its tags are and which manifests it has.
//!
//! kit takes no locks, so files are read when they are asked for and may change at any time; what a
//! manifest names is opened by its digest. The layout before 1.0, which kit migrates by itself, is not read.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::Deserialize;

use crate::digest::Digest;
use crate::reference::KitopsName;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::companions::Companion;
use crate::source::companions::Tags;
use crate::source::files;
use crate::source::files::Blobs;

/// The host that KitOps gives to what was packed on this machine.
pub(super) const LOCAL_HOST: &str = "localhost";

/// The tag that is meant where none is given.
const DEFAULT_TAG: &str = "latest";

/// The store, and which kit of it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Store {
    storage: PathBuf,
    name: KitopsName,
    version: Version,
    blobs: Blobs,
    timeout: Duration,
}

/// Only the digest is needed: the manifest is read and proved by it.
#[derive(Debug, Deserialize)]
struct Tagged {
    digest: String,
}

impl Store {
    /// Opens the store of this user. No read takes longer than `timeout`.
    pub(super) async fn open(name: &KitopsName, version: &Version, timeout: Duration) -> Result<Self, SourceError> {
        let home =
            home().ok_or_else(|| SourceError::NotFound("KitOps' store (KITOPS_HOME and HOME are unset)".into()))?;
        Self::open_at(&home, name, version, timeout).await
    }

    async fn open_at(
        home: &Path,
        name: &KitopsName,
        version: &Version,
        timeout: Duration,
    ) -> Result<Self, SourceError> {
        let at = home.join("storage");
        let what = format!("KitOps' store at {}", at.display());
        let look = move || -> std::io::Result<PathBuf> {
            // A process that mounts leaves its working directory later.
            let storage = std::path::absolute(at)?;
            std::fs::read_dir(&storage).map(|_| storage)
        };
        let storage =
            files::blocking(timeout, &what, look).await?.map_err(|error| files::local(what.clone(), error))?;
        let blobs = Blobs::in_directory(storage.clone(), "kit:".into(), timeout);
        Ok(Self { storage, name: name.clone(), version: version.clone(), blobs, timeout })
    }

    pub(super) fn repository(&self) -> &KitopsName {
        &self.name
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) async fn resolve(&self) -> Result<Digest, SourceError> {
        let what = format!("kit:{}", self.name.full());
        match self.lookup(&self.name, &self.version).await? {
            Some(digest) => Ok(digest),
            None => {
                Err(SourceError::NotFound(format!("{what}:{}", self.version.tag.as_deref().unwrap_or(DEFAULT_TAG))))
            }
        }
    }

    /// What lies beside a manifest, by the tags of its repository. kit itself keeps no referrers.
    pub(super) async fn companions(&self, tags: &Tags) -> Result<Vec<Companion>, SourceError> {
        let mut found = Vec::new();
        for tag in &tags.legacy {
            let version = Version { tag: Some(tag.clone()), digest: None };
            if let Some(digest) = self.lookup(&self.name, &version).await? {
                found.push(Companion { digest, artifact_type: String::new(), found: format!("tag {tag}") });
            }
        }
        Ok(found)
    }

    /// A parent of a kit in this store, if it is here: by its digest, or by its name.
    pub(super) async fn parent(&self, parent: &RegistryReference) -> Result<Option<(Self, Digest)>, SourceError> {
        let name = KitopsName { host: parent.host.clone(), repository: parent.repository.clone() };
        let found = match &parent.version.digest {
            Some(digest) => self.blobs.has(digest).await?.then_some(*digest),
            None => self.lookup(&name, &parent.version).await?,
        };
        Ok(found.map(|digest| {
            let version = Version { tag: parent.version.tag.clone(), digest: Some(digest) };
            (Self { name, version, ..self.clone() }, digest)
        }))
    }

    /// What a tag of a repository names, if the store knows it.
    async fn lookup(&self, name: &KitopsName, version: &Version) -> Result<Option<Digest>, SourceError> {
        if let Some(digest) = version.digest {
            return Ok(Some(digest));
        }
        let tag = version.tag.as_deref().unwrap_or(DEFAULT_TAG);
        let path = self.storage.join(tags_file(name));
        let what = path.display().to_string();
        let bytes = match files::read_small(path, METADATA_LIMIT, self.timeout).await {
            Ok(bytes) => bytes,
            Err(SourceError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        tagged(&bytes, tag, &what)
    }
}

/// Where KitOps keeps its things for this user.
pub(super) fn home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("KITOPS_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("kitops")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/kitops")))
}

/// Go's `base64.URLEncoding`, with padding, of the repository's full name.
fn tags_file(name: &KitopsName) -> String {
    format!("{}-tags.json", URL_SAFE.encode(name.full()))
}

fn tagged(bytes: &[u8], tag: &str, what: &str) -> Result<Option<Digest>, SourceError> {
    let malformed = |why: String| SourceError::Malformed { what: what.to_owned(), why };
    let tags: Option<BTreeMap<String, Option<Tagged>>> =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let entry = tags.unwrap_or_default().remove(tag).flatten();
    entry.map(|entry| entry.digest.parse().map_err(|error| malformed(format!("{error}")))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_repository_are_named_as_kit_names_them() {
        let name = |host: &str, repository: &str| KitopsName { host: host.into(), repository: repository.into() };
        assert_eq!(tags_file(&name("localhost", "parent")), "bG9jYWxob3N0L3BhcmVudA==-tags.json");
        assert_eq!(tags_file(&name("localhost", "child")), "bG9jYWxob3N0L2NoaWxk-tags.json");
    }

    #[test]
    fn tags_are_read_leniently_and_junk_is_refused() {
        let digest = Digest::of(b"a");
        let text = format!(r#"{{"v1":{{"digest":"{digest}","size":3}},"v2":null,"v3":{{"digest":"sha1:00"}}}}"#);
        assert_eq!(tagged(text.as_bytes(), "v1", "f").unwrap(), Some(digest));
        assert_eq!(tagged(text.as_bytes(), "v2", "f").unwrap(), None);
        assert_eq!(tagged(b"null", "v1", "f").unwrap(), None);
        assert!(matches!(tagged(text.as_bytes(), "v3", "f"), Err(SourceError::Malformed { .. })));
        assert!(matches!(tagged(b"[1]", "v1", "f"), Err(SourceError::Malformed { .. })));
    }
}
