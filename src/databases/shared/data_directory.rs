//! The host's directory of a durable cluster: locks it, checks its content, and makes a cluster in it.

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

use anyhow::{Context, anyhow, bail, ensure};

use super::system_identifier;
use crate::{
    backend::DATA_DIRECTORY,
    engine::artefact::{MAJOR_VERSION, POSTGRES_VERSION},
    fs::{FrozenTree, HostDirectory, Storage, StoredEntryKind, Tree, joined},
    postgres::control_file,
};

/// The mark of a cluster that is being made; its content says how. Without a [`PG_VERSION`], the files beside it are
/// an incomplete cluster.
pub(crate) const UNFINISHED: &[u8] = b"pglite-port.unfinished";

/// The file by which a directory is recognised as a cluster. It is the last file that is made in a new cluster.
pub const PG_VERSION: &str = "PG_VERSION";

/// The cluster's configuration.
const CONFIGURATION: &[u8] = b"postgresql.conf";

/// Files and directories in it without which a cluster does not start, or lacks its data.
const PARTS: [&str; 6] = ["base", "global", "pg_multixact", "pg_wal", "pg_xact", "postgresql.conf"];

/// The file without which a cluster cannot start.
pub(crate) const PG_CONTROL: &str = "global/pg_control";

/// Where a cluster is kept.
#[derive(Clone, Debug)]
pub enum DataDirectory {
    /// In this directory of the host, which is made if it does not exist.
    Host(PathBuf),
    /// In a storage that the caller provides.
    Storage(Arc<dyn Storage>),
}

/// An opened [`DataDirectory`].
pub(super) struct Opened {
    pub(super) storage: Arc<dyn Storage>,
    /// Whether its cluster was made now.
    pub(super) is_new: bool,
    /// Whether its cluster was not shut down, and recovers when it starts.
    pub(super) recovers: bool,
}

impl DataDirectory {
    /// Its storage, with a cluster in it: a copy of that in the files that `new_cluster` returns, which was shut down,
    /// if it was empty. A directory of the host is locked for as long as the storage lives; `patience` is how long to
    /// wait until another program has let go of it.
    ///
    /// # Errors
    /// Those of `new_cluster`, when another program has it open, or it holds something else than a cluster of this
    /// `PostgreSQL`; the message says what to do.
    pub(super) fn open(
        &self,
        new_cluster: impl FnOnce() -> anyhow::Result<Arc<FrozenTree>>,
        patience: Duration,
    ) -> anyhow::Result<Opened> {
        let unusable = || format!("the {self} cannot be used");
        let (storage, is_new): (Arc<dyn Storage>, bool) = match self {
            Self::Host(path) => {
                let (host, _) = open_host(path, patience)?;
                let is_new = prepare(&host, new_cluster).with_context(unusable)?;
                // Not before it is known to be a data directory.
                host.hide_from_others().with_context(unusable)?;
                (Arc::new(host), is_new)
            }
            Self::Storage(storage) => (storage.clone(), prepare(&**storage, new_cluster).with_context(unusable)?),
        };
        let recovers = !control_file::was_shut_down(&read(&*storage, PG_CONTROL.as_bytes()).with_context(unusable)?);
        Ok(Opened { storage, is_new, recovers })
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

/// How a cluster is made. The text of [`Making::mark`] is kept in directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Making {
    /// As a new one. If that was not finished, the next start does it again.
    New,
    /// From a backup. If that was not finished, it has to be restored again: a start must not make a new one instead.
    Restored,
}

impl Making {
    fn mark(self) -> &'static [u8] {
        match self {
            Self::New => b"new\n",
            Self::Restored => b"restored\n",
        }
    }
}

/// What a data directory has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    /// A part of a cluster that was being made.
    Unfinished(Making),
    Other,
}

/// The directory has another owner.
#[derive(Debug, thiserror::Error)]
#[error("the data directory {path} is in use by {owner}")]
pub(crate) struct InUse {
    path: String,
    owner: String,
}

/// The directory `path`, which is made if it does not exist, locked; and whether it was made.
fn open_host(path: &Path, patience: Duration) -> anyhow::Result<(HostDirectory, bool)> {
    let is_new = create(path)?;
    let locked = lock(path, patience).map_err(|error| match error {
        error if error.is::<InUse>() => anyhow!("{error}: stop that first, or choose another directory"),
        error => error,
    });
    Ok((locked?, is_new))
}

