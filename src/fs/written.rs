//! New files of a storage, which are synced together when all are written.

use std::{
    io, panic,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::storage::Storage;

/// How many threads sync them.
const SYNCERS: usize = 16;

/// The paths of files and directories that were written and may not be on the disk yet.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) directories: Vec<Vec<u8>>,
}

impl Written {
    /// Has all of them on the disk. Several threads do it, because a file system writes one transaction for all that
    /// wait for it at the same time: 1,000 files take 0.1 s instead of 1 s on ext4.
    ///
    /// # Errors
    /// Those of the storage.
    pub(crate) fn sync(&self, storage: &dyn Storage) -> io::Result<()> {
        let count = self.files.len() + self.directories.len();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if let Some(path) = self.files.get(number) {
                    storage.open(path)?.sync()?;
                } else if let Some(path) = self.directories.get(number - self.files.len()) {
                    storage.sync_directory(path)?;
                } else {
                    return Ok(());
                }
            }
        };
        thread::scope(|scope| {
            let threads = (1..SYNCERS.min(count)).map_while(|_| {
                // Fewer threads are slower, and do the same.
                thread::Builder::new().name("sync".to_owned()).spawn_scoped(scope, work).ok()
            });
            let threads: Vec<_> = threads.collect();
            let own = work();
            threads.into_iter().fold(own, |synced, thread| {
                synced.and(thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
            })
        })
    }
}
