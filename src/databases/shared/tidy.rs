//! What is removed before a cluster starts: what a crash has left behind, and files that keep a cluster from starting.

use std::sync::Arc;

use anyhow::{Context, bail};
use parking_lot::Mutex;

use crate::{
    fs::{At, Errno, Files, Follow, FrozenTree, OpenFlags, S_IFDIR, Silent, Tree, joined},
    postgres::relation_file,
};

/// The file by which a postmaster finds another one in its directory. The data directory's own lock does that here.
/// After a power loss the file may be empty, and PostgreSQL does not start then (`CreateLockFile` in
/// `src/backend/utils/init/miscinit.c`).
const LOCK_FILE: &[u8] = b"/pglite/data/postmaster.pid";
/// Where `PostgreSQL` has dynamic shared memory, its databases, and its tablespaces.
const SHARED_MEMORY: &[u8] = b"/dev/shm";
const DATABASES: &[u8] = b"/pglite/data/base";
const TABLESPACES: &[u8] = b"/pglite/data/pg_tblspc";
/// The settings of `ALTER SYSTEM`.
const AUTO_CONF: &[u8] = b"/pglite/data/postgresql.auto.conf";
/// Files with which a server recovers from an archive, or follows another one.
const SIGNAL_FILES: [&[u8]; 2] = [b"/pglite/data/recovery.signal", b"/pglite/data/standby.signal"];
/// The directory of replication slots.
const SLOTS: &[u8] = b"/pglite/data/pg_replslot";
/// Suffix of files that are renamed so that `PostgreSQL` ignores them.
const IGNORED: &[u8] = b".ignored";
/// The directory of temporary files (`PG_TEMP_FILES_DIR`), and the beginning of the name of a tablespace's directory
/// of this version (`TABLESPACE_VERSION_DIRECTORY`; both `src/include/common/file_utils.h` and `relpath.h`).
const TEMPORARY_FILES: &[u8] = b"pgsql_tmp";
const VERSION: &[u8] = b"PG_";

/// Removes what the processes of a crashed cluster have left behind: dynamic shared memory, of which `PostgreSQL` only
/// removes what it finds in the main segment, which is gone; its lock file; and temporary files, as a postmaster does
/// (`RemovePgTempFiles` in `src/backend/storage/file/fd.c`).
///
/// # Errors
/// When they cannot be removed.
pub(super) fn remove_leftovers(files: &mut Files) -> anyhow::Result<()> {
    for (name, kind) in list(files, SHARED_MEMORY)? {
        if kind != S_IFDIR {
            files.unlink(At::WorkingDirectory, &joined(SHARED_MEMORY, &name))?;
        }
    }
    match files.unlink(At::WorkingDirectory, LOCK_FILE) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => bail!("postmaster.pid cannot be removed: {error}"),
    }
    remove_temporary(files, DATABASES).context("temporary files cannot be removed")?;
    for (space, _) in list(files, TABLESPACES)? {
        let space = joined(TABLESPACES, &space);
        for (version, _) in list(files, &space)?.into_iter().filter(|(name, _)| name.starts_with(VERSION)) {
            remove_temporary(files, &joined(&space, &version)).context("temporary files cannot be removed")?;
        }
    }
    Ok(())
}

/// Renames files so that a cluster starts: in memory those that make it a standby or recover it from an archive, of
/// which it has none, and, if `auto_conf`, the settings of `ALTER SYSTEM`.
///
/// # Errors
/// When they cannot be renamed; when a cluster in a directory has a signal file: it would wait for WAL without end,
/// and without the file it would go on from another point than was asked for.
pub(super) fn set_aside(files: &mut Files, is_in_memory: bool, auto_conf: bool) -> anyhow::Result<()> {
    for path in SIGNAL_FILES.iter().filter(|_| !is_in_memory) {
        let name = String::from_utf8_lossy(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path));
        match files.stat(At::WorkingDirectory, path, Follow::No) {
            Err(Errno::ENOENT) => {}
            found => {
                found.with_context(|| format!("the attributes of {name} cannot be read"))?;
                bail!(
                    "the cluster's directory has the file {name}: there is no archive to recover from and no server \
                     to follow; recover with the PostgreSQL that the file was made for, or remove the file"
                );
            }
        }
    }
    let signal_files = SIGNAL_FILES.iter().filter(|_| is_in_memory);
    for path in signal_files.chain(auto_conf.then_some(&AUTO_CONF)) {
        let name = String::from_utf8_lossy(path);
        match files.rename((At::WorkingDirectory, path), (At::WorkingDirectory, &[path, IGNORED].concat())) {
            Ok(()) => tracing::warn!("{name} was renamed to {name}.ignored so that the cluster can start"),
            Err(Errno::ENOENT) => {}
            Err(error) => bail!("{name} cannot be renamed: {error}"),
        }
    }
    Ok(())
}

/// Removes the temporary files and the temporary tables in the databases of a tablespace.
fn remove_temporary(files: &mut Files, space: &[u8]) -> Result<(), Errno> {
    for (database, kind) in list(files, space)? {
        let directory = joined(space, &database);
        if kind != S_IFDIR {
            continue;
        }
        if database == TEMPORARY_FILES {
            empty(files, &directory)?;
            continue;
        }
        let is_temporary = |name: &[u8]| {
            str::from_utf8(name).ok().and_then(relation_file::parse).is_some_and(|name| name.is_temporary)
        };
        for (name, _) in list(files, &directory)?.into_iter().filter(|(name, _)| is_temporary(name)) {
            files.unlink(At::WorkingDirectory, &joined(&directory, &name))?;
        }
    }
    Ok(())
}

/// The same files without replication slots: their subscribers follow the cluster that the files are of. The same ones
/// if there are no slots.
///
/// # Errors
/// When they cannot be removed.
pub(super) fn without_slots(frozen: &Arc<FrozenTree>) -> anyhow::Result<Arc<FrozenTree>> {
    let tree = Arc::new(Mutex::new(Tree::from_frozen(frozen.clone())));
    let mut files = Files::new(tree.clone(), Box::new(Silent))?;
    if list(&mut files, SLOTS)?.is_empty() {
        return Ok(frozen.clone());
    }
    empty(&mut files, SLOTS).context("replication slots cannot be removed from a copy of the cluster")?;
    drop(files);
    let files = tree.lock().freeze();
    Ok(files)
}

fn empty(files: &mut Files, directory: &[u8]) -> Result<(), Errno> {
    for (name, kind) in list(files, directory)? {
        let path = joined(directory, &name);
        if kind == S_IFDIR {
            empty(files, &path)?;
            files.rmdir(At::WorkingDirectory, &path)?;
        } else {
            files.unlink(At::WorkingDirectory, &path)?;
        }
    }
    Ok(())
}

/// The names in a directory, and the type bits of their modes; none if there is no such directory.
fn list(files: &mut Files, directory: &[u8]) -> Result<Vec<(Vec<u8>, u32)>, Errno> {
    let fd = match files.open(At::WorkingDirectory, directory, OpenFlags::READ_ONLY, 0) {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        opened => opened?,
    };
    let entries = files.read_directory(fd, usize::MAX);
    files.close(fd)?;
    let named = entries?.into_iter().filter(|entry| !matches!(&*entry.name, b"." | b".."));
    Ok(named.map(|entry| (entry.name.to_vec(), entry.kind)).collect())
}
