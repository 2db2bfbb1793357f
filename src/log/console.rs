//! A guest's terminal as log lines.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use crate::{
    fs::{Console, Stream},
    log::{Level, LogSink},
};

/// The maximum length of a log line; the rest of a longer line becomes the next line.
const LONGEST_LINE: usize = 16 << 10;

/// Turns the terminal output of a guest into log lines.
pub(crate) struct LineConsole {
    log: LogSink,
    target: &'static str,
    has_client: bool,
    recent: Option<Recent>,
    lines: [Vec<u8>; 2],
}

/// The last lines of one or more consoles, for errors that quote a guest's last messages.
#[derive(Clone, Default)]
pub(crate) struct Recent(Arc<Mutex<VecDeque<String>>>);

/// The number of lines that are kept: a `FATAL` and the lines before it.
const RECENT_LINES: usize = 4;

impl Recent {
    /// The kept lines.
    pub(crate) fn told(&self) -> String {
        let lines = self.0.lock();
        if lines.is_empty() {
            return "PostgreSQL has logged nothing".to_owned();
        }
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    fn remember(&self, line: &str) {
        let mut lines = self.0.lock();
        if lines.len() == RECENT_LINES {
            lines.pop_front();
        }
        lines.push_back(text(line).split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

impl LineConsole {
    /// The terminal of a guest without a client.
    pub(crate) fn new(log: LogSink, target: &'static str) -> Self {
        Self { log, target, has_client: false, recent: None, lines: [Vec::new(), Vec::new()] }
    }

    /// The terminal of a client's session. The client gets messages about the session only; they are logged at a lower
    /// level.
    pub(crate) fn of_session(log: LogSink) -> Self {
        Self { log, target: "postgres", has_client: true, recent: None, lines: [Vec::new(), Vec::new()] }
    }

    /// The same console, which also stores its last lines in `recent`.
    pub(crate) fn remembering(mut self, recent: &Recent) -> Self {
        self.recent = Some(recent.clone());
        self
    }

    fn line(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if let Some(recent) = &self.recent {
            recent.remember(&text);
        }
        self.log.line(level(&text, self.has_client), self.target, &text);
    }
}

/// The level of a line, from `PostgreSQL`'s word for it (`error_severity` in `src/backend/utils/error/elog.c`) after
/// the process id.
fn level(line: &str, has_client: bool) -> Level {
    match text(line).split_once(':').map_or("", |(severity, _)| severity) {
        "PANIC" => Level::ERROR,
        "FATAL" | "LOG" if has_client => Level::DEBUG,
        "WARNING" | "FATAL" => Level::WARN,
        "LOG" => Level::INFO,
        _ => Level::DEBUG,
    }
}

/// A line without the time and the process id in front of it (`log_line_prefix`).
fn text(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_session_is_no_news_for_the_log() {
        let line = "2026-11-20 07:00:00.000 UTC [42] FATAL:  terminating connection due to administrator command";
        assert_eq!((level(line, true), level(line, false)), (Level::DEBUG, Level::WARN));
        assert_eq!(level("2026-11-20 07:00:00.000 UTC [42] PANIC:  no", true), Level::ERROR);
    }

    #[test]
    fn what_a_statement_contains_does_not_make_it_important() {
        let line = "2026-11-20 07:00:00.000 UTC [42] STATEMENT:  SELECT 'x] PANIC:  y'";
        assert_eq!(level(line, true), Level::DEBUG);
    }
}
