//! What the system allows this process: memory, memory mappings (`vm.max_map_count`) and file descriptors (`ulimit -n`).
//!
//! When there are no more mappings, any allocation of the program can fail, which ends it; when there are no more
//! descriptors, clients wait in the listener's queue without an answer. New clients, sessions and clusters are
//! therefore refused while there are still some left, also for what runs already.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    process::{Resource, getrlimit},
};

use crate::{
    protocol::error_response::{ErrorResponse, Severity, sqlstate},
    quota,
};

/// How many mappings stay free.
const RESERVE: usize = 2048;
/// More mappings than a session or a new cluster without sessions makes.
const EACH: usize = 100;

/// The most descriptors that stay free when sessions are refused, and the part of the limit that they are if that is
/// less.
const MARGIN: u64 = 256;
const MARGIN_PART: u64 = 8;

/// How many sessions and clusters can be made before the mappings are counted again, because that takes longer the
/// more there are.
static GRANTED: AtomicUsize = AtomicUsize::new(0);

/// What is refused for want of a resource, so that the log says it once.
static WITHOUT_MAPPINGS: Refused = Refused::new("sessions and clusters");
static WITHOUT_MEMORY: Refused = Refused::new("sessions and clusters");
static WITHOUT_DESCRIPTORS: Refused = Refused::new("sessions and clusters");
static CLIENTS_WITHOUT_DESCRIPTORS: Refused = Refused::new("clients");

/// Checks that there is enough for one more cluster.
///
/// # Errors
/// `53000` when there is not.
pub(crate) fn check_for_cluster() -> Result<(), ErrorResponse> {
    check_mappings()?;
    check_memory()?;
    check_descriptors(&WITHOUT_DESCRIPTORS, Descriptors::margin)
}

/// Checks that there is enough for one more session, whose client is connected.
///
/// # Errors
/// `53300` when there is not.
pub(crate) fn check_for_session() -> Result<(), ErrorResponse> {
    check_for_cluster().map_err(too_many)
}

/// Checks that there are descriptors for a client that has just connected. They are kept from clients that do not say
/// what they want, so that others can still be answered: half of those that are kept from sessions.
///
/// # Errors
/// `53300` when there are not.
pub(crate) fn check_for_client() -> Result<(), ErrorResponse> {
    check_descriptors(&CLIENTS_WITHOUT_DESCRIPTORS, |descriptors| descriptors.margin() / 2).map_err(too_many)
}

/// The report of a shortage for a client that wants to connect.
pub(crate) fn too_many(report: ErrorResponse) -> ErrorResponse {
    let is_shortage = report.code == sqlstate::INSUFFICIENT_RESOURCES;
    let code = if is_shortage { sqlstate::TOO_MANY_CONNECTIONS } else { report.code };
    ErrorResponse { severity: Severity::Fatal, code, ..report }
}

fn check_mappings() -> Result<(), ErrorResponse> {
    let one_less = |granted: usize| granted.checked_sub(1);
    if GRANTED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        return Ok(());
    }
    // Another operating system has no such files, and perhaps no such limit.
    let (Some(used), Some(limit)) = (mappings_used(), mappings_limit()) else { return Ok(()) };
    let further = (limit.saturating_sub(used + RESERVE) / EACH).checked_sub(1);
    GRANTED.store(further.unwrap_or(0), Ordering::Relaxed);
    WITHOUT_MAPPINGS.report(
        further.is_none(),
        format!("too many memory mappings: the program has {used}, the system allows {limit}"),
        "raise the limit (sysctl vm.max_map_count)",
    )
}

fn check_memory() -> Result<(), ErrorResponse> {
    let message = quota::is_full().map(|(used, limit)| format!("out of memory: the program has {used} of {limit}"));
    let remedy = "raise the limit (--memory-limit)";
    WITHOUT_MEMORY.report(message.is_some(), message.unwrap_or_default(), remedy)
}

fn mappings_used() -> Option<usize> {
    Some(fs::read_to_string("/proc/self/maps").ok()?.lines().count())
}

fn mappings_limit() -> Option<usize> {
    fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

/// The limit of descriptors, and how many are free at least.
struct Descriptors {
    limit: u64,
    free: u64,
}

impl Descriptors {
    /// Those of this process; `None` if there is no limit.
    fn now() -> Option<Self> {
        let limit = getrlimit(Resource::Nofile).current?;
        // A new descriptor has the lowest free number, so that all below are in use. Counting them takes longer.
        let lowest = eventfd(0, EventfdFlags::CLOEXEC).ok().and_then(|file| number(&file));
        Some(Self { limit, free: limit.saturating_sub(lowest.unwrap_or(limit)) })
    }

    /// How many are kept free.
    fn margin(&self) -> u64 {
        (self.limit / MARGIN_PART).min(MARGIN)
    }
}

fn number(file: &impl std::os::fd::AsRawFd) -> Option<u64> {
    u64::try_from(file.as_raw_fd()).ok()
}

fn check_descriptors(refused: &Refused, margin: impl FnOnce(&Descriptors) -> u64) -> Result<(), ErrorResponse> {
    let Some(descriptors) = Descriptors::now() else { return Ok(()) };
    let Descriptors { limit, free } = descriptors;
    refused.report(
        free <= margin(&descriptors),
        format!("too many open files: the program has {} of {limit} that the system allows", limit - free),
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
