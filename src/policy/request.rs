//! What a policy is asked about: one kit, as somebody named it.

use std::path::Component;
use std::path::Path;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::reference::RegistryReference;
use crate::reference::Version;

/// One kit, as somebody named it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// As it was written.
    pub reference: &'a str,
    /// The names that patterns are compared with.
    pub names: Vec<String>,
    /// The tag that was given.
    pub tag: Option<&'a str>,
    /// Whether the reference names the digest.
    pub named: Named,
    /// The manifest that the reference names.
    pub digest: Digest,
    /// The manifest, as JSON.
    pub manifest: &'a [u8],
    /// The Kitfile, as JSON.
    pub kitfile: Option<&'a [u8]>,
    /// The names of the kit that this one builds on.
    pub parent: Option<Vec<String>>,
    /// The reference of the kit that builds on this one.
    pub child: Option<&'a str>,
}

/// What in a reference says which manifest it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Something that can be moved.
    Tag,
    /// The digest.
    Digest,
}

impl Named {
    /// What it is in a reference.
    pub fn by(version: &Version) -> Self {
        if version.digest.is_some() { Self::Digest } else { Self::Tag }
    }
}

/// The names under which patterns know what somebody typed: without tag and digest; the path of a layout
/// also in its absolute form, because the processes of a mount know no other.
pub fn names(reference: &Reference) -> Vec<String> {
    match reference {
        Reference::Registry(reference) => vec![format!("{}/{}", reference.host, reference.repository)],
        Reference::Layout { path, .. } => {
            let typed = (!turns_back(path)).then(|| path.clone());
            let absolute = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
            let mut names: Vec<_> =
                typed.into_iter().chain(absolute).map(|path| format!("oci:{}", path.display())).collect();
            names.dedup();
            names
        }
        Reference::Kitops { name, .. } => {
            let reference = Reference::Kitops { name: name.clone(), version: Version::default() };
            vec![reference.to_string()]
        }
    }
}

/// Whether a path leaves a folder that it names: `a/../b` is nothing in `a`, whatever a pattern sees.
fn turns_back(path: &Path) -> bool {
    let mut inside = false;
    path.components().any(|component| match component {
        Component::ParentDir => inside,
        Component::Normal(_) => {
            inside = true;
            false
        }
        _ => false,
    })
}

/// The names of a kit that another one builds on.
pub fn names_of_parent(parent: &RegistryReference) -> Vec<String> {
    let name = format!("{}/{}", parent.host, parent.repository);
    match parent.host.as_str() {
        // KitOps' word for its local store.
        "localhost" => vec![name, format!("kit:{}", parent.repository)],
        _ => vec![name],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_without_tag_and_digest() {
        let digest = Digest::of(b"");
        for (reference, name) in [
            ("ghcr.io/acme/llm:v1".to_owned(), "ghcr.io/acme/llm"),
            (format!("localhost:5000/llm@{digest}"), "localhost:5000/llm"),
            ("kit:llm:v1".to_owned(), "kit:llm"),
            ("kit:ghcr.io/acme/llm:v1".to_owned(), "kit:ghcr.io/acme/llm"),
            ("oci:/nonexistent/a:v1".to_owned(), "oci:/nonexistent/a"),
        ] {
            assert_eq!(names(&reference.parse().unwrap()), [name], "{reference}");
        }
    }

    #[test]
    fn a_layout_has_the_name_that_was_typed_and_where_it_is() {
        let here = std::env::current_dir().unwrap();
        let absolute = |path: &str| format!("oci:{}", here.join(path).display());
        assert_eq!(names(&"oci:src:v1".parse().unwrap()), ["oci:src".to_owned(), absolute("src")]);
        // Not what lies in a folder that the path leaves again.
        assert_eq!(names(&"oci:src/../docs:v1".parse().unwrap()), [absolute("docs")]);
    }

    #[test]
    fn a_parent_without_a_registry_is_local() {
        let parent = Reference::parse_parent("base:v1").unwrap();
        assert_eq!(names_of_parent(&parent), ["localhost/base", "kit:base"]);
    }
}
