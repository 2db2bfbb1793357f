//! What a test may choose for a cluster: the time that its clock shows, and the seed of its random numbers.

use std::sync::Arc;

use crate::{
    clock::Clock,
    guest::Setup,
    protocol::error_response::{ErrorResponse, sqlstate},
    random::Entropy,
    session::{Choice, Outcome, PendingTask, Task},
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

    /// Makes the choice.
    ///
    /// # Errors
    /// `42501` without leave, `22008` for a time that a clock cannot be set to.
    pub(super) fn choose(&self, choice: Choice) -> Outcome {
        match choice {
            Choice::Clock(setting) => {
                permit(self.leave.clock, "set the clock", "--allow-clock")?;
                let set = self.clock.set(setting);
                set.map_err(|error| ErrorResponse::error(sqlstate::DATETIME_FIELD_OVERFLOW, error.to_string()))
            }
            Choice::Seed(seed) => {
                permit(self.leave.seed, "seed random numbers", "--allow-seed")?;
                self.entropy.seed(seed);
                Ok(())
            }
        }
    }

    /// Does a task at once if it is a choice; returns any other task.
    pub(super) fn perform(&self, pending: PendingTask) -> Option<PendingTask> {
        let Task::Choose(choice) = pending.task else { return Some(pending) };
        pending.finish(self.choose(choice));
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
