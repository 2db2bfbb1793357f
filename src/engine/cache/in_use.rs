//! Entries in use: held so that they are not removed, with the time of their last use.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// The time of last use is updated when it is older than this, so that most starts write nothing.
const RESOLUTION: Duration = Duration::from_hours(24);

/// Holds an entry of the cache: while it exists, no process removes the entry because of its age or size.
///
/// It is a shared lock (`flock`) on the file or directory itself, which needs no permission to write; the operating
/// system releases it when the process dies. It does not prevent that an entry is replaced or that a template is
/// removed by name; files that are open stay usable then.
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
                // Some filesystems have no locks. A removed file stays readable where it is open.
                tracing::debug!("{} is used without a lock: {error}", path.display());
            }
            // The entry may have been removed or replaced between the two calls.
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

/// Sets the time of modification, which serves as the time of last use. In a cache that cannot be written, times stay.
fn note_use(file: &File) {
    if file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|used| age(used) >= RESOLUTION)
        && let Err(error) = file.set_modified(SystemTime::now())
    {
        tracing::debug!("the time of last use cannot be updated: {error}");
    }
}

/// The time since `time`.
pub(crate) fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

/// Locks the entry at `path` exclusively: while the returned file is open, no process begins to use the entry. `None`
/// when the entry does not exist or a process uses it, in which case the time of use is updated.
pub(super) fn take_unused(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(TryLockError::WouldBlock) => {
            // A process that runs for months uses its entries all the time.
            note_use(&file);
            Ok(None)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}
