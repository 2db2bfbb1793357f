//! One process' view of a tree: its descriptors, working directory, file mode mask and console, in POSIX terms.

mod directories;
mod io;
mod mappings;
mod paths;
mod status;

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use directories::DirectoryEntry;
pub use io::Whence;
pub use mappings::Mapping;
pub use paths::{At, NewTime};

use super::{
    descriptors::{Descriptors, OpenFlags},
    device::{Console, Device},
    errno::Errno,
    frozen::ROOT,
    node::{Ino, Kind},
    path::Follow,
    tree::Tree,
};
use crate::random::Entropy;

/// The file mode mask of a new process; Emscripten's (`SYSCALLS.currentUmask`, `libsyscall.js`).
const UMASK: u32 = 0o022;

/// The state of a process that is forked or written to disk: plain data that holds nothing open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessState {
    descriptors: Descriptors,
    mappings: Vec<Mapping>,
    working_directory: Ino,
    umask: u32,
}

impl ProcessState {
    /// How many descriptors it has, and how many mappings.
    pub(crate) fn open_count(&self) -> (usize, usize) {
        (self.descriptors.count(), self.mappings.len())
    }
}

/// The files as one process sees them.
///
/// Every method holds the tree's lock only while it runs. When a process ends, its descriptors close.
pub struct Files {
    tree: Arc<Mutex<Tree>>,
    state: ProcessState,
    console: Box<dyn Console>,
    entropy: Arc<Entropy>,
    /// Whether files may grow beyond the quota of the cluster.
    is_unlimited: bool,
}

impl Files {
    /// A new process in `/`, with `/dev/stdin`, `/dev/stdout` and `/dev/stderr` open as 0, 1 and 2.
    ///
    /// # Errors
    /// `ENOENT` if the tree lacks these; every tree made from [`open_bundle`](super::open_bundle)'s has them.
    pub fn new(tree: Arc<Mutex<Tree>>, console: Box<dyn Console>) -> Result<Self, Errno> {
        let state = ProcessState {
            descriptors: Descriptors::default(),
            mappings: Vec::new(),
            working_directory: ROOT,
            umask: UMASK,
        };
        let mut files = Self::resume(tree, &state, console);
        files.open(At::WorkingDirectory, b"/dev/stdin", OpenFlags::READ_ONLY, 0)?;
        files.open(At::WorkingDirectory, b"/dev/stdout", OpenFlags::WRITE_ONLY, 0)?;
        files.open(At::WorkingDirectory, b"/dev/stderr", OpenFlags::WRITE_ONLY, 0)?;
        Ok(files)
    }

    /// A process that begins with the state of another one: the same inodes open at the same descriptors and
    /// positions, in `tree`, which is the other's tree or a clone of it. From then on the two share only the tree;
    /// each has its own positions and its own copies of the pipes.
    ///
    /// Descriptors of files that `tree` does not have any more are closed; a working directory that is gone becomes
    /// `/`.
    #[must_use]
    pub fn resume(tree: Arc<Mutex<Tree>>, state: &ProcessState, console: Box<dyn Console>) -> Self {
        let mut state = state.clone();
        {
            let mut tree = tree.lock();
            state.descriptors.adopt(&mut tree);
            for mapping in &mut state.mappings {
                mapping.ino = mapping.ino.filter(|ino| tree.retain(*ino).is_ok());
            }
            if tree.retain(state.working_directory).is_err() {
                state.working_directory = ROOT;
                // Every tree has a root directory.
                let _ = tree.retain(ROOT);
            }
        }
        Self { tree, state, console, entropy: Arc::default(), is_unlimited: false }
    }

    /// A copy of the state for [`Files::resume`].
    #[must_use]
    pub fn state(&self) -> ProcessState {
        self.state.clone()
    }

    /// The tree that this process works on.
    #[must_use]
    pub fn tree(&self) -> &Arc<Mutex<Tree>> {
        &self.tree
    }

    /// Whether the process may let files grow beyond the quota of its cluster.
    pub(crate) fn set_unlimited(&mut self, is_unlimited: bool) {
        self.is_unlimited = is_unlimited;
    }

    /// Replaces the console of the process, and returns the previous one.
    pub fn set_console(&mut self, console: Box<dyn Console>) -> Box<dyn Console> {
        std::mem::replace(&mut self.console, console)
    }

    /// The bytes that the device of random bytes has.
    pub(crate) fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// From now on the device of random bytes has those of `entropy`.
    pub(crate) fn set_entropy(&mut self, entropy: Arc<Entropy>) {
        self.entropy = entropy;
    }

    /// Closes all descriptors and forgets all mappings, as the end of a process does.
    pub fn close_all(&mut self) {
        let mut tree = self.tree.lock();
        self.state.descriptors.close_all(&mut tree);
        for ino in self.state.mappings.drain(..).filter_map(|mapping| mapping.ino) {
            tree.release(ino);
        }
    }

    /// The content of a file. Meant for the host; a guest opens and reads.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a node without a length, `EFBIG` if it does not fit into memory, `ENOENT` and the other
    /// errors of a walk.
    pub fn read_file(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let tree = self.tree.lock();
        let ino = self.inode(&tree, At::WorkingDirectory, path, Follow::Yes)?;
        match &tree.node(ino).ok_or(Errno::ENOENT)?.kind {
            Kind::File(content) => {
                let len = usize::try_from(content.len()).map_err(|_| Errno::EFBIG)?;
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(len).map_err(|_| Errno::EFBIG)?;
                bytes.resize(len, 0);
                content.read_at(0, &mut bytes);
                Ok(bytes)
            }
            Kind::Directory(_) | Kind::DescriptorDirectory { .. } => Err(Errno::EISDIR),
            Kind::Stored(_) => Err(Errno::EOPNOTSUPP),
            Kind::Device(_) | Kind::Symlink(_) | Kind::Shared(_) => Err(Errno::EINVAL),
        }
    }

    /// Sets the file mode mask, and returns the previous one.
    pub fn umask(&mut self, mask: u32) -> u32 {
        std::mem::replace(&mut self.state.umask, mask)
    }

    /// The device that `fd` refers to; `None` if it is not a device.
    ///
    /// # Errors
    /// `EBADF` if `fd` is not open.
    pub fn device(&self, fd: i32) -> Result<Option<Device>, Errno> {
        let super::descriptors::Object::Node(ino) = self.state.descriptors.file(fd)?.object else {
            return Ok(None);
        };
        match self.tree.lock().node(ino).map(|node| &node.kind) {
            Some(Kind::Device(device)) => Ok(Some(*device)),
            _ => Ok(None),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.close_all();
        self.tree.lock().release(self.state.working_directory);
    }
}

#[cfg(test)]
mod tests;
