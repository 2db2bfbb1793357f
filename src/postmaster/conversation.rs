//! A client inside the program, for SQL that the postmaster itself has to run in a session of its own.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::Instant,
};

use anyhow::{bail, ensure};
use parking_lot::{Condvar, Mutex};

use crate::guest::client::{Client, Interest, Readiness, Waker};

/// The client's end.
pub(super) struct Conversation(Arc<Line>);

/// The session's end.
pub(super) struct InsideClient(Arc<Line>);

/// What is said in both directions.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    to_session: VecDeque<u8>,
    to_client: Vec<u8>,
    woken: bool,
    client_is_gone: bool,
    session_is_gone: bool,
}

/// The rows of a result, as text.
pub(super) type Rows = Vec<Vec<Option<String>>>;

/// Both ends of a conversation.
pub(super) fn conversation() -> (Conversation, InsideClient) {
    let line = Arc::new(Line::default());
    (Conversation(line.clone()), InsideClient(line))
}

impl Conversation {
    /// Waits until the session is ready for its first query.
    ///
    /// # Errors
    /// When it was refused.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        self.answer().map(drop)
    }

    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// The SQL error, or that the session has ended.
    pub(super) fn query(&self, sql: &str) -> anyhow::Result<Rows> {
        ensure!(!sql.contains('\0'), "the SQL contains a NUL character");
        let mut message = vec![b'Q'];
        message.extend(u32::try_from(sql.len() + 5)?.to_be_bytes());
        message.extend(sql.as_bytes());
        message.push(0);
        self.0.state.lock().to_session.extend(message);
        self.0.changed.notify_all();
        self.answer()
    }

    /// Collects messages up to `ReadyForQuery`.
    fn answer(&self) -> anyhow::Result<Rows> {
        let (mut rows, mut error) = (Rows::new(), None);
        loop {
            let Some((kind, body)) = self.message() else {
                bail!(error.unwrap_or_else(|| "the session has ended".to_owned()));
            };
            match kind {
                b'D' => rows.push(data_row(&body).unwrap_or_default()),
                b'E' => error = Some(error_message(&body)),
                b'Z' => match error {
                    Some(error) => bail!(error),
                    None => return Ok(rows),
                },
                _ => {}
            }
        }
    }

    /// The next message of the session's; `None` when it has ended.
    fn message(&self) -> Option<(u8, Vec<u8>)> {
        let mut state = self.0.state.lock();
        loop {
            if let [kind, a, b, c, d, ..] = state.to_client[..] {
                let end = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                if state.to_client.len() >= end {
                    let message: Vec<u8> = state.to_client.drain(..end).collect();
                    return Some((kind, message.get(5..)?.to_vec()));
                }
            }
            if state.session_is_gone {
                return None;
            }
            self.0.changed.wait(&mut state);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.0.state.lock().client_is_gone = true;
        self.0.changed.notify_all();
    }
}

impl Drop for InsideClient {
    fn drop(&mut self) {
        self.0.state.lock().session_is_gone = true;
        self.0.changed.notify_all();
    }
}

impl Client for InsideClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.to_session.is_empty() && !state.client_is_gone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        io::Read::read(&mut state.to_session, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What the postmaster asks for has small answers.
        self.0.state.lock().to_client.extend(bytes);
        self.0.changed.notify_all();
        Ok(bytes.len())
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        let mut state = self.0.state.lock();
        loop {
            if std::mem::take(&mut state.woken) {
                return Readiness::Woken;
            }
            let readable = !state.to_session.is_empty() || state.client_is_gone;
            if interest == Interest::Write || (interest == Interest::Read && readable) {
                return Readiness::Ready;
            }
            let Some(deadline) = deadline else {
                self.0.changed.wait(&mut state);
                continue;
            };
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return Readiness::TimedOut;
            }
        }
    }

    fn waker(&self) -> Waker {
        let line = self.0.clone();
        Waker::new(move || {
            line.state.lock().woken = true;
            line.changed.notify_all();
        })
    }
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

/// The message and SQLSTATE of an `ErrorResponse`.
fn error_message(body: &[u8]) -> String {
    let field = |code: u8| {
        let text = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&code));
        text.map(|text| String::from_utf8_lossy(&text[1..]).into_owned()).unwrap_or_default()
    };
    format!("{} (SQLSTATE {})", field(b'M'), field(b'C'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_row_has_values_and_nulls() {
        let body = b"\0\x02\xff\xff\xff\xff\0\0\0\x02ab";
        assert_eq!(data_row(body), Some(vec![None, Some("ab".to_owned())]));
        assert_eq!(data_row(b"\0\x01\0\0\0\x09ab"), None);
    }

    #[test]
    fn what_is_asked_reaches_the_session_and_its_answer_the_client() {
        let (client, mut session) = conversation();
        let asked = std::thread::spawn(move || client.query("SELECT 1"));
        assert_eq!(session.wait(Interest::Read, None), Readiness::Ready);
        let mut buffer = [0; 64];
        let count = session.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"Q\0\0\0\x0dSELECT 1\0");
        session.write(b"D\0\0\0\x0b\0\x01\0\0\0\x011Z\0\0\0\x05I").unwrap();
        assert_eq!(asked.join().unwrap().unwrap(), [[Some("1".to_owned())]]);
        // The client is gone now.
        assert_eq!(session.wait(Interest::Read, None), Readiness::Ready);
        assert_eq!(session.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_session_that_ends_is_an_error() {
        let (client, session) = conversation();
        drop(session);
        assert!(client.start().unwrap_err().to_string().contains("has ended"));
    }
}
