//! Quotas: how much memory and disk a cluster may use, and how much memory the program.
//!
//! What would exceed a limit is refused before it is allocated: a linear memory does not grow (`out_of_memory`, 53200),
//! a file does not (`ENOSPC`: `disk_full`, 53100), for the statement that needs it. What must not fail is counted and
//! never refused: writes in critical sections, after which `PostgreSQL` would have to recover, and those of the
//! cluster's own processes.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub(crate) mod control_group;
mod program;

pub use program::{ProgramLimit, Usage, limit_program, usage};
pub(crate) use program::{has_room_for_copy, is_full};

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// The least `memory_limit` of a cluster: with less, `PostgreSQL` could not start its first session.
pub const LEAST_MEMORY: u64 = 16 << 20;

/// The least `disk_limit` of a cluster: with less, it could have nothing besides its system catalogs.
pub const LEAST_DISK: u64 = 64 << 20;

/// The limits of a cluster; without one, it may use what the program and the system have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory: what its sessions' linear memories have grown by, the code of libraries that did not come with the
    /// program, its files in memory, and memory that its processes share, without what it has in common with its template.
    /// At least [`LEAST_MEMORY`].
    pub memory: Option<u64>,
    /// Bytes of its files, in memory or in a directory: the sum of their lengths, also of those that it has in common with
    /// its template. At least [`LEAST_DISK`].
    pub disk: Option<u64>,
}

impl Limits {
    /// These, and those of `others` where these have none.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self { memory: self.memory.or(others.memory), disk: self.disk.or(others.disk) }
    }

    /// # Errors
    /// [`TooLow`] when one of them is less than a cluster needs.
    pub fn check(self) -> Result<Self, TooLow> {
        let what = "a cluster";
        for (resource, limit, least) in [("memory", self.memory, LEAST_MEMORY), ("disk", self.disk, LEAST_DISK)] {
            if let Some(limit) = limit.filter(|limit| *limit < least) {
                return Err(TooLow { resource, limit: Size(limit), what, least: Size(least) });
            }
        }
        Ok(self)
    }
}

/// A limit that is too low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {resource} limit of {limit} is too low: {what} needs {least}")]
pub struct TooLow {
    resource: &'static str,
    limit: Size,
    what: &'static str,
    least: Size,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// What linear memories and tables have grown by.
    LinearMemory,
    /// Files in memory.
    Files,
    /// Memory that the processes of a cluster share.
    SharedMemory,
    /// The code of libraries that did not come with the program, for each session that has them. The program has it once.
    Code,
    /// Images in memory, which processes of clusters begin with. No cluster's: copies of a cluster have one together.
    Images,
    /// The bytes of files, wherever they are.
    Disk,
}

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Anything.
    Bulk,
    /// A small part, without which no room could be made: `TRUNCATE` makes a file, `VACUUM` a map of free space. A part of
    /// the limit is kept for this.
    Small,
}

/// The part of a cluster's limit that is kept for [`Need::Small`].
const KEPT_PART: u64 = 32;

/// The kinds of memory, in the order of [`Usage`].
const MEMORY: [Resource; 4] = [Resource::LinearMemory, Resource::Files, Resource::SharedMemory, Resource::Images];

/// What one cluster uses, and may.
#[derive(Debug)]
pub(crate) struct Quota {
    /// Whose it is, for the log.
    label: OnceLock<String>,
    memory: Account,
    disk: Account,
}

#[derive(Debug)]
struct Account {
    used: AtomicU64,
    limit: AtomicU64,
    /// Whether something was refused since there was room last, so that the log says it once.
    is_full: AtomicBool,
}

impl Default for Account {
    fn default() -> Self {
        Self { used: AtomicU64::new(0), limit: AtomicU64::new(UNLIMITED), is_full: AtomicBool::new(false) }
    }
}

impl Account {
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
    }

    fn has_room(&self, more: u64, need: Need) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let kept = if need == Need::Bulk && limit != UNLIMITED { limit / KEPT_PART } else { 0 };
        self.used().saturating_add(more) <= limit - kept
    }
}

impl Quota {
    /// One without limits.
    pub(crate) fn unlimited() -> Arc<Self> {
        Arc::new(Self { label: OnceLock::new(), memory: Account::default(), disk: Account::default() })
    }

    /// Sets its limits, and whose it is, for the log.
    pub(crate) fn limit(&self, limits: Limits, label: impl FnOnce() -> String) {
        self.memory.limit.store(limits.memory.unwrap_or(UNLIMITED), Ordering::Relaxed);
        self.disk.limit.store(limits.disk.unwrap_or(UNLIMITED), Ordering::Relaxed);
        self.label.get_or_init(label);
    }

