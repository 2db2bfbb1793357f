//! The archives of extensions: gzipped tar files with `share/postgresql/…` and `lib/postgresql/…`.

use std::{
    io::{self, Read},
    sync::Arc,
};

use flate2::read::GzDecoder;

use super::{
    bundle::BundleError,
    content::Content,
    directory::Directory,
    extent::Extent,
    frozen::ROOT,
    node::{Kind, Node},
};

/// The most that an archive may unpack to, in bytes: a file of a megabyte can stand for a thousand, all in memory. The
/// largest known one, of `PostGIS`, has a fifth.
const LIMIT: u64 = 512 << 20;

/// The first bytes of a file that gzip has compressed.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    /// Its path, relative to where the archive is unpacked.
    pub path: String,
    /// What it holds.
    pub content: Archived,
}

/// What a name in an archive stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archived {
    /// A regular file.
    File {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Whether somebody may execute it.
        is_executable: bool,
    },
    /// A symbolic link to another name in the same directory.
    Link(String),
    /// A directory.
    Directory,
}

impl Archived {
    /// The node for it; that of a directory is not in any yet.
    pub(super) fn into_node(self) -> Node {
        match self {
            Self::File { bytes, is_executable } => {
                let permissions = if is_executable { 0o755 } else { 0o644 };
                Node::new(Kind::File(Content::from_extent(Extent::owned(bytes))), permissions)
            }
            Self::Link(target) => Node::new(Kind::Symlink(Arc::from(target.as_bytes())), 0o777),
            Self::Directory => Node::new(Kind::Directory(Directory::new(ROOT)), 0o777),
        }
    }
}

/// What is in a `.tar.gz`, in its order. A leading `./` is left out; other names that begin with a dot are left out as
/// a whole, as PGlite does (`extensionUtils.ts`).
///
/// # Errors
/// [`BundleError::NotCompressed`], [`BundleError::Archive`] if it is damaged, [`BundleError::Escape`] if a name leads
/// out of the archive.
pub fn read_archive(mut archive: impl Read) -> Result<Vec<ArchivedFile>, BundleError> {
    let mut head = Vec::new();
    archive.by_ref().take(GZIP.len() as u64).read_to_end(&mut head)?;
    if head != GZIP {
        return Err(BundleError::NotCompressed);
    }
    let mut archive = tar::Archive::new(Limited { inner: GzDecoder::new(head.chain(archive)), left: LIMIT });
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(BundleError::Escape(name));
        }
        let path = name.trim_start_matches("./").trim_end_matches('/');
        if path.is_empty() || path.starts_with('.') {
            continue;
        }
        let kind = entry.header().entry_type();
        let content = if kind.is_dir() {
            Archived::Directory
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Archived::File { bytes, is_executable: entry.header().mode()? & 0o111 != 0 }
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let target = target.ok_or_else(|| io::Error::other(format!("{path} links to nothing")))?;
            if target.contains('/') || target.starts_with('.') {
                return Err(BundleError::Escape(format!("{path} -> {target}")));
            }
            Archived::Link(target)
        } else if kind.is_pax_global_extensions() {
            continue;
        } else {
            return Err(BundleError::Kind { name, kind: format!("{kind:?}") });
        };
        files.push(ArchivedFile { path: path.to_owned(), content });
    }
    Ok(files)
}

/// Reads so many bytes, and fails at the next one.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        let left = self.left.checked_sub(len as u64);
        self.left = left.ok_or_else(|| {
            let message = format!("it unpacks to more than {} MiB", LIMIT >> 20);
            io::Error::new(io::ErrorKind::FileTooLarge, message)
        })?;
        Ok(len)
    }
}
