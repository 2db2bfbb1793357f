//! The number of memory mappings that the system allows a process (`vm.max_map_count`). When there are no more, any
//! allocation of the program can fail, which ends it. New clusters and sessions are therefore refused while there are
//! still some left, also for the processes of the clusters that run.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::protocol::error_response::{ErrorResponse, sqlstate};

/// How many stay free.
const RESERVE: usize = 2048;
/// More than a session or a new cluster without sessions makes.
const EACH: usize = 100;

/// Counts the mappings of this process, but only as often as necessary, because that takes longer the more there are.
#[derive(Default)]
pub(super) struct Mappings {
    /// How many sessions and clusters can be made before the next count.
    granted: AtomicUsize,
}

impl Mappings {
    /// Checks that there are enough for one more session or cluster.
    ///
    /// # Errors
    /// `53000` when there are not.
    pub(super) fn check(&self) -> Result<(), ErrorResponse> {
        let one_less = |granted: usize| granted.checked_sub(1);
        if self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return Ok(());
        }
        // Another operating system has no such files, and perhaps no such limit.
        let (Some(used), Some(limit)) = (used(), limit()) else { return Ok(()) };
        let Some(further) = (limit.saturating_sub(used + RESERVE) / EACH).checked_sub(1) else {
            let message = format!("too many memory mappings: the program has {used}, the system allows {limit}");
            let report = ErrorResponse::error(sqlstate::INSUFFICIENT_RESOURCES, message);
            return Err(report.with_hint("End sessions, drop clusters, or raise the limit (sysctl vm.max_map_count)."));
        };
        self.granted.store(further, Ordering::Relaxed);
        Ok(())
    }
}

fn used() -> Option<usize> {
    Some(fs::read_to_string("/proc/self/maps").ok()?.lines().count())
}

fn limit() -> Option<usize> {
    fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}
