//! What a test may choose for a cluster: the time that its clock shows, and the seed of its random numbers.

use std::sync::Arc;

use crate::{
    clock::Clock,
    guest::Setup,
    protocol::error_response::{ErrorResponse, sqlstate},
    random::Entropy,
    session::{Outcome, PendingTask, Task},
};

/// What requests may choose for clusters, by the options of the program's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// Set their clocks.
    pub clock: bool,
    /// Seed their random numbers, which makes also those predictable that SQL uses as secrets.
    pub seed: bool,
}

/// The clock and the random numbers of one cluster; a clone is those of the same cluster. All sessions of the cluster
/// have them, `PostgreSQL`'s own processes do not.
#[derive(Clone)]
pub(super) struct Simulation {
    leave: Leave,
    pub(super) clock: Arc<Clock>,
    pub(super) entropy: Arc<Entropy>,
}

impl Simulation {
    /// Real time, and unpredictable numbers, until there is a task with another choice.
    pub(super) fn new(leave: Leave) -> Self {
        Self { leave, clock: Arc::default(), entropy: Arc::default() }
    }

    /// The parts of a session of the cluster.
    pub(super) fn of_session(&self, setup: Setup) -> Setup {
        Setup { clock: self.clock.clone(), entropy: self.entropy.clone(), ..setup }
    }

    /// Does a task that is about these two, at once: a statement that runs looks at the same clock. Returns any other
    /// task.
    pub(super) fn perform(&self, pending: PendingTask) -> Option<PendingTask> {
        let outcome = match pending.task {
            Task::SetClock(setting) => permit(self.leave.clock, "set the clock", "--allow-clock").and_then(|()| {
                let set = self.clock.set(setting);
                set.map_err(|error| ErrorResponse::error(sqlstate::DATETIME_FIELD_OVERFLOW, error.to_string()))
            }),
            Task::Seed(seed) => {
                permit(self.leave.seed, "seed random numbers", "--allow-seed").map(|()| self.entropy.seed(seed))
            }
            Task::Reset | Task::Freeze { .. } => return Some(pending),
        };
        pending.finish(outcome);
        None
    }
}

/// The refusal of what the program was started without leave for.
fn permit(has_leave: bool, what: &str, option: &str) -> Outcome {
    if has_leave {
        return Ok(());
    }
    let report = ErrorResponse::error(sqlstate::INSUFFICIENT_PRIVILEGE, format!("permission denied to {what}"));
    Err(report.with_hint(format!("Start pglite-port with {option}, which PgliteEx does in mode :isolated.")))
}