    /// The bytes of memory and of disk that it uses.
    pub(crate) fn used(&self) -> (u64, u64) {
        (self.memory.used(), self.disk.used())
    }

    /// Whether it uses clearly more than it may, by what could not be refused.
    pub(crate) fn is_over(&self) -> bool {
        let is_over = |account: &Account| account.limit().is_some_and(|limit| account.used() > limit + limit / 8);
        is_over(&self.memory) || is_over(&self.disk)
    }

    /// Its limit of memory.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        self.memory.limit()
    }

    fn account(&self, resource: Resource) -> &Account {
        if resource == Resource::Disk { &self.disk } else { &self.memory }
    }

    /// Whether there is room for `more` bytes. If not, the log says so.
    pub(crate) fn has_room(&self, resource: Resource, more: u64, need: Need) -> bool {
        let account = self.account(resource);
        let has_room = account.has_room(more, need);
        let was_full = !has_room && account.is_full.swap(true, Ordering::Relaxed);
        if !has_room && !was_full {
            let label = self.label.get().map_or("a cluster", String::as_str);
            let what = if resource == Resource::Disk { "disk" } else { "memory" };
            let (limit, used) = (Size(account.limit().unwrap_or(UNLIMITED)), Size(account.used()));
            tracing::warn!("{label} has used {used} of its {what} limit of {limit}; {} more are refused", Size(more));
        }
        has_room && (resource == Resource::Disk || program::has_room(more, account.used(), need))
    }

    fn change(&self, resource: Resource, from: u64, to: u64) {
        let account = self.account(resource);
        if to >= from {
            account.used.fetch_add(to - from, Ordering::Relaxed);
        } else {
            account.used.fetch_sub(from - to, Ordering::Relaxed);
            // When there is clearly room again, the log says once more when there is not.
            if account.has_room(account.limit().unwrap_or(0) / 8, Need::Small) {
                account.is_full.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    quota: Arc<Quota>,
    resource: Resource,
    bytes: u64,
}

impl Held {
    /// None yet.
    pub(crate) fn new(quota: Arc<Quota>, resource: Resource) -> Self {
        Self { quota, resource, bytes: 0 }
    }

    /// Whose they are.
    pub(crate) fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// How many bytes are counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there is room for `more` of them. If not, the log says so.
    pub(crate) fn has_room(&self, more: u64, need: Need) -> bool {
        self.quota.has_room(self.resource, more, need)
    }

    /// Counts `bytes` from now on, whether there is room for them or not.
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes != self.bytes {
            self.quota.change(self.resource, self.bytes, bytes);
            program::change(self.resource, self.bytes, bytes);
            self.bytes = bytes;
        }
    }

    /// Counts `more` bytes as well, whether there is room for them or not.
    pub(crate) fn add(&mut self, more: u64) {
        self.set(self.bytes.saturating_add(more));
    }

    /// Counts `bytes` of them no more.
    pub(crate) fn take_back(&mut self, bytes: u64) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    /// Counts `more` bytes as well, if there is room for them; returns whether there is.
    pub(crate) fn grow(&mut self, more: u64) -> bool {
        let has_room = self.has_room(more, Need::Bulk);
        if has_room {
            self.add(more);
        }
        has_room
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A number of bytes, in the units of `PostgreSQL`'s settings (`src/backend/utils/misc/guc.c`): `B`, `kB`, `MB`, `GB` or
/// `TB`, each 1024 times the one before. A number alone is bytes.
///
/// ```
/// use pglite_port::quota::Size;
/// assert_eq!("512MB".parse(), Ok(Size(512 << 20)));
/// assert_eq!("1536 MB".parse::<Size>().unwrap().to_string(), "1536MB");
/// assert_eq!("4096".parse(), Ok(Size(4096)));
/// assert!("12 pages".parse::<Size>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text that is no [`Size`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: use a whole number and one of the units B, kB, MB, GB, TB, as in 512MB")]
pub struct NoSize(String);

const UNITS: [(&str, u32); 5] = [("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10), ("B", 0)];

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let trimmed = text.trim();
        let found = UNITS.iter().find_map(|(unit, shift)| Some((trimmed.strip_suffix(unit)?, *shift)));
        let (number, shift) = found.unwrap_or((trimmed, 0));
        let bytes = number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| NoSize(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |&&(_, shift): &&(&str, u32)| self.0 > 0 && self.0.is_multiple_of(1 << shift);
        let roughly = |&&(_, shift): &&(&str, u32)| self.0 >= 100 << shift;
        let unit = UNITS.iter().find(exact).filter(|(_, shift)| *shift >= 10).or_else(|| UNITS.iter().find(roughly));
        let (unit, shift) = unit.unwrap_or(&("B", 0));
        write!(formatter, "{}{unit}", self.0 >> shift)
    }
}

#[cfg(test)]
mod tests;
