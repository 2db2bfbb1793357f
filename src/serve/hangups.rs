//! Clients that hang up while nobody reads from them: their sessions compute, or sleep.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

use crate::{cancel::Interrupt, connection::Control};

/// How long a session may take to notice by itself that its client has hung up: one that reads does at once, and what
/// the client has sent before it may still come to its end.
const GRACE: Duration = Duration::from_millis(500);

/// The connections whose clients have not hung up yet.
pub(super) struct Hangups {
    epoll: OwnedFd,
    /// By the connection's number; a connection is entered before its thread starts.
    connections: Mutex<HashMap<u32, Option<Control>>>,
}

impl Hangups {
    /// Starts to watch.
    ///
    /// # Errors
    /// When the system has no file or no thread to spare.
    pub(super) fn watch() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let hangups = Arc::new(Self { epoll, connections: Mutex::default() });
        let watching = hangups.clone();
        thread::Builder::new().name("hangups".to_owned()).spawn(move || {
            if let Err(error) = watching.run() {
                tracing::error!(%error, "clients that hang up are only noticed by sessions that read");
            }
        })?;
        Ok(hangups)
    }

    /// A connection is about to start.
    pub(super) fn enter(&self, id: u32) {
        self.connections.lock().insert(id, None);
    }

    /// It has started, with that socket, unless it has ended already.
    ///
    /// # Errors
    /// When the system cannot watch one more.
    pub(super) fn add(&self, id: u32, socket: impl AsFd, control: &Control) -> io::Result<()> {
        let mut connections = self.connections.lock();
        let Some(entry) = connections.get_mut(&id) else { return Ok(()) };
        *entry = Some(control.clone());
        let (data, flags) = (epoll::EventData::new_u64(id.into()), epoll::EventFlags::RDHUP);
        Ok(epoll::add(&self.epoll, socket, data, flags | epoll::EventFlags::ONESHOT)?)
    }

    /// A connection has ended. Its socket leaves the system's list when it is closed.
    pub(super) fn remove(&self, id: u32) {
        self.connections.lock().remove(&id);
    }

    fn run(&self) -> io::Result<()> {
        // Who has hung up, and when that is to be told, in that order.
        let mut hung_up: Vec<(Instant, u32)> = Vec::new();
        let mut events = Vec::with_capacity(64);
        loop {
            let next = hung_up.first().map(|(due, _)| due.saturating_duration_since(Instant::now()));
            let timeout = next.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = Instant::now();
            let ids = events.iter().filter_map(|event| u32::try_from(event.data.u64()).ok());
            hung_up.extend(ids.map(|id| (now + GRACE, id)));
            let due = hung_up.partition_point(|(due, _)| *due <= now);
            for (_, id) in hung_up.drain(..due) {
                let control = self.connections.lock().get(&id).cloned().flatten();
                if let Some(control) = control {
                    control.interrupt(Interrupt::ClientGone);
                }
            }
        }
    }
}
