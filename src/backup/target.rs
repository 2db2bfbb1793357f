//! Where an archive or a dump is written to: a file, which appears when it is complete; or something else that can be
//! written to.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use rustix::fs::{FlockOperation, flock};

/// The name that means stdin or stdout.
pub(super) const STANDARD: &str = "-";

/// A file that is being written.
pub(crate) struct Target {
    file: File,
    name: String,
    /// The path that it has until it is complete, and its final one; nothing if it is no regular file.
    paths: Option<(PathBuf, PathBuf)>,
}

impl Target {
    /// Opens what will be `path`. A regular file that is there, or that a link there leads to, stays as it is until
    /// [`Target::finish`].
    ///
    /// # Errors
    /// When it cannot be written, or something else is being written there.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let cannot_write = || format!("{name} cannot be written");
        let path = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => bail!("{name} is a directory: name a file in it"),
            Ok(metadata) if metadata.is_file() => fs::canonicalize(path).with_context(cannot_write)?,
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path).with_context(cannot_write)?;
                return Ok(Self { file, name, paths: None });
            }
            Err(_) => path.to_owned(),
        };
        // A fixed name: what a killed backup has left is replaced by the next one.
        let file_name = path.file_name().with_context(|| format!("{name} is no name of a file"))?;
        let partial: OsString = [".".as_ref(), file_name, ".partial".as_ref()].into_iter().collect();
        let partial = path.with_file_name(partial);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&partial);
        let file = file.with_context(cannot_write)?;
        let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        ensure!(is_free, "something else is being written to {name}: another backup or dump");
        file.set_len(0).with_context(cannot_write)?;
        Ok(Self { file, name, paths: Some((partial, path)) })
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a regular file, which appears when it is complete.
    pub(crate) fn is_regular(&self) -> bool {
        self.paths.is_some()
    }

    /// Calls `write` with the file, through gzip if its name says so.
    pub(super) fn write<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut out = BufWriter::with_capacity(1 << 20, Named { file: &self.file, name: &self.name });
        let written = if self.name.ends_with("gz") {
            // The fastest: pages compress well, and a backup should not take longer than reading the cluster.
            let mut compressed = GzEncoder::new(&mut out, Compression::fast());
            let written = write(&mut compressed)?;
            compressed.finish()?;
            written
        } else {
            write(&mut out)?
        };
        out.flush()?;
        Ok(written)
    }

    /// Has the file on the disk, and gives it its name.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        let Some((partial, path)) = &self.paths else { return Ok(()) };
        let finish = || {
            self.file.sync_all()?;
            fs::rename(partial, path)?;
            File::open(directory_of(path))?.sync_all()
        };
        finish().with_context(|| format!("{} cannot be written", self.name))?;
        self.paths = None;
        Ok(())
    }
}

/// The directory that a file is in.
pub(crate) fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.paths {
            // Nothing depends on it.
            let _ = fs::remove_file(partial);
        }
    }
}

/// A file whose errors have its name.
struct Named<'a> {
    file: &'a File,
    name: &'a str,
}

impl Named<'_> {
    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| io::Error::new(error.kind(), format!("{} cannot be written: {error}", self.name)))
    }
}

impl Write for Named<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file;
        self.named(file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut file = self.file;
        self.named(file.flush())
    }
}
