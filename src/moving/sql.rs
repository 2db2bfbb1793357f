//! A session that runs statements for a move, and texts in SQL.

use anyhow::{Context, bail};
use postgres_protocol::message::backend::Message;
use tokio_postgres::fallible_iterator::FallibleIterator;

use crate::dial::{Report, Server, Session};

/// The name that the sessions have in `pg_stat_activity`.
pub(super) const APPLICATION: &str = "pglite-port move";

/// With these, values have the same text on every server, and nothing ends a session that waits.
const SETTINGS: &str = "set search_path = pg_catalog; set extra_float_digits = 1; set datestyle = 'ISO, YMD';
    set intervalstyle = postgres; set timezone = 'UTC'; set bytea_output = hex; set lc_monetary = 'C';
    set xmlbinary = base64; set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;
    set idle_session_timeout = 0;
    set default_transaction_read_only = off";

/// A session.
pub(super) struct Sql(Session);

/// A row of texts, empty for null.
pub(super) type Row = Vec<String>;

impl Sql {
    /// Begins a session of `server`.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the session, with its [`Report`].
    pub(super) fn begin(server: &Server) -> anyhow::Result<Self> {
        let mut sql = Self(server.session(APPLICATION)?);
        sql.run(SETTINGS)?;
        Ok(sql)
    }

    /// Runs statements, and returns the rows of all of them.
    ///
    /// # Errors
    /// The first [`Report`] of an error, with the statement.
    pub(super) fn rows(&mut self, statements: &str) -> anyhow::Result<Vec<Row>> {
        self.0.query(statements)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.0.next()? {
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => failed = failed.or(Some(Report::of(body.fields())?)),
                Message::DataRow(row) => {
                    let value = |range: Option<std::ops::Range<usize>>| {
                        Ok(String::from_utf8_lossy(range.map_or(&[], |range| &row.buffer()[range])).into_owned())
                    };
                    rows.push(row.ranges().map(value).collect()?);
                }
                _ => {}
            }
        }
        match failed {
            None => Ok(rows),
            Some(report) => Err(report).with_context(|| format!("this failed: {}", shortened(statements))),
        }
    }

    /// The first values of the rows.
    ///
    /// # Errors
    /// As [`Sql::rows`].
    pub(super) fn column(&mut self, statements: &str) -> anyhow::Result<Vec<String>> {
        let rows = self.rows(statements)?;
        Ok(rows.into_iter().map(|row| row.into_iter().next().unwrap_or_default()).collect())
    }

    /// The only value.
    ///
    /// # Errors
    /// As [`Sql::rows`], and when there is not one row.
    pub(super) fn value(&mut self, statement: &str) -> anyhow::Result<String> {
        let mut column = self.column(statement)?;
        match (column.pop(), column.is_empty()) {
            (Some(value), true) => Ok(value),
            _ => bail!("there is not one row: {}", shortened(statement)),
        }
    }

    /// Runs statements.
    ///
    /// # Errors
    /// As [`Sql::rows`].
    pub(super) fn run(&mut self, statements: &str) -> anyhow::Result<()> {
        self.rows(statements).map(drop)
    }
}

/// The first line of statements, without what may follow a password in a connection string.
fn shortened(statements: &str) -> String {
    let line = statements.trim().lines().next().unwrap_or_default();
    let line = line.split(" connection ").next().unwrap_or_default();
    line.chars().take(100).collect()
}

/// A text as SQL has it, whatever characters are in it.
pub(super) fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_literal_whatever_is_in_it() {
        assert_eq!(literal("host=a"), "'host=a'");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }

    #[test]
    fn a_password_is_in_no_error() {
        let sql = "create subscription s connection 'host=a password=secret' publication p";
        assert_eq!(shortened(sql), "create subscription s");
    }
}
