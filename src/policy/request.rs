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
        Reference::Registry(reference) => names_in_registry(reference),
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

/// The port of HTTPS, which a host has whether somebody writes it or not.
const HTTPS: u16 = 443;

/// The names of a repository, however somebody spelled its host: nobody gets around a rule by that.
fn names_in_registry(reference: &RegistryReference) -> Vec<String> {
    let host = reference.host.to_ascii_lowercase();
    let (bare, port) = match host.rsplit_once(':') {
        Some((bare, port)) if !host.ends_with(']') => (bare, port.parse().unwrap_or(HTTPS)),
        _ => (host.as_str(), HTTPS),
    };
    let with_port = format!("{bare}:{port}");
    let hosts = if port == HTTPS { vec![bare, &with_port] } else { vec![&*with_port] };
    hosts.into_iter().map(|host| format!("{host}/{}", reference.repository)).collect()
}

/// The names of a kit that another one builds on.
pub fn names_of_parent(parent: &RegistryReference) -> Vec<String> {
    let mut names = names_in_registry(parent);
    // KitOps' word for its local store.
    if parent.host == "localhost" {
        names.push(format!("kit:{}", parent.repository));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_without_tag_and_digest() {
        let digest = Digest::of(b"");
        for (reference, name) in [
            (format!("localhost:5000/llm@{digest}"), "localhost:5000/llm"),
            ("kit:llm:v1".to_owned(), "kit:llm"),
            ("kit:ghcr.io/acme/llm:v1".to_owned(), "kit:ghcr.io/acme/llm"),
            ("oci:/nonexistent/a:v1".to_owned(), "oci:/nonexistent/a"),
        ] {
            assert_eq!(names(&reference.parse().unwrap()), [name], "{reference}");
        }
    }

    #[test]
    fn a_host_has_the_same_names_however_it_is_spelled() {
        for spelled in ["ghcr.io", "GHCR.io", "ghcr.io:443", "Ghcr.IO:0443"] {
            let names = names(&format!("{spelled}/acme/llm:v1").parse().unwrap());
            assert_eq!(names, ["ghcr.io/acme/llm", "ghcr.io:443/acme/llm"], "{spelled}");
        }
        assert_eq!(names(&"Registry.example:05000/llm".parse().unwrap()), ["registry.example:5000/llm"]);
        assert_eq!(names(&"[::1]/llm".parse().unwrap()), ["[::1]/llm", "[::1]:443/llm"]);
        assert_eq!(names(&"[::1]:5000/llm".parse().unwrap()), ["[::1]:5000/llm"]);
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
        assert_eq!(names_of_parent(&parent), ["localhost/base", "localhost:443/base", "kit:base"]);
    }
}
