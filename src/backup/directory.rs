//! A data directory that no program has open: its files as they are, WAL included.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, ensure};

use super::{
    PG_CONTROL,
    origin::{Begun, Content, Ended, Entry, Origin, is_left_out, stays_inside},
};
use crate::{
    databases::data_directory,
    fs::{HostDirectory, Storage, StoredEntryKind, StoredFile, joined},
    postgres::control_file,
};

/// The directory, which stays locked for as long as this lives.
pub(super) struct Directory {
    storage: HostDirectory,
    /// The file that was read last.
    open: Option<(String, Arc<dyn StoredFile>)>,
}

impl Directory {
    /// Locks it.
    ///
    /// # Errors
    /// When it has no cluster, or another process has it open.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let storage = data_directory::lock(path, Duration::ZERO).map_err(|error| match error {
            error if error.is::<data_directory::InUse>() => {
                anyhow!("{error}: a cluster that runs is backed up by its URL, pglite-port backup postgres://… FILE")
            }
            error => error,
        })?;
        data_directory::check(&storage)
            .with_context(|| format!("the data directory {} cannot be backed up", path.display()))?;
        Ok(Self { storage, open: None })
    }

    fn list(&self, path: &str, into: &mut Vec<Entry>) -> anyhow::Result<()> {
        let mut entries = self.storage.list(path.as_bytes())?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        for entry in entries {
            let below = String::from_utf8(joined(path.as_bytes(), &entry.name)).map_err(|error| {
                let name = error.utf8_error();
                anyhow!("a file in {path:?} has a name that is not UTF-8 ({name}): rename or move it")
            })?;
            let content = match entry.kind {
                StoredEntryKind::File { len } => Content::File(len),
                StoredEntryKind::Directory => Content::Directory,
                StoredEntryKind::Symlink { target } => {
                    let target = String::from_utf8(target).ok();
                    let target = target.with_context(|| format!("the link {below} leads to no UTF-8 path"))?;
                    ensure!(
                        stays_inside(&target),
                        "the link {below} leads out of the directory, to {target}: remove it"
                    );
                    Content::Symlink(target)
                }
                // As when the cluster is opened.
                StoredEntryKind::Other => continue,
            };
            if is_left_out(&below) {
                continue;
            }
            let is_directory = matches!(content, Content::Directory);
            let modified = u64::try_from(entry.modified.seconds).unwrap_or_default();
            into.push(Entry { path: below.clone(), content, modified });
            if is_directory {
                self.list(&below, into)?;
            }
        }
        Ok(())
    }
}

impl Origin for Directory {
    fn control_file(&mut self) -> anyhow::Result<Vec<u8>> {
        let control = self.read(PG_CONTROL, 0, 1 << 16)?;
        control.with_context(|| format!("{PG_CONTROL} is missing"))
    }

    fn begin(&mut self, control: &[u8]) -> anyhow::Result<Begun> {
        let mut entries = Vec::new();
        self.list("", &mut entries)?;
        Ok(Begun { entries, redo: control_file::redo(control).unwrap_or_default() })
    }

    fn read(&mut self, path: &str, offset: u64, len: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let file = match self.open.take() {
            Some((open, file)) if open == path => file,
            _ => self.storage.open(path.as_bytes())?,
        };
        let mut bytes = vec![0; len];
        let read = file.read_at(offset, &mut bytes)?;
        bytes.truncate(read);
        self.open = Some((path.to_owned(), file));
        Ok(Some(bytes))
    }

    fn end(&mut self) -> anyhow::Result<Ended> {
        Ok(Ended::default())
    }
}
