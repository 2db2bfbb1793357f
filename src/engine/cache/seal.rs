//! Seals: the digests of the files of an entry, which is a directory. Written when the entry is made, compared when it
//! is opened, so that damage is noticed and the entry made again instead of used.
//!
//! Reading all of an entry takes tens of milliseconds, so it is done once after each start of the operating system: a
//! second file says which files were compared since then, with their times of modification.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

/// A line for each file, its SHA-256 and its path, and in the last line the SHA-256 of all that.
const SEAL: &str = "seal";
/// Which files were compared since the operating system has started.
const COMPARED: &str = ".compared";
/// Identifies a start of the operating system (Linux, random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Why an entry is not to be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// It has no seal, or the seal itself is damaged.
    #[error("it has no digests, or these are damaged")]
    Unsealed,
    /// A file is not as it was when the seal was written.
    #[error("{file} is damaged: {problem}")]
    Damaged {
        /// Its path in the entry.
        file: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file cannot be read.
    #[error("{file} cannot be read: {error}")]
    Unreadable {
        /// Its path in the entry.
        file: String,
        /// The operating system's error.
        error: io::Error,
    },
}

/// Seals the entry in `directory`, and makes it private and durable.
pub(super) fn write(directory: &Path) -> io::Result<()> {
    let mut seal = String::new();
    for path in files(directory)? {
        let file = File::open(directory.join(&path))?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let digest = digest(&file)?;
        file.sync_all()?;
        // Writing to a string cannot fail.
        let _ = writeln!(seal, "{digest} {path}");
    }
    let own = hex(&Sha256::digest(&seal));
    let path = directory.join(SEAL);
    fs::write(&path, format!("{seal}{own}\n"))?;
    let file = File::open(&path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.sync_all()?;
    sync_directories(directory)
}

/// The digests of the files of an entry, by path, as in its seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests(pub(crate) BTreeMap<String, String>);

impl Digests {
    /// Those of the entry in `directory`; `None` if there is no seal, or it is damaged.
    pub(super) fn of(directory: &Path) -> Option<Self> {
        read(directory).map(Self)
    }

    /// The SHA-256 of all of them: that of the whole entry.
    pub(crate) fn digest(&self) -> String {
        let line = |(path, digest): (&String, &String)| format!("{digest} {path}\n");
        hex(&Sha256::digest(self.0.iter().map(line).collect::<String>()))
    }
}

/// Compares those files of the entry in `directory` with its seal whose paths are wanted.
///
/// # Errors
/// [`SealError`]
pub(super) fn compare(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<(), SealError> {
    let sealed = read(directory).ok_or(SealError::Unsealed)?;
    let wanted: Vec<(&String, &String)> = sealed.iter().filter(|(path, _)| is_wanted(path)).collect();
    let boot = fs::read_to_string(BOOT).ok();
    let mut compared = boot.clone().unwrap_or_default();
    let mut opened = Vec::new();
    for (path, digest) in wanted {
        let unreadable = |error| SealError::Unreadable { file: path.clone(), error };
        let file = open(&directory.join(path)).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if let Some(problem) = distrusted(&metadata) {
            return Err(SealError::Damaged { file: path.clone(), problem });
        }
        let (size, seconds, nanoseconds) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        let _ = writeln!(compared, "{} {size} {seconds}.{nanoseconds} {path}", metadata.ino());
        opened.push((path, digest, file));
    }
    let note = directory.join(COMPARED);
    if boot.is_some() && fs::read_to_string(&note).is_ok_and(|known| known == compared) {
        return Ok(());
    }
    for (path, expected, file) in opened {
        let found = digest(&file).map_err(|error| SealError::Unreadable { file: path.clone(), error })?;
        if found != *expected {
            return Err(SealError::Damaged { file: path.clone(), problem: "its digest is wrong" });
        }
    }
    // A cache that cannot be written is compared at every start.
    if let Err(error) = fs::write(&note, compared) {
        tracing::debug!("{} cannot be written: {error}", note.display());
    }
    Ok(())
}

/// What keeps a file from being trusted, if it can have been written by others.
fn distrusted(metadata: &fs::Metadata) -> Option<&'static str> {
    if !metadata.is_file() {
        Some("it is no file")
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        Some("it belongs to another user")
    } else if metadata.mode() & 0o022 != 0 {
        Some("others can write to it")
    } else {
        None
    }
}

/// The digests by path; `None` if there is no seal, or it is damaged.
fn read(directory: &Path) -> Option<BTreeMap<String, String>> {
    let seal = fs::read_to_string(directory.join(SEAL)).ok()?;
    let lines = seal.strip_suffix('\n')?;
    let (lines, own) = lines.split_at(lines.rfind('\n')? + 1);
    if hex(&Sha256::digest(lines)) != own {
        return None;
    }
    lines.lines().map(|line| line.split_once(' ').map(|(digest, path)| (path.to_owned(), digest.to_owned()))).collect()
}

/// The paths of all files of an entry, in order.
fn files(directory: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(below) = directories.pop() {
        for entry in fs::read_dir(directory.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                directories.push(path);
            } else {
                found.push(path.into_os_string().into_string().map_err(|_| io::ErrorKind::InvalidFilename)?);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    let opened = File::open(directory)?;
    opened.set_permissions(Permissions::from_mode(0o700))?;
    opened.sync_all()
}

/// Opens a file, but no symbolic link.
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn digest(mut file: &File) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
