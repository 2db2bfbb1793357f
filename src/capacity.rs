//! What the system allows this process: memory, memory mappings (`vm.max_map_count`), threads (`ulimit -u`, `pids.max`
//! of its control group) and file descriptors (`ulimit -n`).
//!
//! When there are no more mappings, any allocation of the program can fail, which ends it; when there are no more
//! descriptors, clients wait in the listener's queue without an answer; and without threads a cluster cannot start its
//! processes, nor recover. New clients, sessions and clusters are therefore refused while there are still some left,
//! also for what runs already. Processes that a cluster starts by itself use half of the mappings that are kept from
//! these, because each of many clusters that were made at once wants some after a while.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, eventfd},
    process::{Resource, getrlimit},
};

use crate::{
    protocol::error_response::{ErrorResponse, Severity, sqlstate},
    quota::{self, control_group},
};

/// The most mappings that stay free when sessions and clusters are refused.
const MAPPINGS_MARGIN: u64 = 65536;

/// The most threads that stay free.
const THREADS_MARGIN: u64 = 64;

/// The most descriptors that stay free when sessions are refused.
const DESCRIPTORS_MARGIN: u64 = 256;

/// How long mappings are not counted again when a process was refused.
const REFUSAL: Duration = Duration::from_secs(1);

/// The part of a limit that stays free if that is less.
const MARGIN_PART: u64 = 8;

static MAPPINGS: Counted = Counted {
    what: "memory mappings",
    remedy: "raise the limit (sysctl vm.max_map_count)",
    each: 100,
    most: u64::MAX,
    part: 1,
    count: mappings,
    granted: AtomicU64::new(0),
    refused: Refused::new("sessions and clusters"),
};
static MAPPINGS_OF_PROCESSES: Counted = Counted {
    what: MAPPINGS.what,
    remedy: MAPPINGS.remedy,
    each: MAPPINGS.each,
    // Sessions use mappings meanwhile.
    most: 20,
    part: 2,
    count: mappings,
    granted: AtomicU64::new(0),
    refused: Refused::new("processes of clusters"),
};
static THREADS: Counted = Counted {
    what: "threads",
    remedy: "raise the limit of threads (ulimit -u, or pids.max of the control group)",
    each: 12,
    // Others, too, may use threads of a control group.
    most: 5,
    part: 1,
    count: threads,
    granted: AtomicU64::new(0),
    refused: Refused::new("sessions and clusters"),
};

/// More descriptors than a session and its connection use.
const DESCRIPTORS_OF_SESSION: u64 = 16;

/// What is refused for want of a resource, so that the log says it once.
static LIBRARIES_WITHOUT_MAPPINGS: Refused = Refused::new("libraries");
static WITHOUT_MEMORY: Refused = Refused::new("sessions and clusters");
static WITHOUT_DESCRIPTORS: Refused = Refused::new("sessions and clusters");
static CLIENTS_WITHOUT_DESCRIPTORS: Refused = Refused::new("clients");

/// Checks that there is enough for one more cluster.
///
/// # Errors
/// `53000` when there is not.
pub(crate) fn check_for_cluster() -> Result<(), ErrorResponse> {
    MAPPINGS.check()?;
    THREADS.check()?;
    check_memory()?;
    check_descriptors(&WITHOUT_DESCRIPTORS, 1)
}

/// Checks that there is enough for one more session, whose client is connected.
///
/// # Errors
/// `53300` when there is not.
pub(crate) fn check_for_session() -> Result<(), ErrorResponse> {
    check_for_cluster().map_err(too_many)
}

/// Checks that there are memory mappings for a process that a cluster starts by itself. A refusal stands for as long as
/// [`REFUSAL`], because many clusters may ask again and again.
///
/// # Errors
/// `53000` when there are not.
pub(crate) fn check_for_process() -> Result<(), ErrorResponse> {
    static REFUSED: Mutex<Option<(Instant, ErrorResponse)>> = Mutex::new(None);
    let mut refused = REFUSED.lock();
    if let Some((since, report)) = &*refused
        && since.elapsed() < REFUSAL
    {
        return Err(report.clone());
    }
    // What is granted already is for processes as well, and then no longer for sessions.
    let checked = if MAPPINGS.take() { Ok(()) } else { MAPPINGS_OF_PROCESSES.check() };
    *refused = checked.as_ref().err().map(|report| (Instant::now(), report.clone()));
    checked
}

