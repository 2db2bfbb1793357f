//! Cancels the statement that a session runs, by a connection of its own, as the protocol wants it.

use std::sync::Arc;

use anyhow::Context;
use tokio_postgres::{CancelToken, NoTls};

use super::{Server, Stream, driver_runtime};

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
        let sent = runtime.block_on(async {
            match line.stream {
                Stream::Tcp(stream) => {
                    stream.set_nonblocking(true)?;
                    let stream = tokio::net::TcpStream::from_std(stream)?;
                    anyhow::Ok(self.token.cancel_query_raw(stream, NoTls).await?)
                }
                Stream::Unix(stream) => {
                    stream.set_nonblocking(true)?;
                    let stream = tokio::net::UnixStream::from_std(stream)?;
                    anyhow::Ok(self.token.cancel_query_raw(stream, NoTls).await?)
                }
            }
        });
        sent.context("the statement cannot be cancelled")
    }
}
