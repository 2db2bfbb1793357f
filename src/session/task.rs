//! Tasks for one connection's session: from the thread of the request to the session's own, and the outcome back.

use crate::{
    clock::ClockSetting,
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::Limits,
};

/// A task for a session. It is done between two commands of its client, after everything that the client had sent
/// before; a [`Task::Choose`] at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Put the session's cluster back to its template. For the client everything is as after its startup: what it has
    /// set, prepared or begun is gone.
    Reset,
    /// Make a template from the session's cluster as it is now.
    Freeze {
        /// The template's name.
        name: String,
        /// The caller's key, which is kept with the template, such as a hash of what it was made from.
        key: Option<String>,
        /// The limits of clusters that are copies of it.
        limits: Limits,
    },
    /// Choose something for the session's cluster.
    Choose(Choice),
}

/// What tests choose for a cluster. It takes effect for all of its sessions, when they next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// How its clock is set.
    Clock(ClockSetting),
    /// The seed of its random numbers, which are those of the seed from then on, from the first one on.
    Seed(u64),
}

/// How a task went.
pub type Outcome = Result<(), ErrorResponse>;

/// A task that has not been done yet. Its outcome is always reported: at the latest when it is dropped.
pub struct PendingTask {
    /// What is to be done.
    pub task: Task,
    report: Option<Box<dyn FnOnce(Outcome) + Send>>,
}

impl PendingTask {
    /// A task whose outcome is reported by calling `report`, on any thread. It must not block.
    pub fn new(task: Task, report: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self { task, report: Some(Box::new(report)) }
    }

    /// Reports the outcome.
    pub fn finish(mut self, outcome: Outcome) {
        self.report(outcome);
    }

    fn report(&mut self, outcome: Outcome) {
        if let Some(report) = self.report.take() {
            report(outcome);
        }
    }
}

impl Drop for PendingTask {
    fn drop(&mut self) {
        let message = "the connection ended before the request could be handled";
        self.report(Err(ErrorResponse::error(sqlstate::CONNECTION_DOES_NOT_EXIST, message)));
    }
}
