//! A listener on a TCP or unix socket, for clients without frames.

use std::{io, net::IpAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, bounded, select};

use crate::{
    connection::{Connections, Opening},
    log::LogSink,
    protocol::error_response::sqlstate,
    serve::socket::SocketClient,
    session::{Mode, Sessions},
};

mod accept;
mod hangups;
mod listener;
pub(crate) mod socket;
mod tcp_table;

use hangups::Hangups;
pub use listener::Listener;

/// The default address.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5433";
/// How long the program may take to stop if nothing else is chosen, as long as containers are given by default.
pub const GRACE: Duration = Duration::from_secs(10);

/// Serves the clients of `listener` until a message in `signals` or until the listener fails. Then sessions end, and
/// clusters are shut down, within `grace`. A second message stops at once.
///
/// `on_ready` gets the URL when clients can connect. Sessions that do not end in time still run when this returns, so
/// the program must exit.
///
/// # Errors
/// If the threads do not start, or if the listener fails.
pub fn run(
    listener: Listener,
    sessions: Arc<dyn Sessions>,
    mode: Mode,
    grace: Duration,
    signals: &Receiver<()>,
    on_ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let listener = Arc::new(listener);
    let connections = Arc::new(Connections::new(sessions));
    let end = serve(&listener, &connections, mode, signals, on_ready);
    tracing::info!("stopping: sessions are asked to end; another signal stops at once");
    connections.shut_down_within(grace, signals, |()| Duration::ZERO);
    listener.remove_socket_file();
    end
}

/// Serves clients until a message in `signals`.
fn serve(
    listener: &Arc<Listener>,
    connections: &Arc<Connections>,
    mode: Mode,
    signals: &Receiver<()>,
    on_ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    for address in listener.ips().filter(|address| !address.is_loopback()) {
        warn_about_open_address(address);
    }
    let hangups = Hangups::watch().context("the thread that detects closed connections cannot be started")?;
    let (accepting, accepted_by) = (listener.clone(), connections.clone());
    let (failed, failure) = bounded(1);
    let accept = move || {
        let (log, mut id) = (LogSink::to_own_log(), 0);
        let error = accept::accept_all(&accepting, |client| {
            id += 1;
            let opening = Opening { id, mode, cluster: None, template: None, log: log.of_connection(id) };
            start(client, &accepted_by, &hangups, opening)
        });
        // The receiver may be gone.
        let _ = failed.send(error);
    };
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(accept)
        .context("no thread can be started to accept clients")?;
    on_ready(&listener.url());

    select! {
        // An error means that the senders are gone, so no signal can come; stop as well.
        recv(signals) -> _ => Ok(()),
        recv(failure) -> error => {
            let error = error.map_or_else(|_| anyhow!("the accepting thread has panicked"), anyhow::Error::from);
            Err(error.context("clients can no longer be accepted"))
        }
    }
}

fn warn_about_open_address(address: IpAddr) {
    tracing::warn!(%address, "every client that can reach this address can connect as a superuser without a password");
}

fn start(
    client: SocketClient,
    connections: &Arc<Connections>,
    hangups: &Arc<Hangups>,
    opening: Opening,
) -> io::Result<()> {
    let (id, watched_client, watched) = (opening.id, client.clone(), hangups.clone());
    hangups.enter(id);
    let started = connections.start(client, opening, move |client, report| {
        // Closing a socket with unread input would reset the connection, and the client would not get the error.
        if report.code != sqlstate::SUCCESSFUL_COMPLETION {
            client.linger();
        }
        watched.remove(id);
    });
    match started {
        Ok(control) => hangups.add(id, watched_client, control),
        Err(error) => {
            hangups.remove(id);
            Err(error)
        }
    }
}
