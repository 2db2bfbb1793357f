//! One client from its first byte to its last: startup, session, the report of how it ended.

use std::{
    any::Any,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
    time::{Duration, Instant},
};

use crate::{
    error_response::{ErrorResponse, Severity, sqlstate},
    guest::client::{Client, Interest, Readiness},
    log::LogSink,
    startup::{Negotiation, StartupError, StartupMessage, Step},
};

mod boundary;
mod control;
mod live;
mod request;

pub use control::{Control, Registration};
pub use live::Connections;
pub use request::{Answer, Request, Task};

use boundary::Followed;
pub use boundary::TransactionStatus;

#[cfg(test)]
mod tests;

/// How long a client may take over its startup packet (PostgreSQL's default `authentication_timeout`).
pub const STARTUP_TIMEOUT: Duration = Duration::from_mins(1);

/// Which kind of database a connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All connections are sessions of one cluster.
    #[default]
    Shared,
    /// Every connection has a cluster of its own, gone when it closes.
    Isolated,
}

/// A text that names no [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}: use shared or isolated")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "shared" => Ok(Self::Shared),
            "isolated" => Ok(Self::Isolated),
            _ => Err(UnknownMode(text.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Isolated => "isolated",
        })
    }
}

/// Makes sessions; there is one for the program.
pub trait Sessions: Send + Sync + 'static {
    /// Serves one client until its session ends. Called on the connection's own thread.
    ///
    /// All that the session has to say has been written when it returns: [`Client::write`] takes a part
    /// at a time, and a session waits for the rest of its window.
    fn serve(&self, request: SessionRequest<'_>, client: Box<dyn Client>) -> SessionEnd;

    /// Puts everything away (a shutdown checkpoint, say) after the last session has ended. The program
    /// exits when it returns, or when it takes too long.
    fn shut_down(&self) {}

    /// Has the clusters read their configuration files again, as a `SIGHUP` to a postmaster does.
    ///
    /// # Errors
    /// When a cluster cannot, or these sessions have none.
    fn reload(&self) -> Answer {
        Err(not_available("reload"))
    }

    /// Figures for the reply to `stats`.
    fn stats(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The private memory of the connections that have a cluster of their own: for each `connection`, `memory`, `files` and `sum`, in bytes, then
    /// the totals of all of them.
    ///
    /// # Errors
    /// When there is no such accounting here.
    fn memory(&self) -> Answer {
        Err(not_available("memory"))
    }

    /// The templates: for each `name`, `database`, `key`, `size` on disk in bytes, and when it was `made`, in microseconds since 1970.
    ///
    /// # Errors
    /// When they cannot be read, or these sessions have no templates.
    fn templates(&self) -> Answer {
        Err(not_available("templates"))
    }

    /// Removes the template `name`; clones of it live on.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    fn drop_template(&self, name: &str) -> Answer {
        let _ = name;
        Err(not_available("drop_template"))
    }
}

fn not_available(what: &str) -> ErrorResponse {
    ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, format!("{what} is not available for these sessions"))
}

/// What a session is made from.
#[non_exhaustive]
pub struct SessionRequest<'a> {
    /// The connection's number.
    pub id: u32,
    /// The startup message, parsed.
    pub startup: &'a StartupMessage,
    /// The same as it came, length word included; it is no longer in the client's stream.
    pub packet: &'a [u8],
    /// Which kind of database is asked for.
    pub mode: Mode,
    /// The template to clone, if it is not to be found by the database's name.
    pub template: Option<&'a str>,
    /// Where the guest's own output goes.
    pub log: &'a LogSink,
    /// Where the session registers to be interrupted.
    pub control: &'a Control,
    /// How its transaction stands.
    pub transaction: TransactionStatus,
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// As PostgreSQL ends one: the client said so, or the backend has told it why.
    Orderly,
    /// The client went away.
    ClientGone,
    /// The session could not start or was ended from outside, and its client has not been told why: this
    /// is why. A report of [`Severity::Log`] it is not told.
    Refused(ErrorResponse),
    /// The wasm trapped; the error carries the backtrace, for the log.
    Trapped(anyhow::Error),
}

/// What a connection is opened with.
#[derive(Clone)]
pub struct Opening {
    /// Its number, for the log.
    pub id: u32,
    /// Which kind of database it gets.
    pub mode: Mode,
    /// The template to clone, if it is not to be found by the database's name.
    pub template: Option<String>,
    /// Where the guest's own output goes.
    pub log: LogSink,
}

