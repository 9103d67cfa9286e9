//! What a policy is asked about: one kit, as somebody named it.

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
            let mut names = vec![format!("oci:{}", path.display())];
            if let Ok(absolute) = std::path::absolute(path) {
                names.push(format!("oci:{}", absolute.display()));
            }
            names.dedup();
            names
        }
        Reference::Kitops { name, .. } => {
            let reference = Reference::Kitops { name: name.clone(), version: Version::default() };
            vec![reference.to_string()]
        }
    }
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
