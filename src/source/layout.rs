//! OCI image layouts (image-spec, "Image Layout"): a directory, or a tar of one.
//!
//! Only what finds a manifest is read: `index.json`, once, when the layout is opened. Indexes inside
//! the index are not followed, `data` and `urls` of its entries are not looked at, and a layout without
//! its `oci-layout` file is taken as it is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::kit::descriptor::null_is_empty;
use crate::reference::RegistryReference;
use crate::reference::Version;
use crate::source::METADATA_LIMIT;
use crate::source::SourceError;
use crate::source::companions::About;
use crate::source::companions::Companion;
use crate::source::companions::Referrers;
use crate::source::companions::Tags;
use crate::source::files;
use crate::source::files::Blobs;
use crate::source::tarball;
use crate::source::tarball::InvalidTar;
use crate::verify::Verified;

/// Blobs of a layout that `cosign save` wrote, up to this size, are looked at for referrers: it lists none.
const REFERRER_LIMIT: u64 = 64 * 1024;

/// How `cosign save` marks what it lists: the image, `…/sigs` and `…/atts`.
const KIND: &str = "kind";
const SAVED: &str = "dev.cosignproject.cosign/";

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An open layout, and which of its manifests was asked for.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// As it was typed.
    path: PathBuf,
    version: Version,
    blobs: Blobs,
    index: Arc<Index>,
}

/// What an `index.json` says, as far as it is needed to find a manifest in it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "null_is_empty")]
    manifests: Vec<Option<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default, deserialize_with = "null_is_empty")]
    artifact_type: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    media_type: String,
    /// Parsed only if it is chosen: an entry that nobody asked for may be anything.
    #[serde(default, deserialize_with = "null_is_empty")]
    digest: String,
    /// Likewise. Some tools leave it out.
    #[serde(default)]
    size: Value,
    #[serde(default, deserialize_with = "null_is_empty")]
    annotations: BTreeMap<String, Option<String>>,
}

/// What an entry names, and how long the index says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chosen {
    digest: Digest,
    size: Option<u64>,
}

impl Entry {
    fn name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME)?.as_deref()
    }
}

impl Layout {
    /// Opens the layout at `path` and reads its index. No read takes longer than `timeout`.
    pub(super) async fn open(path: &Path, version: &Version, timeout: Duration) -> Result<Self, SourceError> {
        let name = name(path);
        let (at, what) = (path.to_owned(), name.clone());
        let opened = files::blocking(timeout, &name, move || open(&at, what, timeout)).await?;
        let (blobs, index) = opened?;
        let index = Index::parse(&index, &format!("index.json of {name}"))?;
        Ok(Self { path: path.to_owned(), version: version.clone(), blobs, index: Arc::new(index) })
    }

