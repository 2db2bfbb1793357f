//! Lists the entries of the cache, and removes entries that no process uses.

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

/// Unfinished files older than this belong to no running process.
const HALF_DONE: Duration = Duration::from_hours(24);

/// The size of an entry and the time of its last use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Bytes on disk, without holes.
    pub size: u64,
    /// When a process last opened it, to the day.
    pub used: SystemTime,
}

/// Whether an entry was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It was removed.
    Yes,
    /// A process uses it, or has used it since it was listed.
    InUse,
}

impl Cache {
    /// All entries of this directory, except for subdirectories that are caches.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<Usage>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            let path = self.path(&name);
            let is_entry = !name.starts_with('.') && !name.ends_with(LOCK);
            // An entry that was removed meanwhile is not listed.
            if is_entry
                && let Ok(metadata) = fs::metadata(&path)
                && let (Ok(used), Ok(size)) = (metadata.modified(), size_on_disk(&path))
            {
                entries.push(Usage { name, size, used });
            }
        }
        Ok(entries)
    }

    /// Removes the entry, unless a process uses it or has used it since it was listed. A process that opens it at this
    /// moment waits, and then does not find it.
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

    /// Removes the files and directories `names`, as far as they exist, from the entry, a directory, under the
    /// conditions of [`Cache::remove_unused`]. The entry's time of use stays.
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

    /// Removes unfinished files of processes that died, and lock files without an entry.
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
            // Unfinished directories, and entries that are being removed, have the name of their entry, whose lock the
            // working process holds. New files have arbitrary names.
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
            Ok(()) if is_at(&file, &path) => Ok(Some(Lock { name: name.to_owned(), _file: Some(file) })),
            Ok(()) | Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the file of a lock that is held; a process that waits for the lock notices it ([`Cache::lock`]).
    fn remove_lock_file(&self, lock: &Lock) -> io::Result<()> {
        remove_if_there(&self.path(&format!("{}{LOCK}", lock.name)))
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)
            .with_context(|| format!("the cache directory {} cannot be read", self.directory.display()))?;
        // All names of this program are UTF-8.
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }
}

/// Bytes on disk of a file or of a directory's content, without holes.
pub(crate) fn size_on_disk(path: &Path) -> io::Result<u64> {
    /// The unit of `st_blocks` in bytes (POSIX does not define it; Linux, stat(2)).
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
