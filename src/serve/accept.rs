//! Accepting clients, and handling of errors while accepting.

use std::{io, mem, sync::Arc, thread, time::Duration};

use rustix::io::Errno;

use super::{listener::Listener, tls::Tls};
use crate::serve::socket::SocketClient;

/// The pause before the next attempt when the system has no resources to accept clients.
const PAUSE: Duration = Duration::from_millis(100);

/// The cause of an error.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// One client, which is gone or cannot be reached; the next one can be accepted.
    Client,
    /// Files, memory or threads, which are used up at the moment; another attempt at once would fail as well.
    Resources,
    /// The listener itself, which cannot accept clients any more.
    Listener,
}

/// Passes every accepted client to `start` until the listener fails; returns its error.
pub(super) fn accept_all(
    listener: &Listener,
    tls: Option<&Arc<Tls>>,
    mut start: impl FnMut(SocketClient) -> io::Result<()>,
) -> io::Error {
    let mut is_exhausted = false;
    loop {
        let started = match listener.accept() {
            Ok(accepted) => {
                accepted.client(tls.cloned()).and_then(&mut start).map_err(|error| (of_start(&error), error))
            }
            Err(error) => Err((of_accept(&error), error)),
        };
        match started {
            Ok(()) if mem::take(&mut is_exhausted) => tracing::info!("clients are accepted again"),
            Ok(()) => {}
            Err((Cause::Client, error)) => tracing::debug!(%error, "a client could not be accepted"),
            Err((Cause::Resources, error)) => {
                if !mem::replace(&mut is_exhausted, true) {
                    tracing::warn!(%error, "clients cannot be accepted until files, memory or threads are free");
                }
                thread::sleep(PAUSE);
            }
            Err((Cause::Listener, error)) => return error,
        }
    }
}

/// The cause of an error of `accept` (accept(2), "Errors" and "Error handling"; network errors are those of the new
/// connection).
fn of_accept(error: &io::Error) -> Cause {
    match Errno::from_io_error(error) {
        Some(
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::PERM
            | Errno::TIMEDOUT
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH,
        ) => Cause::Client,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Cause::Resources,
        _ => Cause::Listener,
    }
}

/// The cause of an error after the client was accepted. `EAGAIN` comes from starting a thread (`pthread_create(3)`).
fn of_start(error: &io::Error) -> Cause {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Cause::Resources,
        _ => Cause::Client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_client_of_the_system_and_of_the_listener_are_told_apart() {
        for (error, accepting, starting) in [
            (Errno::CONNABORTED, Cause::Client, Cause::Client),
            (Errno::HOSTUNREACH, Cause::Client, Cause::Client),
            (Errno::MFILE, Cause::Resources, Cause::Resources),
            (Errno::NOMEM, Cause::Resources, Cause::Resources),
            (Errno::AGAIN, Cause::Listener, Cause::Resources),
            (Errno::INVAL, Cause::Listener, Cause::Client),
            (Errno::BADF, Cause::Listener, Cause::Client),
        ] {
            let error = error.into();
            assert_eq!((of_accept(&error), of_start(&error)), (accepting, starting), "{error}");
        }
        assert_eq!(of_accept(&io::Error::other("no number")), Cause::Listener);
    }
}
