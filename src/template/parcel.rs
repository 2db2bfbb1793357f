//! Parcels: templates as one file each, for other caches on this machine and on others.
//!
//! A parcel is a magic number, the length and the SHA-256 of a header, the header, and then the files of the template,
//! one after the other, whose paths, lengths and SHA-256 are in the header. So a digest covers every byte. The header
//! is JSON, so that a program can say of a parcel that another version has made what in it does not fit. Nothing is
//! compressed: what is unpacked is never longer than the parcel.
//!
//! A parcel may come from anywhere. It decides no path but those of a template's own files, is unpacked beside the
//! template's place, and is put there when all of it was as the header says.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::Path,
};

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::shelf::{Label, is_part};
use crate::{engine::cache::Digests, fs::is_zero};

/// The first bytes of a parcel of any version; a digit follows.
const MAGIC: &[u8; 7] = b"PGLPARC";
/// The version of the format.
const VERSION: u8 = b'1';
/// The longest header, in bytes. Those of templates have a few kilobytes.
const LONGEST_HEADER: u32 = 1 << 16;
/// How much is read and written at once, in bytes.
const PIECE: usize = 1 << 16;

/// Why a parcel cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// It is something else.
    #[error("this is no exported template")]
    Foreign,
    /// It has another format than this program's.
    #[error(
        "this template was exported in the format of another version of the program; export it again with this one"
    )]
    OtherFormat,
    /// It is not as it was when it was written.
    #[error("the exported template is damaged: {0}; copy or export it again")]
    Damaged(String),
    /// This program cannot use the template.
    #[error("the template {name:?} does not fit this program: {}", differences.join("; "))]
    Unfit {
        /// The template's name.
        name: String,
        /// What differs, each as a clause.
        differences: Vec<String>,
        /// What to do, if there is more to say than to export it again.
        advice: Option<String>,
    },
    /// It cannot be read.
    #[error("the exported template cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// It cannot be put into the cache.
    #[error(transparent)]
    Unwritable(#[from] anyhow::Error),
}

impl ParcelError {
    /// What to do, if the error does not say so itself.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        if let Self::Unfit { advice, .. } = self { advice.clone() } else { None }
    }
}

/// What a template depends on, besides the extensions in it. No processor is among that: memory, globals and tables
/// hold no address of machine code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The version of the program.
    pub(super) version: String,
    /// The version of PGlite.
    pub(super) pglite: String,
    /// The digest of PGlite's files.
    pub(super) artefact: String,
    /// The digest of the sources that rewrite and compile PostgreSQL.
    pub(super) code: String,
    /// The digest of the sources that make clusters and templates, those of `code` included.
    pub(super) contents: String,
    /// The digest of ICU's data.
    pub(super) icu: String,
}

impl Origin {
    /// What differs between a template's origin and that of the templates `here`, each as a clause.
    pub(super) fn differences(&self, here: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.artefact != here.artefact {
            differences.push(format!("it has PGlite {}, this program has PGlite {}", self.pglite, here.pglite));
        }
        let versions = || format!("(pglite-port {}, this one is {})", self.version, here.version);
        if self.code != here.code {
            differences.push(format!("another rewriter has compiled its PostgreSQL {}", versions()));
        } else if self.contents != here.contents {
            differences.push(format!("another version of the program has built it {}", versions()));
        }
        if self.icu != here.icu {
            differences.push("it was built with other ICU data (--icu-data)".to_owned());
        }
        differences
    }
}

/// What is in a parcel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) origin: Origin,
    pub(super) template: Label,
    files: Vec<Member>,
}

/// A file of the template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    path: String,
    length: u64,
    sha256: String,
}

impl Header {
    /// The digests of the template's files.
    pub(super) fn digests(&self) -> Digests {
        Digests(self.files.iter().map(|member| (member.path.clone(), member.sha256.clone())).collect())
    }
}

