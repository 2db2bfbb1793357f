//! Where an archive or a dump is written to: a file, which appears when it is complete; or something else that can be
//! written to.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    process::geteuid,
};

/// The name that means stdin or stdout.
pub(super) const STANDARD: &str = "-";

/// How often a partial file is opened that another process completes meanwhile.
const ATTEMPTS: u32 = 100;

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
        let partial = partial_of(&path).with_context(|| format!("{name} is no name of a file"))?;
        let file = open_partial(&partial, &name)?;
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

/// Calls `write` with what will be the file `path`, which appears when that has succeeded; `-` is stdout.
///
/// # Errors
/// Those of `write`, and when the file cannot be written.
pub fn into_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T> {
    if path.as_os_str() == STANDARD {
        let mut out = io::stdout().lock();
        let written = write(&mut out)?;
        out.flush().context("stdout cannot be written")?;
        return Ok(written);
    }
    let target = Target::open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, Named { file: &target.file, name: &target.name });
    let written = write(&mut out)?;
    out.flush()?;
    drop(out);
    target.finish()?;
    Ok(written)
}

/// Opens the partial file of what will be `name`, and locks it.
fn open_partial(partial: &Path, name: &str) -> anyhow::Result<File> {
    let cannot_open = || format!("{name} cannot be written: its partial file {} cannot be opened", partial.display());
    // Others may write to the directory: no link of theirs is followed, and no pipe waited for.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits())?;
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(partial).with_context(cannot_open)?;
        let opened = file.metadata().with_context(cannot_open)?;
        let is_own = opened.is_file() && opened.uid() == geteuid().as_raw() && opened.nlink() <= 1;
        ensure!(
            is_own,
            "{name} cannot be written: its partial file {} is not one that this program has left; remove it",
            partial.display()
        );
        let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        ensure!(is_free, "something else is being written to {name}: another backup or dump");
        // Before it was locked here, another process may have completed it and given it its name.
        let there = fs::symlink_metadata(partial);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
            return Ok(file);
        }
    }
    bail!("{name} cannot be written: others write to it all the time")
}

/// The path of what will be `path` until it is complete; `None` if that ends without a name.
pub(crate) fn partial_of(path: &Path) -> Option<PathBuf> {
    let partial: OsString = [".".as_ref(), path.file_name()?, ".partial".as_ref()].into_iter().collect();
    Some(path.with_file_name(partial))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partial_file_that_others_have_put_there_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (partial, other) = (path(".dump.partial"), path("other"));
        fs::write(&other, "other").unwrap();
        let link = || symlink(&other, &partial);
        let hard_link = || fs::hard_link(&other, &partial);
        let pipe = || Ok(rustix::fs::mkfifoat(rustix::fs::CWD, &partial, 0o600.into())?);
        for make in [&link as &dyn Fn() -> io::Result<()>, &hard_link, &pipe] {
            make().unwrap();
            assert!(Target::open(&path("dump")).is_err());
            assert_eq!(fs::read(&other).unwrap(), b"other");
            fs::remove_file(&partial).unwrap();
        }
    }

    #[test]
    fn what_a_killed_process_has_left_is_replaced_unless_somebody_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dump");
        fs::write(directory.path().join(".dump.partial"), "a part of a dump").unwrap();
        let target = Target::open(&path).unwrap();
        let second = Target::open(&path).err().unwrap().to_string();
        assert!(second.contains("another backup or dump"), "{second}");
        (&mut target.file()).write_all(b"all").unwrap();
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all");
    }
}
