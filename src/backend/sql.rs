//! Having `PostgreSQL` run SQL, and startups, whose answers the host itself reads.

use std::{io, sync::mpsc, time::Instant};

use super::Backend;
use crate::{
    client::{Client, Interest, Readiness, Waker},
    guest::ClientStream,
    protocol::messages::{Rows, first_value, message, result, simple_query},
};

/// What ends a `COPY FROM STDIN` of SQL that has no client to send the rows: `CopyFail`.
const NO_ROWS: &[u8] = b"COPY FROM STDIN has no client here to send its rows; use INSERT\0";

impl Backend {
    /// Runs `sql` as one simple query.
    ///
    /// # Errors
    /// A [`SqlError`](crate::protocol::messages::SqlError), the first that `PostgreSQL` reports; anything else when
    /// the guest traps.
    pub(crate) fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        self.query(sql).map(drop)
    }

    /// Runs `sql` as one simple query, and returns the rows of all its results.
    ///
    /// # Errors
    /// As [`Backend::execute`].
    pub(crate) fn query(&mut self, sql: &str) -> anyhow::Result<Rows> {
        let ((), answer) = self.record(&simple_query(sql)?, Self::run_pending_messages)?;
        Ok(result(&answer)?)
    }

    /// Whether the first value that `sql` answers is true.
    ///
    /// # Errors
    /// As [`Backend::execute`].
    pub(crate) fn is_true(&mut self, sql: &str) -> anyhow::Result<bool> {
        Ok(first_value(&self.query(sql)?) == Some("t"))
    }

    /// Whether a transaction block is open, be it a failed one.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn is_in_transaction(&mut self) -> anyhow::Result<bool> {
        Ok(self.call::<(), i32>("IsTransactionBlock", ())? != 0)
    }

    /// Runs its timers as if they were due. `PostgreSQL` leaves one armed that is no longer needed, and does not arm
    /// another one before it.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn run_timers(&mut self) -> anyhow::Result<()> {
        let timers = &mut self.guest().timers;
        let armed = timers.armed();
        timers.make_due(&armed);
        self.handle_idle_interrupts()
    }

    /// Calls `run` with another client, which has sent `input` and whose answers are returned.
    pub(super) fn record<T>(
        &mut self,
        input: &[u8],
        run: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Vec<u8>)> {
        let (sent, answers) = mpsc::channel();
        let client = std::mem::take(&mut self.guest().client);
        self.set_client(ClientStream::new(Box::new(Recorder(sent)), input).trusted(true));
        let ran = run(self);
        self.set_client(client);
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

/// The client of SQL that the host itself runs: it keeps what it is sent. Only `COPY FROM STDIN` reads more of it than
/// was given.
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
