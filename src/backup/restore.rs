//! An archive becomes a data directory.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Component, Path},
};

use anyhow::{Context, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::{
    BACKUP_LABEL, MANIFEST, PG_CONTROL, PG_VERSION, Summary,
    archive::{PIECE, refuse_wrong},
    check_control_file, manifest,
    origin::{is_left_out, stays_inside},
    pages::{Pages, Wrong},
    progress,
    target::STANDARD,
};
use crate::{
    databases::data_directory,
    fs::{Storage, Written, is_zero},
    postgres::{control_file, wal},
};

/// The first bytes of a gzip file (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What is said of an archive that ends too early, or has something else in it than its format allows.
const DAMAGED: &str = "the archive is damaged or not complete";
/// Bytes of a block of a tar archive.
const BLOCK: u64 = 512;
/// The beginning of the label of a backup of this program, which always has a manifest.
const OWN_LABEL: &str = "LABEL: pglite-port backup";
/// How large a manifest may be, and any other file that is looked at.
const LONGEST_MANIFEST: usize = 1 << 30;
const LONGEST: usize = 1 << 16;

/// Restores the archive `file` of a backup into `directory`, which must be empty or not there. The archive may be one
/// of PGlite's `dumpDataDir`, and compressed with gzip; `-` reads it from stdin.
///
/// `verifies`: whether a page with a wrong checksum is an error. When this returns, everything is on the disk. After
/// an error or a kill the directory has no cluster.
///
/// # Errors
/// When the archive is not a whole backup of this program's PostgreSQL, a checksum is wrong, or the directory cannot
/// be written. The message says what to do.
pub fn restore(file: &Path, directory: &Path, verifies: bool) -> anyhow::Result<Summary> {
    if file.as_os_str() == STANDARD {
        return restore_from(io::stdin().lock(), directory, verifies).context("stdin cannot be restored");
    }
    let cannot = || format!("{} cannot be restored", file.display());
    let archive = File::open(file).with_context(cannot)?;
    let len = archive.metadata().with_context(cannot)?.len();
    let bar = progress::bar("restoring", len);
    let restored = restore_from(bar.wrap_read(archive), directory, verifies).with_context(cannot);
    bar.finish_and_clear();
    restored
}

/// As [`restore`], with an archive that is read from `archive`.
///
/// # Errors
/// As those of [`restore`].
fn restore_from(archive: impl Read, directory: &Path, verifies: bool) -> anyhow::Result<Summary> {
    let mut archive = BufReader::with_capacity(PIECE, archive);
    let is_compressed = archive.fill_buf()?.starts_with(&GZIP);
    data_directory::restore(directory, |storage| {
        if is_compressed {
            extract(MultiGzDecoder::new(archive), storage, verifies)
        } else {
            extract(archive, storage, verifies)
        }
    })
}

/// Writes all files of the archive but `PG_VERSION`, which is returned.
fn extract(archive: impl Read, storage: &dyn Storage, verifies: bool) -> anyhow::Result<(Vec<u8>, Summary)> {
    let mut restored = Restored::default();
    let mut archive = tar::Archive::new(Counted { inner: archive, read: 0 });
    // Where the blocks of the last entry end.
    let mut end = 0;
    for (number, entry) in archive.entries()?.enumerate() {
        let mut entry = entry.context(if number == 0 { "it is no tar archive" } else { DAMAGED })?;
        end = (entry.raw_file_position() + entry.header().entry_size()?).next_multiple_of(BLOCK);
        let path = name(&entry.path_bytes())?;
        if path.is_empty() || is_left_out(&path) && path != MANIFEST {
            continue;
        }
        let kind = entry.header().entry_type();
        restored.add(storage, &path, kind, &mut entry).with_context(|| format!("{path} cannot be restored"))?;
    }
    // The end of an archive is a block of zeros. A compressed one has its checksum behind that.
    let mut rest = archive.into_inner();
    ensure!(rest.read >= end + BLOCK, DAMAGED);
    let mut piece = vec![0; PIECE];
    loop {
        let read = read_fully(&mut rest, &mut piece).context(DAMAGED)?;
        ensure!(is_zero(&piece[..read]), DAMAGED);
        if read == 0 {
            return restored.finish(storage, verifies);
        }
    }
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

/// The path below the data directory of a name in the archive, with or without a slash at the start.
fn name(bytes: &[u8]) -> anyhow::Result<String> {
    let text = str::from_utf8(bytes).context("the archive has a name that is not UTF-8")?;
    let mut names = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::RootDir | Component::CurDir => {}
            _ => bail!("the archive has the name {text:?}, which leads out of it"),
        }
    }
    Ok(names.join("/"))
}

