//! The bytes of one connection between the router and the connection's thread, with a window for each direction.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    time::Instant,
};

use crate::{
    client::{Client, ClientCertificate, Endpoints, Interest, Readiness, Waker},
    port::{
        frame::{Frame, Kind, MAX_PAYLOAD, Options, WINDOW},
        outbox::Outbox,
    },
    protocol::error_response::ErrorResponse,
    sync::{Condvar, Mutex},
};

#[cfg(all(test, feature = "loom"))]
mod interleavings;
#[cfg(test)]
mod tests;

/// The most credit that a parent may give, in bytes. It bounds the bytes of one connection in the outbox.
const MAX_CREDIT: u32 = 16 << 20;
/// The parent gets new credit in pieces of at least this size, in bytes.
const GIVE_BACK: u32 = WINDOW / 2;

/// The two directions of one connection. A clone is the same connection.
#[derive(Clone)]
pub(crate) struct Relay(Arc<Inner>);

struct Inner {
    id: u32,
    outbox: Arc<Outbox>,
    endpoints: Endpoints,
    certificates: Certificates,
    state: Mutex<State>,
    /// Notified when `state` changes so that a wait may end.
    changed: Condvar,
}

/// What the parent says about the certificates of both ends of an encrypted connection.
#[derive(Default)]
pub(crate) struct Certificates {
    /// The client's, if it has one that the parent has verified.
    pub(crate) client: Option<ClientCertificate>,
    /// The digest of the one that the client has been shown, as [`Client::certificate_digest`].
    pub(crate) server_digest: Option<Arc<str>>,
}

struct State {
    /// Bytes from the client that the session has not read yet; never more than [`WINDOW`].
    arrived: VecDeque<u8>,
    /// How many bytes more the parent may send.
    may_arrive: u32,
    /// Bytes that the session has read, and for which the parent has not got new credit yet.
    consumed: u32,
    /// How many bytes more may be sent to the parent.
    may_send: u32,
    /// The client will neither send nor read any more.
    gone: bool,
    /// The close frame was queued; no frame of this connection may follow it.
    closed: bool,
    /// A wake-up that no wait has reported yet.
    woken: bool,
}

/// The parent has broken the window protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WindowViolation {
    /// More data than there was credit for.
    #[error("{sent} bytes of data exceed the window of {credit} bytes")]
    Overrun {
        /// Payload bytes of the frame.
        sent: usize,
        /// The remaining window, in bytes.
        credit: u32,
    },
    /// More credit than `MAX_CREDIT`.
    #[error("a window of {0} bytes exceeds the largest, {MAX_CREDIT} bytes")]
    TooWide(u64),
}

impl Relay {
    /// A new connection between `endpoints`, both its windows [`WINDOW`] bytes wide.
    pub(crate) fn new(id: u32, outbox: Arc<Outbox>, endpoints: Endpoints, certificates: Certificates) -> Self {
        let state = State {
            arrived: VecDeque::new(),
            may_arrive: WINDOW,
            consumed: 0,
            may_send: WINDOW,
            gone: false,
            closed: false,
            woken: false,
        };
        Self(Arc::new(Inner { id, outbox, endpoints, certificates, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Whether both are the same connection. Two connections can have the same id, one after the other.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Accepts data from the parent; discards it after the client has gone.
    pub(crate) fn data(&self, bytes: &[u8]) -> Result<(), WindowViolation> {
        let mut state = self.0.state.lock();
        let credit = state.may_arrive;
        let sent = bytes.len();
        let left = u32::try_from(sent).ok().and_then(|sent| credit.checked_sub(sent));
        state.may_arrive = left.ok_or(WindowViolation::Overrun { sent, credit })?;
        if !state.gone {
            state.arrived.extend(bytes);
            self.0.changed.notify_all();
        }
        Ok(())
    }

    /// Accepts credit from the parent.
    pub(crate) fn window(&self, credit: u32) -> Result<(), WindowViolation> {
        let mut state = self.0.state.lock();
        let total = u64::from(state.may_send) + u64::from(credit);
        state.may_send =
            u32::try_from(total).ok().filter(|total| *total <= MAX_CREDIT).ok_or(WindowViolation::TooWide(total))?;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Marks the client as gone: the session can read the bytes that have arrived, then the end of input; its writes
    /// fail.
    pub(crate) fn client_gone(&self) {
        self.0.state.lock().gone = true;
        self.0.changed.notify_all();
    }

    /// Sends the close frame, the last one of this connection, unless it was sent already.
    pub(crate) fn close(&self, reason: &ErrorResponse) {
        let mut state = self.0.state.lock();
        state.gone = true;
        if !state.closed {
            state.closed = true;
            self.0.outbox.push_options(Kind::Close, self.0.id, &close_options(reason));
        }
        self.0.changed.notify_all();
    }
}

/// The options of a close frame.
pub(crate) fn close_options(reason: &ErrorResponse) -> Options {
    Options::new().with("severity", reason.severity).with("code", reason.code).with("message", &reason.message)
}

impl Inner {
    fn push(&self, kind: Kind, payload: &[u8]) {
        self.outbox.push(Frame { kind, id: self.id, payload });
    }
}

impl Client for Relay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        // Twice, because one read of a ring buffer ends at the end of its memory.
        let mut read = state.arrived.read(buffer)?;
        read += state.arrived.read(&mut buffer[read..])?;
        if state.gone {
            return Ok(read);
        }
        if read == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // An idle connection should not keep a large buffer.
        if state.arrived.is_empty() {
            state.arrived.shrink_to(4096);
        }
        // Never more than the window, so it fits.
        state.consumed += u32::try_from(read).unwrap_or(WINDOW);
        if state.consumed >= GIVE_BACK {
            let credit = std::mem::take(&mut state.consumed);
            state.may_arrive += credit;
            self.0.push(Kind::Window, &credit.to_be_bytes());
        }
        Ok(read)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let window = usize::try_from(state.may_send).unwrap_or(usize::MAX);
        let sent = bytes.len().min(window).min(MAX_PAYLOAD);
        if sent == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if sent > 0 {
            state.may_send -= u32::try_from(sent).unwrap_or(state.may_send);
            self.0.push(Kind::Data, &bytes[..sent]);
        }
        Ok(sent)
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        let mut state = self.0.state.lock();
        loop {
            if std::mem::take(&mut state.woken) {
                return Readiness::Woken;
            }
            let ready = match interest {
                Interest::Read => state.gone || !state.arrived.is_empty(),
                Interest::Write => state.gone || state.may_send > 0,
                Interest::Either => state.gone || !state.arrived.is_empty() || state.may_send > 0,
                Interest::Nothing => false,
            };
            if ready {
                return Readiness::Ready;
            }
            match deadline {
                Some(deadline) if Instant::now() >= deadline => return Readiness::TimedOut,
                Some(deadline) => drop(self.0.changed.wait_until(&mut state, deadline)),
                None => self.0.changed.wait(&mut state),
            }
        }
    }

    fn certificate(&self) -> Option<ClientCertificate> {
        self.0.certificates.client.clone()
    }

    fn certificate_digest(&self) -> Option<Arc<str>> {
        self.0.certificates.server_digest.clone()
    }

    fn endpoints(&self) -> Endpoints {
        self.0.endpoints
    }

    fn waker(&self) -> Waker {
        let inner = self.0.clone();
        Waker::new(move || {
            inner.state.lock().woken = true;
            inner.changed.notify_all();
        })
    }
}
