//! Files whose content must have a SHA-256 that is known in advance.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::cache::Cache;
use crate::sources::hex_digest;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerifyError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It has this other SHA-256.
    #[error("its SHA-256 is {0}")]
    Foreign(String),
}

/// Whether the log says already that hashes are computed again.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Checks that the file at `path` has the SHA-256 `expected`, in lower-case hexadecimal digits.
///
/// A file that was checked before is not read again if its inode, size and times are the same; `cache` stores these.
///
/// # Errors
/// [`VerifyError`]
pub(super) fn verify(path: &Path, expected: &str, cache: &Cache) -> Result<(), VerifyError> {
    let metadata = fs::metadata(path)?;
    let stamp = format!(
        "{} {} {} {}.{} {}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    let stamp_file = format!("{expected}.verified");
    // Held for a moment, to update its time of use.
    let _in_use = cache.hold(&stamp_file);
    if fs::read_to_string(cache.path(&stamp_file)).is_ok_and(|known| known == stamp) {
        return Ok(());
    }
    let found = hex_digest(&[&fs::read(path)?]);
    if found != expected {
        return Err(VerifyError::Foreign(found));
    }
    if let Err(error) = cache.publish_file(&stamp_file, stamp.as_bytes()) {
        // Where the cache cannot be written, it is so for every file.
        if !WARNED.swap(true, Ordering::Relaxed) {
            tracing::warn!("the hashes of PGlite's files will be computed again at the next start: {error:#}");
        }
        tracing::debug!("the hash of {} will be computed again at the next start: {error:#}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        time::{Duration, SystemTime},
    };

    use super::*;

    #[test]
    fn a_file_that_was_checked_is_checked_again_when_it_changes() {
        let outer = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&outer.path().join("cache"))).unwrap();
        let path = outer.path().join("abc");
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        fs::write(&path, "abc").unwrap();
        verify(&path, digest, &cache).unwrap();
        verify(&path, digest, &cache).unwrap();
        // As long as before, but later.
        fs::write(&path, "abd").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::now() + Duration::from_hours(1))
            .unwrap();
        assert!(matches!(verify(&path, digest, &cache), Err(VerifyError::Foreign(_))));
    }
}
