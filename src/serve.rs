//! A listener on a TCP or unix socket: the same connections as the port's, for clients that speak no frames.

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
mod socket;
mod tcp_table;

use hangups::Hangups;
use listener::Listener;

/// Where to listen unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5433";
/// How long sessions may take to end when they are asked to.
const GRACE: Duration = Duration::from_secs(10);

/// Listens on `listen` (`HOST:PORT`, on all addresses of the host, or `unix:PATH`) and serves clients until a message
/// in `signals` asks to stop, or until no client can come any more; another message asks to stop at once.
///
/// `on_ready` is given the URL as soon as clients can connect. Sessions that do not end in time are
/// still running when this returns, so the program has to exit.
///
/// # Errors
/// If it cannot listen there, with what to do about it, or can no longer.
pub fn run(
    listen: &str,
    sessions: Arc<dyn Sessions>,
    mode: Mode,
    signals: &Receiver<()>,
    on_ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let listener = Arc::new(Listener::bind(listen)?);
    let connections = Arc::new(Connections::new(sessions));
    for address in listener.ips().filter(|address| !address.is_loopback()) {
        warn_about_strangers(address);
    }
    let hangups = Hangups::watch().context("clients cannot be watched")?;
    let (accepting, accepted_by) = (listener.clone(), connections.clone());
    let (failed, failure) = bounded(1);
    let accept = move || {
        let (log, mut id) = (LogSink::to_own_log(), 0);
        let error = accept::accept_all(&accepting, |client| {
            id += 1;
            let opening = Opening { id, mode, template: None, log: log.of_connection(id) };
            start(client, &accepted_by, &hangups, opening)
        });
        // Nobody may wait for it any more.
        let _ = failed.send(error);
    };
    thread::Builder::new().name("accept".to_owned()).spawn(accept).context("no thread to accept clients")?;
    on_ready(&listener.url());

    let end = select! {
        // An error means that no signal can come any more, which is as good as one.
        recv(signals) -> _ => Ok(()),
        recv(failure) -> error => {
            let error = error.map_or_else(|_| anyhow!("the thread that does has panicked"), anyhow::Error::from);
            Err(error.context("clients can no longer be accepted"))
        }
    };
    tracing::info!("stopping: sessions are asked to end; another signal stops at once");
    connections.shut_down_within(GRACE, signals, |()| Duration::ZERO);
    listener.remove_socket_file();
    end
}

fn warn_about_strangers(address: IpAddr) {
    tracing::warn!(%address, "everybody who can reach this address is let in, as a superuser and without a password");
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
        // Closing with input unread would reset the connection, instead of ending it.
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
