//! Backups of a cluster: one archive (tar) with its files, which is restored into a directory, or loaded by PGlite.
//!
//! * `mod`: a backup, from its first file to its manifest
//! * `origin`: what is backed up: `directory`, whose cluster is stopped, or `server`, whose cluster runs
//! * `archive`: writes the archive, `target`: where to
//! * `manifest`: checksums of the files, in PostgreSQL's format
//! * `pages`: verifies the checksums of data pages
//! * `restore`: an archive becomes a directory
//! * `progress`: what a terminal shows meanwhile
//!
//! A running cluster is backed up as `pg_basebackup` does it, but over SQL: between `pg_backup_start` and
//! `pg_backup_stop` its files are copied while sessions change them, and the WAL of that time, which is copied last,
//! makes them consistent when the copy starts. The archive has the files at its root, as PGlite's `dumpDataDir` does.

mod archive;
mod directory;
mod manifest;
mod origin;
mod pages;
mod progress;
mod restore;
mod server;
mod target;

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, bail, ensure};

use crate::{
    databases::data_directory::{PG_CONTROL, PG_VERSION},
    postgres::control_file,
};

use archive::Archive;
use directory::Directory;
use origin::{Content, Entry, Origin};
pub use progress::bar;
pub use restore::restore;
use server::Server;
use target::STANDARD;
pub use target::into_file;
pub(crate) use target::{Target, directory_of, partial_of};

/// The file that says where the WAL of a backup begins, and the file with its symbolic links
/// (`src/include/access/xlog.h`).
const BACKUP_LABEL: &str = "backup_label";
const TABLESPACE_MAP: &str = "tablespace_map";
/// The checksums of the files (`src/backend/backup/basebackup.c`).
const MANIFEST: &str = "backup_manifest";

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many files there are.
    pub files: u64,
    /// Their bytes, uncompressed.
    pub bytes: u64,
    /// How many pages had a checksum, which was right.
    pub pages: u64,
}

/// Backs a cluster up into the archive `file`; `from` is the directory of a cluster that is stopped, or the URL
/// (`postgres://…`) of a server, which needs a role that is a superuser. A name that ends in `gz` makes a compressed
/// archive, and `-` writes to stdout. A file that is there is replaced when the backup is complete. `verifies`:
/// whether a page with a wrong checksum is an error.
///
/// # Errors
/// When the cluster cannot be read, is not one of this program, or has a page with a wrong checksum; when the archive
/// cannot be written. The message says what to do.
pub fn back_up(from: &str, file: &Path, verifies: bool) -> anyhow::Result<Summary> {
    if ["postgres://", "postgresql://"].iter().any(|scheme| from.starts_with(scheme)) {
        write_file(&mut Server::connect(from)?, file, verifies)
    } else {
        let mut directory = Directory::open(Path::new(from))?;
        let is_inside = match (directory_of(file).canonicalize(), Path::new(from).canonicalize()) {
            (Ok(place), Ok(from)) => file.as_os_str() != STANDARD && place.starts_with(from),
            _ => false,
        };
        ensure!(!is_inside, "{} would be inside of what is backed up: name a file elsewhere", file.display());
        write_file(&mut directory, file, verifies)
    }
}

/// As [`back_up`], with the server at the other end of `stream`.
///
/// # Errors
/// As those of [`back_up`].
pub(crate) fn back_up_over(stream: UnixStream, database: &str, user: &str, file: &Path) -> anyhow::Result<Summary> {
    write_file(&mut Server::over(stream, database, user)?, file, true)
}

fn write_file(origin: &mut dyn Origin, file: &Path, verifies: bool) -> anyhow::Result<Summary> {
    if file.as_os_str() == STANDARD {
        let mut out = io::stdout().lock();
        let summary = write_archive(origin, &mut out, verifies)?;
        out.flush().context("stdout cannot be written")?;
        return Ok(summary);
    }
    let mut target = Target::open(file)?;
    let summary = target.write(|out| write_archive(origin, out, verifies))?;
    target.finish()?;
    Ok(summary)
}

/// Writes the archive of a backup to `out`.
fn write_archive(origin: &mut dyn Origin, out: &mut dyn Write, verifies: bool) -> anyhow::Result<Summary> {
    let control = origin.control_file()?;
    let checks_pages = check_control_file(&control)?;
    let begun = origin.begin(&control)?;
    for part in [PG_VERSION, PG_CONTROL] {
        ensure!(
            begun.entries.iter().any(|entry| entry.path == part),
            "{part} is not in the list of the cluster's files"
        );
    }
    let bytes = begun.entries.iter().map(Entry::len).sum();
    let identifier = control_file::identifier(&control).unwrap_or_default();
    let redo = (checks_pages && verifies).then_some(begun.redo);
    let mut archive = Archive::new(out, identifier, redo, progress::bar("backing up", bytes));
    // Last, as in PostgreSQL: the label says where recovery begins, this file says how far it has to get at least.
    let (control_files, entries): (Vec<_>, Vec<_>) =
        begun.entries.into_iter().partition(|entry| entry.path == PG_CONTROL);
    for entry in entries.iter().chain(&control_files) {
        archive.add(entry, origin).with_context(|| format!("{} cannot be backed up", entry.path))?;
    }
    let ended = origin.end()?;
    for entry in &ended.entries {
        archive.add(entry, origin).with_context(|| format!("{} cannot be backed up", entry.path))?;
    }
    archive.finish(ended.wal.as_ref())
}

/// Checks that a cluster is one that this program can run; returns whether its pages have checksums.
fn check_control_file(file: &[u8]) -> anyhow::Result<bool> {
    let (Some(is_32_bit), Some(has_checksums)) = (control_file::is_32_bit(file), control_file::has_checksums(file))
    else {
        bail!("{PG_CONTROL} has an unknown layout, so this is not a cluster of PostgreSQL 18");
    };
    ensure!(
        is_32_bit,
        "this is a cluster of a 64-bit PostgreSQL, and PGlite is a 32-bit one: back it up with pg_basebackup or pg_dump"
    );
    Ok(has_checksums)
}

/// A file with that content, which is made for the backup.
fn made(path: &str, content: Vec<u8>) -> Entry {
    Entry { path: path.to_owned(), content: Content::Made(content), modified: origin::now() }
}