/// Writes the template in `directory`, whose files have these digests, as a parcel; returns its length in bytes.
///
/// # Errors
/// When a file is damaged or cannot be read, or `out` cannot be written.
pub(super) fn write(
    origin: Origin,
    template: Label,
    directory: &Path,
    digests: &Digests,
    out: &mut dyn Write,
) -> anyhow::Result<u64> {
    let (mut opened, mut files) = (Vec::new(), Vec::new());
    for (path, sha256) in digests.0.iter().filter(|(path, _)| is_part(path)) {
        let file = File::open(directory.join(path))?;
        files.push(Member { path: path.clone(), length: file.metadata()?.len(), sha256: sha256.clone() });
        opened.push(file);
    }
    let header = Header { origin, template, files };
    let text = serde_json::to_vec(&header)?;
    let start = [&MAGIC[..], &[VERSION], &u32::try_from(text.len())?.to_le_bytes(), &Sha256::digest(&text)].concat();
    out.write_all(&start)?;
    out.write_all(&text)?;
    let mut length = (start.len() + text.len()) as u64;
    for (member, mut file) in header.files.iter().zip(opened) {
        let is_right = copy(&mut file, member, |piece| out.write_all(piece))?;
        ensure!(is_right, "{} is damaged: its digest is wrong", directory.join(&member.path).display());
        length += member.length;
    }
    out.flush()?;
    Ok(length)
}

/// A parcel whose header was read.
pub(super) struct Parcel<'a> {
    pub(super) header: Header,
    rest: &'a mut dyn Read,
}

impl<'a> Parcel<'a> {
    /// Reads the header of a parcel.
    ///
    /// # Errors
    /// [`ParcelError`]
    pub(super) fn open(input: &'a mut dyn Read) -> Result<Self, ParcelError> {
        let mut magic = [0; MAGIC.len() + 1];
        // What is too short to be a parcel is none.
        input.read_exact(&mut magic).map_err(|error| unread(error, || ParcelError::Foreign))?;
        match magic.strip_prefix(MAGIC) {
            Some([VERSION]) => {}
            Some(_) => return Err(ParcelError::OtherFormat),
            None => return Err(ParcelError::Foreign),
        }
        let (mut length, mut digest) = ([0; 4], [0; 32]);
        read(input, &mut length)?;
        read(input, &mut digest)?;
        let length = u32::from_le_bytes(length);
        if length > LONGEST_HEADER {
            return Err(damaged("the length of its header is wrong"));
        }
        let mut text = vec![0; length as usize];
        read(input, &mut text)?;
        if Sha256::digest(&text)[..] != digest {
            return Err(damaged("the digest of its header is wrong"));
        }
        // The digest is right: another program has written it.
        let header: Header = serde_json::from_slice(&text).map_err(|_| ParcelError::OtherFormat)?;
        Ok(Self { header, rest: input })
    }

    /// Writes the files into `directory`, which is empty.
    ///
    /// # Errors
    /// [`ParcelError`], within.
    pub(super) fn unpack(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mut last = None;
        for member in &self.header.files {
            // In order, so that there is none twice.
            if !is_part(&member.path) || last >= Some(&member.path) {
                return Err(damaged(format!("a template has no such file: {:?}", member.path)).into());
            }
            last = Some(&member.path);
            let path = directory.join(&member.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = File::create_new(&path)?;
            let is_right = copy(self.rest, member, |piece| {
                // Zeros, of which a memory has many, become holes.
                let length = i64::try_from(piece.len()).map_err(io::Error::other)?;
                if is_zero(piece) { file.seek_relative(length) } else { file.write_all(piece) }
            })?;
            if !is_right {
                return Err(damaged(format!("the digest of {} is wrong", member.path)).into());
            }
            file.set_len(member.length)?;
        }
        if self.rest.read(&mut [0]).map_err(ParcelError::Unreadable)? > 0 {
            return Err(damaged("something follows it").into());
        }
        Ok(())
    }
}

/// Gives the content of `member`, which `input` begins with, to `write` in pieces; returns whether its digest is right.
fn copy(input: &mut dyn Read, member: &Member, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> anyhow::Result<bool> {
    let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; PIECE], member.length);
    while left > 0 {
        let piece = &mut buffer[..usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))];
        read(input, piece)?;
        hash.update(&*piece);
        write(piece)?;
        left -= piece.len() as u64;
    }
    Ok(hex(&hash.finalize()) == member.sha256)
}

fn read(input: &mut dyn Read, buffer: &mut [u8]) -> Result<(), ParcelError> {
    input.read_exact(buffer).map_err(|error| unread(error, || damaged("it ends early")))
}

/// The error of a read that has failed; `at_the_end` makes that of one that has met the end.
fn unread(error: io::Error, at_the_end: impl FnOnce() -> ParcelError) -> ParcelError {
    if error.kind() == io::ErrorKind::UnexpectedEof { at_the_end() } else { ParcelError::Unreadable(error) }
}

pub(super) fn damaged(problem: impl Into<String>) -> ParcelError {
    ParcelError::Damaged(problem.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
