//! PGlite's own files: `pglite.data` with the index in `pglite.js`, and the archives of extensions.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use super::{
    archive::{Archived, ArchivedFile, read_archive},
    content::Content,
    errno::Errno,
    extent::{Extent, Source},
    frozen::FrozenTree,
    layout::{lay_out, make_directories},
    node::{Kind, Node},
    tree::Tree,
};

/// Why a bundle could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A host file could not be read.
    #[error("cannot read {}: {error}; is the PGlite package complete?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// The script contains no list of files that can be parsed.
    #[error("the index of files in PGlite's script is not as expected at byte {offset}: {problem}")]
    Index {
        /// Where in the script.
        offset: usize,
        /// The text that was expected there.
        problem: &'static str,
    },
    /// The index names bytes beyond the end of the data file.
    #[error(
        "{name} should be bytes {start} to {end} of PGlite's data file, which has {available}; \
         script and data must be of the same release"
    )]
    Range {
        /// The file in the bundle.
        name: String,
        /// Its first byte.
        start: usize,
        /// The byte after its last.
        end: usize,
        /// The data file's length.
        available: usize,
    },
    /// An archive could not be unpacked.
    #[error("cannot unpack an extension's archive: {0}")]
    Archive(#[from] io::Error),
    /// An archive is not compressed, or not with gzip.
    #[error("it is not compressed with gzip")]
    NotCompressed,
    /// An archive has something other than files, directories and symbolic links.
    #[error("{name} is of the kind {kind}: files, directories and symbolic links can be unpacked")]
    Kind {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// A name in an archive is absolute, or leads out of its directory.
    #[error("refusing to unpack {0:?}, which leads out of the directory it belongs to")]
    Escape(String),
    /// A file could not be put into the tree.
    #[error("cannot make {path:?} in the guest's files: {errno}")]
    Place {
        /// The path in the guest.
        path: String,
        /// The tree's error.
        errno: Errno,
    },
}

/// A file of the bundle: its path in the guest, and which bytes of the data file it is.
#[derive(Debug, PartialEq, Eq)]
struct IndexEntry {
    name: String,
    start: usize,
    end: usize,
}

/// The files of PGlite (`data`: `pglite.data`, `script`: `pglite.js`), in a tree with the directories and devices that
/// every guest needs. Their contents are mapped, not copied: `data` must not change while the tree is in use.
///
/// # Errors
/// [`BundleError`], which names the file or the place.
pub fn open_bundle(data: &Path, script: &Path) -> Result<Arc<FrozenTree>, BundleError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| BundleError::Read { path, error }
    };
    let index = parse_index(&std::fs::read(script).map_err(failed(script))?)?;
    let file = File::open(data).map_err(failed(data))?;
    // SAFETY: the map is only read, as bytes, for which every value is valid. The caller guarantees that the file does
    // not shrink meanwhile; it belongs to an installed package.
    let map = unsafe { Mmap::map(&file) }.map_err(failed(data))?;
    let source = Arc::new(Source::Mapped(map));
    let mut tree = Tree::new();
    lay_out(&mut tree).map_err(|errno| BundleError::Place { path: "/dev".to_owned(), errno })?;
    for IndexEntry { name, start, end } in index {
        let available = source.bytes().len();
        let extent = end.checked_sub(start).and_then(|len| Extent::new(Arc::clone(&source), start, len));
        let Some(extent) = extent else {
            return Err(BundleError::Range { name, start, end, available });
        };
        let node = Node::new(Kind::File(Content::from_extent(extent)), permissions(&name));
        place(&mut tree, &name, node)?;
    }
    Ok(tree.freeze())
}

/// Permissions that PostgreSQL requires: its programs are executable, and only the owner can read a password file
/// (PGlite sets the same in `pglite.ts`).
fn permissions(name: &str) -> u32 {
    if name.ends_with("/.pgpass") {
        0o600
    } else if name.starts_with("/pglite/bin/") {
        0o555
    } else {
        0o644
    }
}

/// Puts a node into the tree, and makes its parent directories.
fn place(tree: &mut Tree, path: &str, node: Node) -> Result<(), BundleError> {
    let failed = |errno| BundleError::Place { path: path.to_owned(), errno };
    let (directory, name) = path.rsplit_once('/').ok_or_else(|| failed(Errno::EINVAL))?;
    if matches!(name, "" | "." | "..") {
        return Err(failed(Errno::EINVAL));
    }
    let parent = make_directories(tree, directory.as_bytes()).map_err(failed)?;
    tree.create(parent, name.as_bytes(), node).map_err(failed)?;
    Ok(())
}

