//! Writes the archive of a backup: each file once, with its checksum on the way.

use std::io::{self, Read, Write};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use tar::{EntryType, Header};

use super::{
    MANIFEST, Summary,
    manifest::Manifest,
    origin::{Content, Entry, Origin, WalRange, is_below, now},
    pages::{Pages, Wrong},
};
use crate::postgres::page;

/// How many bytes are read at once, a multiple of a page.
pub(super) const PIECE: usize = 1 << 20;

/// How many pages with a wrong checksum an error names.
const NAMED: usize = 5;

/// Permissions in the archive.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// An archive that is being written.
pub(super) struct Archive<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    manifest: Manifest,
    /// Pages that were changed after this are not checked; no page is if there is none.
    redo: Option<u64>,
    bar: ProgressBar,
    summary: Summary,
    wrong: Vec<(String, Wrong)>,
}

impl<'a> Archive<'a> {
    /// An empty one, of the cluster with that system identifier.
    pub(super) fn new(out: &'a mut dyn Write, identifier: u64, redo: Option<u64>, bar: ProgressBar) -> Self {
        let manifest = Manifest::new(identifier);
        Self { tar: tar::Builder::new(out), manifest, redo, bar, summary: Summary::default(), wrong: Vec::new() }
    }

    /// Adds what `entry` names, unless it is no longer there.
    pub(super) fn add(&mut self, entry: &Entry, origin: &mut dyn Origin) -> anyhow::Result<()> {
        match &entry.content {
            Content::Directory => {
                let mut header = header(EntryType::Directory, DIRECTORY_MODE, 0, entry.modified);
                self.tar.append_data(&mut header, format!("{}/", entry.path), io::empty())?;
            }
            Content::Symlink(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0, entry.modified);
                self.tar.append_link(&mut header, &entry.path, target)?;
            }
            Content::Made(content) => self.add_made(&entry.path, content, entry.modified)?,
            Content::File(listed) => self.add_file(entry, *listed, origin)?,
        }
        Ok(())
    }

    fn add_made(&mut self, path: &str, content: &[u8], modified: u64) -> anyhow::Result<()> {
        let len = content.len() as u64;
        let mut header = header(EntryType::Regular, FILE_MODE, len, modified);
        self.tar.append_data(&mut header, path, content)?;
        self.count(path, len, modified, crc32c::crc32c(content));
        Ok(())
    }

    fn add_file(&mut self, entry: &Entry, listed: u64, origin: &mut dyn Origin) -> anyhow::Result<()> {
        let path = &entry.path;
        let Some(first) = origin.read(path, 0, PIECE)? else {
            ensure!(!is_below(path, "pg_wal"), "the server has removed it during the backup: try again");
            // It was removed after it was listed, which recovery does as well, or need not.
            return Ok(());
        };
        // What was added since the file was listed is in the WAL.
        let len = if first.len() < PIECE { first.len() as u64 } else { listed.max(PIECE as u64) };
        let mut body = Body {
            origin,
            path,
            next: Some(first),
            piece: Vec::new(),
            taken: 0,
            offset: 0,
            len,
            checksum: 0,
            pages: self.redo.and_then(|redo| Some((Pages::of(path)?, redo))),
            right: 0,
            wrong: Vec::new(),
            bar: &self.bar,
        };
        let mut header = header(EntryType::Regular, FILE_MODE, len, entry.modified);
        self.tar.append_data(&mut header, path, &mut body)?;
        let Body { checksum, right, wrong, .. } = body;
        self.summary.pages += right;
        self.wrong.extend(wrong.into_iter().map(|wrong| (path.clone(), wrong)));
        self.count(path, len, entry.modified, checksum);
        Ok(())
    }

    fn count(&mut self, path: &str, len: u64, modified: u64, checksum: u32) {
        self.summary.files += 1;
        self.summary.bytes += len;
        self.manifest.add(path, len, modified, checksum);
    }

    /// Adds the manifest and ends the archive.
    ///
    /// # Errors
    /// When a page has a wrong checksum, or writing fails.
    pub(super) fn finish(mut self, wal: Option<&WalRange>) -> anyhow::Result<Summary> {
        refuse_wrong(&self.wrong).context("the backup was given up (--no-verify-checksums makes it all the same)")?;
        let manifest = self.manifest.finish(wal);
        let mut header = header(EntryType::Regular, FILE_MODE, manifest.len() as u64, now());
        self.tar.append_data(&mut header, MANIFEST, &*manifest)?;
        self.tar.finish()?;
        self.bar.finish_and_clear();
        Ok(self.summary)
    }
}

/// Reports pages with a wrong checksum.
///
/// # Errors
/// If there are any.
pub(super) fn refuse_wrong(wrong: &[(String, Wrong)]) -> anyhow::Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = wrong.iter().take(NAMED).map(|(path, wrong)| format!("{path} page {}", wrong.page)).collect();
    let further = if wrong.len() > NAMED { ", …" } else { "" };
    bail!("{} pages have a wrong checksum: {}{further}", wrong.len(), named.join(", "))
}

fn header(kind: EntryType, mode: u32, len: u64, modified: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len);
    header.set_mtime(modified);
    header
}

/// The bytes of a file, exactly as many as its header says.
struct Body<'a> {
    origin: &'a mut dyn Origin,
    path: &'a str,
    /// The first piece, which was read to learn the length.
    next: Option<Vec<u8>>,
    piece: Vec<u8>,
    /// How much of the piece was taken.
    taken: usize,
    /// Where the piece after this one begins.
    offset: u64,
    len: u64,
    checksum: u32,
    pages: Option<(Pages, u64)>,
    right: u64,
    wrong: Vec<Wrong>,
    bar: &'a ProgressBar,
}

impl Body<'_> {
    fn read_piece(&mut self) -> anyhow::Result<()> {
        let wanted = usize::try_from(self.len - self.offset).map_or(PIECE, |left| left.min(PIECE));
        let read = match self.next.take() {
            Some(first) => Some(first),
            None => self.origin.read(self.path, self.offset, wanted)?,
        };
        self.piece = read.unwrap_or_default();
        self.verify()?;
        // A file that has become shorter: recovery shortens it as well.
        self.piece.resize(wanted, 0);
        self.checksum = crc32c::crc32c_append(self.checksum, &self.piece);
        self.offset += self.piece.len() as u64;
        self.taken = 0;
        self.bar.inc(self.piece.len() as u64);
        Ok(())
    }

    /// Verifies the pages of the piece. One that is wrong may have been read while it was written, so it is read
    /// again.
    fn verify(&mut self) -> anyhow::Result<()> {
        let Some((pages, redo)) = self.pages else { return Ok(()) };
        let mut wrong = Vec::new();
        self.right += pages.verify_all(self.offset, &self.piece, |found| wrong.push(found));
        for found in wrong.into_iter().filter(|found| found.lsn < redo) {
            let at = u64::from(found.page) * page::SIZE as u64;
            let again = self.origin.read(self.path, at, page::SIZE)?.unwrap_or_default();
            let mut is_wrong = None;
            self.right += pages.verify_all(at, &again, |found| is_wrong = Some(found));
            match is_wrong.filter(|found| found.lsn < redo) {
                Some(found) => self.wrong.push(found),
                None if again.len() == page::SIZE => {
                    let start = usize::try_from(at - self.offset)?;
                    self.piece[start..start + page::SIZE].copy_from_slice(&again);
                }
                None => {}
            }
        }
        Ok(())
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() && self.offset < self.len {
            self.read_piece().map_err(io::Error::other)?;
        }
        let rest = &self.piece[self.taken..];
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.taken += taken;
        Ok(taken)
    }
}