/// Checks that there are memory mappings for a library that is not in the cache.
///
/// # Errors
/// `53000` when there are not.
pub(crate) fn check_for_library() -> Result<(), ErrorResponse> {
    let Some(counted) = mappings() else { return Ok(()) };
    MAPPINGS.report(&LIBRARIES_WITHOUT_MAPPINGS, counted, counted.left() <= counted.margin)
}

/// Whether there are descriptors for the session of a client that has just connected.
pub(crate) fn has_room_for_client() -> bool {
    descriptors().is_none_or(|descriptors| descriptors.left() > descriptors.margin + DESCRIPTORS_OF_SESSION)
}

/// Checks that there are descriptors for a client that has just connected. They are kept from clients that do not say
/// what they want, so that others can still be answered: half of those that are kept from sessions.
///
/// # Errors
/// `53300` when there are not.
pub(crate) fn check_for_client() -> Result<(), ErrorResponse> {
    check_descriptors(&CLIENTS_WITHOUT_DESCRIPTORS, 2).map_err(too_many)
}

/// Whether so little is left that clients that have not authenticated should make room: of descriptors or threads less
/// than twice what is kept from sessions, or so little memory or so few mappings that sessions are refused, because
/// measuring these takes long.
pub(crate) fn is_scarce() -> bool {
    are_descriptors_or_threads_scarce() || WITHOUT_MEMORY.is_known() || MAPPINGS.refused.is_known()
}

/// Whether less than twice is left of descriptors or threads what is kept from sessions.
pub(crate) fn are_descriptors_or_threads_scarce() -> bool {
    let is_scarce = |count: fn() -> Option<Use>| count().is_some_and(|counted| counted.left() < 2 * counted.margin);
    is_scarce(descriptors) || is_scarce(threads)
}

/// The report of a shortage for a client that wants to connect.
pub(crate) fn too_many(report: ErrorResponse) -> ErrorResponse {
    let is_shortage = report.code == sqlstate::INSUFFICIENT_RESOURCES;
    let code = if is_shortage { sqlstate::TOO_MANY_CONNECTIONS } else { report.code };
    ErrorResponse { severity: Severity::Fatal, code, ..report }
}

fn check_memory() -> Result<(), ErrorResponse> {
    let message = quota::is_full().map(|(used, limit)| format!("out of memory: the program has {used} of {limit}"));
    let remedy = "raise the limit (--memory-limit)";
    WITHOUT_MEMORY.report(message.is_some(), message.unwrap_or_default(), remedy)
}

/// How much there is of a resource, and how much there may be.
#[derive(Clone, Copy)]
struct Use {
    used: u64,
    limit: u64,
    /// How many are kept free.
    margin: u64,
}

impl Use {
    fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// How much of a limit stays free: `most`, or a part of it.
fn margin(limit: u64, most: u64) -> u64 {
    (limit / MARGIN_PART).min(most)
}

/// The mappings of this process. Another operating system has no such files, and perhaps no such limit.
fn mappings() -> Option<Use> {
    let limit = control_group::number(Path::new("/proc/sys/vm/max_map_count"))?;
    let used = fs::read_to_string("/proc/self/maps").ok()?.lines().count();
    Some(Use { used: used as u64, limit, margin: margin(limit, MAPPINGS_MARGIN) })
}

/// The threads of this process, of all of its user or of its control groups, whatever leaves the fewest. What the
/// user's other processes have is not known.
fn threads() -> Option<Use> {
    let groups = control_group::directories("pids").into_iter().filter_map(|group| {
        let number = |file| control_group::number(&group.join(file));
        Some((number("pids.current")?, number("pids.max")?))
    });
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let own = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())?;
    let of_user = getrlimit(Resource::Nproc).current.map(|limit| (own, limit));
    let all = groups.chain(of_user).map(|(used, limit)| Use { used, limit, margin: margin(limit, THREADS_MARGIN) });
    all.min_by_key(|threads| threads.left().saturating_sub(threads.margin))
}

