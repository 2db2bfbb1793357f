//! What is removed before a cluster starts: what a crash has left behind, and files that keep a cluster from starting.

use anyhow::{Context, bail};

use crate::fs::{At, Errno, Files, OpenFlags, S_IFDIR, joined};

/// Where `PostgreSQL` has dynamic shared memory, its databases, and its tablespaces.
const SHARED_MEMORY: &[u8] = b"/dev/shm";
const DATABASES: &[u8] = b"/pglite/data/base";
const TABLESPACES: &[u8] = b"/pglite/data/pg_tblspc";
/// The settings of `ALTER SYSTEM`.
const AUTO_CONF: &[u8] = b"/pglite/data/postgresql.auto.conf";
/// Files with which a server recovers from an archive, or follows another one.
const SIGNAL_FILES: [&[u8]; 2] = [b"/pglite/data/recovery.signal", b"/pglite/data/standby.signal"];
/// Suffix of files that are renamed so that `PostgreSQL` ignores them.
const IGNORED: &[u8] = b".ignored";
/// The directory of temporary files (`PG_TEMP_FILES_DIR`), and the beginning of the name of a tablespace's directory
/// of this version (`TABLESPACE_VERSION_DIRECTORY`; both `src/include/common/file_utils.h` and `relpath.h`).
const TEMPORARY_FILES: &[u8] = b"pgsql_tmp";
const VERSION: &[u8] = b"PG_";

/// Removes what the processes of a crashed cluster have left behind: dynamic shared memory, of which `PostgreSQL` only
/// removes what it finds in the main segment, which is gone; and temporary files, as a postmaster does
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
    remove_temporary(files, DATABASES).context("temporary files cannot be removed")?;
    for (space, _) in list(files, TABLESPACES)? {
        let space = joined(TABLESPACES, &space);
        for (version, _) in list(files, &space)?.into_iter().filter(|(name, _)| name.starts_with(VERSION)) {
            remove_temporary(files, &joined(&space, &version)).context("temporary files cannot be removed")?;
        }
    }
    Ok(())
}

/// Renames files so that a cluster in memory starts: one that makes it a standby or recovers it from an archive, of
/// which it has none, and, if `auto_conf`, the settings of `ALTER SYSTEM`.
///
/// # Errors
/// When they cannot be renamed.
pub(super) fn set_aside(files: &mut Files, is_in_memory: bool, auto_conf: bool) -> anyhow::Result<()> {
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
        for (name, _) in list(files, &directory)?.into_iter().filter(|(name, _)| is_temporary(name)) {
            files.unlink(At::WorkingDirectory, &joined(&directory, &name))?;
        }
    }
    Ok(())
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

/// Whether a file is one of a temporary table: `t<process>_<relation>`, with a fork and a segment perhaps
/// (`looks_like_temp_rel_name` in `src/backend/storage/file/fd.c`).
fn is_temporary(name: &[u8]) -> bool {
    let digits = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let process = digits(rest);
    let Some(rest) = rest[process..].strip_prefix(b"_") else { return false };
    let relation = digits(rest);
    let mut rest = &rest[relation..];
    for fork in [&b"_fsm"[..], b"_vm", b"_init"] {
        rest = rest.strip_prefix(fork).unwrap_or(rest);
    }
    let segment =
        rest.strip_prefix(b".").map_or(rest.is_empty(), |rest| !rest.is_empty() && digits(rest) == rest.len());
    process > 0 && relation > 0 && segment
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_temporary_tables_are_told_by_their_names() {
        for name in ["t2_16385", "t1000_16385_fsm", "t3_1_vm", "t3_1.1", "t3_1_init.12"] {
            assert!(is_temporary(name.as_bytes()), "{name}");
        }
        for name in ["16385", "t_1", "t3_", "t3_1.", "t3_1x", "t3_1.x", "toast", "PG_VERSION", "t3-1", ""] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }
}
