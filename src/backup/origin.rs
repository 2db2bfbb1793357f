//! What is backed up.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{backend::DATA_DIRECTORY, databases::data_directory::UNFINISHED, postgres::relation_file};

/// A name in a data directory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The path below the data directory.
    pub(super) path: String,
    pub(super) content: Content,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Directory,
    /// A file of so many bytes when it was listed.
    File(u64),
    /// A file of the backup's own.
    Made(Vec<u8>),
    /// A symbolic link to this path.
    Symlink(String),
}

impl Entry {
    /// Its bytes, as far as they are known before it is read.
    pub(super) fn len(&self) -> u64 {
        match &self.content {
            Content::File(len) => *len,
            Content::Made(content) => content.len() as u64,
            Content::Directory | Content::Symlink(_) => 0,
        }
    }
}

/// What there is to copy.
pub(super) struct Begun {
    pub(super) entries: Vec<Entry>,
    /// Where recovery will begin. A page that was changed after that need not be whole, because recovery writes it
    /// again.
    pub(super) redo: u64,
}

/// What there is to copy at last.
#[derive(Default)]
pub(super) struct Ended {
    pub(super) entries: Vec<Entry>,
    /// The WAL that recovery needs.
    pub(super) wal: Option<WalRange>,
}

/// WAL of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WalRange {
    pub(super) timeline: u32,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A cluster that is backed up.
pub(super) trait Origin {
    /// The content of `global/pg_control`.
    fn control_file(&mut self) -> anyhow::Result<Vec<u8>>;

    /// Begins, and lists what is to be copied, directories before what is in them.
    fn begin(&mut self, control: &[u8]) -> anyhow::Result<Begun>;

    /// Reads at most `len` bytes of a file, fewer only at its end; `None` if it is no longer there.
    fn read(&mut self, path: &str, offset: u64, len: usize) -> anyhow::Result<Option<Vec<u8>>>;

    /// Ends, and says what is to be copied afterwards.
    fn end(&mut self) -> anyhow::Result<Ended>;
}

/// The present time in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Whether something is left out of every backup: what belongs to one run of a server or to one backup
/// (`excludeFiles` in `src/backend/backup/basebackup.c`), and temporary files.
pub(super) fn is_left_out(path: &str) -> bool {
    let name = name_of(path);
    ["postmaster.pid", "postmaster.opts", super::MANIFEST, "postgresql.auto.conf.tmp"].contains(&path)
        || path.as_bytes() == UNFINISHED
        || name.starts_with("pgsql_tmp")
        || is_below(path, "pg_stat_tmp")
        || relation_file::parse(name).is_some_and(|name| name.is_temporary)
}

/// Whether a path is inside of that directory.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether the target of a symbolic link is inside of the data directory, as the guest names it.
pub(super) fn stays_inside(target: &str) -> bool {
    is_below(target, DATA_DIRECTORY) && !target.split('/').any(|name| name == "..")
}

/// The last name of a path.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
