//! Clients in this process, without sockets and frames.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

use crossbeam_channel::{Receiver, bounded};
use pglite_port::{
    client::{Client, Interest, Readiness, Waker},
    connection::{Connections, Opening},
    databases::Settings,
    log::LogSink,
    protocol::error_response::ErrorResponse,
    quota::Limits,
    session::{Control, Mode, Outcome, PendingTask, Task},
};

use super::{PATIENCE, cache, wire};

/// How many bytes of the backend may wait for their reader, as in a frame connection's window.
const WINDOW: usize = 256 << 10;

#[derive(Default)]
struct State {
    to_backend: VecDeque<u8>,
    from_backend: Vec<u8>,
    gone: bool,
    woken: bool,
}

/// The backend's end of the connection.
#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<State>, Condvar)>);

impl Pipe {
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.0.0.lock().expect("no panic"));
        self.0.1.notify_all();
        result
    }
}

impl Client for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().expect("no panic");
        if state.to_backend.is_empty() && !state.gone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        io::Read::read(&mut state.to_backend, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|state| {
            let room = WINDOW.saturating_sub(state.from_backend.len()).min(bytes.len());
            if state.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            state.from_backend.extend(&bytes[..room]);
            Ok(room)
        })
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        let mut state = self.0.0.lock().expect("no panic");
        loop {
            if std::mem::take(&mut state.woken) {
                return Readiness::Woken;
            }
            let ready = match interest {
                Interest::Read => state.gone || !state.to_backend.is_empty(),
                Interest::Write => state.gone || state.from_backend.len() < WINDOW,
                Interest::Either => state.gone || !state.to_backend.is_empty() || state.from_backend.len() < WINDOW,
                Interest::Nothing => false,
            };
            if ready {
                return Readiness::Ready;
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Readiness::TimedOut,
                Some(left) => self.0.1.wait_timeout(state, left).expect("no panic").0,
                None => self.0.1.wait(state).expect("no panic"),
            };
        }
    }

    fn waker(&self) -> Waker {
        let pipe = self.clone();
        Waker::new(move || pipe.change(|state| state.woken = true))
    }
}

/// The client's end; dropping it hangs up and waits for the end of the session.
pub struct Local {
    pipe: Pipe,
    /// Controls the session from outside.
    pub control: Control,
    ended: Receiver<ErrorResponse>,
}

/// How to connect.
#[derive(Clone, Copy)]
pub struct Connect<'a> {
    pub id: u32,
    pub mode: Mode,
    pub cluster: Option<&'a str>,
    pub template: Option<&'a str>,
    pub parameters: &'a [(&'a str, &'a str)],
    pub limits: Limits,
}

impl Default for Connect<'_> {
    fn default() -> Self {
        let (mode, parameters, limits) = (Mode::Isolated, &[("user", "postgres")], Limits::default());
        Self { id: 1, mode, cluster: None, template: None, parameters, limits }
    }
}

impl Local {
    /// Connects and sends the startup packet.
    pub fn start(connections: &Arc<Connections>, connect: Connect<'_>) -> Self {
        Self::start_with_log(connections, connect, LogSink::to_own_log())
    }

    /// As [`Local::start`]; the backend's log lines go to `log`.
    pub fn start_with_log(connections: &Arc<Connections>, connect: Connect<'_>, log: LogSink) -> Self {
        let pipe = Pipe::default();
        pipe.change(|state| state.to_backend.extend(wire::startup(connect.parameters)));
        let opening = Opening {
            id: connect.id,
            mode: connect.mode,
            cluster: connect.cluster.map(str::to_owned),
            template: connect.template.map(str::to_owned),
            limits: connect.limits,
            is_trusted: false,
            log,
        };
        let (sender, ended) = bounded(1);
        let on_end = move |pipe: Pipe, report| {
            pipe.change(|state| state.gone = true);
            // The client may have gone without waiting.
            let _ = sender.send(report);
        };
        let control = connections.start(pipe.clone(), opening, on_end).expect("a thread");
        Self { pipe, control, ended }
    }

    /// As [`Local::start`], and waits for the first `ReadyForQuery`; returns the messages up to it.
    pub fn connect(connections: &Arc<Connections>, connect: Connect<'_>) -> (Self, Vec<wire::Message>) {
        let mut local = Self::start(connections, connect);
        let messages = local.until_ready();
        (local, messages)
    }

