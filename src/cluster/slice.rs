//! How long turns are, and what is measured in them.

use std::time::Duration;

/// How long a turn may last while another session waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice(pub(crate) Duration);

impl Default for Slice {
    fn default() -> Self {
        Self(Duration::from_millis(5))
    }
}

impl Slice {
    /// How long a session that was asked to hand over has until its next check for interrupts. Then it is stopped.
    pub(super) fn grace(self) -> Duration {
        self.0 * 2 / 5
    }

    /// How long a process of the cluster itself keeps its turn at least while it writes and others wait, so that a
    /// checkpoint comes to its end beside any number of busy sessions.
    pub(super) fn least(self) -> Duration {
        self.0 / 10
    }

    /// How long after a signal a backend has to check for interrupts also where it allocates memory: a second.
    pub(super) fn until_overdue(self) -> Duration {
        self.0 * 200
    }

    /// How long after a signal a backend is condemned, to end at a safepoint: three seconds, less than a program that is
    /// told to stop waits for its sessions.
    pub(super) fn until_condemned(self) -> Duration {
        self.0 * 600
    }

    /// The processor time that a condemned process is given, half a second. One that has waited for its turn all the
    /// while has not had the time to check for interrupts.
    pub(super) fn last_chance(self) -> Duration {
        self.0 * 100
    }

    /// The processor time that a condemned process is given to release what others need: half a minute.
    pub(super) fn until_released(self) -> Duration {
        self.0 * 6_000
    }
}
