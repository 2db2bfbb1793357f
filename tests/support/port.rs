//! A port that exchanges frames: the built program's, or one in this process with fake sessions.

use std::{
    io::{Read, Write, pipe},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pglite_port::{
    administration::Administration,
    connection::STARTUP_TIMEOUT,
    port::{
        self, Ending,
        frame::{self, Kind, Options, Parsed},
    },
    session::{Mode, Sessions},
};

use super::{PATIENCE, program::Program, wire};

/// A frame received.
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    /// Its kind.
    pub kind: Kind,
    /// Its connection or request.
    pub id: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let payload = String::from_utf8_lossy(&self.payload[..self.payload.len().min(300)]);
        write!(f, "{:?} {} [{} bytes: {payload:?}]", self.kind, self.id, self.payload.len())
    }
}

impl Received {
    /// The payload as options.
    pub fn options(&self) -> Options {
        Options::parse(&self.payload).expect("options")
    }

    /// Severity, code and message of a close frame.
    pub fn reason(&self) -> [String; 3] {
        assert_eq!(self.kind, Kind::Close, "{self:?}");
        let options = self.options();
        ["severity", "code", "message"].map(|key| options.get(key).expect(key).to_owned())
    }

    /// The word and the options of a reply.
    pub fn reply(&self) -> (String, Options) {
        assert_eq!(self.kind, Kind::Reply, "{self:?}");
        let end = self.payload.iter().position(|byte| *byte == 0).expect("a NUL behind the word");
        let word = String::from_utf8(self.payload[..end].to_vec()).expect("text");
        (word, Options::parse(&self.payload[end + 1..]).expect("options"))
    }
}

/// The encoded frame.
pub fn frame(kind: Kind, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::Frame { kind, id, payload }.encode(&mut bytes).expect("short enough");
    bytes
}

/// The parent's side of a port. It sends no window frames by itself.
pub struct Port {
    input: Option<Box<dyn Write + Send>>,
    frames: Receiver<Received>,
    // The program, unless the port runs in this process.
    program: Option<Program>,
    in_process: Option<JoinHandle<Ending>>,
    /// Whether reading is paused.
    paused: Arc<(Mutex<bool>, Condvar)>,
    /// Asks the port in this process to shut down, as a signal does.
    pub signals: crossbeam_channel::Sender<()>,
}

impl Port {
    /// A port of the built program, started with these arguments after `port`, after its hello.
    pub fn spawn(arguments: &[&str]) -> Self {
        let mut program = Program::spawn(&[&["port"], arguments].concat());
        let (stdin, stdout) = (program.take_stdin(), program.take_stdout());
        let mut port = Self::new(stdin, stdout, crossbeam_channel::bounded(0).0);
        port.program = Some(program);
        port.hello();
        port
    }

    /// A port in this process with these sessions, after its hello.
    pub fn with_sessions(sessions: impl Sessions + Administration) -> Self {
        let (input, to_input) = pipe().expect("a pipe");
        let (from_output, output) = pipe().expect("a pipe");
        let (signals, receiver) = crossbeam_channel::unbounded();
        let run = move || {
            port::run(input, output, Arc::new(sessions), Mode::Shared, STARTUP_TIMEOUT, port::GRACE, &receiver)
                .expect("threads")
        };
        let mut port = Self::new(to_input, from_output, signals);
        port.in_process = Some(thread::spawn(run));
        port.hello();
        port
    }

    fn new(
        input: impl Write + Send + 'static,
        output: impl Read + Send + 'static,
        signals: crossbeam_channel::Sender<()>,
    ) -> Self {
        let (sender, frames) = channel();
        let paused = Arc::<(Mutex<bool>, Condvar)>::default();
        let reader_paused = paused.clone();
        thread::spawn(move || {
            read_frames(output, |frame| {
                let (paused, changed) = &*reader_paused;
                let paused = paused.lock().expect("no panic");
                drop(changed.wait_while(paused, |paused| *paused));
                sender.send(frame).is_ok()
            });
        });
        let input: Option<Box<dyn Write + Send>> = Some(Box::new(input));
        Self { input, frames, program: None, in_process: None, paused, signals }
    }

    fn hello(&self) {
        let hello = self.next();
        assert_eq!((hello.kind, hello.id), (Kind::Hello, 0), "{hello:?}");
    }

    /// Sends raw bytes immediately.
    pub fn send(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("stdin is open");
        input.write_all(bytes).and_then(|()| input.flush()).expect("the port reads");
    }

