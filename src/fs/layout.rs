//! The directories and devices that every guest expects.

use std::sync::Arc;

use super::{
    device::Device,
    directory::Directory,
    errno::Errno,
    frozen::ROOT,
    node::{Ino, Kind, Node},
    path::NAME_MAX,
    tree::Tree,
};

const DEVICES: [(&[u8], Device); 7] = [
    (b"null", Device::Null),
    (b"zero", Device::Zero),
    (b"random", Device::Random),
    (b"urandom", Device::Random),
    (b"stdin", Device::Stdin),
    (b"tty", Device::Terminal),
    (b"tty1", Device::ErrorTerminal),
];

const LINKS: [(&[u8], &[u8]); 2] = [(b"stdout", b"/dev/tty"), (b"stderr", b"/dev/tty1")];

/// Makes `/tmp`, `/home`, `/dev` with its devices, `/dev/shm` and `/proc/self/fd`, as Emscripten's
/// `FS.createDefaultDirectories`, `createDefaultDevices` and `createSpecialDirectories` do (`libfs.js`).
///
/// # Errors
/// `EEXIST` if the tree has one of them already.
pub(super) fn lay_out(tree: &mut Tree) -> Result<(), Errno> {
    for path in ["/tmp", "/home", "/dev/shm/tmp", "/proc/self"] {
        make_directories(tree, path.as_bytes())?;
    }
    let dev = make_directories(tree, b"/dev")?;
    for (name, device) in DEVICES {
        tree.create(dev, name, Node::new(Kind::Device(device), 0o666))?;
    }
    for (name, target) in LINKS {
        tree.create(dev, name, Node::new(Kind::Symlink(Arc::from(target)), 0o777))?;
    }
    let parent = make_directories(tree, b"/proc/self")?;
    tree.create(parent, b"fd", Node::new(Kind::DescriptorDirectory { parent }, 0o777))?;
    Ok(())
}

impl Tree {
    /// A tree that has what every guest expects, and nothing else.
    ///
    /// # Errors
    /// None in an empty tree.
    pub fn bare() -> Result<Self, Errno> {
        let mut tree = Self::new();
        lay_out(&mut tree)?;
        Ok(tree)
    }
}

/// Makes the directory `path` and its parents, with permissions 0777 (Emscripten's `FS.mkdirTree`), and returns its
/// inode number. Existing directories stay unchanged.
///
/// # Errors
/// `EINVAL` if a name is `.` or `..`, `ENAMETOOLONG`, `ENOTDIR` if a name is taken by something else, `EACCES`.
pub(super) fn make_directories(tree: &mut Tree, path: &[u8]) -> Result<Ino, Errno> {
    let mut at = ROOT;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        if name == b"." || name == b".." {
            return Err(Errno::EINVAL);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        at = match tree.lookup(at, name)? {
            Some(ino) if tree.node(ino).is_some_and(Node::is_directory) => ino,
            Some(_) => return Err(Errno::ENOTDIR),
            None => tree.create(at, name, Node::new(Kind::Directory(Directory::new(at)), 0o777))?,
        };
    }
    Ok(at)
}
