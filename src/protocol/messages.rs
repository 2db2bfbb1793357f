//! The parts of `PostgreSQL`'s answers that the host reads (`PostgreSQL` manual, "Message Formats").

use std::fmt;

use anyhow::{Context, ensure};

/// The rows of a result, with their values as text; `None` is null.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// An error from `PostgreSQL` (`PostgreSQL` manual, "Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SqlError {
    /// The SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    /// Its position in the SQL, in characters; the first one is 1.
    pub(crate) position: Option<usize>,
    /// The number of statements of the query that completed before it.
    pub(crate) completed: usize,
}

impl fmt::Display for SqlError {
    /// Writes it on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", one_line(&self.message), one_line(&self.code))?;
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

/// A message with its type and its length.
pub(crate) fn message(kind: u8, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u32::try_from(body.len() + 4)?;
    Ok([&[kind][..], &length.to_be_bytes(), body].concat())
}

/// A `Query` message.
///
/// # Errors
/// When `sql` contains a NUL, or is longer than a message can be.
pub(crate) fn simple_query(sql: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(!sql.contains('\0'), "the SQL contains a NUL character");
    message(b'Q', &[sql.as_bytes(), b"\0"].concat()).context("the SQL is too long")
}

/// The rows of an answer to a `Query`.
///
/// # Errors
/// The first error in it.
pub(crate) fn result(answer: &[u8]) -> Result<Rows, SqlError> {
    first_error(answer).map_or_else(|| Ok(rows(answer)), Err)
}

/// What every message but the first of a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The message's type.
    pub(crate) kind: u8,
    /// The length of the body that follows, in bytes.
    pub(crate) body: usize,
}

impl Head {
    /// Bytes of a head.
    pub(crate) const SIZE: usize = 5;

    /// The head in these bytes. The length in it includes its own four bytes; a smaller one counts as that.
    pub(crate) fn parse([kind, length @ ..]: [u8; Self::SIZE]) -> Self {
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        Self { kind, body: length.saturating_sub(4) }
    }
}

/// The type of `ReadyForQuery`.
pub(crate) const READY_FOR_QUERY: u8 = b'Z';
/// The type of an `ErrorResponse`.
pub(crate) const ERROR_RESPONSE: u8 = b'E';

/// The backend messages at the start of `bytes`, by type and body, up to the first incomplete one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<{ Head::SIZE }>()?;
        let head = Head::parse(*head);
        let (body, rest) = rest.split_at_checked(head.body)?;
        bytes = rest;
        Some((head.kind, body))
    })
}

/// The first `ErrorResponse` among backend messages.
fn first_error(answer: &[u8]) -> Option<SqlError> {
    let mut completed = 0;
    for (kind, body) in messages(answer) {
        match kind {
            b'C' => completed += 1,
            ERROR_RESPONSE => {
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

/// The rows among backend messages.
pub(crate) fn rows(answer: &[u8]) -> Rows {
    messages(answer).filter(|(kind, _)| *kind == b'D').filter_map(|(_, body)| data_row(body)).collect()
}

/// The first value of the first row; `None` if there is none or it is null.
pub(crate) fn first_value(rows: &Rows) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

/// The values of a `DataRow`; `None` when it is not one.
fn data_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, value) = rest.split_first_chunk::<4>()?;
        rest = value;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length)?;
        rest = after;
        values.push(Some(String::from_utf8_lossy(value).into_owned()));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(messages: &[(u8, &[u8])]) -> Vec<u8> {
        messages.iter().flat_map(|(kind, body)| message(*kind, body).unwrap()).collect()
    }

    #[test]
    fn the_first_error_is_found_behind_other_messages() {
        let error = b"SERROR\0C4260\n1\0Msyntax\nerror\0Dat the end\0P7\0Htry\0\0";
        let error = first_error(&answer(&[(b'C', b"SELECT 1\0"), (b'E', error), (b'Z', b"I")])).unwrap();
        assert_eq!((error.position, error.completed), (Some(7), 1));
        assert_eq!(error.to_string(), "syntax error (SQLSTATE 4260 1); detail: at the end; hint: try");
        assert_eq!(first_error(&answer(&[(b'Z', b"I")])), None);
    }

    #[test]
    fn a_query_ends_with_its_only_nul() {
        assert_eq!(simple_query("x").unwrap(), b"Q\0\0\0\x06x\0");
        assert!(simple_query("SELECT 1\0; DROP TABLE t").unwrap_err().to_string().contains("NUL"));
    }

    #[test]
    fn half_a_message_is_no_message() {
        assert_eq!(first_error(b"E\0\0"), None);
        assert_eq!(first_error(b"E\0\0\0"), None);
        assert_eq!(first_error(b"E\0\0\0\x40SERROR\0"), None);
    }

    #[test]
    fn a_row_has_values_and_nulls() {
        let answer = answer(&[(b'D', b"\0\x02\xff\xff\xff\xff\0\0\0\x02ab"), (b'D', b"\0\x01\0\0\0\x09ab")]);
        assert_eq!(rows(&answer), [[None, Some("ab".to_owned())]]);
    }
}