    /// Sends a frame.
    pub fn send_frame(&mut self, kind: Kind, id: u32, payload: &[u8]) {
        self.send(&frame(kind, id, payload));
    }

    /// Opens a connection, without options.
    pub fn open(&mut self, id: u32) {
        self.send_frame(Kind::Open, id, b"\0");
    }

    /// Opens a connection and sends the startup message for a user.
    pub fn start(&mut self, id: u32, user: &str) {
        self.open(id);
        self.data(id, &wire::startup(&[("user", user)]));
    }

    /// Sends data.
    pub fn data(&mut self, id: u32, bytes: &[u8]) {
        self.send_frame(Kind::Data, id, bytes);
    }

    /// Gives credit, in bytes.
    pub fn window(&mut self, id: u32, credit: u32) {
        self.send_frame(Kind::Window, id, &credit.to_be_bytes());
    }

    /// Sends the close frame of a client that is gone.
    pub fn close(&mut self, id: u32) {
        self.send_frame(Kind::Close, id, b"");
    }

    /// Sends a request without options.
    pub fn request(&mut self, id: u32, verb: &str) {
        self.send_frame(Kind::Request, id, format!("{verb}\0\0").as_bytes());
    }

    /// Pauses or resumes reading.
    pub fn pause_reading(&mut self, pause: bool) {
        let (paused, changed) = &*self.paused;
        *paused.lock().expect("no panic") = pause;
        changed.notify_all();
    }

    /// The next frame.
    pub fn next(&self) -> Received {
        self.frames.recv_timeout(PATIENCE).expect("a frame")
    }

    /// Asserts that no frame comes before the output ends.
    pub fn assert_at_end(&self) {
        match self.frames.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Disconnected) => {}
            other => panic!("more than expected: {other:?}"),
        }
    }

    /// The data of one connection until there are `length` bytes; fails if another frame comes first.
    pub fn data_of(&self, id: u32, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let frame = self.next();
            assert_eq!((frame.kind, frame.id), (Kind::Data, id), "{frame:?} after {} bytes", bytes.len());
            bytes.extend(frame.payload);
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    /// The data of one connection until it is closed, and the reason; fails if a frame of another connection comes
    /// first.
    pub fn until_closed(&self, id: u32) -> (Vec<u8>, [String; 3]) {
        let mut bytes = Vec::new();
        loop {
            let frame = self.next();
            assert_eq!(frame.id, id, "{frame:?}");
            match frame.kind {
                Kind::Data => bytes.extend(frame.payload),
                Kind::Window | Kind::Log => {}
                _ => return (bytes, frame.reason()),
            }
        }
    }

    /// Asserts that all frames sent so far were handled without an answer: the reply to a request is the next frame.
    pub fn assert_silent(&mut self) {
        self.request(u32::MAX, "stats");
        let reply = self.next();
        assert_eq!((reply.kind, reply.id), (Kind::Reply, u32::MAX), "{reply:?}");
    }

    /// Closes stdin.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Waits until a port in this process has ended.
    pub fn ending(&mut self) -> Ending {
        self.in_process.take().expect("in this process").join().expect("no panic")
    }

    /// The process id of the program.
    pub fn program_id(&self) -> u32 {
        self.program.as_ref().expect("a program").id()
    }

    /// Sets a resource limit of the program.
    pub fn limit(&self, resource: rustix::process::Resource, limit: rustix::process::Rlimit) {
        self.program.as_ref().expect("a program").limit(resource, limit);
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        self.program.as_ref().expect("a program").signal(signal);
    }

    /// Waits until the program has ended; returns the lines that it wrote to stderr.
    pub fn stderr(&mut self) -> Vec<String> {
        self.program.as_mut().expect("a program").wait_for_stderr()
    }

    /// Waits until the program has ended; returns its exit status and how long it took.
    pub fn exit_status(&mut self) -> (Option<i32>, Duration) {
        let (status, took) = self.program.as_mut().expect("a program").wait();
        (status.code(), took)
    }
}

/// Passes every frame in `output` to `each` until that returns false.
fn read_frames(mut output: impl Read, each: impl Fn(Received) -> bool) {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let mut at = 0;
        while let Parsed::Frame { frame, consumed } = frame::parse(&bytes[at..]).expect("well-formed frames") {
            at += consumed;
            if !each(Received { kind: frame.kind, id: frame.id, payload: frame.payload.to_vec() }) {
                return;
            }
        }
        bytes.drain(..at);
        match output.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}
