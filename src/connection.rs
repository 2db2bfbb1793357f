//! One client from its first byte to its last: startup, session, the report of how it ended.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::{
    client::{Client, Interest, Readiness, write_all},
    log::LogSink,
    protocol::{
        boundary::Followed,
        error_response::{ErrorResponse, Severity, sqlstate},
        startup::{Negotiation, StartupError, StartupMessage, Step},
    },
    quota::Limits,
    session::{Control, Mode, SessionEnd, SessionStart, panic_text},
    tally::ENTRANCE,
};

mod half_open;
mod live;
mod startup_time;

pub use live::Connections;
pub use startup_time::{authentication_timeout, startup_timeout, unreadable_timeout};

#[cfg(test)]
mod tests;

/// How long a client may take over its startup packet (PostgreSQL's default `authentication_timeout`).
pub const STARTUP_TIMEOUT: Duration = Duration::from_mins(1);

/// The setting of a startup packet that names the cluster.
const CLUSTER: &str = "pglite.cluster";

/// What a connection is opened with.
#[derive(Clone)]
pub struct Opening {
    /// Its number, for the log.
    pub id: u32,
    /// Which kind of database it gets.
    pub mode: Mode,
    /// The cluster that it gets, by its name; it precedes the one that the startup packet names.
    pub cluster: Option<String>,
    /// The template to clone, if it is not to be found by the database's name.
    pub template: Option<String>,
    /// The limits of its cluster, if it gets one of its own; without one, the template's.
    pub limits: Limits,
    /// Whether the client need not authenticate, whatever the rules say.
    pub is_trusted: bool,
    /// Where the guest's own output goes.
    pub log: LogSink,
}

impl Opening {
    /// That of a client that says in its startup packet what it wants.
    pub(crate) fn by_socket(id: u32, mode: Mode, log: LogSink) -> Self {
        Self { id, mode, cluster: None, template: None, limits: Limits::default(), is_trusted: false, log }
    }
}

/// Serves `client` from its first byte to its last and returns the report of how it ended, for the close frame.
///
/// A panic on the way ends only this connection.
fn serve<C: Client + Clone + 'static>(
    connections: &Connections,
    mut client: C,
    opening: &Opening,
    control: &Control,
) -> ErrorResponse {
    let mut followed = Followed::new(client.clone());
    let end = catch_unwind(AssertUnwindSafe(|| {
        let (startup, mut packet) = match negotiate(connections, &mut client, control) {
            Ok(negotiated) => negotiated,
            Err(end) => return end,
        };
        if let Some(cluster) = &opening.cluster {
            // So that SHOW says it.
            packet = StartupMessage::with_parameter(&packet, CLUSTER, cluster);
        }
        let named = startup.setting(CLUSTER);
        let named = named.as_deref().map(String::from_utf8_lossy);
        let start = SessionStart {
            id: opening.id,
            startup: &startup,
            packet: &packet,
            mode: opening.mode,
            cluster: opening.cluster.as_deref().or(named.as_deref()),
            template: opening.template.as_deref(),
            limits: opening.limits,
            log: &opening.log,
            control,
            transaction: followed.transaction(),
            is_trusted: opening.is_trusted,
        };
        connections.sessions().serve(start, Box::new(followed.clone()))
    }));
    let report = match end {
        Ok(SessionEnd::Orderly) => return closed("connection closed"),
        Ok(SessionEnd::ClientGone) => return closed("the client is gone"),
        Ok(SessionEnd::Refused(report)) => {
            tracing::info!(%report, "connection refused or ended");
            if control.is_half_open() && report.severity != Severity::Log {
                ENTRANCE.refused.count(report.code.as_bytes());
            }
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
        // A client that is gone cannot be written to.
        let _ = write_all(&mut followed, &report.encode());
    }
    report
}

/// The report for a client whose connection gets no thread, which is counted.
pub(crate) fn no_thread(error: &io::Error) -> ErrorResponse {
    let message = format!("no thread for another connection: {error}");
    ENTRANCE.refused.count(sqlstate::TOO_MANY_CONNECTIONS.as_bytes());
    ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, message)
        .with_hint("Close some connections, or raise the limits on processes and memory.")
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
            Ok(Step::Encrypt) if client.can_encrypt() => {
                packet.clear();
                negotiation.encrypted();
                let begun = write_all(client, b"S").and_then(|()| client.encrypt());
                begun.map_err(|_| SessionEnd::ClientGone)?;
            }
            Ok(Step::Encrypt | Step::RefuseEncryption) => {
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

/// Appends exactly `missing` bytes from the client to `packet`, or fewer if it leaves; returns whether all have come.
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
