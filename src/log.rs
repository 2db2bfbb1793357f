//! Log lines: those of guests go to the parent as log frames, or into the program's own log on stderr.

pub(crate) mod backlog;
mod console;
mod escape;
mod own;
pub(crate) mod patient;

use std::sync::Arc;

pub(crate) use console::{LineConsole, Recent};
pub use escape::escaped_fields;
pub use own::OwnLog;
pub use tracing::Level;

/// Takes one log line of a connection.
type Write = dyn Fn(Option<u32>, Level, &str, &str) + Send + Sync;

/// The destination of log lines. A clone has the same destination; writing to it never blocks.
#[derive(Clone)]
pub struct LogSink {
    connection: Option<u32>,
    write: Arc<Write>,
}

impl LogSink {
    /// A sink that calls `write` for every line with connection, level, target and text. `write` must not block.
    pub fn new(write: impl Fn(Option<u32>, Level, &str, &str) + Send + Sync + 'static) -> Self {
        Self { connection: None, write: Arc::new(write) }
    }

    /// The sink that adds lines to the program's own log, which goes to stderr.
    #[must_use]
    pub fn to_own_log() -> Self {
        Self::new(|connection, level, target, text| match level {
            Level::ERROR => tracing::error!(connection, source = target, "{text}"),
            Level::WARN => tracing::warn!(connection, source = target, "{text}"),
            Level::INFO => tracing::info!(connection, source = target, "{text}"),
            Level::DEBUG => tracing::debug!(connection, source = target, "{text}"),
            Level::TRACE => tracing::trace!(connection, source = target, "{text}"),
        })
    }

    /// The same sink for the lines of one connection.
    #[must_use]
    pub fn of_connection(&self, id: u32) -> Self {
        Self { connection: Some(id), ..self.clone() }
    }

    /// Writes one line, without its line feed, or a report. Characters that could be taken for something else are
    /// escaped, because clients choose some of them. `target` is the line's source, such as `guest::stderr`.
    pub fn line(&self, level: Level, target: &str, text: &str) {
        (self.write)(self.connection, level, target, &escape::escape(text));
    }
}