/// Unpacks an extension's `.tar.gz` below the directory `below` of the guest (PGlite: `/pglite`), replacing files of
/// the same names, and returns the paths of the files, in the archive's order.
///
/// # Errors
/// [`BundleError`]; what was unpacked until then stays.
pub fn unpack_extension(tree: &mut Tree, archive: impl Read, below: &str) -> Result<Vec<String>, BundleError> {
    let mut unpacked = Vec::new();
    for file in read_archive(archive)? {
        let path = format!("{below}/{}", file.path);
        let failed = |errno| BundleError::Place { path: path.clone(), errno };
        match file.content {
            Archived::Directory => {
                make_directories(tree, path.as_bytes()).map_err(failed)?;
                continue;
            }
            content => {
                remove(tree, &path).map_err(failed)?;
                place(tree, &path, content.into_node())?;
            }
        }
        unpacked.push(path);
    }
    Ok(unpacked)
}

/// A tree with the files of an archive whose paths are wanted.
///
/// # Errors
/// [`BundleError::Place`], if a name is there twice.
pub fn tree_of(files: Vec<ArchivedFile>, is_wanted: impl Fn(&str) -> bool) -> Result<Arc<FrozenTree>, BundleError> {
    let mut tree = Tree::new();
    for file in files.into_iter().filter(|file| file.content != Archived::Directory && is_wanted(&file.path)) {
        place(&mut tree, &format!("/{}", file.path), file.content.into_node())?;
    }
    Ok(tree.freeze())
}

/// Puts a file into the tree, replacing one of the same name, and makes its parent directories.
///
/// # Errors
/// [`BundleError::Place`]
pub fn put_file(tree: &mut Tree, path: &str, content: Vec<u8>) -> Result<(), BundleError> {
    remove(tree, path).map_err(|errno| BundleError::Place { path: path.to_owned(), errno })?;
    place(tree, path, Node::new(Kind::File(Content::from_extent(Extent::owned(content))), 0o644))
}

/// Removes the file `path`, if there is one.
fn remove(tree: &mut Tree, path: &str) -> Result<(), Errno> {
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
    let parent = make_directories(tree, directory.as_bytes())?;
    match tree.unlink(parent, name.as_bytes()) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Reads `files:[{filename:"…",start:N,end:N},…]` out of PGlite's minified script.
fn parse_index(script: &[u8]) -> Result<Vec<IndexEntry>, BundleError> {
    const START: &[u8] = b"files:[{filename:";
    let Some(position) = script.windows(START.len()).position(|window| window == START) else {
        return Err(BundleError::Index { offset: 0, problem: "there is no `files:[{filename:`" });
    };
    let mut cursor = Cursor { script, offset: position };
    let mut index = Vec::new();
    cursor.expect(b"files:[", "`files:[`")?;
    loop {
        cursor.expect(b"{filename:", "`{filename:`")?;
        let name = cursor.string()?;
        cursor.expect(b",start:", "`,start:`")?;
        let start = cursor.number()?;
        cursor.expect(b",end:", "`,end:`")?;
        let end = cursor.number()?;
        cursor.expect(b"}", "`}`")?;
        index.push(IndexEntry { name, start, end });
        if cursor.expect(b"]", "`]`").is_ok() {
            return Ok(index);
        }
        cursor.expect(b",", "`,` or `]`")?;
    }
}

/// A place in the script.
struct Cursor<'a> {
    script: &'a [u8],
    offset: usize,
}

impl Cursor<'_> {
    fn rest(&self) -> &[u8] {
        &self.script[self.offset..]
    }

    fn error(&self, problem: &'static str) -> BundleError {
        BundleError::Index { offset: self.offset, problem }
    }

    fn expect(&mut self, token: &[u8], problem: &'static str) -> Result<(), BundleError> {
        if !self.rest().starts_with(token) {
            return Err(self.error(problem));
        }
        self.offset += token.len();
        Ok(())
    }

    fn number(&mut self) -> Result<usize, BundleError> {
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = std::str::from_utf8(&self.rest()[..digits]).unwrap_or_default();
        let number = text.parse().map_err(|_| self.error("a whole number"))?;
        self.offset += digits;
        Ok(number)
    }

    /// A string in double quotes. The minifier writes no escapes in file names, so an escape is an error.
    fn string(&mut self) -> Result<String, BundleError> {
        self.expect(b"\"", "a string in double quotes")?;
        let length = self.rest().iter().position(|byte| *byte == b'"');
        let length = length.ok_or_else(|| self.error("the end of a string"))?;
        let bytes = &self.rest()[..length];
        if bytes.contains(&b'\\') {
            return Err(self.error("a file name without escapes"));
        }
        let name = std::str::from_utf8(bytes).map_err(|_| self.error("a file name in UTF-8"))?.to_owned();
        self.offset += length + 1;
        Ok(name)
    }
}

#[cfg(test)]
mod tests;