/// A resource that is counted again only after some grants, because counting takes longer than anything else here.
struct Counted {
    what: &'static str,
    remedy: &'static str,
    /// More of it than a session, or a new cluster without sessions, uses.
    each: u64,
    /// The most that are granted before it is counted again.
    most: u64,
    /// The part of the margin that is kept free: all, half, …
    part: u64,
    count: fn() -> Option<Use>,
    /// How many sessions and clusters can be made before it is counted again.
    granted: AtomicU64,
    refused: Refused,
}

impl Counted {
    /// Takes one of those that were granted, if there is one.
    fn take(&self) -> bool {
        let one_less = |granted: u64| granted.checked_sub(1);
        self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    fn check(&self) -> Result<(), ErrorResponse> {
        if self.take() {
            return Ok(());
        }
        let Some(counted) = (self.count)() else { return Ok(()) };
        let further = (counted.left().saturating_sub(counted.margin / self.part) / self.each).checked_sub(1);
        self.granted.store(further.unwrap_or(0).min(self.most), Ordering::Relaxed);
        self.report(&self.refused, counted, further.is_none())
    }

    fn report(&self, refused: &Refused, counted: Use, is_short: bool) -> Result<(), ErrorResponse> {
        let Use { used, limit, .. } = counted;
        let message = format!("too many {}: {used} of {limit} that the system allows are in use", self.what);
        refused.report(is_short, message, self.remedy)
    }
}

/// The descriptors of this process; `None` if there is no limit. At least as many are in use.
fn descriptors() -> Option<Use> {
    let limit = getrlimit(Resource::Nofile).current?;
    // A new descriptor has the lowest free number, so that all below are in use. Counting them takes longer.
    let lowest = eventfd(0, EventfdFlags::CLOEXEC).ok().and_then(|file| number(&file));
    Some(Use { used: lowest.unwrap_or(limit), limit, margin: margin(limit, DESCRIPTORS_MARGIN) })
}

fn number(file: &impl std::os::fd::AsRawFd) -> Option<u64> {
    u64::try_from(file.as_raw_fd()).ok()
}

/// Checks that more than the margin is left, or than that part of it.
fn check_descriptors(refused: &Refused, part: u64) -> Result<(), ErrorResponse> {
    let Some(descriptors) = descriptors() else { return Ok(()) };
    let Use { used, limit, margin } = descriptors;
    refused.report(
        descriptors.left() <= margin / part,
        format!("too many open files: the program has {used} of {limit} that the system allows"),
        "raise the limit of open files (ulimit -n)",
    )
}

/// What is refused while there is too little of a resource.
struct Refused {
    what: &'static str,
    /// Whether it is, and the log has said so.
    is_known: AtomicBool,
}

impl Refused {
    const fn new(what: &'static str) -> Self {
        Self { what, is_known: AtomicBool::new(false) }
    }

    /// Whether there was too little when that was looked at last.
    fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// The error if there is too little. The log says when that changes.
    fn report(&self, is_short: bool, message: String, remedy: &str) -> Result<(), ErrorResponse> {
        let (what, was_short) = (self.what, self.is_known.swap(is_short, Ordering::Relaxed));
        if !is_short {
            if was_short {
                tracing::info!("new {what} are accepted again");
            }
            return Ok(());
        }
        if !was_short {
            tracing::warn!("new {what} are refused: {message}; {remedy}");
        }
        let report = ErrorResponse::error(sqlstate::INSUFFICIENT_RESOURCES, message);
        Err(report.with_hint(format!("End sessions, drop clusters, or {remedy}.")))
    }
}
