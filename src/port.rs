//! The port: frames from stdin, frames to stdout. Detects the end of the parent, and ends all sessions then.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    process,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, select, unbounded};

use crate::{
    administration::Administration,
    connection::Connections,
    engine::artefact::{PGLITE_VERSION, POSTGRES_VERSION},
    log::patient::Patient,
    port::{
        frame::{Kind, MAX_FRAME, Malformed, Options, Parsed, WINDOW},
        outbox::Outbox,
        router::Router,
    },
    session::{Mode, Sessions},
};

pub mod frame;
pub(crate) mod outbox;
mod parent;
pub(crate) mod relay;
mod router;

pub use parent::ParentWatch;

/// How long the program may take to stop after a request or a signal if nothing else is chosen.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long it may take at most when the parent is gone. With [`FLUSH`] it stays below the two
/// seconds that are promised.
const SHORT_GRACE: Duration = Duration::from_secs(1);
/// How long writing the last frames may take.
const FLUSH: Duration = Duration::from_millis(500);
/// The initial size of the buffer for stdin, in bytes.
const READ: usize = 1 << 16;

/// Why the port ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A request or a signal asked for it.
    ShutDown,
    /// Stdin is at its end, or stdout takes no more.
    ParentGone,
    /// The parent sent something that is no frame, so that nothing after it can be read.
    Malformed {
        /// Where the frame begins: its first byte's offset in the stream.
        offset: u64,
        /// What is wrong with it.
        error: Malformed,
    },
}

impl Ending {
    fn grace(&self, chosen: Duration) -> Duration {
        match self {
            Self::ShutDown => chosen,
            Self::ParentGone | Self::Malformed { .. } => chosen.min(SHORT_GRACE),
        }
    }
}

/// Serves the parent at the other end of `input` and `output` until it is gone or the port is to shut
/// down, which a message in `signals` asks for as well.
///
/// A client may take `startup_timeout` over its startup packet.
///
/// Sessions end and clusters are shut down before this returns, within `grace`, or a second when the parent is gone;
/// sessions that do not end in time are still running, so the program has to exit.
///
/// # Errors
/// If the threads for reading and writing do not start.
pub fn run(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    databases: Arc<impl Sessions + Administration>,
    mode: Mode,
    startup_timeout: Duration,
    grace: Duration,
    signals: &Receiver<()>,
) -> io::Result<Ending> {
    let (ending, endings) = unbounded();
    let outbox = Arc::new(Outbox::default());
    outbox.push_options(Kind::Hello, 0, &hello());
    let connections = Arc::new(Connections::new(databases.clone()).with_startup_timeout(startup_timeout));

    let (writer_outbox, writer_ending) = (outbox.clone(), ending.clone());
    thread::Builder::new().name("stdout".to_owned()).spawn(move || {
        let error = writer_outbox.write_to(output);
        tracing::debug!(%error, "stdout takes no more: the parent is gone");
        // The receiver is gone after the end has begun.
        let _ = writer_ending.send(Ending::ParentGone);
    })?;

    let on_shut_down = ending.clone();
    let router = Router::new(connections.clone(), databases, outbox.clone(), mode, move || {
        let _ = on_shut_down.send(Ending::ShutDown);
    });
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let router = Arc::new(router);
        let end = read_frames(input, &router);
        router.parent_gone();
        let _ = ending.send(end);
    })?;

    let mut end = select! {
        recv(endings) -> end => end.unwrap_or(Ending::ParentGone),
        recv(signals) -> _ => Ending::ShutDown,
    };
    tracing::debug!(?end, "the port ends");
    connections.shut_down_within(end.grace(grace), &endings, |later| {
        let grace = later.grace(grace);
        if end == Ending::ShutDown {
            end = later;
        }
        grace
    });
    outbox.flush(Instant::now() + FLUSH);
    Ok(end)
}

/// Stdin and stdout for [`run`]. From then on, whatever else writes to stdout writes to stderr.
///
/// # Errors
/// The operating system's, if one of them is closed.
pub fn take_stdio() -> io::Result<(impl Read + Send + 'static, impl Write + Send + 'static)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((Patient::from(input), Patient::from(output)))
}

/// The options of the first frame.
fn hello() -> Options {
    Options::new()
        .with("protocol", frame::PROTOCOL_VERSION)
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("pglite", PGLITE_VERSION)
        .with("postgres", POSTGRES_VERSION)
        .with("max_frame", MAX_FRAME)
        .with("window", WINDOW)
        .with("pid", process::id())
}

/// Passes frames on until there are no more, and returns the reason.
fn read_frames(mut input: impl Read, router: &Arc<Router>) -> Ending {
    // Bytes `start..end` have been read but not parsed; the frame at `start` is the stream's `offset`th byte.
    let (mut buffer, mut start, mut end, mut offset) = (vec![0; READ], 0, 0, 0);
    loop {
        match frame::parse(&buffer[start..end]) {
            Ok(Parsed::Frame { frame, consumed }) => {
                if !frame.kind.is_for_the_program() {
                    return Ending::Malformed { offset, error: Malformed::WrongSender { letter: frame.kind.letter() } };
                }
                router.accept(frame);
                start += consumed;
                offset += u64::try_from(consumed).unwrap_or(u64::MAX);
                continue;
            }
            Ok(Parsed::NeedMore(_)) => {}
            Err(error) => return Ending::Malformed { offset, error },
        }
        if start > 0 {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        if end == buffer.len() {
            // Only a frame larger than the buffer gets here, so it never exceeds twice the largest frame.
            buffer.resize(2 * buffer.len(), 0);
        }
        match input.read(&mut buffer[end..]) {
            Ok(0) => return Ending::ParentGone,
            Ok(read) => end += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "stdin cannot be read: taken for its end");
                return Ending::ParentGone;
            }
        }
    }
}
