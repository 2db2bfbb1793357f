//! SQL files, such as plain dumps, run in a session statement by statement.
//!
//! * `mod`: a file, from its first statement to its last
//! * `scanner`: finds the statements, the commands of `psql` and the rows of `COPY` in it
//!
//! A file is read as it is run, so that its size does not matter.

mod scanner;

use std::{
    fmt,
    future::poll_fn,
    io::BufRead,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{
    AsyncMessage, Client, Connection, SimpleQueryMessage,
    error::{DbError, ErrorPosition},
    tls::NoTlsStream,
};

use crate::dial::{Cancel, DriverSession, Server, Socket};
use scanner::{Piece, Scanner};

/// What there is to tell the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// A notice of the server, with its place.
    Notice(&'a str),
    /// An error after which the others run all the same, with its place.
    Error(&'a str),
    /// A row that a statement has returned, its values joined with `|`.
    Row(&'a str),
}

/// Tells it.
type Tell = dyn Fn(Told<'_>) + Send + Sync;

/// The name that the session has in `pg_stat_activity`.
const APPLICATION: &str = "pglite-port run";

/// How a file is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// All statements are one transaction.
    pub in_one_transaction: bool,
    /// Statements that fail are reported, and the following ones run.
    pub continues: bool,
    /// The rows that statements return are told.
    pub tells_rows: bool,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// How many statements.
    pub statements: u64,
    /// How many of them have failed.
    pub failed: u64,
}

/// An error in a file, and where it is.
#[derive(Debug)]
pub struct ScriptError {
    /// The file.
    pub file: String,
    /// The line, counted from 1.
    pub line: u64,
    /// What happened.
    pub error: anyhow::Error,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: ", self.file, self.line)?;
        match report(&self.error) {
            Some(report) => write_report(formatter, report),
            None => write!(formatter, "{:#}", self.error),
        }
    }
}

impl std::error::Error for ScriptError {}

/// The report of the server in an error.
fn report(error: &anyhow::Error) -> Option<&DbError> {
    error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error)
}

/// How many lines behind the beginning of a statement the server has found an error.
fn lines_before(sql: &[u8], error: &anyhow::Error) -> u64 {
    let Some(ErrorPosition::Original(position)) = report(error).and_then(DbError::position) else { return 0 };
    // Positions are numbers of characters, from 1 on.
    let before = String::from_utf8_lossy(sql)
        .chars()
        .take((*position as usize).saturating_sub(1))
        .filter(|it| *it == '\n')
        .count();
    before as u64
}

/// Writes a report of the server with all that helps to understand it.
fn write_report(formatter: &mut fmt::Formatter<'_>, report: &DbError) -> fmt::Result {
    write!(formatter, "{}: {} ({})", report.severity(), report.message(), report.code().code())?;
    for (name, text) in [("DETAIL", report.detail()), ("HINT", report.hint()), ("CONTEXT", report.where_())] {
        if let Some(text) = text {
            write!(formatter, "\n{name}: {text}")?;
        }
    }
    Ok(())
}

/// Runs the SQL that `input` has in a session of `server`. `name` is that of the file, for messages. `tell` gets
/// what there is to tell meanwhile, `on_begin` what cancels the statement that runs.
///
/// The commands of `psql` that `pg_dump` writes are understood, others are refused.
///
/// # Errors
/// When the server cannot be reached or the file cannot be read; a [`ScriptError`] when a statement fails or the file
/// was cut off, as far as that can be seen.
pub fn run(
    server: &Arc<Server>,
    input: impl BufRead,
    name: &str,
    choices: Choices,
    tell: Arc<Tell>,
    on_begin: impl FnOnce(Cancel),
) -> anyhow::Result<Ran> {
    let DriverSession { runtime, client, connection } = server.session(APPLICATION)?;
    on_begin(Cancel::new(server.clone(), client.cancel_token()));
    let line = Arc::new(AtomicUsize::new(0));
    let notices = (name.to_owned(), line.clone(), tell.clone());
    drop(runtime.spawn(carry(connection, notices)));
    let mut script = Script { client: &client, input: Scanner::new(input), name, line, key: None, tell };
    runtime.block_on(script.run(choices))
}

/// Carries the messages of a session, and logs what the server reports meanwhile.
async fn carry(
    mut connection: Connection<Box<dyn Socket>, NoTlsStream>,
    (name, line, tell): (String, Arc<AtomicUsize>, Arc<Tell>),
) {
    poll_fn(|context| {
        loop {
            match connection.poll_message(context) {
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    let (line, message) = (line.load(Ordering::Relaxed), notice.message());
                    tell(Told::Notice(&format!("{name}:{line}: {}: {message}", notice.severity())));
                }
                Poll::Ready(Some(Ok(_))) => {}
                // The statement that runs gets the error.
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// A file that is being run.
struct Script<'a, R> {
    client: &'a Client,
    input: Scanner<R>,
    name: &'a str,
    /// The line of the statement that runs, for notices.
    line: Arc<AtomicUsize>,
    /// The key of `\restrict`.
    key: Option<String>,
    tell: Arc<Tell>,
}

impl<R: BufRead> Script<'_, R> {
    async fn run(&mut self, choices: Choices) -> anyhow::Result<Ran> {
        let mut ran = Ran::default();
        if choices.in_one_transaction {
            self.client.batch_execute("begin").await?;
        }
        while let Some((line, piece)) = self.input.next().with_context(|| format!("{} cannot be read", self.name))? {
            self.line.store(usize::try_from(line)?, Ordering::Relaxed);
            let result = match piece {
                Piece::Command(command) => self.command(&command).map_err(|error| (line, error)),
                Piece::Statement { sql, copies_in } => {
                    ran.statements += 1;
                    let executed = self.execute(&sql, copies_in, choices.tells_rows).await;
                    executed.map_err(|error| (line + lines_before(&sql, &error), error))
                }
            };
            let Err((line, error)) = result else { continue };
            let error = ScriptError { file: self.name.to_owned(), line, error };
            if !choices.continues || self.client.is_closed() {
                return Err(error.into());
            }
            ran.failed += 1;
            (self.tell)(Told::Error(&error.to_string()));
        }
        if self.key.is_some() {
            let error = anyhow!(r"the file was cut off: the \unrestrict of its \restrict is missing");
            return Err(ScriptError { file: self.name.to_owned(), line: self.input.line(), error }.into());
        }
        if choices.in_one_transaction {
            self.client.batch_execute("commit").await?;
        }
        Ok(ran)
    }

    /// A command of `psql`.
    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let mut words = command.split_whitespace();
        match (words.next().unwrap_or_default(), words.next(), &self.key) {
            (r"\restrict", Some(key), None) => self.key = Some(key.to_owned()),
            (r"\unrestrict", Some(key), Some(expected)) if key == expected => self.key = None,
            (r"\unrestrict", _, _) => bail!(r"\unrestrict has another key than the \restrict before it"),
            (r"\connect" | r"\c", _, _) => bail!(
                r"\connect would go on in another database, and this command has one session: run the parts of the file one \
                by one, or dump without --create"
            ),
            (name, _, _) => bail!("{name} is a command of psql that is not supported: use psql for this file"),
        }
        Ok(())
    }

    async fn execute(&mut self, sql: &[u8], copies_in: bool, tells_rows: bool) -> anyhow::Result<()> {
        let sql = std::str::from_utf8(sql);
        let Ok(sql) = sql else {
            // The rows of a COPY that cannot be run are skipped.
            self.skip_rows(copies_in)?;
            bail!("the statement is not UTF-8: dump with --encoding=UTF8, or convert the file (iconv)");
        };
        if !copies_in && !tells_rows {
            return Ok(self.client.batch_execute(sql).await?);
        }
        if !copies_in {
            return self.tell_rows(sql).await;
        }
        let sink = match self.client.copy_in::<_, Bytes>(sql).await {
            Ok(sink) => sink,
            Err(error) => {
                self.skip_rows(true)?;
                return Err(error.into());
            }
        };
        let mut sink = pin!(sink);
        while let Some(rows) = self.input.rows().with_context(|| format!("{} cannot be read", self.name))? {
            // The error of the server is in the result of the end.
            if sink.send(rows.into()).await.is_err() {
                self.skip_rows(true)?;
                break;
            }
        }
        sink.as_mut().finish().await?;
        Ok(())
    }

    async fn tell_rows(&self, sql: &str) -> anyhow::Result<()> {
        let mut messages = pin!(self.client.simple_query_raw(sql).await?);
        while let Some(message) = messages.try_next().await? {
            if let SimpleQueryMessage::Row(row) = message {
                let values: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or_default()).collect();
                (self.tell)(Told::Row(&values.join("|")));
            }
        }
        Ok(())
    }

    fn skip_rows(&mut self, copies_in: bool) -> anyhow::Result<()> {
        while copies_in && self.input.rows().with_context(|| format!("{} cannot be read", self.name))?.is_some() {}
        Ok(())
    }
}