    /// Where the layout is, for a process in another working directory.
    pub(super) fn path(&self) -> PathBuf {
        std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    pub(super) fn name(&self) -> String {
        name(&self.path)
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) async fn resolve(&self) -> Result<Digest, SourceError> {
        let chosen = match (&self.version.digest, &self.version.tag) {
            (Some(digest), _) => return Ok(*digest),
            (None, Some(tag)) => self.index.named(|name| name == tag, &self.name())?.ok_or_else(|| {
                let (name, tags) = (self.name(), self.index.tags());
                SourceError::NotFound(format!("tag {tag:?} in {name}, which has {tags},"))
            })?,
            (None, None) => self.index.only(&self.name())?,
        };
        self.measured(chosen).await
    }

    /// The digest of a manifest that is as long as the index says. One that is not there, or is not what its digest
    /// says, is somebody else's to tell.
    async fn measured(&self, Chosen { digest, size }: Chosen) -> Result<Digest, SourceError> {
        if let Some(expected) = size
            && let Some(manifest) = self.small(&digest, METADATA_LIMIT).await?
            && manifest.len() as u64 != expected
        {
            let what = format!("manifest {digest} in {}", self.name());
            return Err(SourceError::WrongSize { what, expected, actual: manifest.len().to_string() });
        }
        Ok(digest)
    }

    /// What lies beside a manifest: by tag, by the list that the fallback tag names, by subject, and what
    /// `cosign save` marks or leaves among the blobs.
    pub(super) async fn companions(&self, manifest: &Digest, tags: &Tags) -> Result<Vec<Companion>, SourceError> {
        let mut found = Vec::new();
        let mut is_saved = false;
        for entry in self.index.entries() {
            let Ok(digest) = entry.digest.parse::<Digest>() else { continue };
            let kind = entry.annotations.get(KIND).and_then(|kind| kind.as_deref()?.strip_prefix(SAVED));
            is_saved |= kind.is_some();
            let companion = |found: String| Companion { digest, artifact_type: entry.artifact_type.clone(), found };
            match (entry.name(), kind) {
                (Some(name), _) if tags.legacy.iter().any(|tag| tag == name) => {
                    found.push(companion(format!("tag {name}")));
                }
                (Some(name), _) if name == tags.fallback => {
                    if let Some(bytes) = self.small(&digest, METADATA_LIMIT).await? {
                        found.extend(Referrers::of_fallback(&bytes, &format!("tag {name}")));
                    }
                }
                (_, Some("sigs" | "atts")) => found.push(companion("what cosign saved".into())),
                _ => {
                    if let Some(about) = self.about(&digest, METADATA_LIMIT, manifest).await? {
                        found.push(Companion { artifact_type: about.artifact_type, ..companion("index.json".into()) });
                    }
                }
            }
        }
        if is_saved {
            for digest in self.blobs.small(REFERRER_LIMIT).await? {
                if let Some(About { artifact_type, .. }) = self.about(&digest, REFERRER_LIMIT, manifest).await? {
                    found.push(Companion { digest, artifact_type, found: "the blobs that cosign saved".into() });
                }
            }
        }
        Ok(found)
    }

    /// What a manifest in this layout says about `manifest`.
    async fn about(&self, digest: &Digest, limit: u64, manifest: &Digest) -> Result<Option<About>, SourceError> {
        Ok(self.small(digest, limit).await?.and_then(|bytes| About::read(&bytes, manifest)))
    }

    /// A blob that is there, not larger than that, and what its digest says; anything else is nobody's companion.
    async fn small(&self, digest: &Digest, limit: u64) -> Result<Option<Verified<Bytes>>, SourceError> {
        let extent = match self.blobs.find(digest).await {
            Ok(extent) if extent.len() <= limit => extent,
            Ok(_) | Err(SourceError::NotFound(_) | SourceError::Malformed { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(extent.read_whole().await?.verify(digest).ok())
    }

    /// A parent of a kit in this layout, if it is here: by its digest, or by its whole reference.
    pub(super) async fn parent(&self, parent: &RegistryReference) -> Result<Option<(Self, Digest)>, SourceError> {
        let found = match &parent.version.digest {
            Some(digest) => self.blobs.has(digest).await?.then_some(*digest),
            None => {
                let names = spellings(parent);
                match self.index.named(|name| names.iter().any(|spelling| spelling == name), &self.name())? {
                    Some(chosen) => Some(self.measured(chosen).await?),
                    None => None,
                }
            }
        };
        Ok(found.map(|digest| {
            let version = Version { tag: parent.version.tag.clone(), digest: Some(digest) };
            (Self { version, ..self.clone() }, digest)
        }))
    }
}

impl Index {
    /// Reads an `index.json`; `what` is what messages call it.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, SourceError> {
        let malformed = |why: String| SourceError::Malformed { what: what.to_owned(), why };
        let index: Option<Self> = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        index.ok_or_else(|| malformed("it is null".into()))
    }

    /// The manifest whose name is right, if there is one.
    fn named(&self, is_right: impl Fn(&str) -> bool, layout: &str) -> Result<Option<Chosen>, SourceError> {
        self.one(self.entries().filter(|entry| entry.name().is_some_and(&is_right)), layout)
    }

    /// The only manifest.
    fn only(&self, layout: &str) -> Result<Chosen, SourceError> {
        self.one(self.entries(), layout)?.ok_or_else(|| SourceError::NotFound(format!("a manifest in {layout}")))
    }

    fn one<'e>(&self, entries: impl Iterator<Item = &'e Entry>, layout: &str) -> Result<Option<Chosen>, SourceError> {
        let mut chosen: Option<&Entry> = None;
        for entry in entries {
            match chosen {
                Some(other) if other.digest != entry.digest => {
                    let tags = self.tags();
                    return Err(SourceError::Ambiguous { what: layout.to_owned(), tags });
                }
                _ => chosen = Some(entry),
            }
        }
        let Some(entry) = chosen else { return Ok(None) };
        let malformed = |why: String| SourceError::Malformed { what: format!("index.json of {layout}"), why };
        if entry.media_type.contains("image.index") || entry.media_type.contains("manifest.list") {
            return Err(malformed(format!(
                "{} is an index of several manifests, not the manifest of one ModelKit",
                entry.digest.chars().take(140).collect::<String>()
            )));
        }
        let digest: Digest = entry.digest.parse().map_err(|error| malformed(format!("{error}")))?;
        let size = match &entry.size {
            Value::Null => None,
            size => {
                Some(size.as_u64().ok_or_else(|| malformed(format!("the size of {digest} is no number of bytes")))?)
            }
        };
        Ok(Some(Chosen { digest, size }))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.manifests.iter().flatten()
    }

    /// Some of the names, for messages.
    fn tags(&self) -> String {
        let tags: BTreeSet<&str> = self.entries().filter_map(Entry::name).collect();
        let some: Vec<_> =
            tags.iter().take(10).map(|tag| format!("{:?}", tag.chars().take(140).collect::<String>())).collect();
        match tags.len() {
            0 => "no tags".into(),
            len if len > some.len() => format!("{}, …", some.join(", ")),
            _ => some.join(", "),
        }
    }
}

/// How a parent may be written in the annotation. KitOps takes a name without a host for `localhost`, and
/// a reference without a tag for `latest`. With a host or a repository in it, each is a whole reference.
fn spellings(parent: &RegistryReference) -> Vec<String> {
    let mut names = vec![format!("{}/{}", parent.host, parent.repository)];
    if parent.host == crate::source::kitops::LOCAL_HOST {
        names.push(parent.repository.clone());
    }
    match &parent.version.tag {
        Some(tag) => names.iter().map(|name| format!("{name}:{tag}")).collect(),
        None => names.iter().map(|name| format!("{name}:latest")).chain(names.first().cloned()).collect(),
    }
}

pub(super) fn name(path: &Path) -> String {
    format!("oci:{}", path.display())
}

/// Opens a layout of either form, and reads its `index.json`.
fn open(path: &Path, name: String, timeout: Duration) -> Result<(Blobs, Vec<u8>), SourceError> {
    let local = |error| files::local(name.clone(), error);
    // A process that mounts leaves its working directory later.
    let path = std::path::absolute(path).map_err(local)?;
    if std::fs::metadata(&path).map_err(local)?.is_dir() {
        let what = format!("index.json of {name}");
        let (file, len) =
            files::open_regular(&path.join("index.json")).map_err(|error| files::local(what.clone(), error))?;
        let index = read(&file, 0, len, what)?;
        return Ok((Blobs::in_directory(path, name, timeout), index));
    }
    let (file, len) = files::open_regular(&path).map_err(local)?;
    let members = tarball::members(&file, len).map_err(|error| match error {
        InvalidTar::Io(error) => files::local(name.clone(), error),
        InvalidTar::Header(0) => {
            SourceError::Malformed { what: name.clone(), why: "it is neither a directory nor a tar".into() }
        }
        invalid => SourceError::Malformed { what: name.clone(), why: invalid.to_string() },
    })?;
    let what = format!("index.json in {name}");
    let range = members.get("index.json").ok_or_else(|| SourceError::NotFound(what.clone()))?;
    let index = read(&file, range.start, range.end - range.start, what)?;
    Ok((Blobs::in_tar(file, members, name, timeout), index))
}

fn read(file: &std::fs::File, start: u64, len: u64, what: String) -> Result<Vec<u8>, SourceError> {
    if len > METADATA_LIMIT {
        return Err(files::local(what, io::ErrorKind::FileTooLarge.into()));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, start).map_err(|error| files::local(what, error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn index(entries: &[(&str, &str)]) -> Index {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, digest)| {
                format!(
                    r#"{{"digest":"{digest}","size":1,"data":"x","urls":null,"annotations":{{"{REF_NAME}":"{name}"}}}}"#
                )
            })
            .collect();
        Index::parse(format!(r#"{{"manifests":[null,{}]}}"#, entries.join(",")).as_bytes(), "i").unwrap()
    }

    fn chosen(of: &str) -> Chosen {
        Chosen { digest: digest(of), size: Some(1) }
    }

    #[test]
    fn a_tag_is_the_whole_name() {
        let (a, b) = (digest("a"), digest("b"));
        let index = index(&[("v1", &a.to_string()), ("v2", &b.to_string()), ("x", "sha256:bad")]);
        assert_eq!(index.named(|name| name == "v2", "l").unwrap(), Some(chosen("b")));
        assert_eq!(index.named(|name| name == "v3", "l").unwrap(), None);
        assert!(matches!(index.named(|name| name == "x", "l"), Err(SourceError::Malformed { .. })));
        let error = index.only("l").unwrap_err();
        assert!(
            matches!(error, SourceError::Ambiguous { .. }) && error.to_string().contains("\"v1\", \"v2\""),
            "{error}"
        );
    }

    #[test]
    fn two_tags_of_one_manifest_are_one() {
        let a = digest("a").to_string();
        assert_eq!(index(&[("v1", &a), ("v2", &a)]).only("l").unwrap(), chosen("a"));
    }

    #[test]
    fn a_size_is_a_number_of_bytes_or_is_not_given() {
        let only = |size: &str| {
            let text = format!(r#"{{"manifests":[{{"digest":"{}"{size}}}]}}"#, digest("a"));
            Index::parse(text.as_bytes(), "i").unwrap().only("l").map(|chosen| chosen.size)
        };
        for (size, read) in [("", None), (r#","size":null"#, None), (r#","size":0"#, Some(0))] {
            assert_eq!(only(size).unwrap(), read, "{size}");
        }
        for size in ["-1", "1.5", "\"1\"", "{}", "1e30"] {
            assert!(matches!(only(&format!(r#","size":{size}"#)), Err(SourceError::Malformed { .. })), "{size}");
        }
    }

    #[test]
    fn what_is_no_index_is_malformed_and_an_empty_one_has_nothing() {
        for text in ["null", "", "3", "{\"manifests\":3}", "\u{feff}{}"] {
            assert!(matches!(Index::parse(text.as_bytes(), "i"), Err(SourceError::Malformed { .. })), "{text}");
        }
        for text in ["{}", "{\"manifests\":null}", "{\"manifests\":[null]}"] {
            let index = Index::parse(text.as_bytes(), "i").unwrap();
            assert!(matches!(index.only("l"), Err(SourceError::NotFound(_))), "{text}");
        }
    }

    #[test]
    fn an_index_in_the_index_is_not_followed() {
        let digest = digest("a");
        let text = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":1}}]}}"#
        );
        let error = Index::parse(text.as_bytes(), "i").unwrap().only("l").unwrap_err().to_string();
        assert!(error.contains("index of several manifests"), "{error}");
    }

    #[test]
    fn a_parent_is_never_found_by_its_tag_alone() {
        let a = digest("a").to_string();
        let parent = Reference::parse_parent("base:v1").unwrap();
        let find = |name: &str| {
            let names = spellings(&parent);
            index(&[(name, &a)]).named(|name| names.iter().any(|spelling| spelling == name), "l").unwrap()
        };
        assert_eq!(find("v1"), None);
        assert_eq!(find("other/base:v1"), None);
        assert_eq!(find("base:v1"), Some(chosen("a")));
        assert_eq!(find("localhost/base:v1"), Some(chosen("a")));
        let remote = Reference::parse_parent("ghcr.io/acme/base").unwrap();
        assert_eq!(spellings(&remote), ["ghcr.io/acme/base:latest", "ghcr.io/acme/base"]);
    }
}
