//! Backups of a cluster: one archive (tar) with its files, which is restored into a directory, or loaded by PGlite.
//!
//! * `mod`: a backup, from its first file to its manifest
//! * `origin`: what is backed up: `directory`, whose cluster is stopped, or `server`, whose cluster runs
//! * `archive`: writes the archive
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

use std::{
    fmt,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, bail, ensure};
use flate2::{Compression, write::GzEncoder};

use crate::postgres::control_file;

use archive::Archive;
use directory::Directory;
use origin::{Content, Entry, Origin};
pub use restore::{restore, restore_from};
use server::Server;

/// The file of the state of a cluster.
const PG_CONTROL: &str = "global/pg_control";
/// The file that says where the WAL of a backup begins, and the file with its symbolic links
/// (`src/include/access/xlog.h`).
const BACKUP_LABEL: &str = "backup_label";
const TABLESPACE_MAP: &str = "tablespace_map";
/// The checksums of the files (`src/backend/backup/basebackup.c`).
const MANIFEST: &str = "backup_manifest";

/// The name that means stdin or stdout.
const STANDARD: &str = "-";

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

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes.div_ceil(100_000);
        let (whole, tenth) = (megabytes / 10, megabytes % 10);
        write!(f, "{} files, {whole}.{tenth} MB, {} pages with a right checksum", self.files, self.pages)
    }
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
        write_file(&mut Directory::open(Path::new(from))?, file, verifies)
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
        return write_archive(origin, &mut io::stdout().lock(), verifies).map(|(summary, _)| summary);
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot_write = || format!("{} cannot be written", file.display());
    let new = tempfile::Builder::new().prefix(".pglite-port-").suffix(".partial").tempfile_in(directory);
    let mut new = new.with_context(cannot_write)?;
    let mut out = BufWriter::with_capacity(1 << 20, new.as_file_mut());
    let summary = if file.extension().is_some_and(|extension| extension == "gz" || extension == "tgz") {
        // The fastest: pages compress well, and a backup should not take longer than reading the cluster.
        let (summary, compressed) = write_archive(origin, GzEncoder::new(&mut out, Compression::fast()), verifies)?;
        compressed.finish().with_context(cannot_write)?;
        summary
    } else {
        write_archive(origin, &mut out, verifies)?.0
    };
    out.flush().with_context(cannot_write)?;
    drop(out);
    new.as_file().sync_all().with_context(cannot_write)?;
    new.persist(file).with_context(cannot_write)?;
    File::open(directory).and_then(|directory| directory.sync_all()).with_context(cannot_write)?;
    Ok(summary)
}

/// Writes the archive of a backup to `out`.
fn write_archive<W: Write>(origin: &mut dyn Origin, out: W, verifies: bool) -> anyhow::Result<(Summary, W)> {
    let control = origin.control_file()?;
    let checks_pages = check_control_file(&control)?;
    let begun = origin.begin(&control)?;
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
