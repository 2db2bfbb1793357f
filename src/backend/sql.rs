//! Having `PostgreSQL` run SQL, and startups, whose answers the host itself reads.

use std::{fmt, io, sync::mpsc, time::Instant};

use anyhow::{Context, ensure};

use super::Backend;
use crate::guest::{
    ClientStream,
    client::{Client, Interest, Readiness, Waker},
};

/// What ends a `COPY FROM STDIN` of SQL that has no client to send the rows: `CopyFail`.
const NO_ROWS: &[u8] = b"there is nobody to send the rows of COPY FROM STDIN; use INSERT\0";

/// An error that `PostgreSQL` has reported (`PostgreSQL` manual, "Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SqlError {
    /// The SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    /// Where in the SQL it was found, in characters; the first one is 1.
    pub(crate) position: Option<usize>,
    /// How many statements of the query had been completed before.
    pub(crate) completed: usize,
}

impl fmt::Display for SqlError {
    /// All on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", one_line(&self.message), self.code)?;
        for (label, text) in [("detail", &self.detail), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "; {label}: {}", one_line(text))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for SqlError {}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Backend {
    /// Runs `sql` as one simple query.
    ///
    /// # Errors
    /// A [`SqlError`], the first that `PostgreSQL` reports; anything else when the guest traps.
    pub(crate) fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        ensure!(!sql.contains('\0'), "the SQL contains a NUL character");
        let message = message(b'Q', &[sql.as_bytes(), b"\0"].concat()).context("the SQL is too long")?;
        let ((), answer) = self.record(&message, Self::run_pending_messages)?;
        match first_error(&answer) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Whether a transaction block is open, be it a failed one.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn is_in_transaction(&mut self) -> anyhow::Result<bool> {
        Ok(self.call::<(), i32>("IsTransactionBlock", ())? != 0)
    }

    /// Calls `run` with a client that has sent `input` and whose answers are returned; then there is no client.
    pub(super) fn record<T>(
        &mut self,
        input: &[u8],
        run: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Vec<u8>)> {
        let (sent, answers) = mpsc::channel();
        self.set_client(ClientStream::new(Box::new(Recorder(sent)), input));
        let ran = run(self);
        self.set_client(ClientStream::default());
        Ok((ran?, answers.try_iter().flatten().collect()))
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

/// A message with its type and its length.
pub(super) fn message(kind: u8, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u32::try_from(body.len() + 4)?;
    Ok([&[kind][..], &length.to_be_bytes(), body].concat())
}

/// The client of SQL that the host itself runs: what is sent to it is kept. More than it has sent is only wanted of it by `COPY FROM STDIN`.
struct Recorder(mpsc::Sender<Vec<u8>>);

impl Client for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let fail = message(b'f', NO_ROWS).map_err(io::Error::other)?;
        // PostgreSQL's buffer has 8 KiB (`PQ_RECV_BUFFER_SIZE`).
        let target = buffer.get_mut(..fail.len()).ok_or(io::ErrorKind::InvalidInput)?;
        target.copy_from_slice(&fail);
        Ok(fail.len())
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

/// The backend messages that `bytes` begin with, by type and body, up to the first that is not whole.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<5>()?;
        let [kind, length @ ..] = *head;
        let body = usize::try_from(u32::from_be_bytes(length)).ok()?.checked_sub(4)?;
        let (body, rest) = rest.split_at_checked(body)?;
        bytes = rest;
        Some((kind, body))
    })
}

/// The first `ErrorResponse` among backend messages.
fn first_error(answer: &[u8]) -> Option<SqlError> {
    let mut completed = 0;
    for (kind, body) in messages(answer) {
        match kind {
            b'C' => completed += 1,
            b'E' => {
                let field = |code: u8| {
                    let text = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&code))?;
                    Some(String::from_utf8_lossy(&text[1..]).into_owned())
                };
                return Some(SqlError {
                    code: field(b'C').unwrap_or_default(),
                    message: field(b'M').unwrap_or_default(),
                    detail: field(b'D'),
                    hint: field(b'H'),
                    position: field(b'P').and_then(|position| position.parse().ok()),
                    completed,
                });
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(messages: &[(u8, &[u8])]) -> Vec<u8> {
        messages.iter().flat_map(|(kind, body)| message(*kind, body).unwrap()).collect()
    }

    #[test]
    fn the_first_error_is_found_behind_other_messages() {
        let error = b"SERROR\0C42601\0Msyntax\nerror\0P7\0Htry\0\0";
        let error = first_error(&answer(&[(b'C', b"SELECT 1\0"), (b'E', error), (b'Z', b"I")])).unwrap();
        assert_eq!((error.position, error.completed), (Some(7), 1));
        assert_eq!(error.to_string(), "syntax error (SQLSTATE 42601); hint: try");
        assert_eq!(first_error(&answer(&[(b'Z', b"I")])), None);
    }

    #[test]
    fn half_a_message_is_no_message() {
        assert_eq!(first_error(b"E\0\0"), None);
        assert_eq!(first_error(b"E\0\0\0\x03"), None);
        assert_eq!(first_error(b"E\0\0\0\x40SERROR\0"), None);
    }
}
