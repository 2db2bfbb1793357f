//! Cancels the statement that a session runs, by a connection of its own, as the protocol wants it.

use std::sync::Arc;

use anyhow::Context;
use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::Server;

/// Cancels the statements of one session, from any thread.
pub struct Cancel {
    server: Arc<Server>,
    /// The number of the session's process, and its key.
    key: (i32, i32),
}

impl Cancel {
    pub(super) fn new(server: Arc<Server>, key: (i32, i32)) -> Self {
        Self { server, key }
    }

    /// Asks the server to cancel what the session runs now. It does not tell whether there was something.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn cancel(&self) -> anyhow::Result<()> {
        let mut request = BytesMut::new();
        frontend::cancel_request(self.key.0, self.key.1, &mut request);
        let line = self.server.dial()?;
        line.send(&request).context("the statement cannot be cancelled")?;
        // The server closes the connection when it has read the request.
        line.receive(&mut [0], true)?;
        Ok(())
    }
}
