//! A client inside the program, for SQL that the postmaster itself has to run in a session of its own.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use anyhow::ensure;
use parking_lot::{Condvar, Mutex};

use crate::{
    answer::{Rows, messages, result, simple_query},
    guest::client::{Client, Interest, Readiness, Waker},
};

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
        self.0.state.lock().to_session.extend(simple_query(sql)?);
        self.0.changed.notify_all();
        self.answer()
    }

    /// Waits for all messages up to `ReadyForQuery`.
    fn answer(&self) -> anyhow::Result<Rows> {
        let mut state = self.0.state.lock();
        while !messages(&state.to_client).any(|(kind, _)| kind == b'Z') && !state.session_is_gone {
            self.0.changed.wait(&mut state);
        }
        let answer = std::mem::take(&mut state.to_client);
        let rows = result(&answer)?;
        ensure!(!state.session_is_gone, "the session has ended");
        Ok(rows)
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

#[cfg(test)]
mod tests {
    use super::*;

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