    /// As [`Local::connect`], as the superuser to the database `postgres` of the cluster `cluster`.
    pub fn connect_to(connections: &Arc<Connections>, cluster: &str) -> Self {
        Self::connect(connections, Connect { cluster: Some(cluster), ..Connect::default() }).0
    }

    /// As [`Local::connect`], as `user` to a clone of `template`.
    pub fn connect_as(connections: &Arc<Connections>, template: &str, user: &str) -> (Self, Vec<wire::Message>) {
        let parameters = &[("user", user)];
        Self::connect(connections, Connect { template: Some(template), parameters, ..Connect::default() })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.pipe.change(|state| state.to_backend.extend(bytes));
    }

    /// Waits for the next `ReadyForQuery` or the end; returns all messages up to it.
    pub fn until_ready(&mut self) -> Vec<wire::Message> {
        wire::Message::all(self.wait_for(is_ready))
    }

    /// Waits until the backend has begun its answer, which stays unread.
    pub fn wait_for_answer(&mut self) {
        let bytes = self.wait_for(|_| true);
        self.pipe.change(|state| state.from_backend.splice(..0, bytes).count());
    }

    /// Sends a simple query; returns the whole answer.
    pub fn query(&mut self, sql: &str) -> Vec<wire::Message> {
        self.send(&wire::query(sql));
        self.until_ready()
    }

    /// Runs a simple query; returns the values of its rows as text. Panics if it fails.
    pub fn values(&mut self, sql: &str) -> Vec<String> {
        wire::values(sql, &self.query(sql))
    }

    /// Makes a template with that name from its cluster.
    pub fn freeze(&self, name: &str) {
        self.perform(Task::Freeze { name: name.to_owned(), key: None, limits: Limits::default() })
            .expect("it is frozen");
    }

    /// Resets its cluster to its template.
    pub fn reset(&self) {
        self.perform(Task::Reset).expect("it is reset");
    }

    /// Has a task done.
    pub fn perform(&self, task: Task) -> Outcome {
        let (sender, answer) = bounded(1);
        self.control.assign(PendingTask::new(task, move |answer| sender.send(answer).expect("we wait")));
        answer.recv_timeout(PATIENCE).expect("an answer")
    }

    /// The messages that the backend has sent and the test has not read.
    pub fn unread(&self) -> Vec<wire::Message> {
        wire::Message::all(self.pipe.change(|state| std::mem::take(&mut state.from_backend)))
    }

    /// Waits for the end of the session; returns its report.
    pub fn report(&self) -> ErrorResponse {
        self.ended.recv_timeout(PATIENCE).expect("it ends")
    }

    /// What the backend sends until that is enough, or until it is gone.
    fn wait_for(&self, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let state = self.pipe.0.0.lock().expect("no panic");
            let has_nothing = |state: &mut State| state.from_backend.is_empty() && !state.gone;
            let (mut state, waited) = self.pipe.0.1.wait_timeout_while(state, PATIENCE, has_nothing).expect("no panic");
            let more = std::mem::take(&mut state.from_backend);
            let is_gone = state.gone;
            // The backend's end uses the lock, also when the test has failed.
            drop(state);
            assert!(!waited.timed_out(), "the backend does not answer");
            self.pipe.0.1.notify_all();
            bytes.extend(more);
            if is_gone || is_enough(&bytes) {
                return bytes;
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.pipe.change(|state| state.gone = true);
        // A panicking test need not wait.
        if !std::thread::panicking() {
            let _ = self.ended.recv_timeout(PATIENCE);
        }
    }
}

/// Runs `sql` in a clone of the default template, and makes a template from the clone.
pub fn frozen(name: &str, sql: &str) -> Arc<Connections> {
    let connections = cache::connections(Settings::default());
    let mut clone = Local::connect(&connections, Connect::default()).0;
    clone.values(sql);
    clone.freeze(name);
    connections
}

/// Whether the bytes end with a complete `ReadyForQuery`; no other message of the tests ends with these bytes.
fn is_ready(bytes: &[u8]) -> bool {
    matches!(bytes, [.., b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E'])
}