/// Serves `client` from its first byte to its last and returns the report of how it ended, for the close frame.
///
/// A panic on the way ends only this connection.
fn attend<C: Client + Clone + 'static>(
    connections: &Connections,
    mut client: C,
    opening: &Opening,
    control: &Control,
) -> ErrorResponse {
    let mut followed = Followed::new(client.clone());
    let end = catch_unwind(AssertUnwindSafe(|| {
        let (startup, packet) = match negotiate(connections, &mut client, control) {
            Ok(start) => start,
            Err(end) => return end,
        };
        let request = SessionRequest {
            id: opening.id,
            startup: &startup,
            packet: &packet,
            mode: opening.mode,
            template: opening.template.as_deref(),
            log: &opening.log,
            control,
            transaction: followed.transaction(),
        };
        connections.sessions().serve(request, Box::new(followed.clone()))
    }));
    let report = match end {
        Ok(SessionEnd::Orderly) => return closed("connection closed"),
        Ok(SessionEnd::ClientGone) => return closed("the client is gone"),
        Ok(SessionEnd::Refused(report)) => {
            tracing::info!(%report, "connection refused or ended");
            report
        }
        Ok(SessionEnd::Trapped(error)) => {
            tracing::error!("the backend trapped: {error:?}");
            ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, format!("the backend trapped: {}", error.root_cause()))
                .with_hint("The log of pglite-port has the wasm backtrace. Connect again.")
        }
        Err(panic) => {
            let text = panic_text(&*panic);
            tracing::error!("the connection's thread panicked: {text}");
            ErrorResponse::fatal(sqlstate::INTERNAL_ERROR, format!("the connection's thread panicked: {text}"))
                .with_hint("This is a bug in pglite-port; its log says where. Connect again.")
        }
    };
    // In the middle of a message an ErrorResponse would be taken for a part of it.
    if report.severity != Severity::Log && followed.is_between_messages() {
        // A client that is gone need not be told.
        let _ = write_all(&mut followed, &report.encode());
    }
    report
}

/// The report of an end that is no error.
fn closed(message: &str) -> ErrorResponse {
    ErrorResponse::log(sqlstate::SUCCESSFUL_COMPLETION, message)
}

/// Reads packets until one asks for a session; returns it, parsed and as it came.
fn negotiate<C: Client>(
    connections: &Connections,
    client: &mut C,
    control: &Control,
) -> Result<(StartupMessage, Vec<u8>), SessionEnd> {
    let deadline = Instant::now() + connections.startup_timeout();
    let refused = |error: StartupError| SessionEnd::Refused(error.to_response());
    let mut negotiation = Negotiation::default();
    let mut packet = Vec::new();
    loop {
        match negotiation.accept(&packet) {
            Ok(Step::NeedMore(missing)) => {
                if !read_more(client, &mut packet, missing, control, deadline)? {
                    return Err(negotiation.left_after(&packet).map_or(SessionEnd::ClientGone, refused));
                }
            }
            Ok(Step::RefuseEncryption) => {
                packet.clear();
                write_all(client, b"N").map_err(|_| SessionEnd::ClientGone)?;
            }
            Ok(Step::Cancel(request)) => {
                connections.cancels().cancel(&request);
                return Err(SessionEnd::Orderly);
            }
            Ok(Step::Start(startup)) => return Ok((startup, packet)),
            Err(error) => return Err(refused(error)),
        }
    }
}

/// Appends exactly `missing` bytes from the client to `packet`, or fewer if it leaves; says whether all have come.
fn read_more<C: Client>(
    client: &mut C,
    packet: &mut Vec<u8>,
    missing: usize,
    control: &Control,
    deadline: Instant,
) -> Result<bool, SessionEnd> {
    let mut filled = packet.len();
    packet.resize(filled + missing, 0);
    while filled < packet.len() {
        if let Some(report) = control.refusal() {
            return Err(SessionEnd::Refused(report));
        }
        match client.read(&mut packet[filled..]) {
            Ok(0) => {
                packet.truncate(filled);
                return Ok(false);
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if client.wait(Interest::Read, Some(deadline)) == Readiness::TimedOut {
                    // PostgreSQL ends silently here (StartupPacketTimeoutHandler in backend_startup.c).
                    let message = "the startup packet did not come in time";
                    return Err(SessionEnd::Refused(ErrorResponse::log(sqlstate::QUERY_CANCELED, message)));
                }
            }
            Err(_) => return Err(SessionEnd::ClientGone),
        }
    }
    Ok(true)
}

/// Writes all of `bytes`, waiting for the window where it has to.
fn write_all<C: Client>(client: &mut C, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.wait(Interest::Write, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}
