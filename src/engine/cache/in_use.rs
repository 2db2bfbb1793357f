//! Entries in use: held against removal, and marked with the time.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// A time of last use is noted again when it is older than this, so that most starts write nothing.
const RESOLUTION: Duration = Duration::from_hours(24);

/// Holds an entry of the cache: while this is there, no process removes the entry on account of its age or size.
///
/// It is a shared lock (`flock`) on the file or directory itself, which needs no right to write; the operating system
/// frees it when the process dies. To replace an entry by another edition is still possible, and so is to remove a
/// template by name: both leave the files to who has them open.
#[derive(Debug)]
pub struct InUse {
    _file: File,
}

impl InUse {
    /// Holds the entry at `path`; `None` when there is none.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = match File::open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            if let Err(error) = file.lock_shared() {
                // Some filesystems have no locks. What is removed there stays readable for who has it open.
                tracing::debug!("{} is used without a lock: {error}", path.display());
            }
            // It may have been removed or replaced between the two calls.
            if is_at(&file, path) {
                note_use(&file);
                return Ok(Some(Self { _file: file }));
            }
        }
    }
}

/// Whether `path` names the open file `file`.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(open), Ok(named)) if identity(&open) == identity(&named))
}

/// The time of last use is the time of modification, which nothing else needs. A cache that cannot be written keeps
/// the times that it has.
fn note_use(file: &File) {
    if file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|used| age(used) >= RESOLUTION)
        && let Err(error) = file.set_modified(SystemTime::now())
    {
        tracing::debug!("the time of use cannot be noted: {error}");
    }
}

/// How long ago `time` was.
pub(crate) fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

/// Takes the entry at `path` for the caller alone: while the returned file is open, no process begins to use it.
/// `None` when one uses it, which is noted, or when it is not there.
pub(super) fn take_unused(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(TryLockError::WouldBlock) => {
            // A process that runs for months uses it all the time.
            note_use(&file);
            Ok(None)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}
