//! The host's directory of a durable cluster: locks it, checks its content, and makes a new cluster in it.

use std::{
    fmt,
    fs::{self, DirBuilder},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::system_identifier;
use crate::{
    backend::DATA_DIRECTORY,
    engine::artefact::POSTGRES_VERSION,
    fs::{FrozenTree, HostDirectory, Storage, StoredEntryKind, Tree, joined},
    postgres::control_file,
};

/// The mark of a cluster that is being made. If a start finds it, the files beside it are an incomplete cluster, which
/// is removed and made again.
const UNFINISHED: &[u8] = b"pglite-port.unfinished";

/// The file by which a directory is recognised as a cluster. It is the last file that is made in a new cluster.
const PG_VERSION: &[u8] = b"PG_VERSION";

/// The cluster's configuration.
const CONFIGURATION: &[u8] = b"postgresql.conf";

/// The file without which a cluster cannot start.
pub(super) const PG_CONTROL: &[u8] = b"global/pg_control";

/// Where a cluster is kept.
#[derive(Clone, Debug)]
pub enum DataDirectory {
    /// In this directory of the host, which is made if it does not exist.
    Host(PathBuf),
    /// In a storage that the caller provides.
    Storage(Arc<dyn Storage>),
}

impl DataDirectory {
    /// Its storage, with a cluster in it: that of `cluster` if it was empty. A directory of the host is locked for as
    /// long as the storage lives; `patience` is how long to wait until another program has let go of it.
    ///
    /// # Errors
    /// When another program has it open, or it holds something else than a cluster of this `PostgreSQL`; the message
    /// says what to do.
    pub(super) fn open(&self, cluster: &Arc<FrozenTree>, patience: Duration) -> anyhow::Result<Arc<dyn Storage>> {
        let storage = match self {
            Self::Host(path) => open_host(path, patience)?,
            Self::Storage(storage) => storage.clone(),
        };
        prepare(&*storage, cluster).with_context(|| format!("the {self} cannot be used"))?;
        Ok(storage)
    }
}

impl fmt::Display for DataDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => write!(f, "data directory {}", path.display()),
            Self::Storage(_) => f.write_str("storage of the cluster"),
        }
    }
}

fn open_host(path: &Path, patience: Duration) -> anyhow::Result<Arc<dyn Storage>> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_name(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("the data directory {} cannot be made", path.display()));
        }
    }
    let unusable = || format!("the data directory {} cannot be used", path.display());
    let directory = HostDirectory::open(path).with_context(unusable)?;
    let deadline = Instant::now() + patience;
    while !directory.try_lock().with_context(unusable)? {
        ensure!(Instant::now() < deadline, "{}", in_use(path));
        // Nothing says when a lock becomes free, but for a wait that cannot be given up.
        thread::sleep(Duration::from_millis(20));
    }
    directory.hide_from_others().with_context(unusable)?;
    Ok(Arc::new(directory))
}

/// Has the name of a new directory on the disk, where the directory that it is in may be read.
fn sync_name(path: &Path) {
    let synced =
        path.canonicalize().and_then(|path| path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all()));
    if let Err(error) = synced {
        tracing::warn!("the name of the new directory {} may not be on the disk yet: {error}", path.display());
    }
}

/// Makes a new cluster in an empty storage, and checks any other.
fn prepare(storage: &dyn Storage, cluster: &Arc<FrozenTree>) -> anyhow::Result<()> {
    let names: Vec<_> = storage.list(b"")?.into_iter().map(|entry| entry.name).collect();
    let has = |wanted: &[u8]| names.iter().any(|name| name == wanted);
    match (has(UNFINISHED), has(PG_VERSION)) {
        (true, false) => {
            tracing::warn!("a new cluster was not finished; it is made again");
            empty(storage, b"")?;
        }
        (true, true) => {
            // It was finished but for this.
            remove_mark(storage)?;
            return check(storage);
        }
        (false, _) if names.is_empty() => {}
        (false, _) => return check(storage),
    }
    tracing::info!("making a new cluster");
    storage.create(UNFINISHED)?.sync()?;
    storage.sync_directory(b"")?;
    let tree = Tree::from_frozen(cluster.clone());
    tree.copy_to(DATA_DIRECTORY.as_bytes(), storage, &|path| path != PG_VERSION)?;
    system_identifier::renew(storage)?;
    allow_more_wal(storage)?;
    tree.copy_to(DATA_DIRECTORY.as_bytes(), storage, &|path| path == PG_VERSION)?;
    Ok(remove_mark(storage)?)
}

fn remove_mark(storage: &dyn Storage) -> io::Result<()> {
    storage.unlink(UNFINISHED)?;
    storage.sync_directory(b"")
}

/// Gives the configuration of a new cluster the sizes of WAL that `initdb` writes for segments of 16 MB. Those in it
/// are for segments of 1 MB, which suit a cluster in memory, and would cause a checkpoint for every 64 MB.
fn allow_more_wal(storage: &dyn Storage) -> anyhow::Result<()> {
    let mut configuration = String::from_utf8(read(storage, CONFIGURATION)?)?;
    for (small, large) in [("max_wal_size = 64MB", "max_wal_size = 1GB"), ("min_wal_size = 5MB", "min_wal_size = 80MB")]
    {
        ensure!(configuration.contains(small), "postgresql.conf lacks {small}");
        configuration = configuration.replace(small, large);
    }
    storage.open(CONFIGURATION)?.set_len(0)?;
    write(storage, CONFIGURATION, 0, configuration.as_bytes())
}

/// Removes everything below `path`, and the mark itself last.
fn empty(storage: &dyn Storage, path: &[u8]) -> io::Result<()> {
    for entry in storage.list(path)? {
        let below = joined(path, &entry.name);
        if entry.kind == StoredEntryKind::Directory {
            empty(storage, &below)?;
            storage.remove_directory(&below)?;
        } else if below != UNFINISHED {
            storage.unlink(&below)?;
        }
    }
    storage.sync_directory(path)?;
    if path.is_empty() { storage.unlink(UNFINISHED) } else { Ok(()) }
}

/// Checks that the content is a cluster of this `PostgreSQL`.
fn check(storage: &dyn Storage) -> anyhow::Result<()> {
    let version = match read(storage, PG_VERSION) {
        Ok(version) => String::from_utf8_lossy(&version).trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "it is not empty, and it is no cluster, because it has no file PG_VERSION: choose another, or a new \
                 directory in it"
            )
        }
        Err(error) => return Err(error).context("PG_VERSION cannot be read"),
    };
    let major = POSTGRES_VERSION.split('.').next().unwrap_or_default();
    ensure!(
        version == major,
        "it is a cluster of PostgreSQL {version}, and this program has PostgreSQL {POSTGRES_VERSION}: \
         dump it with the program that made it, and restore the dump into a new directory"
    );
    let control = read(storage, PG_CONTROL)
        .context("global/pg_control cannot be read, so a part of the cluster is missing: restore a backup")?;
    ensure!(
        control_file::is_32_bit(&control).unwrap_or(true),
        "it is a cluster of a 64-bit PostgreSQL, and PGlite is a 32-bit one: dump it with pg_dump, and restore the \
         dump into a new directory"
    );
    Ok(())
}

/// The first 64 KiB of a file.
pub(super) fn read(storage: &dyn Storage, path: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    let read = storage.open(path)?.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Writes into a file, and has it on the disk.
pub(super) fn write(storage: &dyn Storage, path: &[u8], offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let file = storage.open(path)?;
    ensure!(file.write_at(offset, bytes)? == bytes.len(), "the disk is full");
    Ok(file.sync()?)
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
