//! SQL files, such as plain dumps, run in a session statement by statement.
//!
//! * `mod`: a file, from its first statement to its last
//! * `scanner`: finds the statements, the commands of `psql` and the rows of `COPY` in it
//!
//! A file is read as it is run, so that its size does not matter.

mod scanner;

use std::{fmt, io::BufRead, sync::Arc};

use anyhow::{Context, anyhow, bail};
use postgres_protocol::message::backend::{DataRowBody, Message};
use tokio_postgres::fallible_iterator::FallibleIterator;

use crate::dial::{Cancel, Report, Server, Session};
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
        write!(formatter, "{:#}", self.error)
    }
}

impl std::error::Error for ScriptError {}

/// How many lines behind the beginning of a statement the server has found an error.
fn lines_before(sql: &[u8], error: &anyhow::Error) -> u64 {
    let Some(position) = error.downcast_ref::<Report>().and_then(|report| report.position) else { return 0 };
    // Positions are numbers of characters, from 1 on.
    let before = String::from_utf8_lossy(sql).chars().take(position.saturating_sub(1)).filter(|it| *it == '\n').count();
    before as u64
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
    let session = server.session(APPLICATION)?;
    on_begin(session.cancel(server));
    Script { session, input: Scanner::new(input), name, line: 0, key: None, tells_rows: choices.tells_rows, tell }
        .run(choices)
}

/// A file that is being run.
struct Script<'a, R> {
    session: Session,
    input: Scanner<R>,
    name: &'a str,
    /// The line of the statement that runs, for notices.
    line: u64,
    /// The key of `\restrict`.
    key: Option<String>,
    tells_rows: bool,
    tell: Arc<Tell>,
}

impl<R: BufRead> Script<'_, R> {
    fn run(&mut self, choices: Choices) -> anyhow::Result<Ran> {
        let mut ran = Ran::default();
        if choices.in_one_transaction {
            self.execute("begin", false)?;
        }
        while let Some((line, piece)) = self.input.next().with_context(|| format!("{} cannot be read", self.name))? {
            self.line = line;
            let result = match piece {
                Piece::Command(command) => self.command(&command).map_err(|error| (line, error)),
                Piece::Statement { sql, copies_in } => {
                    ran.statements += 1;
                    let executed = self.statement(&sql, copies_in);
                    executed.map_err(|error| (line + lines_before(&sql, &error), error))
                }
            };
            let Err((line, error)) = result else { continue };
            let error = ScriptError { file: self.name.to_owned(), line, error };
            if !choices.continues || self.session.has_ended() {
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
            self.execute("commit", false)?;
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

    fn statement(&mut self, sql: &[u8], copies_in: bool) -> anyhow::Result<()> {
        let Ok(sql) = std::str::from_utf8(sql) else {
            // The rows of a COPY that cannot be run are skipped.
            self.skip_rows(copies_in)?;
            bail!("the statement is not UTF-8: dump with --encoding=UTF8, or convert the file (iconv)");
        };
        self.execute(sql, copies_in)
    }

    /// Runs a statement, with the rows behind it if it `copies_in`.
    fn execute(&mut self, sql: &str, copies_in: bool) -> anyhow::Result<()> {
        self.converse(sql, copies_in).unwrap_or_else(|error| {
            // What comes next may be an answer to this statement.
            self.session.give_up();
            Err(error)
        })
    }

    /// As [`Script::execute`]; the inner error is that of the statement, and the outer one that of the conversation,
    /// which cannot go on.
    fn converse(&mut self, sql: &str, copies_in: bool) -> anyhow::Result<anyhow::Result<()>> {
        self.session.query(sql)?;
        let (mut rows_follow, mut failed) = (copies_in, Ok(()));
        loop {
            match self.session.next() {
                Ok(Message::ReadyForQuery(_)) => break,
                // What the server says before it ends the session is the reason.
                Err(error) => {
                    failed?;
                    return Err(error);
                }
                Ok(Message::ErrorResponse(body)) => failed = failed.and(Err(Report::of(body.fields())?.into())),
                Ok(Message::NoticeResponse(body)) => {
                    let Report { severity, message, .. } = Report::of(body.fields())?;
                    (self.tell)(Told::Notice(&format!("{}:{}: {severity}: {message}", self.name, self.line)));
                }
                Ok(Message::DataRow(row)) if self.tells_rows => self.tell_row(&row)?,
                Ok(Message::CopyData(row)) if self.tells_rows => {
                    (self.tell)(Told::Row(String::from_utf8_lossy(row.data()).trim_end_matches('\n')));
                }
                Ok(Message::CopyInResponse(_)) if rows_follow => {
                    rows_follow = false;
                    failed = failed.and(self.copy());
                }
                Ok(Message::CopyInResponse(_)) => {
                    self.session.end_copy(Some("there are no rows behind the statement"))?;
                }
                Ok(_) => {}
            }
        }
        self.skip_rows(rows_follow)?;
        Ok(failed)
    }

    /// Sends the rows behind a `COPY`. When they cannot be read, the statement fails.
    fn copy(&mut self) -> anyhow::Result<()> {
        loop {
            match self.input.rows() {
                Ok(Some(rows)) => self.session.copy_data(&rows)?,
                Ok(None) => return self.session.end_copy(None),
                Err(error) => {
                    self.session.end_copy(Some("the rows cannot be read"))?;
                    return Err(error).with_context(|| format!("{} cannot be read", self.name));
                }
            }
        }
    }

    fn tell_row(&self, row: &DataRowBody) -> anyhow::Result<()> {
        let value = |range: Option<std::ops::Range<usize>>| {
            Ok(String::from_utf8_lossy(range.map_or(&[], |range| &row.buffer()[range])).into_owned())
        };
        let values: Vec<String> = row.ranges().map(value).collect()?;
        (self.tell)(Told::Row(&values.join("|")));
        Ok(())
    }

    fn skip_rows(&mut self, copies_in: bool) -> anyhow::Result<()> {
        while copies_in && self.input.rows().with_context(|| format!("{} cannot be read", self.name))?.is_some() {}
        Ok(())
    }
}
