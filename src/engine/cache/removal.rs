//! What is in the cache, and its removal where no process uses it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;

use super::{
    Cache, LOCK, Lock,
    in_use::{age, is_at, take_unused},
    remove_if_there,
};

/// A file that is written beside its place, by a process that may live, is not older than this.
const HALF_DONE: Duration = Duration::from_hours(24);

/// What an entry takes, and when it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Bytes on disk, which holes are not.
    pub size: u64,
    /// When a process opened it last, to the day.
    pub used: SystemTime,
}

/// What became of an entry that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Yes,
    /// A process uses it, or has used it since it was looked at.
    InUse,
}

impl Cache {
    /// All entries of this directory, not those of its subdirectories which are caches of their own.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<Usage>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            let path = self.path(&name);
            let is_entry = !name.starts_with('.') && !name.ends_with(LOCK);
            // What has just been removed is not listed.
            if is_entry
                && let Ok(metadata) = fs::metadata(&path)
                && let (Ok(used), Ok(size)) = (metadata.modified(), size_on_disk(&path))
            {
                entries.push(Usage { name, size, used });
            }
        }
        Ok(entries)
    }

    /// Removes the entry, unless a process uses it or has used it since it was looked at; whoever opens it at this
    /// moment waits, and finds nothing.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn remove_unused(&self, entry: &Usage) -> anyhow::Result<Removed> {
        self.with_unused(entry, |lock| {
            let old = self.path(&format!(".old-{}", entry.name));
            remove_if_there(&old)?;
            fs::rename(self.path(&entry.name), &old)?;
            remove_if_there(&old)?;
            self.remove_lock_file(lock)
        })
    }

    /// Removes those of the files and directories `names` in the entry, a directory, that are there, under the
    /// conditions of [`Cache::remove_unused`]. The entry counts as used when it was before.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn remove_unused_parts(&self, entry: &Usage, names: &[&str]) -> anyhow::Result<Removed> {
        let directory = self.path(&entry.name);
        self.with_unused(entry, |_| {
            names.iter().try_for_each(|name| remove_if_there(&directory.join(name)))?;
            File::open(&directory)?.set_modified(entry.used)
        })
    }

    fn with_unused(&self, entry: &Usage, remove: impl FnOnce(&Lock) -> io::Result<()>) -> anyhow::Result<Removed> {
        let path = self.path(&entry.name);
        let attempt = || {
            let Some(lock) = self.try_lock(&entry.name)? else { return Ok(Removed::InUse) };
            let Some(taken) = take_unused(&path)? else { return Ok(Removed::InUse) };
            if taken.metadata()?.modified()? != entry.used {
                return Ok(Removed::InUse);
            }
            remove(&lock).map(|()| Removed::Yes)
        };
        let result: io::Result<Removed> = attempt();
        result.with_context(|| format!("{} cannot be removed", path.display()))
    }

    /// Removes what processes that died have left half done, and lock files without an entry.
    ///
    /// # Errors
    /// When the cache cannot be read or written.
    pub fn sweep(&self) -> anyhow::Result<()> {
        for name in self.names()? {
            let path = self.path(&name);
            self.sweep_one(&name, &path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
        Ok(())
    }

    fn sweep_one(&self, name: &str, path: &Path) -> io::Result<()> {
        let entry = [".new-", ".old-"].iter().find_map(|prefix| name.strip_prefix(prefix));
        if let Some(entry) = entry {
            // Directories and what is on its way out have the name of their entry, whose lock is held by who works on
            // them; new files have any.
            let is_new_file = name.starts_with(".new-") && path.is_file();
            if is_new_file {
                if path.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|made| age(made) > HALF_DONE) {
                    return remove_if_there(path);
                }
            } else if let Some(lock) = self.try_lock(entry)? {
                remove_if_there(path)?;
                return if self.path(entry).exists() { Ok(()) } else { self.remove_lock_file(&lock) };
            }
        } else if let Some(entry) = name.strip_suffix(LOCK)
            && !self.path(entry).exists()
            && let Some(lock) = self.try_lock(entry)?
            && !self.path(entry).exists()
        {
            return self.remove_lock_file(&lock);
        }
        Ok(())
    }

    /// The lock `name`, if no process holds it.
    fn try_lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let path = self.path(&format!("{name}{LOCK}"));
        let file = File::create(&path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => Ok(Some(Lock { name: name.to_owned(), _file: file })),
            Ok(()) | Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the file of a lock that is held; who waits for it finds out ([`Cache::lock`]).
    fn remove_lock_file(&self, lock: &Lock) -> io::Result<()> {
        remove_if_there(&self.path(&format!("{}{LOCK}", lock.name)))
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)
            .with_context(|| format!("the cache directory {} cannot be read", self.directory.display()))?;
        // This program gives no other names.
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }
}

/// Bytes on disk of a file or of everything in a directory, which holes are not.
pub(crate) fn size_on_disk(path: &Path) -> io::Result<u64> {
    /// What `st_blocks` counts, in bytes (POSIX leaves it open; Linux, stat(2)).
    const BLOCK: u64 = 512;
    let metadata = fs::symlink_metadata(path)?;
    let mut size = metadata.blocks() * BLOCK;
    if metadata.is_dir() {
        let children = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        for child in children {
            size += size_on_disk(&child)?;
        }
    }
    Ok(size)
}
