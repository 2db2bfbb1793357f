//! The client of a backend, as the guest's read and write callbacks use it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// How long a session that was told to end tries to send what it has to say about that. PostgreSQL has no limit: a
/// walsender whose subscriber receives nothing would wait for ever (`pq_flush` in `send_message_to_frontend`, `elog.c`).
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// The next operation of a waiting backend on its client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Read: ready when bytes have arrived or the client is gone.
    Read,
    /// Write: ready when the window is open again or the client is gone.
    Write,
    /// Both: ready when the connection is ready for one of them.
    Either,
    /// Neither: only a wake-up or the deadline ends the wait.
    Nothing,
}

/// Why [`Client::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The connection is ready for the operation, or its client is gone.
    Ready,
    /// [`Waker::wake`] was called; a wake-up is kept until a wait reports it, several count as one.
    Woken,
    /// The deadline has passed.
    TimedOut,
}

/// The addresses of both ends of a client's connection; `None` is an end of a unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// The client's.
    pub peer: Option<SocketAddr>,
    /// The address to which the client has connected.
    pub local: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
}

impl Endpoints {
    /// Endpoints with these addresses. An IPv4 address in IPv6 form, as a socket for both reports it, becomes an IPv4
    /// address.
    #[must_use]
    pub fn new(peer: Option<SocketAddr>, local: Option<SocketAddr>) -> Self {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { peer: peer.map(canonical), local: local.map(canonical), is_encrypted: false }
    }
}

/// A certificate of a client that has been verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of its subject.
    pub common_name: Option<String>,
}

/// The byte stream of one client, like a non-blocking socket with its own wait.
///
/// All bytes are of the PostgreSQL protocol; the startup packet is part of the stream.
pub trait Client: Send {
    /// Copies bytes that have arrived into `buffer`, without waiting. `Ok(0)` means that the client is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing has arrived yet.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends as much of `bytes` as the window allows, without waiting, and returns how much that was.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the window is closed, any other kind when the client is gone.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Waits until the connection is ready for `interest`, the waker is called, or `deadline` has passed.
    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness;

    /// A handle with which other threads end [`Client::wait`].
    fn waker(&self) -> Waker;

    /// Whether its connection can be encrypted, and is not yet.
    fn can_encrypt(&self) -> bool {
        false
    }

    /// Encrypts everything from now on, for a client that begins a TLS handshake next.
    ///
    /// # Errors
    /// When that is not possible.
    fn encrypt(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Its certificate, if it has one that was verified.
    fn certificate(&self) -> Option<ClientCertificate> {
        None
    }

    /// The digest of the certificate that the client has been shown, in base64, if its connection is encrypted: what
    /// `tls-server-end-point` is bound to (RFC 5929).
    fn certificate_digest(&self) -> Option<Arc<str>> {
        None
    }

    /// The addresses of its connection.
    fn endpoints(&self) -> Endpoints {
        Endpoints::default()
    }
}

/// Ends the wait of one backend from any thread.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// A waker that calls `wake`, which must not block.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        (self.0)();
    }
}

/// The client of a process without one: reading finds its end, and what is written is discarded, or recorded.
#[derive(Clone, Default)]
pub(crate) struct NoClient {
    alarm: Arc<Alarm>,
    record: Option<Sender<Vec<u8>>>,
}

impl NoClient {
    /// One for which what is written is sent to `record`.
    pub(crate) fn recorded(record: Sender<Vec<u8>>) -> Self {
        Self { record: Some(record), ..Self::default() }
    }
}

/// Whether the waker was called since the last wait.
#[derive(Default)]
struct Alarm {
    woken: Mutex<bool>,
    rung: Condvar,
}

impl Client for NoClient {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(record) = &self.record {
            record.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        let mut woken = self.alarm.woken.lock();
        loop {
            if std::mem::take(&mut *woken) {
                return Readiness::Woken;
            }
            if interest != Interest::Nothing {
                return Readiness::Ready;
            }
            match deadline {
                None => self.alarm.rung.wait(&mut woken),
                Some(deadline) if self.alarm.rung.wait_until(&mut woken, deadline).timed_out() => {
                    return if std::mem::take(&mut *woken) { Readiness::Woken } else { Readiness::TimedOut };
                }
                Some(_) => {}
            }
        }
    }

    fn waker(&self) -> Waker {
        let alarm = self.alarm.clone();
        Waker::new(move || {
            *alarm.woken.lock() = true;
            alarm.rung.notify_one();
        })
    }
}

/// Writes all of `bytes`, waiting for the client where it has to.
///
/// # Errors
/// Those of [`Client::write`].
pub fn write_all(client: &mut (impl Client + ?Sized), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.wait(Interest::Write, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
