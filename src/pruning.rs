//! Lists the cache, and removes entries that have not been used for long.
//!
//! Only entries that can be made again are removed: compiled code, instrumented programs, new clusters, the default
//! template, and what other versions of the program have built of the other templates. Their SQL or files are removed
//! only by name.

use std::{
    fs::File,
    io::ErrorKind,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use crate::{
    engine::cache::{Cache, Removed, Usage, age},
    template::{Remakeable, Shelf, Templates},
};

#[cfg(test)]
mod tests;

/// Entries that have not been used for this many days are removed automatically.
pub const UNUSED_FOR_DAYS: u32 = 30;

/// The same, as a duration.
pub const UNUSED_FOR: Duration = Duration::from_hours(24 * UNUSED_FOR_DAYS as u64);

/// The minimum interval of the automatic removal.
const INTERVAL: Duration = Duration::from_hours(24);

/// A file whose time of modification is that of the last automatic removal.
const LOOKED: &str = ".pruned";

/// The kind of an entry in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WebAssembly module's machine code.
    Code,
    /// `PostgreSQL`'s WebAssembly after the rewriter, and its initial memory.
    Program,
    /// The files of a new cluster.
    Cluster,
    /// The files of an extension's bundle.
    Extension,
    /// The result of a check that a file of PGlite's has the pinned hash.
    Checksum,
    /// A template.
    Template,
}

impl Kind {
    /// The kind of the entry `name`; `None` for names that this program does not use.
    fn of(name: &str) -> Option<Self> {
        let extension = Path::new(name).extension().unwrap_or_default();
        match name {
            _ if extension == "cwasm" => Some(Self::Code),
            _ if extension == "verified" => Some(Self::Checksum),
            _ if name.starts_with("pglite-") => Some(Self::Program),
            _ if name.starts_with("cluster-") => Some(Self::Cluster),
            _ if name.starts_with("extension-") => Some(Self::Extension),
            _ => None,
        }
    }

    /// Its name in lists.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Program => "program",
            Self::Cluster => "cluster",
            Self::Extension => "extension",
            Self::Checksum => "checksum",
            Self::Template => "template",
        }
    }
}

/// An entry of the cache.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its kind.
    pub kind: Kind,
    /// Its name; for a template the template's name.
    pub name: String,
    /// Bytes on disk.
    pub size: u64,
    /// When a process opened it last, to the day.
    pub used: SystemTime,
    usage: Usage,
    remakeable: Remakeable,
}

/// The entries to remove.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries that have not been used for this long.
    pub unused_for: Duration,
    /// The entries that have not been used for the longest time, until at most this many bytes remain.
    pub size: Option<u64>,
}

/// The result of a removal.
#[derive(Debug, Default)]
pub struct Pruned {
    /// The number of entries that were removed, in whole or in part.
    pub entries: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes on disk that remain.
    pub remaining: u64,
    /// The errors of entries that could not be removed.
    pub failures: Vec<anyhow::Error>,
}

/// All entries of a cache.
pub struct Stock {
    cache: Cache,
    shelf: Shelf,
}

impl Stock {
    /// The cache in `directory`, or the user's cache.
    ///
    /// # Errors
    /// When it cannot be used; the message says what to do.
    pub fn open(directory: Option<&Path>) -> anyhow::Result<Self> {
        let (cache, shelf) = (Cache::open(directory)?, Shelf::open(directory)?);
        Ok(Self { cache, shelf })
    }

    /// All entries, the most recently used first.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let program = Templates::program_part();
        let mut entries = Vec::new();
        for usage in self.cache.entries()? {
            if let Some(kind) = Kind::of(&usage.name) {
                entries.push(Entry::new(kind, usage.name.clone(), usage, Remakeable::Whole));
            }
        }
        for usage in self.shelf.directory().entries()? {
            let (name, remakeable) = self.shelf.remakeable(&usage, &program);
            entries.push(Entry::new(Kind::Template, name, usage, remakeable));
        }
        entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
        Ok(entries)
    }

    /// Removes entries beyond `limits` that can be made again and are not in use, and unfinished files of processes
    /// that died.
    ///
    /// # Errors
    /// When the cache cannot be read. Errors of single entries are in the result.
    pub fn prune(&self, limits: Limits) -> anyhow::Result<Pruned> {
        let mut pruned = Pruned::default();
        pruned
            .failures
            .extend([self.cache.sweep(), self.shelf.directory().sweep()].into_iter().filter_map(Result::err));
        let entries = self.entries()?;
        pruned.remaining = entries.iter().map(|entry| entry.size).sum();
        for entry in entries.iter().rev() {
            let is_too_much = limits.size.is_some_and(|size| pruned.remaining > size);
            if age(entry.used) < limits.unused_for && !is_too_much {
                continue;
            }
            match self.remove(entry) {
                Ok(0) => {}
                Ok(bytes) => {
                    tracing::debug!("removed {bytes} bytes of {} {:?} from the cache", entry.kind.as_str(), entry.name);
                    pruned.entries += 1;
                    pruned.bytes += bytes;
                    pruned.remaining = pruned.remaining.saturating_sub(bytes);
                }
                Err(error) => pruned.failures.push(error),
            }
        }
        Ok(pruned)
    }

    /// Returns the number of bytes that were removed.
    fn remove(&self, entry: &Entry) -> anyhow::Result<u64> {
        let directory = if entry.kind == Kind::Template { self.shelf.directory() } else { &self.cache };
        let (removed, bytes) = match &entry.remakeable {
            Remakeable::Nothing => return Ok(0),
            Remakeable::Parts { names, size } => (directory.remove_unused_parts(&entry.usage, names)?, *size),
            Remakeable::Whole => (directory.remove_unused(&entry.usage)?, entry.size),
        };
        Ok(if removed == Removed::Yes { bytes } else { 0 })
    }
}

impl Entry {
    fn new(kind: Kind, name: String, usage: Usage, remakeable: Remakeable) -> Self {
        Self { kind, name, size: usage.size, used: usage.used, usage, remakeable }
    }
}

/// Removes entries that have not been used for [`UNUSED_FOR`] on a separate thread, once a day. Failures are only
/// logged.
pub fn prune_in_background(directory: Option<&Path>) {
    let directory = directory.map(Path::to_path_buf);
    let prune = move || match prune_when_due(directory.as_deref()) {
        Ok(pruned) => pruned.failures.iter().for_each(|error| tracing::debug!("the cache is not pruned: {error:#}")),
        Err(error) => tracing::debug!("the cache is not pruned: {error:#}"),
    };
    if let Err(error) = thread::Builder::new().name("prune".to_owned()).spawn(prune) {
        tracing::debug!("the cache is not pruned: {error}");
    }
}

fn prune_when_due(directory: Option<&Path>) -> anyhow::Result<Pruned> {
    let stock = Stock::open(directory)?;
    let looked = stock.cache.path(LOOKED);
    match looked.metadata().and_then(|metadata| metadata.modified()) {
        Ok(time) if age(time) < INTERVAL => return Ok(Pruned::default()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    File::create(looked)?.set_modified(SystemTime::now())?;
    stock.prune(Limits { unused_for: UNUSED_FOR, size: None })
}
