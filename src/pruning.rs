//! What the cache holds, and the removal of what nobody has used for long.
//!
//! Only what can be made again is removed: compiled code, instrumented programs, new clusters, the template that is
//! there without being prepared, and of other templates what another version of the program has built of them. Their
//! SQL or their files stay until somebody removes them by name.

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

/// What has not been used for so many days is removed without being asked.
pub const UNUSED_FOR_DAYS: u32 = 30;

/// The same, as a duration.
pub const UNUSED_FOR: Duration = Duration::from_hours(24 * UNUSED_FOR_DAYS as u64);

/// The program looks for that so often at most.
const INTERVAL: Duration = Duration::from_hours(24);

/// Its time of modification says when the program has looked last.
const LOOKED: &str = ".pruned";

/// What an entry of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WebAssembly module's machine code.
    Code,
    /// `PostgreSQL`'s WebAssembly as the rewriter leaves it, and the memory that it begins with.
    Program,
    /// The files of a new cluster.
    Cluster,
    /// That a file of PGlite's has the right content.
    Checksum,
    /// A template.
    Template,
}

impl Kind {
    /// By the name of an entry; `None` for names that this program does not give.
    fn of(name: &str) -> Option<Self> {
        let extension = Path::new(name).extension().unwrap_or_default();
        match name {
            _ if extension == "cwasm" => Some(Self::Code),
            _ if extension == "verified" => Some(Self::Checksum),
            _ if name.starts_with("pglite-") => Some(Self::Program),
            _ if name.starts_with("cluster-") => Some(Self::Cluster),
            _ => None,
        }
    }

    /// One word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Program => "program",
            Self::Cluster => "cluster",
            Self::Checksum => "checksum",
            Self::Template => "template",
        }
    }
}

/// An entry of the cache.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name; a template's own.
    pub name: String,
    /// Bytes on disk.
    pub size: u64,
    /// When a process opened it last, to the day.
    pub used: SystemTime,
    usage: Usage,
    remakeable: Remakeable,
}

/// What is to be removed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What has not been used for this long.
    pub unused_for: Duration,
    /// What has not been used for the longest time, until no more bytes than this remain.
    pub size: Option<u64>,
}

/// What has been removed.
#[derive(Debug, Default)]
pub struct Pruned {
    /// How many entries, in whole or in part.
    pub entries: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes on disk that remain.
    pub remaining: u64,
    /// Why others could not be removed.
    pub failures: Vec<anyhow::Error>,
}

/// Everything in a cache.
pub struct Stock {
    cache: Cache,
    shelf: Shelf,
}

impl Stock {
    /// What is in the cache in `directory`, or in the user's cache.
    ///
    /// # Errors
    /// When it cannot be used; the message says what to do.
    pub fn open(directory: Option<&Path>) -> anyhow::Result<Self> {
        let (cache, shelf) = (Cache::open(directory)?, Shelf::open(directory)?);
        Ok(Self { cache, shelf })
    }

    /// All entries, those that were used last first.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let program = Templates::program_in(&self.cache)?;
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

    /// Removes what is beyond `limits`, can be made again and is not in use, and what processes that died have left
    /// half done.
    ///
    /// # Errors
    /// When the cache cannot be read. What cannot be removed is told in the answer.
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

    /// Says how many bytes are gone.
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

/// Removes what has not been used for [`UNUSED_FOR`] on a thread of its own, once a day; that it fails is told to the
/// log only.
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
