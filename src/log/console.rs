//! A guest's terminal as log lines.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use crate::{
    fs::{Console, Stream},
    log::{Level, LogSink},
};

/// The maximum length of a log line; the rest of a longer line becomes the next line.
const LONGEST_LINE: usize = 16 << 10;

/// Turns the terminal output of a guest into log lines. `PostgreSQL` writes a report with its detail, hint, context and
/// statement at once (`send_message_to_server_log` in `src/backend/utils/error/elog.c`); these lines become one.
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

    /// Adds a line to the report that it belongs to, or ends that report and begins the next one.
    fn add(&self, report: &mut String, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if let Some(recent) = &self.recent {
            recent.remember(&line);
        }
        if let Some(part) = part_of_report(&line)
            && !report.is_empty()
            && report.len() < LONGEST_LINE
        {
            report.push('\n');
            report.push_str(part);
        } else {
            self.end(report);
            report.push_str(&line);
        }
    }

    fn end(&self, report: &mut String) {
        if !report.is_empty() {
            self.log.line(level(report, self.has_client), self.target, report);
            report.clear();
        }
    }
}

/// What a line adds to the report before it; `None` if it begins another one.
fn part_of_report(line: &str) -> Option<&str> {
    // A line feed in a message is followed by a tab (`append_with_tabs` in `elog.c`).
    if line.starts_with('\t') {
        return Some(line);
    }
    let text = text(line);
    let (name, _) = text.split_once(':')?;
    ["DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "BACKTRACE", "STATEMENT"].contains(&name).then_some(text)
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
        let mut report = String::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.lines[which].push(*byte);
            }
            if *byte == b'\n' || self.lines[which].len() >= LONGEST_LINE {
                let line = std::mem::take(&mut self.lines[which]);
                self.add(&mut report, &line);
            }
        }
        self.end(&mut report);
    }
}

impl Drop for LineConsole {
    fn drop(&mut self) {
        for line in std::mem::take(&mut self.lines).iter().filter(|line| !line.is_empty()) {
            let mut report = String::new();
            self.add(&mut report, line);
            self.end(&mut report);
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

    /// The lines that a console makes of what a guest writes.
    fn lines(written: &[&str]) -> Vec<(Level, String)> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = {
            let lines = lines.clone();
            LogSink::new(move |_, level, _, text| lines.lock().push((level, text.to_owned())))
        };
        let mut console = LineConsole::new(log, "postgres");
        written.iter().for_each(|text| console.write(Stream::Err, text.as_bytes()));
        drop(console);
        Arc::try_unwrap(lines).expect("the console is gone").into_inner()
    }

    #[test]
    fn a_report_is_one_line_of_the_level_of_its_first() {
        let begin = "2026-11-20 07:00:00.000 UTC [42] ";
        let fatal = format!("{begin}FATAL:  no\n\tnever [x] y\n{begin}DETAIL:  because\n{begin}STATEMENT:  a\n\tb\n");
        let log = format!("{begin}LOG:  then\n");
        let expected = format!("{begin}FATAL:  no\n\tnever [x] y\nDETAIL:  because\nSTATEMENT:  a\n\tb");
        let begun = [(Level::WARN, expected), (Level::INFO, log.trim_end().to_owned())];
        assert_eq!(lines(&[&fatal, &log]), begun);
        assert_eq!(lines(&[&(fatal + &log)]), begun);
    }

    #[test]
    fn a_line_may_be_written_in_pieces() {
        assert_eq!(lines(&["creating ", "directory\nok", "\ndone"]).len(), 3);
    }

    #[test]
    fn what_a_statement_contains_does_not_make_it_important() {
        let line = "2026-11-20 07:00:00.000 UTC [42] STATEMENT:  SELECT 'x] PANIC:  y'";
        assert_eq!(level(line, true), Level::DEBUG);
    }
}
