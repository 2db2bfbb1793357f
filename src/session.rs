//! The seam between `connection`, which serves clients, and `databases`, which makes their sessions: a session's start
//! and end, and its control from other threads.
//!
//! * `mod`: the seam [`Sessions`]
//! * [`cancel`]: backend keys, and how a session is interrupted
//! * `control`: interrupts, tasks and the order to end, from other threads
//! * `task`: work that a session does on request

pub mod cancel;
mod control;
mod task;

use std::{any::Any, fmt, str::FromStr};

use crate::{
    client::Client,
    log::LogSink,
    protocol::{boundary::TransactionStatus, error_response::ErrorResponse, startup::StartupMessage},
    quota::Limits,
};

pub use control::{Control, Registration};
pub use task::{Choice, Outcome, PendingTask, Task};

/// Which kind of database a connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All connections are sessions of one cluster.
    #[default]
    Shared,
    /// Every connection has a cluster of its own, gone when it closes.
    Isolated,
}

/// A text that names no [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}: use shared or isolated")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "shared" => Ok(Self::Shared),
            "isolated" => Ok(Self::Isolated),
            _ => Err(UnknownMode(text.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Isolated => "isolated",
        })
    }
}

/// Makes sessions; there is one for the program.
pub trait Sessions: Send + Sync + 'static {
    /// Serves one client until its session ends. Called on the connection's own thread.
    ///
    /// When it returns, everything that the session sends has been written: [`Client::write`] takes a part at a time,
    /// and the session waits until it has taken all.
    fn serve(&self, start: SessionStart<'_>, client: Box<dyn Client>) -> SessionEnd;

    /// Called when all sessions are told to end: from now on no client gets one.
    fn close(&self) {}

    /// Shuts the clusters down (with a shutdown checkpoint, for example) after the last session has ended. The program
    /// exits when this returns, or when it takes too long.
    fn shut_down(&self) {}
}

/// What a session is made from.
#[non_exhaustive]
pub struct SessionStart<'a> {
    /// The connection's number.
    pub id: u32,
    /// The startup message, parsed.
    pub startup: &'a StartupMessage,
    /// The startup packet as it was received, with its length word; it is no longer in the client's stream.
    pub packet: &'a [u8],
    /// Which kind of database is asked for.
    pub mode: Mode,
    /// The cluster that is asked for by its name; without one, the mode decides.
    pub cluster: Option<&'a str>,
    /// The template to clone; without one, the database's name selects the template.
    pub template: Option<&'a str>,
    /// The limits of a cluster of its own; without one, the template's.
    pub limits: Limits,
    /// Where the guest's own output goes.
    pub log: &'a LogSink,
    /// Where the session registers to be interrupted.
    pub control: &'a Control,
    /// Whether the session is in a transaction.
    pub transaction: TransactionStatus,
    /// Whether the client need not authenticate.
    pub is_trusted: bool,
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// As PostgreSQL ends one: the client has ended it, or has got the backend's error.
    Orderly,
    /// The client went away.
    ClientGone,
    /// The session could not start, or another thread has ended it, with this error. The error has not been sent to
    /// the client yet; one of [`Severity::Log`](crate::protocol::error_response::Severity::Log) is not sent.
    Refused(ErrorResponse),
    /// The wasm trapped; the error carries the backtrace, for the log.
    Trapped(anyhow::Error),
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in [Mode::Shared, Mode::Isolated] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("Shared".parse::<Mode>(), Err(UnknownMode("Shared".to_owned())));
    }
}
