//! Detects clients that hang up while their sessions do not read from them, because they compute or sleep.
//!
//! A client that sends no more may still read: it gets the results of what it has sent before. It has hung up when the
//! kernel reports it: at once for a unix socket; for TCP when its machine has answered with a reset or does not answer
//! any more. A TCP client on this machine has also hung up when no process has its end of the connection open.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

use super::tcp_table::TcpTable;
use crate::{
    client::{Client, Endpoints},
    serve::socket::SocketClient,
    session::{Control, cancel::Interrupt},
};

/// How long a session has to notice by itself that its client has hung up: one that reads notices it at once, and the
/// statements sent before may still complete. A client that still reads is checked again after the same time.
const GRACE: Duration = Duration::from_millis(500);

/// The connections whose clients have not hung up.
pub(super) struct Hangups {
    epoll: OwnedFd,
    /// By the connection's id; a connection is added before its thread starts.
    connections: Mutex<HashMap<u32, Option<Watched>>>,
}

/// A connection that has started.
#[derive(Clone)]
struct Watched {
    client: SocketClient,
    control: Control,
}

impl Hangups {
    /// Starts the thread that detects hang-ups.
    ///
    /// # Errors
    /// When the system has no file descriptor or no thread.
    pub(super) fn watch() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let hangups = Arc::new(Self { epoll, connections: Mutex::default() });
        let watching = hangups.clone();
        thread::Builder::new().name("hangups".to_owned()).spawn(move || {
            if let Err(error) = watching.run() {
                tracing::error!(%error, "only sessions that read from their clients detect closed connections");
            }
        })?;
        Ok(hangups)
    }

    /// Adds a connection that is about to start.
    pub(super) fn enter(&self, id: u32) {
        self.connections.lock().insert(id, None);
    }

    /// Watches the client of a connection that has started, unless it has ended already.
    ///
    /// # Errors
    /// When the system cannot watch one more.
    pub(super) fn add(&self, id: u32, client: SocketClient, control: Control) -> io::Result<()> {
        let mut connections = self.connections.lock();
        let Some(entry) = connections.get_mut(&id) else { return Ok(()) };
        let (data, flags) = (epoll::EventData::new_u64(id.into()), epoll::EventFlags::RDHUP);
        epoll::add(&self.epoll, &client, data, flags | epoll::EventFlags::ONESHOT)?;
        *entry = Some(Watched { client, control });
        Ok(())
    }

    /// Removes a connection that has ended. The kernel removes its socket when it is closed.
    pub(super) fn remove(&self, id: u32) {
        self.connections.lock().remove(&id);
    }

    fn run(&self) -> io::Result<()> {
        // The connections whose streams have ended, with the times of their checks, in that order.
        let mut ended: Vec<(Instant, u32)> = Vec::new();
        let mut events = Vec::with_capacity(64);
        loop {
            let next = ended.first().map(|(due, _)| due.saturating_duration_since(Instant::now()));
            let timeout = next.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = Instant::now();
            for id in events.iter().filter_map(|event| u32::try_from(event.data.u64()).ok()) {
                if let Some(Some(watched)) = self.connections.lock().get(&id) {
                    watched.client.probe();
                }
                ended.push((now + GRACE, id));
            }
            let due = ended.partition_point(|(due, _)| *due <= now);
            let due: Vec<u32> = ended.drain(..due).map(|(_, id)| id).collect();
            ended.extend(self.still_reading(&due).map(|id| (now + GRACE, id)));
        }
    }

    /// Interrupts the sessions of those connections of `ids` that have hung up; returns the others.
    fn still_reading(&self, ids: &[u32]) -> impl Iterator<Item = u32> {
        let watched: Vec<(u32, Watched)> = {
            let connections = self.connections.lock();
            ids.iter().filter_map(|id| Some((*id, connections.get(id)?.clone()?))).collect()
        };
        let table = if watched.is_empty() { None } else { TcpTable::read().ok() };
        let is_abandoned = |endpoints: Endpoints| match (&table, endpoints.peer, endpoints.local) {
            (Some(table), Some(peer), Some(local)) => table.is_abandoned(peer, local),
            _ => false,
        };
        let mut reading = Vec::new();
        for (id, Watched { client, control }) in watched {
            if client.has_hung_up() || is_abandoned(client.endpoints()) {
                control.interrupt(Interrupt::ClientGone);
            } else {
                reading.push(id);
            }
        }
        reading.into_iter()
    }
}
