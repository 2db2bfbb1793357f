//! The program's own log on stderr. No other thread waits for a reader of stderr.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::log::{backlog::Backlog, patient::Patient};

/// How long the program waits for the last lines when it ends.
const FLUSH: Duration = Duration::from_millis(500);

/// Takes lines, which a separate thread writes to stderr. When stderr is not read and there is no room, lines are
/// dropped and counted. A clone is the same log.
#[derive(Clone)]
pub struct OwnLog(Arc<Backlog>);

impl OwnLog {
    /// Starts the thread that writes to stderr.
    ///
    /// # Errors
    /// The operating system's, if stderr is closed or there is no thread.
    pub fn start() -> io::Result<Self> {
        let stderr = Patient::from(io::stderr().as_fd().try_clone_to_owned()?);
        let backlog = Arc::new(Backlog::default());
        let written = backlog.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            // Without stderr the error cannot be reported.
            let _ = written.write_to(stderr, |dropped, lines| {
                let line = format!("pglite-port: {dropped} log lines were dropped because stderr was not read\n");
                lines.extend_from_slice(line.as_bytes());
            });
        })?;
        Ok(Self(backlog))
    }

    /// Writes one line, without its line feed.
    pub fn line(&self, text: &str) {
        self.0.push_if_room(|lines| lines.extend_from_slice(format!("pglite-port: {text}\n").as_bytes()));
    }

    /// Waits until everything has been written, at most half a second.
    pub fn drain(&self) {
        self.0.flush(Instant::now() + FLUSH);
    }
}

/// For `tracing`'s subscriber, which writes each event with one call.
impl Write for OwnLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.push_if_room(|lines| lines.extend_from_slice(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
