//! The extended attributes of files and directories: where each comes from and what is proved of it.

use crate::fs::KitFs;
use crate::kit::listing::Certainty;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;
use crate::layers::Layer;

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// Name and size are certain; the content is not here.
    Absent,
    /// Part of the content is here and proved.
    Partial,
    /// Not even name and size are proved.
    Provisional,
    /// All of the content is here, and proved.
    Verified,
}

impl FileState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Partial => "partial",
            Self::Provisional => "provisional",
            Self::Verified => "verified",
        }
    }
}

const FOR_ALL: [&str; 2] = ["user.kitfs.reference", "user.kitfs.digest"];
const FOR_FILES: [&str; 4] = ["user.kitfs.layer", "user.kitfs.state", "user.kitfs.source", "user.kitfs.verity"];

impl KitFs {
    /// The names of an inode's attributes.
    pub fn attribute_names(&self, inode: Inode) -> impl Iterator<Item = &'static str> {
        let names = FOR_ALL.into_iter().chain(FOR_FILES);
        names.filter(move |name| self.attribute(inode, name.as_bytes()).is_some())
    }

    /// The value of an attribute, if the inode has it.
    pub fn attribute(&self, inode: Inode, name: &[u8]) -> Option<String> {
        let kind = self.tree().node(inode)?.kind;
        let file = match kind {
            NodeKind::File { layer, entry } => Some((self.layer(layer)?, entry)),
            NodeKind::Kitfile | NodeKind::Dir { .. } => None,
        };
        let digest = file.map_or(self.kit().first()?.digest, |(layer, _)| layer.kit.digest);
        let link = self.kit().links.iter().find(|link| link.digest == digest)?;
        match name {
            b"user.kitfs.reference" => return Some(link.reference.clone()),
            b"user.kitfs.digest" => return Some(digest.to_string()),
            _ => {}
        }
        match (name, kind, file) {
            (b"user.kitfs.layer", NodeKind::Kitfile, _) => Some(link.manifest.config.digest.to_string()),
            (b"user.kitfs.layer", _, Some((layer, _))) => Some(layer.digest().to_string()),
            (b"user.kitfs.source", NodeKind::Kitfile, _) | (b"user.kitfs.source", _, Some(_)) => {
                Some(link.source.name())
            }
            (b"user.kitfs.state", NodeKind::Kitfile, _) => Some(FileState::Verified.name().into()),
            (b"user.kitfs.state", _, Some((layer, entry))) => Some(self.state_of(layer, entry).name().into()),
            (b"user.kitfs.verity", _, Some((layer, entry))) => Some(layer.index()?.tree(entry)?.verity.to_string()),
            _ => None,
        }
    }

    /// What is known of a file; a directory and the Kitfile are as certain as the manifest.
    pub fn state(&self, inode: Inode) -> Option<FileState> {
        match self.tree().node(inode)?.kind {
            NodeKind::File { layer, entry } => Some(self.state_of(self.layer(layer)?, entry)),
            NodeKind::Kitfile | NodeKind::Dir { .. } => Some(FileState::Verified),
        }
    }

    fn state_of(&self, layer: &Layer, entry: u32) -> FileState {
        match layer.index().and_then(|index| Some(index.tree(entry)?.verity)) {
            Some(verity) if self.workshop().store.has_object(&verity) => FileState::Verified,
            Some(verity) if self.workshop().store.has_partial(&verity) => FileState::Partial,
            Some(_) => FileState::Absent,
            None => match layer.listing().map(|listing| listing.certainty()) {
                Some(Certainty::Verified) => FileState::Absent,
                Some(Certainty::Provisional) | None => FileState::Provisional,
            },
        }
    }
}