/// Makes the directory `path`, and returns whether it was not there.
fn create(path: &Path) -> anyhow::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            sync_name(path);
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("the data directory {} cannot be made", path.display())),
    }
}

/// The directory `path`, locked for as long as the value lives; `patience` is how long to wait until another program
/// has let go of it.
///
/// # Errors
/// [`InUse`] if another program has it; the operating system's.
pub(crate) fn lock(path: &Path, patience: Duration) -> anyhow::Result<HostDirectory> {
    let unusable = || format!("the data directory {} cannot be used", path.display());
    let directory = HostDirectory::open(path).with_context(unusable)?;
    let deadline = Instant::now() + patience;
    while !directory.try_lock().with_context(unusable)? {
        if Instant::now() >= deadline {
            return Err(InUse { path: path.display().to_string(), owner: owner(path) }.into());
        }
        // Nothing says when a lock becomes free, but for a wait that cannot be given up.
        thread::sleep(Duration::from_millis(20));
    }
    Ok(directory)
}

/// Makes a cluster from a backup in the directory `path`, which must be empty or not there. `write` writes all files
/// but [`PG_VERSION`], whose content it returns. If it fails, the directory is empty again.
///
/// # Errors
/// When the directory has something in it or another owner; those of `write`.
pub(crate) fn restore<T>(
    path: &Path,
    write: impl FnOnce(&dyn Storage) -> anyhow::Result<(Vec<u8>, T)>,
) -> anyhow::Result<T> {
    let (storage, is_new) = open_host(path, Duration::ZERO)?;
    let unusable = || format!("the data directory {} cannot be used", path.display());
    match state(&storage).with_context(unusable)? {
        State::Empty => {}
        State::Unfinished(_) => empty(&storage, b"").with_context(unusable)?,
        State::Other => bail!("the data directory {} is not empty: choose a new one", path.display()),
    }
    storage.hide_from_others().with_context(unusable)?;
    make(&storage, Making::Restored, write).inspect_err(|_| {
        let emptied = empty(&storage, b"");
        if let Err(error) = emptied.and_then(|()| if is_new { fs::remove_dir(path) } else { Ok(()) }) {
            tracing::warn!("the data directory {} cannot be emptied again: {error}", path.display());
        }
    })
}

/// Has the name of a new directory on the disk, where the directory that it is in may be read.
fn sync_name(path: &Path) {
    let synced =
        path.canonicalize().and_then(|path| path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all()));
    if let Err(error) = synced {
        tracing::warn!("the name of the new directory {} may not be on the disk yet: {error}", path.display());
    }
}

/// Makes a new cluster in an empty storage, and checks any other. Returns whether it has made one.
fn prepare(
    storage: &dyn Storage,
    new_cluster: impl FnOnce() -> anyhow::Result<Arc<FrozenTree>>,
) -> anyhow::Result<bool> {
    match state(storage)? {
        State::Empty => {}
        State::Unfinished(Making::New) => {
            tracing::warn!("a new cluster was not finished; it is made again");
            empty(storage, b"")?;
        }
        State::Unfinished(Making::Restored) => {
            bail!("a backup was not completely restored into it: run pglite-port restore FILE DIRECTORY again")
        }
        State::Other => return check(storage).map(|()| false),
    }
    let cluster = new_cluster()?;
    tracing::info!("making a new cluster");
    let tree = Tree::from_frozen(cluster);
    make(storage, Making::New, |storage| {
        tree.copy_to(DATA_DIRECTORY.as_bytes(), storage, &|path| path != PG_VERSION.as_bytes())?;
        system_identifier::renew(storage)?;
        allow_more_wal(storage)?;
        Ok((format!("{MAJOR_VERSION}\n").into_bytes(), ()))
    })?;
    Ok(true)
}

/// The state of a directory. The mark of a cluster that is complete is removed.
fn state(storage: &dyn Storage) -> anyhow::Result<State> {
    let names: Vec<_> = storage.list(b"")?.into_iter().map(|entry| entry.name).collect();
    let has = |wanted: &[u8]| names.iter().any(|name| name == wanted);
    // After a power loss the name may be there without the content.
    let has_version =
        has(PG_VERSION.as_bytes()) && read(storage, PG_VERSION.as_bytes())?.iter().any(u8::is_ascii_digit);
    Ok(match (has(UNFINISHED), has_version) {
        (true, false) if read(storage, UNFINISHED)? == Making::Restored.mark() => State::Unfinished(Making::Restored),
        (true, false) => State::Unfinished(Making::New),
        (true, true) => {
            remove_mark(storage)?;
            State::Other
        }
        (false, _) if names.is_empty() => State::Empty,
        (false, _) => State::Other,
    })
}

