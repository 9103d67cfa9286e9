//! `kitfs ls`: the files of a kit, without a mount.

use std::ffi::OsStr;
use std::io;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use crate::cli::documents::Entry;
use crate::cli::documents::EntryKind;
use crate::cli::documents::Listing;
use crate::cli::documents::PathText;
use crate::cli::failure::Error;
use crate::cli::kits::Kits;
use crate::cli::print;
use crate::cli::text;
use crate::config::Output;
use crate::digest::Digest;
use crate::fs::KitFs;
use crate::kit::name::KitPath;
use crate::kit::tree::Inode;
use crate::kit::tree::NodeKind;

/// How much a listing says of each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Its path.
    Path,
    /// Mode, size, state and layer as well.
    Long,
}

/// How far a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is in the directory.
    Children,
    /// What is beneath it.
    Everything,
}

/// Lists a file, or what is in a directory.
pub async fn run(
    kits: &Kits,
    reference: &str,
    path: Option<&OsStr>,
    detail: Detail,
    depth: Depth,
) -> Result<(), Error> {
    let files = kits.files(reference).await?;
    let start = match path {
        Some(path) => find(&files, reference, path)?,
        None => Inode::ROOT,
    };
    let tree = files.tree();
    let is_dir = |inode| tree.node(inode).is_some_and(|node| matches!(node.kind, NodeKind::Dir { .. }));
    let inodes: Box<dyn Iterator<Item = Inode>> = match depth {
        _ if !is_dir(start) => Box::new(std::iter::once(start)),
        Depth::Children => Box::new(tree.children(start).map(Inode)),
        Depth::Everything => Box::new(tree.walk(start).skip(1)),
    };
    let entries = inodes.filter_map(|inode| Listed::of(&files, inode));
    match kits.config().output {
        Output::Json => print::json(&Listing { entries: entries.map(Listed::document).collect() }),
        Output::Text => print::text(|out| entries.into_iter().try_for_each(|entry| entry.write(out, detail))),
    }
}

/// The inode at a path that somebody typed.
pub fn find(files: &KitFs, reference: &str, path: &OsStr) -> Result<Inode, Error> {
    let bytes = path.as_bytes();
    let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let parsed = match relative {
        b"" => Some(KitPath::root()),
        relative => KitPath::parse(relative).ok(),
    };
    let inode = parsed.and_then(|path| files.tree().find(&path));
    inode.ok_or_else(|| Error::NoSuchPath { path: text::name(bytes), reference: reference.into() })
}

/// One line of a listing.
struct Listed {
    path: Vec<u8>,
    kind: EntryKind,
    size: u64,
    mode: u16,
    layer: Option<Digest>,
    state: &'static str,
}

impl Listed {
    fn of(files: &KitFs, inode: Inode) -> Option<Self> {
        let node = files.tree().node(inode)?;
        let (kind, layer) = match node.kind {
            NodeKind::Dir { .. } => (EntryKind::Dir, None),
            NodeKind::Kitfile => (EntryKind::File, files.kit().first().map(|link| link.manifest.config.digest)),
            NodeKind::File { layer, .. } => {
                (EntryKind::File, files.layers().get(layer.0 as usize).map(|layer| *layer.digest()))
            }
        };
        let state = files.state(inode)?.name();
        let path = files.tree().path(inode)?.as_bytes().to_vec();
        Some(Self { path, kind, size: node.size, mode: node.mode, layer, state })
    }

    fn document(self) -> Entry {
        Entry {
            path: PathText::new(&self.path),
            kind: self.kind,
            size: self.size,
            mode: format!("{:04o}", self.mode),
            layer: self.layer,
            state: self.state,
        }
    }

    fn write(&self, out: &mut dyn Write, detail: Detail) -> io::Result<()> {
        if detail == Detail::Long {
            let kind = match self.kind {
                EntryKind::Dir => 'd',
                EntryKind::File => '-',
            };
            let layer = self.layer.map_or_else(|| "-".into(), |digest| digest.to_string());
            let layer = layer.get(..19).unwrap_or(&layer);
            write!(out, "{kind}{} {:>14} {:<11} {layer:<19} ", permissions(self.mode), self.size, self.state)?;
        }
        writeln!(out, "{}", text::name(&self.path))
    }
}

/// Permission bits as `ls -l` shows them.
fn permissions(mode: u16) -> String {
    (0..9).rev().zip("rwxrwxrwx".chars()).map(|(bit, c)| if mode & (1 << bit) != 0 { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_look_like_those_of_ls() {
        for (mode, shown) in [(0o644, "rw-r--r--"), (0o755, "rwxr-xr-x"), (0o000, "---------"), (0o777, "rwxrwxrwx")] {
            assert_eq!(permissions(mode), shown);
        }
    }
}
