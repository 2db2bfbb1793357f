//! The directory of the host that a cluster is kept in: who may open it, what is in it, and how a new one comes to be.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};

use crate::{
    backend::DATA_DIRECTORY,
    engine::artefact::POSTGRES_VERSION,
    fs::{FrozenTree, HostDirectory, Storage, StoredEntryKind, Tree},
    postgres::control_file,
};

/// Is there while a new cluster is being made. What is found beside it was never a cluster, and is made anew.
const UNFINISHED: &[u8] = b"pglite-port.unfinished";

/// The file that a directory is recognised by as a cluster; it is the last one that a new cluster gets.
const PG_VERSION: &str = "PG_VERSION";

/// A cluster's directory, which no other program has opened.
pub(super) struct DataDirectory {
    path: PathBuf,
    directory: Arc<HostDirectory>,
}

impl DataDirectory {
    /// Opens the directory at `path`, which is made if it is not there, and gets the files of `cluster` if it is empty.
    ///
    /// # Errors
    /// When another program has it open, or it holds something else than a cluster of this `PostgreSQL`; the message
    /// says what to do.
    pub(super) fn open(path: &Path, cluster: &Arc<FrozenTree>) -> anyhow::Result<Self> {
        match fs::create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("the data directory {} cannot be made", path.display()));
            }
        }
        let unusable = || format!("the data directory {} cannot be used", path.display());
        let directory = Arc::new(HostDirectory::open(path).with_context(unusable)?);
        ensure!(directory.try_lock().with_context(unusable)?, "{}", in_use(path));
        let this = Self { path: path.to_owned(), directory };
        this.prepare(cluster).with_context(unusable)?;
        Ok(this)
    }

    /// Puts the directory in the place of the data directory in `tree`.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn mount(&self, tree: &mut Tree) -> anyhow::Result<()> {
        tree.mount(DATA_DIRECTORY.as_bytes(), self.directory.clone())
            .with_context(|| format!("the data directory {} cannot be read", self.path.display()))
    }

    fn prepare(&self, cluster: &Arc<FrozenTree>) -> anyhow::Result<()> {
        let names: Vec<_> = self.directory.list(b"")?.into_iter().map(|entry| entry.name).collect();
        if names.iter().any(|name| name == UNFINISHED) {
            tracing::warn!("{}: a new cluster was not finished; it is made again", self.path.display());
            self.empty(b"")?;
        } else if !names.is_empty() {
            return self.check();
        }
        tracing::info!("making a new cluster in {}", self.path.display());
        self.directory.create(UNFINISHED)?.sync()?;
        self.directory.sync_directory(b"")?;
        let tree = Tree::from_frozen(cluster.clone());
        tree.copy_to(DATA_DIRECTORY.as_bytes(), &*self.directory, PG_VERSION.as_bytes())?;
        self.directory.unlink(UNFINISHED)?;
        self.directory.sync_directory(b"")?;
        // The directory itself is a name in another one.
        if let Some(parent) = self.path.canonicalize()?.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes everything below `path` but the mark itself, which goes last.
    fn empty(&self, path: &[u8]) -> io::Result<()> {
        for entry in self.directory.list(path)? {
            let below = if path.is_empty() { entry.name.clone() } else { [path, b"/", &entry.name].concat() };
            if entry.kind == StoredEntryKind::Directory {
                self.empty(&below)?;
                self.directory.remove_directory(&below)?;
            } else if below != UNFINISHED {
                self.directory.unlink(&below)?;
            }
        }
        self.directory.sync_directory(path)?;
        if path.is_empty() { self.directory.unlink(UNFINISHED) } else { Ok(()) }
    }

    /// Checks that what is there is a cluster of this `PostgreSQL`.
    fn check(&self) -> anyhow::Result<()> {
        let version = match fs::read_to_string(self.path.join(PG_VERSION)) {
            Ok(version) => version.trim().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("it is not empty, and it is no cluster, because it has no file {PG_VERSION}: choose another")
            }
            Err(error) => return Err(error).context(PG_VERSION),
        };
        let major = POSTGRES_VERSION.split('.').next().unwrap_or_default();
        ensure!(
            version == major,
            "it is a cluster of PostgreSQL {version}, and this program has PostgreSQL {POSTGRES_VERSION}: \
             dump it with the program that made it, and restore the dump into a new directory"
        );
        let control = self.path.join("global/pg_control");
        let bytes = fs::read(&control).with_context(|| {
            format!("{} cannot be read, so a part of the cluster is missing: restore a backup", control.display())
        })?;
        ensure!(
            control_file::is_32_bit(&bytes).unwrap_or(true),
            "it is a cluster of a 64-bit PostgreSQL, and PGlite is a 32-bit one: dump it with pg_dump, and restore \
             the dump into a new directory"
        );
        Ok(())
    }
}

/// Why a directory that is locked cannot be opened.
fn in_use(path: &Path) -> String {
    let owner = fs::metadata(path).ok().and_then(|metadata| lock_owner(metadata.dev(), metadata.ino()));
    let owner = owner.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"));
    format!("the data directory {} is in use by {owner}: stop that first, or choose another directory", path.display())
}

/// The process that holds a lock on that inode (`/proc/locks`, see `proc_locks(5)`).
fn lock_owner(device: u64, inode: u64) -> Option<u32> {
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = fields[..] else { return None };
        let mut parts = place.split(':');
        let number = |text: Option<&str>| u32::from_str_radix(text?, 16).ok();
        let found = (number(parts.next())?, number(parts.next())?);
        (found == device && parts.next()?.parse() == Ok(inode)).then(|| process.parse().ok())?
    })
}
