//! A listener on a TCP or unix socket, for clients without frames.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, bounded, select};

use crate::{
    capacity,
    client::Client,
    connection::{Connections, Opening, no_thread},
    log::LogSink,
    protocol::error_response::{ErrorResponse, sqlstate},
    serve::socket::SocketClient,
    session::{Mode, SessionEnd, SessionStart, Sessions},
    tally::ENTRANCE,
};

mod accept;
pub(crate) mod encryption;
mod hangups;
mod inherited;
mod listener;
pub(crate) mod socket;
mod tcp_table;
pub(crate) mod tls;

use hangups::Hangups;
pub use listener::Listener;
pub use tls::{Tls, TlsFiles, TlsVersion};

/// The default address.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5433";
/// How long the program may take to stop if nothing else is chosen, as long as containers are given by default.
pub const GRACE: Duration = Duration::from_secs(10);

/// A listener whose clients are accepted. Until [`Serving::run`] they are refused (`57P03`), as by a `PostgreSQL` that
/// starts or recovers. The file of a unix socket is removed when this is dropped.
pub struct Serving {
    listener: Arc<Listener>,
    connections: Arc<Connections>,
    sessions: Arc<Opened>,
    failure: Receiver<io::Error>,
}

/// Sessions of clusters that may still be being opened.
#[derive(Default)]
struct Opened(OnceLock<Arc<dyn Sessions>>);

impl Sessions for Opened {
    fn serve(&self, start: SessionStart<'_>, client: Box<dyn Client>) -> SessionEnd {
        match self.0.get() {
            Some(sessions) => sessions.serve(start, client),
            None => SessionEnd::Refused(ErrorResponse::starting_up()),
        }
    }

    fn close(&self) {
        if let Some(sessions) = self.0.get() {
            sessions.close();
        }
    }

    fn shut_down(&self) {
        if let Some(sessions) = self.0.get() {
            sessions.shut_down();
        }
    }
}

/// Begins to accept the clients of `listener`. Those of TCP may encrypt their connections with `tls`. A client may take
/// `startup_timeout` over TLS and its startup packet.
///
/// # Errors
/// If the threads do not start.
pub fn start(
    listener: Listener,
    mode: Mode,
    tls: Option<Arc<Tls>>,
    startup_timeout: Duration,
) -> anyhow::Result<Serving> {
    let (listener, sessions) = (Arc::new(listener), Arc::<Opened>::default());
    let connections = Arc::new(Connections::new(sessions.clone()).with_startup_timeout(startup_timeout));
    let hangups = Hangups::watch().context("the thread that detects closed connections cannot be started")?;
    let (accepting, accepted_by) = (listener.clone(), connections.clone());
    let (failed, failure) = bounded(1);
    let accept = move || {
        let (log, mut id) = (LogSink::to_own_log(), 0);
        let error = accept::accept_all(&accepting, tls.as_ref(), |client| {
            id += 1;
            let opening = Opening::by_socket(id, mode, log.of_connection(id));
            connect(client, &accepted_by, &hangups, opening)
        });
        // The receiver may be gone.
        let _ = failed.send(error);
    };
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(accept)
        .context("no thread can be started to accept clients")?;
    Ok(Serving { listener, connections, sessions, failure })
}

impl Serving {
    /// Serves clients with `sessions` until a message in `signals` or until the listener fails. Then sessions end, and
    /// clusters are shut down, within `grace`. A second message stops at once.
    ///
    /// `on_ready` gets the URL when clients can connect. Sessions that do not end in time still run when this returns,
    /// so the program must exit.
    ///
    /// # Errors
    /// If the listener fails.
    pub fn run(
        self,
        sessions: Arc<dyn Sessions>,
        grace: Duration,
        signals: &Receiver<()>,
        on_ready: impl FnOnce(&str),
    ) -> anyhow::Result<()> {
        // It is set once.
        let _ = self.sessions.0.set(sessions);
        on_ready(&self.listener.url());
        let end = select! {
            // An error means that the senders are gone, so no signal can come; stop as well.
            recv(signals) -> _ => Ok(()),
            recv(self.failure) -> error => {
                let error = error.map_or_else(|_| anyhow!("the accepting thread has panicked"), anyhow::Error::from);
                Err(error.context("clients can no longer be accepted"))
            }
        };
        tracing::info!("stopping: sessions are asked to end; another signal stops at once");
        self.connections.shut_down_within(grace, signals, |()| Duration::ZERO);
        end
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.listener.remove_socket_file();
    }
}

fn connect(
    client: SocketClient,
    connections: &Arc<Connections>,
    hangups: &Arc<Hangups>,
    opening: Opening,
) -> io::Result<()> {
    // The next clients wait in the listener's queue meanwhile.
    connections.make_room(capacity::has_room_for_client);
    if let Err(report) = capacity::check_for_client() {
        ENTRANCE.refused.count(report.code.as_bytes());
        client.refuse(&report);
        return Ok(());
    }
    let (id, watched_client, watched) = (opening.id, client.clone(), hangups.clone());
    hangups.enter(id);
    let started = connections.start(client, opening, move |mut client, report| {
        client.finish();
        // Closing a socket with unread input would reset the connection, and the client would not get the error.
        // Nor are its descriptors kept where they are scarce.
        if report.code != sqlstate::SUCCESSFUL_COMPLETION && !capacity::are_descriptors_or_threads_scarce() {
            client.linger();
        }
        watched.remove(id);
    });
    match started {
        Ok(control) => hangups.add(id, watched_client, control),
        Err(error) => {
            hangups.remove(id);
            watched_client.refuse(&no_thread(&error));
            Err(error)
        }
    }
}
