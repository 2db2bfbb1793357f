//! The connection of `pg_dump` to its server. Libpq in the guest has the host open it, receive and send.

use std::{env, io, sync::Arc};

use anyhow::Context;
use parking_lot::Mutex;

use crate::dial::{Line, Server};

/// The guest's end of its connections, of which it has one at a time.
pub(super) struct Wire {
    server: Option<Arc<Server>>,
    /// The first connection is made before the guest runs, so that an error is told in the host's words.
    next: Mutex<Option<Arc<Line>>>,
    current: Arc<Mutex<Option<Arc<Line>>>>,
    /// What tells the guest where it is.
    place: Option<Place>,
    /// Whether the guest was told that nothing has arrived, and has not sent anything since.
    is_starved: Mutex<bool>,
}

/// Where the server is.
struct Place {
    host: String,
    address: Option<String>,
    port: u16,
}

/// Ends the connection of a dump, so that `pg_dump` fails.
pub struct HangUp(Arc<Mutex<Option<Arc<Line>>>>);

impl HangUp {
    /// Ends the connection, from any thread.
    pub fn hang_up(&self) {
        if let Some(line) = &*self.0.lock() {
            line.hang_up();
        }
    }
}

impl Wire {
    /// Connects to `server`, if there is one.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(super) fn new(server: Option<Arc<Server>>) -> anyhow::Result<Self> {
        let line = server.as_ref().map(|server| server.dial()).transpose()?.map(Arc::new);
        let place = line.as_ref().map(|line| Place {
            host: line.host.clone(),
            address: line.address.map(|address| address.ip().to_string()),
            port: line.port,
        });
        let current = Arc::new(Mutex::new(line.clone()));
        Ok(Self { server, next: Mutex::new(line), current, place, is_starved: Mutex::new(false) })
    }

    /// What ends the current connection.
    pub(super) fn hang_up(&self) -> HangUp {
        HangUp(self.current.clone())
    }

    /// The options that tell the guest where its server is, and as whom to connect to which database.
    pub(super) fn arguments(&self) -> Vec<String> {
        let (Some(server), Some(place)) = (&self.server, &self.place) else { return Vec::new() };
        let config = server.config();
        let port = place.port.to_string();
        // The guest asks for no encryption, which its libpq does not know.
        let parts = [
            ("host", Some(place.host.as_str())),
            ("hostaddr", place.address.as_deref()),
            ("port", Some(port.as_str())),
            ("user", config.get_user()),
            ("dbname", config.get_dbname()),
            ("options", config.get_options()),
            ("application_name", config.get_application_name()),
        ];
        let parts = parts.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let parts: Vec<_> = parts.map(|(key, value)| format!("{key}='{}'", escaped(value))).collect();
        vec![format!("--dbname={}", parts.join(" ")), "--no-password".to_owned()]
    }

    /// The environment of the guest.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let password = self.server.as_ref().and_then(|server| server.config().get_password());
        let password = password.map(|password| ("PGPASSWORD", String::from_utf8_lossy(password).into_owned()));
        // It decides the encoding of the dump.
        let encoding = env::var("PGCLIENTENCODING").ok().map(|encoding| ("PGCLIENTENCODING", encoding));
        let fixed = [("HOME", "/home"), ("USER", "postgres"), ("LOGNAME", "postgres"), ("TZ", "UTC")];
        let fixed = fixed.map(|(name, value)| (name, value.to_owned()));
        fixed.into_iter().chain(password).chain(encoding).collect()
    }

    /// The guest makes a socket: opens a connection.
    pub(super) fn open(&self) -> anyhow::Result<()> {
        let dialled = self.next.lock().take();
        let line = match dialled {
            Some(line) => line,
            None => Arc::new(self.server.as_ref().context("there is no server to connect to")?.dial()?),
        };
        *self.current.lock() = Some(line);
        *self.is_starved.lock() = false;
        Ok(())
    }

    fn line(&self) -> io::Result<Arc<Line>> {
        self.current.lock().clone().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Receives bytes.
    ///
    /// Libpq looks for bytes that may not come, and must not wait then. When it wants to wait, it calls `poll`, which
    /// always says in the guest that bytes are there, and looks again. So the second look in a row waits.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.line()?;
        let waits = *self.is_starved.lock();
        let received = line.receive(buffer, waits)?;
        *self.is_starved.lock() = received.is_none();
        received.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Sends all of `bytes`.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        *self.is_starved.lock() = false;
        self.line()?.send(bytes)
    }
}

/// A value of a connection string.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "\\'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_a_connection_string_is_escaped() {
        assert_eq!(escaped(r"it's a \"), r"it\'s a \\");
    }
}
