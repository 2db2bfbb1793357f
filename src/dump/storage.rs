//! The files of the guest that are files of the host: the dump, and temporary files. No dump is held in memory.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use indicatif::ProgressBar;
use parking_lot::Mutex;

use crate::fs::{HostDirectory, Storage, StoredEntry, StoredFile};

/// The directory of the guest that these files are in: that of its C library's temporary files.
pub(super) const DIRECTORY: &str = "/tmp";
/// The name of the dump in it.
pub(super) const DUMP: &str = "dump";

/// The dump and the temporary files of one run.
#[derive(Debug)]
pub(super) struct DumpStorage {
    dump: Dump,
    /// The directory of the host for temporary files, which have no names there.
    temporary: PathBuf,
    counted: Arc<Counted>,
}

/// What the dump is.
#[derive(Debug)]
pub(super) enum Dump {
    /// Nothing that the guest opens.
    Stream,
    /// A file.
    File(File),
    /// A directory.
    Directory(HostDirectory),
}

/// What happens to all files of a storage.
#[derive(Debug)]
struct Counted {
    progress: ProgressBar,
    /// The first error of the host.
    failure: Mutex<Option<io::Error>>,
}

impl DumpStorage {
    /// `progress` counts the bytes that are written.
    pub(super) fn new(dump: Dump, temporary: PathBuf, progress: ProgressBar) -> Self {
        Self { dump, temporary, counted: Arc::new(Counted { progress, failure: Mutex::default() }) }
    }

    /// The first error of a write.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.counted.failure.lock().take()
    }

    fn counted(&self, file: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        Arc::new(CountedFile { file, counted: self.counted.clone() })
    }

    /// The directory of the dump, and the name in it, if `path` is in one.
    fn in_dump<'a>(&self, path: &'a [u8]) -> Option<(&HostDirectory, &'a [u8])> {
        let Dump::Directory(directory) = &self.dump else { return None };
        let rest = path.strip_prefix(DUMP.as_bytes())?;
        Some((directory, if rest.is_empty() { rest } else { rest.strip_prefix(b"/")? }))
    }
}

impl Storage for DumpStorage {
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        match (&self.dump, self.in_dump(path)) {
            (_, Some((directory, name))) => directory.open(name).map(|file| self.counted(file)),
            (Dump::File(file), None) if path == DUMP.as_bytes() => Ok(self.counted(Arc::new(Plain(file.try_clone()?)))),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        let file: Arc<dyn StoredFile> = match (&self.dump, self.in_dump(path)) {
            (_, Some((directory, name))) => directory.create(name)?,
            (Dump::File(file), None) if path == DUMP.as_bytes() => Arc::new(Plain(file.try_clone()?)),
            _ => Arc::new(Plain(tempfile::tempfile_in(&self.temporary)?)),
        };
        Ok(self.counted(file))
    }

    fn create_directory(&self, path: &[u8]) -> io::Result<()> {
        match self.in_dump(path) {
            // The host has made it.
            Some((_, b"")) => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn create_symlink(&self, _path: &[u8], _target: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn unlink(&self, path: &[u8]) -> io::Result<()> {
        match self.in_dump(path) {
            Some((directory, name)) => directory.unlink(name),
            None => Ok(()),
        }
    }

    fn remove_directory(&self, _path: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn rename(&self, _from: &[u8], _to: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_directory(&self, path: &[u8]) -> io::Result<()> {
        match self.in_dump(path) {
            Some((directory, name)) => directory.sync_directory(name),
            None => Ok(()),
        }
    }

    fn list(&self, _path: &[u8]) -> io::Result<Vec<StoredEntry>> {
        Ok(Vec::new())
    }
}

/// A file of the host.
#[derive(Debug)]
struct Plain(File);

impl StoredFile for Plain {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, _from: u64, end: u64) -> io::Result<()> {
        self.0.set_len(end)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// A file whose writes are counted, and their errors kept.
#[derive(Debug)]
struct CountedFile {
    file: Arc<dyn StoredFile>,
    counted: Arc<Counted>,
}

impl CountedFile {
    fn kept<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            self.counted.failure.lock().get_or_insert(error);
            kind.into()
        })
    }
}

impl StoredFile for CountedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let written = self.kept(self.file.write_at(offset, bytes))?;
        self.counted.progress.inc(written as u64);
        Ok(written)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.kept(self.file.set_len(len))
    }

    fn allocate(&self, from: u64, end: u64) -> io::Result<()> {
        self.kept(self.file.allocate(from, end))
    }

    fn sync(&self) -> io::Result<()> {
        self.kept(self.file.sync())
    }
}
