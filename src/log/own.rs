//! The program's own log on its way to stderr. Nothing in the program waits for a reader of stderr.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::log::{backlog::Backlog, patient::Patient};

/// How long the last lines may take on their way out when the program ends.
const FLUSH: Duration = Duration::from_millis(500);

/// Takes lines, which a thread of its own writes to stderr. Lines for which there is no room, because nobody reads
/// stderr, are dropped and counted. A clone is the same log.
#[derive(Clone)]
pub struct OwnLog(Arc<Backlog>);

impl OwnLog {
    /// Starts to write to stderr.
    ///
    /// # Errors
    /// The operating system's, if stderr is closed or there is no thread.
    pub fn start() -> io::Result<Self> {
        let stderr = Patient::from(io::stderr().as_fd().try_clone_to_owned()?);
        let backlog = Arc::new(Backlog::default());
        let written = backlog.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            // Without a reader there is nobody to tell.
            let _ = written.write_to(stderr, |dropped, lines| {
                let line = format!("pglite-port: {dropped} log lines were dropped because stderr was not read\n");
                lines.extend_from_slice(line.as_bytes());
            });
        })?;
        Ok(Self(backlog))
    }

    /// Writes one line of the program itself, without its line feed.
    pub fn line(&self, text: &str) {
        self.0.push_if_room(|lines| lines.extend_from_slice(format!("pglite-port: {text}\n").as_bytes()));
    }

    /// Waits until everything has been written, or for a moment if nobody reads it.
    pub fn drain(&self) {
        self.0.flush(Instant::now() + FLUSH);
    }
}

/// For a subscriber of `tracing`, which writes each event at once.
impl Write for OwnLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.push_if_room(|lines| lines.extend_from_slice(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