/// What was restored so far.
#[derive(Default)]
struct Restored {
    written: Written,
    directories: HashSet<String>,
    /// Lengths and checksums of the files.
    files: HashMap<String, (u64, u32)>,
    wrong: Vec<(String, Wrong)>,
    /// Files that say what the archive is.
    version: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    label: Option<String>,
    manifest: Option<Vec<u8>>,
    summary: Summary,
}

impl Restored {
    fn add(
        &mut self,
        storage: &dyn Storage,
        path: &str,
        kind: EntryType,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> anyhow::Result<()> {
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.add_file(storage, path, entry)?,
            EntryType::Directory => self.make_directory(storage, path)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = String::from_utf8(target).context("the link leads to no UTF-8 path")?;
                ensure!(stays_inside(&target), "the link to {target:?} leads out of it");
                self.make_parents(storage, path)?;
                storage.create_symlink(path.as_bytes(), target.as_bytes())?;
            }
            _ => bail!("the archive has a file of a kind that no cluster has: {kind:?}"),
        }
        Ok(())
    }

    fn add_file(&mut self, storage: &dyn Storage, path: &str, content: &mut impl Read) -> anyhow::Result<()> {
        let is_kept = [PG_VERSION, MANIFEST].contains(&path);
        let file = if is_kept {
            None
        } else {
            self.make_parents(storage, path)?;
            Some(storage.create(path.as_bytes())?)
        };
        let is_looked_at = is_kept || [PG_CONTROL, BACKUP_LABEL].contains(&path);
        let mut looked_at = Vec::new();
        let (mut len, mut checksum) = (0, 0);
        let mut piece = vec![0; PIECE];
        loop {
            let read = read_fully(content, &mut piece).context(DAMAGED)?;
            let piece = &piece[..read];
            if piece.is_empty() {
                break;
            }
            if let Some(pages) = Pages::of(path) {
                let wrong = &mut self.wrong;
                self.summary.pages += pages.verify_all(len, piece, |found| wrong.push((path.to_owned(), found)));
            }
            if let Some(file) = &file {
                file.write_all_at(len, piece)?;
            }
            if is_looked_at {
                let longest = if path == MANIFEST { LONGEST_MANIFEST } else { LONGEST };
                ensure!(looked_at.len() + piece.len() <= longest, "it is too long");
                looked_at.extend_from_slice(piece);
            }
            checksum = crc32c::crc32c_append(checksum, piece);
            len += piece.len() as u64;
        }
        if !is_kept {
            self.written.files.push(path.as_bytes().to_vec());
        }
        match path {
            PG_VERSION => self.version = Some(looked_at),
            PG_CONTROL => self.control = Some(looked_at),
            BACKUP_LABEL => self.label = Some(String::from_utf8(looked_at).context("it is not UTF-8")?),
            MANIFEST => {
                ensure!(self.manifest.replace(looked_at).is_none(), "the archive has it twice");
                return Ok(());
            }
            _ => {}
        }
        ensure!(self.files.insert(path.to_owned(), (len, checksum)).is_none(), "the archive has it twice");
        self.summary.files += 1;
        self.summary.bytes += len;
        Ok(())
    }

    fn make_parents(&mut self, storage: &dyn Storage, path: &str) -> anyhow::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.make_directory(storage, parent))
    }

    fn make_directory(&mut self, storage: &dyn Storage, path: &str) -> anyhow::Result<()> {
        if !self.directories.contains(path) {
            self.make_parents(storage, path)?;
            storage.create_directory(path.as_bytes())?;
            self.directories.insert(path.to_owned());
        }
        Ok(())
    }

    /// Checks the whole, and has all names on the disk; returns the content of `PG_VERSION`.
    fn finish(mut self, storage: &dyn Storage, verifies: bool) -> anyhow::Result<(Vec<u8>, Summary)> {
        let version = self.version.take().context(
            "the archive has no PG_VERSION at its root, so it is no backup of a cluster, or not a complete one",
        )?;
        data_directory::check_version(String::from_utf8_lossy(&version).trim())?;
        let control = self.control.take().with_context(|| format!("the archive has no {PG_CONTROL}"))?;
        let checks_pages = check_control_file(&control)?;
        let redo = match &self.label {
            Some(label) => self.check_label(label)?,
            None => control_file::redo(&control).unwrap_or_default(),
        };
        if checks_pages && verifies {
            self.wrong.retain(|(_, wrong)| wrong.lsn < redo);
            refuse_wrong(&self.wrong)
                .context("the restore was given up (--no-verify-checksums does it all the same)")?;
        } else {
            self.summary.pages = 0;
        }
        match &self.manifest {
            Some(bytes) => {
                self.check_manifest(bytes).with_context(|| format!("{MANIFEST} does not fit the files"))?;
            }
            None if self.label.as_ref().is_some_and(|label| label.contains(OWN_LABEL)) => {
                bail!("the archive has no {MANIFEST}, so it is not complete")
            }
            None => {}
        }
        self.written.directories.extend(self.directories.into_iter().map(String::into_bytes));
        self.written.directories.push(Vec::new());
        self.written.sync(storage)?;
        Ok((version, self.summary))
    }

    /// Checks that the WAL with which recovery begins is there; returns where that is.
    fn check_label(&self, label: &str) -> anyhow::Result<u64> {
        let (lsn, file) = parse_label(label).with_context(|| format!("{BACKUP_LABEL} has another format"))?;
        ensure!(
            self.files.contains_key(&format!("pg_wal/{file}")),
            "the archive lacks pg_wal/{file}, the WAL of the time when the backup was made: the files alone do not fit \
             together"
        );
        Ok(lsn)
    }

    fn check_manifest(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let listed = manifest::parse(bytes)?;
        if let Some(path) = self.files.keys().find(|path| !listed.contains_key(*path)) {
            bail!("{path} is not listed");
        }
        for (path, expected) in listed {
            let Some((len, checksum)) = self.files.get(&path) else { bail!("{path} is missing") };
            ensure!(expected.size == *len, "{path} has {len} bytes instead of {}", expected.size);
            ensure!(expected.is_met_by(*len, *checksum), "{path} has other content");
        }
        Ok(())
    }
}

/// Where the WAL of a backup begins, and the name of the file of WAL that has it (`build_backup_content` in
/// `src/backend/access/transam/xlogbackup.c`).
fn parse_label(label: &str) -> Option<(u64, &str)> {
    let start = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    let (lsn, rest) = start.split_once(" (file ")?;
    Some((wal::parse_lsn(lsn)?, rest.strip_suffix(')')?))
}

/// Reads until the buffer is full or there is no more.
fn read_fully(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_archive_stay_inside_of_it() {
        for (text, path) in [("/PG_VERSION", "PG_VERSION"), ("./base/1", "base/1"), ("base/", "base"), ("/", "")] {
            assert_eq!(name(text.as_bytes()).expect("a path"), path);
        }
        for text in ["../x", "base/../../x", "base/.."] {
            assert!(name(text.as_bytes()).is_err(), "{text}");
        }
        assert!(name(b"\xff").is_err());
    }

    #[test]
    fn a_label_says_where_wal_begins() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nSTART TIMELINE: 1\n";
        assert_eq!(parse_label(label), Some((0x200_0028, "000000010000000000000002")));
        assert_eq!(parse_label("CHECKPOINT LOCATION: 0/2000060\n"), None);
    }
}
