//! The memory of the whole program, and its limit.
//!
//! The limit is compared with two numbers, because each misses something: the sum of what all clusters have allocated,
//! which lacks the program's own memory, and what the system says that the process has, which lacks what was allocated
//! and not yet touched.

use std::{
    fs,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{MEMORY, Need, NoSize, Resource, Size, TooLow, UNLIMITED, control_group};

/// After so many bytes the process' memory is measured again, which takes some microseconds.
const MEASURED_EVERY: u64 = 4 << 20;

/// The part of the limit that only clusters get which have less than [`SMALL`]: one that uses up all the rest does not
/// stop the others. What is counted when it is measured comes out of it as well, such as changed pages of images.
const RESERVE_PART: u64 = 5;
const SMALL: u64 = 32 << 20;

/// The part of the system's memory that is the limit if none is given.
const DEFAULT_PART: (u64, u64) = (3, 4);

/// The least limit that may be given.
const LEAST: u64 = 64 << 20;

static LIMIT: AtomicU64 = AtomicU64::new(UNLIMITED);
/// What clusters have allocated, in the order of [`MEMORY`].
static ALLOCATED: [AtomicU64; MEMORY.len()] = [const { AtomicU64::new(0) }; MEMORY.len()];
/// What the process had when that was measured last, and how many bytes were asked for since.
static MEASURED: AtomicU64 = AtomicU64::new(0);
static ASKED_SINCE: AtomicU64 = AtomicU64::new(UNLIMITED);
/// Whether something was refused since there was room last, so that the log says it once.
static IS_FULL: AtomicBool = AtomicBool::new(false);

/// The limit of the program's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgramLimit {
    /// Three quarters of the memory that the system allows the process; none where that is unknown.
    #[default]
    OfSystem,
    /// None.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

impl FromStr for ProgramLimit {
    type Err = NoSize;

    /// ```
    /// use pglite_port::quota::ProgramLimit;
    /// assert_eq!("2GB".parse(), Ok(ProgramLimit::Bytes(2 << 30)));
    /// assert_eq!("none".parse(), Ok(ProgramLimit::Unlimited));
    /// assert!("much".parse::<ProgramLimit>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Self, NoSize> {
        if text == "none" { Ok(Self::Unlimited) } else { text.parse().map(|Size(bytes)| Self::Bytes(bytes)) }
    }
}

/// How much memory the program uses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What the linear memories and tables of sessions have grown by.
    pub linear_memory: u64,
    /// Files in memory.
    pub files: u64,
    /// Memory that the processes of a cluster share.
    pub shared_memory: u64,
    /// The images in memory that processes of clusters begin with.
    pub images: u64,
    /// What counts against the limit: the sum of these, or what the process has by the system's count if that is more,
    /// which includes compiled code that is in no file, changed pages of images, queues and log lines.
    pub used: u64,
    /// The limit of all memory, if there is one.
    pub limit: Option<u64>,
}

/// Sets the limit of the program's memory.
///
/// # Errors
/// [`TooLow`] when it is less than the program needs to build a template.
pub fn limit_program(limit: ProgramLimit) -> Result<(), TooLow> {
    let bytes = match limit {
        ProgramLimit::OfSystem => of_system().map(|bytes| bytes / DEFAULT_PART.1 * DEFAULT_PART.0),
        ProgramLimit::Unlimited => None,
        ProgramLimit::Bytes(bytes) if bytes < LEAST => {
            return Err(TooLow { resource: "memory", limit: Size(bytes), what: "the program", least: Size(LEAST) });
        }
        ProgramLimit::Bytes(bytes) => Some(bytes),
    };
    LIMIT.store(bytes.unwrap_or(UNLIMITED), Ordering::Relaxed);
    Ok(())
}

/// How much memory clusters use, and the program's limit.
#[must_use]
pub fn usage() -> Usage {
    let [linear_memory, files, shared_memory, images] = allocated();
    Usage { linear_memory, files, shared_memory, images, used: used(0, true), limit: limit() }
}

/// What clusters have allocated, in the order of [`MEMORY`].
fn allocated() -> [u64; MEMORY.len()] {
    ALLOCATED.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
}

fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
}

/// Whether the program has room for `more` bytes of a cluster that has `held` bytes. If not, the log says so.
pub(super) fn has_room(more: u64, held: u64, need: Need) -> bool {
    let Some(limit) = limit() else { return true };
    let allowed = match need {
        _ if held.saturating_add(more) <= SMALL => limit,
        // Half of what is kept, so that many small files do not take it from the others.
        Need::Small => limit - limit / (2 * RESERVE_PART),
        Need::Bulk => limit - limit / RESERVE_PART,
    };
    let fits = |used: u64| used.saturating_add(more) <= allowed;
    // What was measured before may have been given back since.
    let has_room = fits(used(more, false)) || fits(used(more, true));
    let was_full = IS_FULL.swap(!has_room, Ordering::Relaxed);
    if !has_room && !was_full {
        let (used, limit) = (Size(used(0, false)), Size(limit));
        tracing::warn!("the program has {used} of its memory limit of {limit}; {} more are refused", Size(more));
    }
    has_room
}

/// Whether the program has room for `bytes` that are copied into memory at once, which no cluster counts. If not, the log
/// says so.
pub(crate) fn has_room_for_copy(bytes: u64) -> bool {
    has_room(bytes, 0, Need::Bulk)
}

/// Whether the program has reached its limit; the bytes that it uses, and the limit.
pub(crate) fn is_full() -> Option<(Size, Size)> {
    let limit = limit()?;
    let used = used(0, true);
    (used >= limit).then_some((Size(used), Size(limit)))
}

/// The bytes that the program uses; `more` are about to be added.
fn used(more: u64, now: bool) -> u64 {
    let [linear_memory, files, shared_memory, images] = allocated();
    let since = ASKED_SINCE.load(Ordering::Relaxed);
    let own = if now || since.saturating_add(more) > MEASURED_EVERY {
        let measured = own_memory().unwrap_or(0);
        MEASURED.store(measured, Ordering::Relaxed);
        ASKED_SINCE.store(more, Ordering::Relaxed);
        measured
    } else {
        ASKED_SINCE.fetch_add(more, Ordering::Relaxed);
        MEASURED.load(Ordering::Relaxed).saturating_add(since)
    };
    // The system counts these once for each process that has mapped them, so that they are taken from here.
    let mapped = shared_memory + images;
    (linear_memory + files + mapped).max(own.saturating_add(mapped))
}

pub(super) fn change(resource: Resource, from: u64, to: u64) {
    let Some(allocated) = MEMORY.iter().position(|kind| *kind == resource).map(|kind| &ALLOCATED[kind]) else { return };
    if to >= from {
        allocated.fetch_add(to - from, Ordering::Relaxed);
    } else {
        allocated.fetch_sub(from - to, Ordering::Relaxed);
    }
}

/// The anonymous memory of this process, also in swap space (`/proc/self/status`).
fn own_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(["RssAnon:", "VmSwap:"].iter().filter_map(|key| kilobytes(&status, key)).sum())
}

/// The memory that the system has, or that the control group of this process may use if that is less.
fn of_system() -> Option<u64> {
    let all = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:");
    // The file's name in the two versions of control groups.
    let files = ["memory.max", "memory.limit_in_bytes"];
    let groups = control_group::directories("memory");
    let limits = groups.iter().flat_map(|group| files.map(|file| control_group::number(&group.join(file))));
    limits.flatten().chain(all).min()
}

/// The value of `key` in a file such as `/proc/meminfo`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
