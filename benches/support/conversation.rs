//! A client in memory, on the session's own thread: measures a session without sockets, pipes and other threads.

use std::{
    io::{self, ErrorKind},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pglite_port::{
    client::{Client, Interest, Readiness, Waker},
    connection::{Connections, Opening},
    log::LogSink,
    quota::Limits,
    session::Mode,
};

use super::wire;

/// The messages of a client. Each is sent after the previous one was answered with `ReadyForQuery`.
#[derive(Clone, Debug)]
pub struct Script {
    /// Sent once, before the measurement.
    pub setup: Vec<Vec<u8>>,
    /// Sent repeatedly, and measured.
    pub round: Vec<Vec<u8>>,
    /// The type of the first message in the last answer of a round.
    pub answer: u8,
}

/// Runs the script in a new session with `rounds` rounds, and returns the time of the rounds.
///
/// # Panics
/// When the session ends early, or an answer is not as expected.
pub fn converse(connections: &Arc<Connections>, mode: Mode, script: &Script, rounds: u64) -> Duration {
    let client = Conversation(Arc::new(Mutex::new(State::new(script.clone(), rounds))));
    let (log, limits) = (LogSink::to_own_log(), Limits::default());
    let opening = Opening { id: 1, mode, cluster: None, template: None, limits, is_trusted: false, log };
    let (sender, ended) = mpsc::channel();
    connections
        .start(client, opening, move |client, report| {
            // The receiver waits for this.
            let _ = sender.send((client, report));
        })
        .expect("a thread for the session");
    let (client, report) = ended.recv().expect("the session's end");
    let state = client.0.lock();
    state.took.unwrap_or_else(|| panic!("the session ended early: {report}"))
}

/// The client. A clone is the same client.
#[derive(Clone)]
struct Conversation(Arc<Mutex<State>>);

struct State {
    script: Script,
    rounds_left: u64,
    /// The index of the next message in the setup, then in the round.
    next: usize,
    in_setup: bool,
    /// The current message; it is sent from `sent` on.
    message: Vec<u8>,
    sent: usize,
    /// The answer to it so far.
    answer: Vec<u8>,
    started: Instant,
    took: Option<Duration>,
}

impl State {
    fn new(script: Script, rounds: u64) -> Self {
        Self {
            script,
            rounds_left: rounds,
            next: 0,
            in_setup: true,
            message: wire::startup(&[("user", "postgres"), ("database", "postgres")]),
            sent: 0,
            answer: Vec::new(),
            started: Instant::now(),
            took: None,
        }
    }

    /// Called when the last message was answered: continues with the next one.
    fn advance(&mut self) {
        if self.in_setup && self.next == self.script.setup.len() {
            (self.in_setup, self.next) = (false, 0);
            self.started = Instant::now();
        } else if !self.in_setup && self.next == self.script.round.len() {
            assert_eq!(char::from(self.answer[0]), char::from(self.script.answer), "{:?}", self.text());
            self.next = 0;
            self.rounds_left -= 1;
            if self.rounds_left == 0 {
                self.took = Some(self.started.elapsed());
                self.say(wire::terminate());
                return;
            }
        }
        let messages = if self.in_setup { &self.script.setup } else { &self.script.round };
        let message = std::mem::take(&mut self.message);
        self.message = reuse(message, &messages[self.next]);
        (self.next, self.sent) = (self.next + 1, 0);
        self.answer.clear();
    }

    fn say(&mut self, message: Vec<u8>) {
        (self.message, self.sent) = (message, 0);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}

fn reuse(mut buffer: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    buffer
}

impl Client for Conversation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let left = &state.message[state.sent..];
        if left.is_empty() {
            return if state.took.is_some() { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let read = left.len().min(buffer.len());
        buffer[..read].copy_from_slice(&left[..read]);
        state.sent += read;
        Ok(read)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        state.answer.extend_from_slice(bytes);
        if wire::is_ready_for_query(&state.answer) && state.took.is_none() {
            state.advance();
        }
        Ok(bytes.len())
    }

    fn wait(&mut self, interest: Interest, _deadline: Option<Instant>) -> Readiness {
        let state = self.0.lock();
        let has_something_to_say = state.sent < state.message.len() || state.took.is_some();
        assert!(interest != Interest::Read || has_something_to_say, "the session waits: {:?}", state.text());
        Readiness::Ready
    }

    fn waker(&self) -> Waker {
        Waker::new(|| {})
    }
}
