//! The walk from a path to the inode that it names.

use std::borrow::Cow;

use super::{
    descriptors::{Descriptors, Object},
    errno::Errno,
    frozen::ROOT,
    node::{Ino, Kind, Node},
    tree::Tree,
};

/// The most bytes a file name can have.
pub(super) const NAME_MAX: usize = 255;

/// Whether a directory can have an entry of this name.
pub(super) fn is_name(name: &[u8]) -> bool {
    let is_special = matches!(name, b"" | b"." | b"..");
    !is_special && name.len() <= NAME_MAX && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}
/// The most bytes a path can have, with the NUL that ends it.
pub(super) const PATH_MAX: usize = 4096;
/// The most symbolic links on the way to one node; the number is Emscripten's (`FS.lookupPath`).
const LINK_MAX: usize = 40;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// The path names what the link points to.
    Yes,
    /// The path names the link.
    No,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An inode.
    Node(Ino),
    /// An entry of `/proc/self/fd`: the symbolic link if it is not followed, otherwise a descriptor without an inode.
    Descriptor(i32),
}

/// The result of a walk.
#[derive(Debug)]
pub(super) struct Location {
    /// The directory that holds the last name.
    pub parent: Ino,
    /// The last name; `None` if the path ends in `/`, `.` or `..` alone.
    pub name: Option<Vec<u8>>,
    /// What the path names, if that exists.
    pub place: Option<Place>,
    /// Whether the path ends in a slash, so that it can only name a directory.
    pub trailing_slash: bool,
}

impl Location {
    fn directory(ino: Ino) -> Self {
        Self { parent: ino, name: None, place: Some(Place::Node(ino)), trailing_slash: false }
    }

    /// What the path names.
    ///
    /// # Errors
    /// `ENOENT` if that does not exist.
    pub(super) fn existing(&self) -> Result<Place, Errno> {
        self.place.ok_or(Errno::ENOENT)
    }
}

/// The path of `name` in the directory `path`; an empty `path` is the directory that paths are relative to.
pub(crate) fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// The next name of `path` from `position` on, and its end.
fn next_name(path: &[u8], position: usize) -> Option<(&[u8], usize)> {
    let start = position + path[position..].iter().position(|byte| *byte != b'/')?;
    let length = path[start..].iter().position(|byte| *byte == b'/');
    let end = length.map_or(path.len(), |length| start + length);
    Some((&path[start..end], end))
}

/// Walks `path`, from `start` if it is relative. `descriptors` are those that `/proc/self/fd` lists.
///
/// # Errors
/// `ENOENT` if the path is empty or a directory on the way is missing; `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG`.
pub(super) fn walk(
    tree: &Tree,
    descriptors: &Descriptors,
    start: Ino,
    path: &[u8],
    follow: Follow,
) -> Result<Location, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut path = Cow::Borrowed(path);
    let mut at = start;
    for _ in 0..=LINK_MAX {
        match walk_to_link(tree, descriptors, at, &path, follow)? {
            Step::Arrived(location) => return Ok(location),
            Step::Link { directory, path: onward } => {
                path = Cow::Owned(onward);
                at = directory;
            }
        }
    }
    Err(Errno::ELOOP)
}

enum Step {
    Arrived(Location),
    /// A symbolic link on the way: the walk continues from its directory with the link's target and the rest of the
    /// path.
    Link {
        directory: Ino,
        path: Vec<u8>,
    },
}

fn walk_to_link(
    tree: &Tree,
    descriptors: &Descriptors,
    start: Ino,
    path: &[u8],
    follow: Follow,
) -> Result<Step, Errno> {
    if path.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut at = if path.starts_with(b"/") { ROOT } else { start };
    let mut position = 0;
    while let Some((name, end)) = next_name(path, position) {
        position = end;
        let rest = &path[end..];
        let last = rest.iter().all(|byte| *byte == b'/');
        let trailing_slash = last && !rest.is_empty();
        let place = match name {
            // `lookup` also checks that `at` is a directory that may be searched.
            b"." => lookup(tree, descriptors, at, b"").map(|_| Some(Place::Node(at)))?,
            b".." => {
                lookup(tree, descriptors, at, b"")?;
                Some(Place::Node(tree.parent(at).ok_or(Errno::ENOENT)?))
            }
            name if name.len() > NAME_MAX => return Err(Errno::ENAMETOOLONG),
            name => lookup(tree, descriptors, at, name)?,
        };
        let through = !last || trailing_slash || follow == Follow::Yes;
        let place = match place {
            Some(Place::Node(ino)) if through => match tree.node(ino).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => {
                    let path = if rest.is_empty() { target.to_vec() } else { [target, rest].concat() };
                    return Ok(Step::Link { directory: at, path });
                }
                _ => place,
            },
            Some(Place::Descriptor(fd)) if through => match descriptors.file(fd)?.object {
                Object::Node(ino) => Some(Place::Node(ino)),
                Object::Pipe(..) => place,
            },
            place => place,
        };
        if last {
            let is_directory = |ino| tree.node(ino).is_some_and(Node::is_directory);
            match place {
                Some(Place::Node(ino)) if name == b"." || name == b".." => {
                    return Ok(Step::Arrived(Location::directory(ino)));
                }
                Some(Place::Node(ino)) if trailing_slash && !is_directory(ino) => {
                    return Err(Errno::ENOTDIR);
                }
                Some(Place::Descriptor(_)) if trailing_slash => return Err(Errno::ENOTDIR),
                _ => {}
            }
            return Ok(Step::Arrived(Location { parent: at, name: Some(name.to_vec()), place, trailing_slash }));
        }
        match place {
            Some(Place::Node(ino)) => at = ino,
            Some(Place::Descriptor(_)) => return Err(Errno::ENOTDIR),
            None => return Err(Errno::ENOENT),
        }
    }
    Ok(Step::Arrived(Location::directory(at)))
}

/// What `name` names in `parent`; in `/proc/self/fd` the descriptor with that number.
fn lookup(tree: &Tree, descriptors: &Descriptors, parent: Ino, name: &[u8]) -> Result<Option<Place>, Errno> {
    if let Some(Kind::DescriptorDirectory { .. }) = tree.node(parent).map(|node| &node.kind) {
        let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<i32>().ok());
        return Ok(number.filter(|fd| descriptors.file(*fd).is_ok()).map(Place::Descriptor));
    }
    Ok(tree.lookup(parent, name)?.map(Place::Node))
}
