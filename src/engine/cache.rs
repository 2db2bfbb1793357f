//! The private directory for files that take time to make: compiled code and prepared clusters.
//!
//! Compiled code is trusted when it is loaded, so the directory must be private to the user who runs the program: it
//! is created with mode 0700, and a directory that belongs to another user or that others can write to is refused.
//! Entries are complete or absent: they are written beside their final place, synced, and renamed. Each carries the
//! digests of its files (`seal`), which are compared when it is opened. A lock file makes a second process wait for the
//! first instead of doing the same work. An entry in use is held ([`InUse`]) so that it is not removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use etcetera::{BaseStrategy, choose_base_strategy};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

mod in_use;
mod removal;
mod seal;
#[cfg(test)]
mod tests;

pub use in_use::InUse;
pub(crate) use in_use::age;
pub(crate) use removal::size_on_disk;
pub use removal::{Removed, Usage};
pub(crate) use seal::{Digests, SealError};

/// A directory of the user that was opened and checked.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens `directory`, or by default `$XDG_CACHE_HOME/pglite-port` (`~/.cache/pglite-port`), and creates it if it
    /// is missing.
    ///
    /// # Errors
    /// When it cannot be created, belongs to another user, or others can write to it; the message says what to do.
    pub fn open(directory: Option<&Path>) -> anyhow::Result<Self> {
        let directory = match directory {
            Some(directory) => directory.to_path_buf(),
            None => choose_base_strategy()
                .context("there is no home directory; name a cache directory with --cache-dir")?
                .cache_dir()
                .join("pglite-port"),
        };
        make_private(&directory).with_context(|| {
            format!("the cache directory {} cannot be used; name another with --cache-dir", directory.display())
        })?;
        Ok(Self { directory: directory.canonicalize().unwrap_or(directory) })
    }

    /// The path of the entry `name`, which need not exist.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A subdirectory as a cache of its own.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn subdirectory(&self, name: &str) -> anyhow::Result<Self> {
        Self::open(Some(&self.directory.join(name)))
    }

    /// Waits until no other process holds the lock `name`, and holds it until the returned guard is dropped. In a
    /// directory that cannot be written there is no lock for an entry that is there: it can be used as it is.
    ///
    /// # Errors
    /// When the lock file cannot be created.
    pub fn lock(&self, name: &str) -> anyhow::Result<Lock> {
        let path = self.path(&format!("{name}{LOCK}"));
        let take = || -> io::Result<File> {
            loop {
                let file = File::create(&path)?;
                file.lock()?;
                // The previous holder may have removed the file meanwhile; then the next process would lock another one.
                if in_use::is_at(&file, &path) {
                    return Ok(file);
                }
            }
        };
        let file = match take() {
            Ok(file) => Some(file),
            Err(error) if is_refused(&error) && self.path(name).exists() => None,
            Err(error) => return Err(error).with_context(|| self.unwritable()),
        };
        Ok(Lock { name: name.to_owned(), _file: file })
    }

    /// Holds the entry `name`, so that it is not removed, and updates its time of use; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn hold(&self, name: &str) -> anyhow::Result<Option<InUse>> {
        let path = self.path(name);
        InUse::of(&path).with_context(|| format!("{} cannot be opened", path.display()))
    }

    /// As [`Cache::hold`], for a directory whose files are as they were when it was made.
    ///
    /// # Errors
    /// When they are not, or cannot be read.
    pub(crate) fn hold_intact(&self, name: &str) -> anyhow::Result<Option<InUse>> {
        let Some(in_use) = self.hold(name)? else { return Ok(None) };
        self.compare(name, |_| true).with_context(|| self.path(name).display().to_string())?;
        Ok(Some(in_use))
    }

    /// Compares those files of the entry `name`, a directory, with their digests whose paths in it are wanted.
    ///
    /// # Errors
    /// [`SealError`]
    pub(crate) fn compare(&self, name: &str, is_wanted: impl Fn(&str) -> bool) -> Result<(), SealError> {
        seal::compare(&self.path(name), is_wanted)
    }

    /// The digests of the files of the entry `name`, a directory; `None` when there are none, or they are damaged.
    pub(crate) fn digests(&self, name: &str) -> Option<Digests> {
        Digests::of(&self.path(name))
    }

    /// Writes the file `name`: beside its final place first, then renamed.
    ///
    /// # Errors
    /// When the directory cannot be written; an existing entry remains.
    pub fn publish_file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let place = self.path(name);
        let mut file =
            tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory).with_context(|| self.unwritable())?;
        io::Write::write_all(&mut file, bytes).with_context(|| self.unwritable())?;
        file.as_file().sync_all().with_context(|| self.unwritable())?;
        file.persist(&place).with_context(|| self.unwritable())?;
        self.sync()?;
        Ok(place)
    }

    /// Makes the directory with the name of `lock`: `fill` writes into a directory beside it, which is then renamed
    /// into place. An existing directory of that name is replaced; files that are open in it stay usable.
    ///
    /// # Errors
    /// Those of `fill`, and when the cache cannot be written. An existing directory remains unless the last step
    /// fails.
    pub fn publish_directory(
        &self,
        lock: &Lock,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let place = self.path(&lock.name);
        // Only the holder of the lock uses these names: existing files were left behind by a process that died.
        let (new, old) = (self.path(&format!(".new-{}", lock.name)), self.path(&format!(".old-{}", lock.name)));
        for left_behind in [&new, &old] {
            remove_if_there(left_behind).with_context(|| self.unwritable())?;
        }
        let _removed = RemovedAtTheEnd(&new);
        fs::create_dir(&new).with_context(|| self.unwritable())?;
        fill(&new)?;
        seal::write(&new).with_context(|| self.unwritable())?;
        match renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE) {
            // The old one is at `new` now.
            Ok(()) => return self.sync().map(|()| place),
            Err(Errno::NOENT) => {}
            // This filesystem cannot exchange two names.
            Err(_) => fs::rename(&place, &old).with_context(|| self.unwritable())?,
        }
        let renamed = fs::rename(&new, &place).with_context(|| self.unwritable());
        remove_if_there(&old).with_context(|| self.unwritable())?;
        renamed?;
        self.sync().map(|()| place)
    }

    /// Makes the names in it durable.
    fn sync(&self) -> anyhow::Result<()> {
        let sync = || File::open(&self.directory)?.sync_all();
        sync().with_context(|| self.unwritable())
    }

    /// Removes the directory with the name of `lock`; files that are open in it stay usable. Returns whether it
    /// existed.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn remove_directory(&self, lock: &Lock) -> anyhow::Result<bool> {
        let old = self.path(&format!(".old-{}", lock.name));
        remove_if_there(&old).with_context(|| self.unwritable())?;
        match fs::rename(self.path(&lock.name), &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            renamed => renamed.with_context(|| self.unwritable())?,
        }
        remove_if_there(&old).with_context(|| self.unwritable())?;
        Ok(true)
    }

    fn unwritable(&self) -> String {
        format!("the cache directory {} cannot be written; name another with --cache-dir", self.directory.display())
    }
}

/// The suffix of lock files.
const LOCK: &str = ".lock";

/// Holds a lock of [`Cache::lock`]; the operating system releases it when the process dies.
#[derive(Debug)]
pub struct Lock {
    name: String,
    _file: Option<File>,
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    match if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory when it is dropped, if it still exists.
struct RemovedAtTheEnd<'a>(&'a Path);

impl Drop for RemovedAtTheEnd<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(self.0) {
            tracing::warn!("{} is not needed any more but cannot be removed: {error}", self.0.display());
        }
    }
}

fn make_private(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let metadata = fs::metadata(directory)?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        bail!("it belongs to user {}, not to user {user}, and compiled code is trusted", metadata.uid());
    }
    if metadata.mode() & 0o022 != 0 {
        bail!(
            "others can write to it (mode {:04o}), and compiled code is trusted; run chmod 0700 on it",
            metadata.mode() & 0o7777
        );
    }
    Ok(())
}

/// Whether an operation failed because a directory or its filesystem cannot be written.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
