//! What lies beside a manifest and says something about it: signatures, attestations, other referrers.
//!
//! Found by cosign's tags (`sha256-<hex>.sig`, `.att`; cosign, "SIGNATURE_SPEC"), by the referrers API
//! of a registry, by the fallback tag `sha256-<hex>` (distribution-spec, "Referrers Tag Schema"), and in a
//! layout by the `subject` of the manifests in it. Only digests are handed out; nobody is believed.

use serde::Deserialize;

use crate::digest::Digest;
use crate::kit::descriptor::null_is_empty;

/// A manifest that may say something about another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Its digest.
    pub digest: Digest,
    /// What the list that names it says it is. Often wrong, so good for an order and nothing else.
    pub artifact_type: String,
    /// How it was found, for messages.
    pub found: String,
}

/// The tags beside a manifest, by cosign's and by the distribution specification's scheme.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    /// Those whose manifests hold signatures and attestations.
    pub(super) legacy: [String; 2],
    /// The one that names an index of referrers.
    pub(super) fallback: String,
}

impl Tags {
    pub(super) fn of(manifest: &Digest) -> Self {
        let fallback = format!("{}-{}", manifest.algorithm(), manifest.hex());
        Self { legacy: [format!("{fallback}.sig"), format!("{fallback}.att")], fallback }
    }
}

/// An image index, read as a list of referrers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Referrers {
    #[serde(default, deserialize_with = "null_is_empty")]
    manifests: Vec<Option<Referrer>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    #[serde(default, deserialize_with = "null_is_empty")]
    digest: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    artifact_type: String,
}

impl Referrers {
    /// The companions in the list. Entries without a digest that can be checked are none.
    pub(super) fn companions(self, found: &str) -> impl Iterator<Item = Companion> {
        self.manifests.into_iter().flatten().filter_map(move |referrer| {
            let digest = referrer.digest.parse().ok()?;
            Some(Companion { digest, artifact_type: referrer.artifact_type, found: found.to_owned() })
        })
    }

    /// The companions in what a fallback tag names. It may be no index at all: `cosign copy` tags the kit itself.
    pub(super) fn of_fallback(bytes: &[u8], found: &str) -> Vec<Companion> {
        serde_json::from_slice(bytes).map(|list: Self| list.companions(found).collect()).unwrap_or_default()
    }
}

/// As much of a manifest as says what it is about.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct About {
    subject: Option<Subject>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) artifact_type: String,
}

#[derive(Debug, Deserialize)]
struct Subject {
    #[serde(default, deserialize_with = "null_is_empty")]
    digest: String,
}

impl About {
    /// What a manifest says it is about, if that is `manifest`.
    pub(super) fn read(bytes: &[u8], manifest: &Digest) -> Option<Self> {
        let about: Self = serde_json::from_slice(bytes).ok()?;
        (about.subject.as_ref()?.digest.parse() == Ok(*manifest)).then_some(about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_under_the_fallback_tag_has_no_referrers() {
        assert_eq!(Referrers::of_fallback(br#"{"config":{},"layers":[]}"#, "t"), []);
        assert_eq!(Referrers::of_fallback(b"[", "t"), []);
        let digest = Digest::of(b"a");
        let list =
            format!(r#"{{"manifests":[null,{{"digest":"sha1:0"}},{{"digest":"{digest}","artifactType":null}}]}}"#);
        let expected = Companion { digest, artifact_type: String::new(), found: "t".into() };
        assert_eq!(Referrers::of_fallback(list.as_bytes(), "t"), [expected]);
    }

    #[test]
    fn a_manifest_is_about_its_subject_only() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let text = format!(r#"{{"subject":{{"digest":"{a}"}},"artifactType":"x"}}"#);
        assert_eq!(About::read(text.as_bytes(), &a).unwrap().artifact_type, "x");
        assert!(About::read(text.as_bytes(), &b).is_none());
        assert!(About::read(br#"{"subject":null}"#, &a).is_none());
    }
}