/// Makes a cluster in an empty storage, so that a kill at any moment leaves it unfinished or complete. `write` writes
/// all files but [`PG_VERSION`], whose content it returns.
fn make<T>(
    storage: &dyn Storage,
    making: Making,
    write_files: impl FnOnce(&dyn Storage) -> anyhow::Result<(Vec<u8>, T)>,
) -> anyhow::Result<T> {
    create_file(storage, UNFINISHED, making.mark())?;
    let (version, made) = write_files(storage)?;
    create_file(storage, PG_VERSION.as_bytes(), &version)?;
    remove_mark(storage)?;
    Ok(made)
}

/// Makes a file in the root of a storage, and has it on the disk.
fn create_file(storage: &dyn Storage, path: &[u8], content: &[u8]) -> anyhow::Result<()> {
    storage.create(path)?;
    write(storage, path, 0, content)?;
    Ok(storage.sync_directory(b"")?)
}

fn remove_mark(storage: &dyn Storage) -> io::Result<()> {
    storage.unlink(UNFINISHED)?;
    storage.sync_directory(b"")
}

/// Gives the configuration of a new cluster the sizes of WAL that `initdb` writes for segments of 16 MB. Those in it
/// are for segments of 1 MB, which suit a cluster in memory, and would cause a checkpoint for every 64 MB. Other sizes
/// were chosen for the template that the cluster is a copy of.
fn allow_more_wal(storage: &dyn Storage) -> anyhow::Result<()> {
    let mut configuration = String::from_utf8(read(storage, CONFIGURATION)?)?;
    for (small, large) in [("max_wal_size = 64MB", "max_wal_size = 1GB"), ("min_wal_size = 5MB", "min_wal_size = 80MB")]
    {
        configuration = configuration.replace(small, large);
    }
    storage.open(CONFIGURATION)?.set_len(0)?;
    write(storage, CONFIGURATION, 0, configuration.as_bytes())
}

/// Removes everything below `path`: what makes it a cluster first, and the mark last.
fn empty(storage: &dyn Storage, path: &[u8]) -> io::Result<()> {
    if path.is_empty() && storage.unlink(PG_VERSION.as_bytes()).is_ok() {
        storage.sync_directory(path)?;
    }
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
///
/// # Errors
/// When it is not; the message says what it is, and what to do.
pub(crate) fn check(storage: &dyn Storage) -> anyhow::Result<()> {
    let version = match read(storage, PG_VERSION.as_bytes()) {
        Ok(version) => String::from_utf8_lossy(&version).trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "it is not empty, and it is no cluster, because it has no file PG_VERSION: choose another, or a new \
                 directory in it"
            )
        }
        Err(error) => return Err(error).context("PG_VERSION cannot be read"),
    };
    check_version(&version)?;
    let names: Vec<_> = storage.list(b"")?.into_iter().map(|entry| entry.name).collect();
    if let Some(missing) = PARTS.iter().find(|part| !names.iter().any(|name| name == part.as_bytes())) {
        bail!("{missing} is missing, so it is only a part of a cluster: restore a backup");
    }
    let control = read(storage, PG_CONTROL.as_bytes())
        .context("global/pg_control cannot be read, so a part of the cluster is missing: restore a backup")?;
    ensure!(
        control_file::is_32_bit(&control).unwrap_or(true),
        "it is a cluster of a 64-bit PostgreSQL, and PGlite is a 32-bit one: dump it with pg_dump, and restore the \
         dump into a new directory"
    );
    Ok(())
}

/// Checks the content of [`PG_VERSION`].
///
/// # Errors
/// When it is another version.
pub(crate) fn check_version(version: &str) -> anyhow::Result<()> {
    ensure!(
        version == MAJOR_VERSION,
        "it is a cluster of PostgreSQL {version}, and this program has PostgreSQL {POSTGRES_VERSION}: \
         dump it with the program that made it, and restore the dump into a new directory"
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
    file.write_all_at(offset, bytes)?;
    Ok(file.sync()?)
}

/// What holds the lock of a directory.
fn owner(path: &Path) -> String {
    let owner = fs::metadata(path).ok().and_then(|metadata| lock_owner(metadata.dev(), metadata.ino()));
    owner.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"))
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
