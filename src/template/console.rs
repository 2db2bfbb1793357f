//! A guest's terminal as log lines.

use crate::{
    fs::{Console, Stream},
    log::{Level, LogSink},
};

/// The longest line that is kept whole; the rest of a longer one becomes the next line.
const LONGEST_LINE: usize = 16 << 10;

/// Turns what a guest writes to its terminal into log lines.
pub(crate) struct LineConsole {
    log: LogSink,
    target: &'static str,
    lines: [Vec<u8>; 2],
}

impl LineConsole {
    pub(crate) fn new(log: LogSink, target: &'static str) -> Self {
        Self { log, target, lines: [Vec::new(), Vec::new()] }
    }

    fn line(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        self.log.line(level(&text), self.target, &text);
    }
}

/// The level of a line by `PostgreSQL`'s own word for it (`error_severity` in `src/backend/utils/error/elog.c`).
/// An SQL error is news for the client, not for us.
fn level(line: &str) -> Level {
    let severities =
        [("WARNING:", Level::WARN), ("FATAL:", Level::WARN), ("PANIC:", Level::ERROR), ("LOG:", Level::INFO)];
    severities.into_iter().find(|(severity, _)| line.contains(severity)).map_or(Level::DEBUG, |(_, level)| level)
}

impl Console for LineConsole {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let which = usize::from(stream == Stream::Err);
        for byte in bytes {
            if *byte != b'\n' {
                self.lines[which].push(*byte);
            }
            if *byte == b'\n' || self.lines[which].len() >= LONGEST_LINE {
                let line = std::mem::take(&mut self.lines[which]);
                self.line(&line);
            }
        }
    }
}

impl Drop for LineConsole {
    fn drop(&mut self) {
        for line in std::mem::take(&mut self.lines).iter().filter(|line| !line.is_empty()) {
            self.line(line);
        }
    }
}
