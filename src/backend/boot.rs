//! Starting `PostgreSQL` in a backend, and having it run SQL before any client is there.

use std::{io, sync::mpsc, time::Instant};

use anyhow::{Context, bail, ensure};

use super::{Backend, exit_status};
use crate::guest::{
    ClientStream,
    client::{Client, Interest, Readiness, Waker},
};

/// With this status the guest leaves `main`, and lives (PGlite, `pglite.ts`: `PGLITE_EXIT_ALIVE`).
pub(super) const EXIT_ALIVE: i32 = 99;

/// The path that the guest believes to be its executable's.
pub(crate) const EXECUTABLE: &str = "/pglite/bin/postgres";

/// The path of the cluster's data directory in the guest's files.
pub(crate) const DATA_DIRECTORY: &str = "/pglite/data";

/// What the backend is started with: PGlite's parameters (`pglite.ts`: `defaultStartParams`) without those that make it differ from
/// `PostgreSQL` for its users: `-O`, which lets anybody change system tables, and a `search_path`.
pub(crate) const START_PARAMETERS: &[&str] = &[
    "--single",
    "-F",
    "-j",
    "-clog_checkpoints=false",
    "-cmax_worker_processes=0",
    "-cmax_parallel_workers=0",
    "-cmax_parallel_workers_per_gather=0",
    "-cmax_parallel_maintenance_workers=0",
    "-cio_method=sync",
];

impl Backend {
    /// Starts `PostgreSQL` on the cluster in the backend's files, connected to `database` as the bootstrap superuser, with further arguments.
    ///
    /// # Errors
    /// When it does not start; its own messages are in the log.
    pub(crate) fn boot(&mut self, database: &str, settings: &[String]) -> anyhow::Result<()> {
        self.call::<i32, i32>("pgl_setPGliteActive", 1)?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let arguments = [START_PARAMETERS, &settings, &["-D", DATA_DIRECTORY, database]].concat();
        let status = self.main(EXECUTABLE, &arguments)?;
        ensure!(status == EXIT_ALIVE, "PostgreSQL did not start on database \"{database}\" (exit status {status})");
        self.call::<(), ()>("pgl_startPGlite", ()).context("PostgreSQL cannot be made to listen")
    }

    /// Shuts `PostgreSQL` down: it writes its checkpoint, and its files can be started from again.
    ///
    /// # Errors
    /// When it does not end in order.
    pub(crate) fn shut_down(mut self) -> anyhow::Result<()> {
        self.call::<i32, i32>("pgl_setPGliteActive", 0)?;
        match self.call::<i32, ()>("proc_exit", 0) {
            Ok(()) => bail!("PostgreSQL did not exit"),
            Err(error) => match exit_status(error)? {
                0 => Ok(()),
                status => bail!("PostgreSQL ended with exit status {status}"),
            },
        }
    }

    /// Runs `sql` as one simple query, as the bootstrap superuser.
    ///
    /// # Errors
    /// The first error that `PostgreSQL` reports.
    pub(crate) fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        ensure!(!sql.contains('\0'), "the SQL contains a NUL character");
        let mut message = vec![b'Q'];
        message.extend(u32::try_from(sql.len() + 5).context("the SQL is too long")?.to_be_bytes());
        message.extend(sql.as_bytes());
        message.push(0);
        let (sent, answers) = mpsc::channel();
        self.set_client(ClientStream::new(Box::new(Recorder(sent)), &message));
        let ran = self.run_pending_messages();
        self.set_client(ClientStream::default());
        ran?;
        let answer: Vec<u8> = answers.try_iter().flatten().collect();
        match first_error(&answer) {
            Some(error) => bail!(error),
            None => Ok(()),
        }
    }

    /// Runs the messages that are in the client's stream already, up to the last one's `ReadyForQuery`.
    fn run_pending_messages(&mut self) -> anyhow::Result<()> {
        loop {
            self.run_message()?;
            if !self.has_pending_input()? {
                break;
            }
        }
        self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
        self.call::<(), ()>("pgl_pq_flush", ())
    }
}

/// The client of SQL that the host itself runs: it sends nothing, and what is sent to it is kept.
struct Recorder(mpsc::Sender<Vec<u8>>);

impl Client for Recorder {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn wait(&mut self, _interest: Interest, deadline: Option<Instant>) -> Readiness {
        let Some(deadline) = deadline else { return Readiness::Ready };
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        Readiness::TimedOut
    }

    fn waker(&self) -> Waker {
        Waker::new(|| {})
    }
}

/// The first `ErrorResponse` among backend messages, as one line (`PostgreSQL` manual, "Error and Notice Message Fields").
fn first_error(mut messages: &[u8]) -> Option<String> {
    while let [kind, a, b, c, d, ..] = *messages {
        let end = u32::from_be_bytes([a, b, c, d]) as usize + 1;
        let body = messages.get(5..end)?;
        if kind == b'E' {
            let field = |code: u8| {
                let text = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&code))?;
                Some(String::from_utf8_lossy(&text[1..]).into_owned())
            };
            let mut line =
                format!("{} (SQLSTATE {})", field(b'M').unwrap_or_default(), field(b'C').unwrap_or_default());
            for (code, label) in [(b'P', "at character"), (b'D', "detail:"), (b'H', "hint:")] {
                if let Some(text) = field(code) {
                    line = format!("{line}, {label} {text}");
                }
            }
            return Some(line);
        }
        messages = &messages[end..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_found_behind_other_messages() {
        let error = b"SERROR\0C42601\0Msyntax error\0P7\0\0";
        let mut messages = b"I\0\0\0\x04E\0\0\0".to_vec();
        messages.push(u8::try_from(error.len() + 4).unwrap());
        messages.extend(error);
        messages.extend(b"Z\0\0\0\x05I");
        assert_eq!(first_error(&messages).unwrap(), "syntax error (SQLSTATE 42601), at character 7");
        assert_eq!(first_error(b"Z\0\0\0\x05I"), None);
        assert_eq!(first_error(b"E\0\0"), None);
    }
}
