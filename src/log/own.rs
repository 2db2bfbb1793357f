//! The program's own log on stderr. No other thread waits for a reader of stderr.

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::log::{backlog::Backlog, escape::one_entry, patient::Patient};

/// How long the program waits for the last lines when it ends.
const FLUSH: Duration = Duration::from_millis(500);

/// Erases the line of a terminal that has the progress of something on it (`indicatif`), which is drawn again below.
const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// Takes lines, which a separate thread writes to stderr. When stderr is not read and there is no room, lines are
/// dropped and counted. A clone is the same log.
#[derive(Clone)]
pub struct OwnLog {
    backlog: Arc<Backlog>,
    /// Comes before each line.
    begin: &'static [u8],
}

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
        Ok(Self { backlog, begin: if io::stderr().is_terminal() { ERASE_LINE } else { b"" } })
    }

    fn push(&self, text: &[u8]) {
        self.backlog.push_if_room(|lines| {
            lines.extend_from_slice(self.begin);
            lines.extend_from_slice(text);
        });
    }

    /// Writes one line, without its line feed.
    pub fn line(&self, text: &str) {
        self.push(format!("pglite-port: {}\n", one_entry(text)).as_bytes());
    }

    /// Waits until everything has been written, at most half a second.
    pub fn drain(&self) {
        self.backlog.flush(Instant::now() + FLUSH);
    }
}

/// For `tracing`'s subscriber, which writes each event with one call.
impl Write for OwnLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.push(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
