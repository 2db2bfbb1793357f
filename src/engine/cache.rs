//! The private directory that keeps what is expensive to make: compiled code and prepared clusters.
//!
//! Compiled code is trusted when it is loaded, so the directory belongs to the user who runs the program and to nobody else:
//! it is made with mode 0700, and one that others own or can write to is refused.
//! Entries appear whole or not at all: they are written beside their place and renamed, and a lock file makes a second
//! process wait for the first instead of doing the same work.

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

/// A directory of the user's own, opened and checked.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens `directory`, or `$XDG_CACHE_HOME/pglite-port` (`~/.cache/pglite-port`) when there is none, and makes it if it is missing.
    ///
    /// # Errors
    /// When it cannot be made or written, or when somebody else owns it or may write to it; the message says what to do.
    pub fn open(directory: Option<&Path>) -> anyhow::Result<Self> {
        let directory = match directory {
            Some(directory) => directory.to_path_buf(),
            None => choose_base_strategy()
                .context("no home directory is known; name a cache directory with --cache-dir")?
                .cache_dir()
                .join("pglite-port"),
        };
        make_private(&directory).with_context(|| {
            format!("the cache directory {} cannot be used; name another with --cache-dir", directory.display())
        })?;
        Ok(Self { directory: directory.canonicalize().unwrap_or(directory) })
    }

    /// Where the entry `name` is, or would be.
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

    /// Waits until no other process holds the lock `name`, and holds it until the returned guard is dropped.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn lock(&self, name: &str) -> anyhow::Result<Lock> {
        let path = self.path(&format!("{name}.lock"));
        let file = File::create(&path)
            .and_then(|file| file.lock().map(|()| file))
            .with_context(|| format!("the lock file {} cannot be taken", path.display()))?;
        Ok(Lock { name: name.to_owned(), _file: file })
    }

    /// Writes the file `name` whole: beside its place first, then renamed.
    ///
    /// # Errors
    /// When the directory cannot be written; what was there stays.
    pub fn publish_file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let place = self.path(name);
        let mut file =
            tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory).with_context(|| self.unwritable())?;
        io::Write::write_all(&mut file, bytes).with_context(|| self.unwritable())?;
        file.persist(&place).with_context(|| self.unwritable())?;
        Ok(place)
    }

    /// Makes the directory whose lock that is whole: `fill` writes into a directory beside it, which is then renamed into place.
    /// A directory of that name that is there already is replaced; whoever has files of it open keeps them.
    ///
    /// # Errors
    /// Those of `fill`, and when the cache cannot be written; what was there stays unless the last step failed.
    pub fn publish_directory(
        &self,
        lock: &Lock,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let place = self.path(&lock.name);
        // Nobody else uses these names while the caller holds the lock: what is there was left behind by a process that died.
        let (new, old) = (self.path(&format!(".new-{}", lock.name)), self.path(&format!(".old-{}", lock.name)));
        for left_behind in [&new, &old] {
            remove_if_there(left_behind).with_context(|| self.unwritable())?;
        }
        let _removed = RemovedAtTheEnd(&new);
        fs::create_dir(&new).with_context(|| self.unwritable())?;
        fill(&new)?;
        match renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE) {
            // The old one is at `new` now.
            Ok(()) => return Ok(place),
            Err(Errno::NOENT) => {}
            // This filesystem cannot exchange two names.
            Err(_) => fs::rename(&place, &old).with_context(|| self.unwritable())?,
        }
        let renamed = fs::rename(&new, &place).with_context(|| self.unwritable());
        remove_if_there(&old).with_context(|| self.unwritable())?;
        renamed.map(|()| place)
    }

    /// Removes the directory whose lock that is, in whole; whoever has files of it open keeps them. Says whether it was there.
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

/// Holds a lock of [`Cache::lock`]; the operating system frees it when the process dies.
#[derive(Debug)]
pub struct Lock {
    name: String,
    _file: File,
}

fn remove_if_there(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory when it is dropped, if it is still there.
struct RemovedAtTheEnd<'a>(&'a Path);

impl Drop for RemovedAtTheEnd<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(self.0) {
            tracing::warn!("{} is not needed any more but stays: {error}", self.0.display());
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
            "others may write to it (mode {:04o}), and compiled code is trusted; run chmod 0700 on it",
            metadata.mode() & 0o7777
        );
    }
    // A directory that exists but cannot be written is found here and not after seconds of compiling.
    tempfile::tempfile_in(directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_cache_directory_is_private() {
        let outer = tempfile::tempdir().unwrap();
        let place = outer.path().join("a/b");
        Cache::open(Some(&place)).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = format!("{:#}", Cache::open(Some(outer.path())).unwrap_err());
        assert!(error.contains("others may write to it (mode 0777)"), "{error}");
        assert!(error.contains("--cache-dir"), "{error}");
    }

    #[test]
    fn a_published_directory_replaces_the_one_before_it_whole() {
        let outer = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
        for content in ["one", "two"] {
            let lock = cache.lock("entry").unwrap();
            cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join(content), content)?)).unwrap();
        }
        assert!(!cache.path("entry").join("one").exists());
        assert_eq!(fs::read_to_string(cache.path("entry").join("two")).unwrap(), "two");
        assert_eq!(names(&cache), ["entry", "entry.lock"], "nothing else is left behind");
    }

    #[test]
    fn a_failed_fill_leaves_what_was_there() {
        let outer = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
        let lock = cache.lock("entry").unwrap();
        cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join("x"), "1")?)).unwrap();
        cache.publish_directory(&lock, |_| bail!("no")).unwrap_err();
        assert!(cache.path("entry").join("x").exists());
        assert_eq!(names(&cache), ["entry", "entry.lock"]);
    }

    #[test]
    fn what_a_dead_process_left_half_done_is_swept_away_by_the_next_one() {
        let outer = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
        for name in [".new-entry", ".old-entry", ".new-other"] {
            fs::create_dir(cache.path(name)).unwrap();
            fs::write(cache.path(name).join("half"), "1").unwrap();
        }
        let lock = cache.lock("entry").unwrap();
        cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join("x"), "1")?)).unwrap();
        assert_eq!(names(&cache), [".new-other", "entry", "entry.lock"]);
        assert!(!cache.path("entry").join("half").exists());
        assert!(cache.remove_directory(&lock).unwrap());
        assert!(!cache.remove_directory(&lock).unwrap());
        assert_eq!(names(&cache), [".new-other", "entry.lock"]);
    }

    fn names(cache: &Cache) -> Vec<String> {
        let entries = fs::read_dir(cache.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
