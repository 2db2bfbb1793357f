//! Cancels the statement that a session runs, by a connection of its own, as the protocol wants it.

use std::sync::Arc;

use anyhow::Context;
use tokio_postgres::{CancelToken, NoTls};

use super::{Server, driver_runtime};

/// Cancels the statements of one session, from any thread.
pub struct Cancel {
    server: Arc<Server>,
    token: CancelToken,
}

impl Cancel {
    pub(crate) fn new(server: Arc<Server>, token: CancelToken) -> Self {
        Self { server, token }
    }

    /// Asks the server to cancel what the session runs now. It does not tell whether there was something.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn cancel(&self) -> anyhow::Result<()> {
        let runtime = driver_runtime()?;
        let line = self.server.dial()?;
        let sent =
            runtime.block_on(async { anyhow::Ok(self.token.cancel_query_raw(line.into_socket()?, NoTls).await?) });
        sent.context("the statement cannot be cancelled")
    }
}
