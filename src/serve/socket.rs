//! A client on a TCP or unix socket; the kernel bounds its buffers in both directions.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{RecvFlags, Shutdown, recv, shutdown, sockopt},
};

use super::{encryption::Encryption, tls::Tls};
use crate::{
    client::{Client, ClientCertificate, Endpoints, Interest, Readiness, Waker},
    protocol::{
        error_response::ErrorResponse,
        startup::{Negotiation, Step},
    },
};

/// How long a client that sends no more may be silent before the kernel probes it, and the interval of the probes.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// How long a client that there is no room for has to send its first bytes. Others wait meanwhile.
const FIRST_BYTES: Duration = Duration::from_millis(10);

/// How long a client may take to read the last bytes of an encrypted connection: less than the program may take to stop.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long a client that was sent an error may take to hang up before the host closes the connection.
const LINGER: Duration = Duration::from_millis(500);

/// The client. A clone is the same client.
#[derive(Clone)]
pub(crate) struct SocketClient(Arc<Inner>);

struct Inner {
    /// Non-blocking.
    socket: File,
    /// How its connection can be encrypted.
    tls: Option<Arc<Tls>>,
    stage: Mutex<Stage>,
    /// Readable when a wake-up is pending.
    wake_ups: File,
    endpoints: Endpoints,
}

/// How bytes go over a connection.
enum Stage {
    /// The client may still begin with TLS at once, and has sent nothing yet.
    Fresh,
    Plain,
    Encrypted(Box<Encryption>),
}

/// The first byte of a TLS handshake, which no startup packet has (`ProcessSSLStartup` in
/// `src/backend/tcop/backend_startup.c`).
const TLS_HANDSHAKE: u8 = 0x16;

impl SocketClient {
    /// A client on a TCP connection from `peer`.
    pub(crate) fn tcp(stream: TcpStream, peer: SocketAddr, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Answers are small, and the client waits for them.
        stream.set_nodelay(true)?;
        // As in PostgreSQL, to detect a client whose machine is gone.
        sockopt::set_socket_keepalive(&stream, true)?;
        let endpoints = Endpoints::new(Some(peer), Some(stream.local_addr()?));
        Self::new(stream.into(), endpoints, tls)
    }

    /// A client on a unix socket.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(stream.into(), Endpoints::default(), None)
    }

    fn new(socket: OwnedFd, endpoints: Endpoints, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let wake_ups = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let stage = Mutex::new(if tls.is_some() { Stage::Fresh } else { Stage::Plain });
        Ok(Self(Arc::new(Inner { socket: socket.into(), tls, stage, wake_ups: wake_ups.into(), endpoints })))
    }

    /// Finds out whether a client begins with TLS at once.
    fn look_at_first_byte(&self, stage: &mut Stage) -> io::Result<()> {
        let Some(tls) = &self.0.tls else { return Ok(()) };
        let mut first = [0];
        let (found, _) = recv(&self.0.socket, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        *stage = match first {
            [TLS_HANDSHAKE] if found > 0 => Stage::Encrypted(Box::new(Encryption::begin(tls, true)?)),
            _ => Stage::Plain,
        };
        Ok(())
    }

    /// Whether the kernel knows that the client neither sends nor reads any more.
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut socket = [PollFd::new(&self.0.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Without flags only hang-ups and errors are reported, so any event counts.
        poll(&mut socket, Some(&now)).is_ok_and(|events| events > 0)
    }

    /// Makes the kernel probe the client's machine every few seconds.
    pub(crate) fn probe(&self) {
        if self.0.endpoints.peer.is_some() {
            let socket = &self.0.socket;
            let set = sockopt::set_tcp_keepidle(socket, PROBE_AFTER)
                .and_then(|()| sockopt::set_tcp_keepintvl(socket, PROBE_AFTER))
                .and_then(|()| sockopt::set_tcp_keepcnt(socket, PROBES));
            if let Err(error) = set {
                tracing::debug!(%error, "TCP keepalive cannot be set for a client");
            }
        }
    }

    /// Sends an error to a client that there is no room for, and closes the connection. Hardly waits.
    pub(crate) fn refuse(mut self, report: &ErrorResponse) {
        let mut sent = [0; 16_384];
        let deadline = Instant::now() + FIRST_BYTES;
        let length = loop {
            match self.read(&mut sent) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    self.wait(Interest::Read, Some(deadline));
                }
                read => break read.unwrap_or(0),
            }
        };
        // A client that asks for encryption first takes a message for what it is only after that is refused.
        let step = Negotiation::default().accept(&sent[..length]);
        let asks_for_encryption = matches!(step, Ok(Step::Encrypt | Step::RefuseEncryption));
        let refusal: &[u8] = if asks_for_encryption { b"N" } else { b"" };
        // It fits into the empty buffer of the kernel. A client that is gone needs no answer.
        let _ = self.write(&[refusal, &report.encode()].concat());
    }

    /// Sends what is encrypted already, and the end of the encrypted stream. The client may take a while to read.
    pub(crate) fn finish(&mut self) {
        if let Stage::Encrypted(encryption) = &mut *self.0.stage.lock() {
            encryption.close();
        }
        let deadline = Instant::now() + FAREWELL;
        while self.wants_write() && !self.has_hung_up() && Instant::now() < deadline {
            self.wait(Interest::Write, Some(deadline));
        }
    }

    /// Whether the socket has still to take encrypted bytes; gives it what it takes.
    fn wants_write(&self) -> bool {
        match &mut *self.0.stage.lock() {
            Stage::Encrypted(encryption) => match encryption.flush(&self.0.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                // A client that is gone takes no more.
                _ => false,
            },
            Stage::Fresh | Stage::Plain => false,
        }
    }

    /// Whether an encrypted connection has something to read, or nothing more comes; `None` if it is not encrypted.
    fn receive(&self) -> Option<bool> {
        match &mut *self.0.stage.lock() {
            Stage::Encrypted(encryption) => Some(encryption.receive(&self.0.socket)),
            Stage::Fresh | Stage::Plain => None,
        }
    }

    /// Lets the client read the last message: if a socket with unread input is closed, the kernel discards its output.
    pub(crate) fn linger(mut self) {
        if shutdown(&self.0.socket, Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut discarded = [0; 4096];
        while Instant::now() < deadline {
            match self.read(&mut discarded) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Interest::Read, Some(deadline));
                }
                Ok(0) | Err(_) => return,
            }
        }
    }
}

impl AsFd for SocketClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

impl Client for SocketClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stage = self.0.stage.lock();
        if matches!(&*stage, Stage::Fresh) {
            self.look_at_first_byte(&mut stage)?;
        }
        if let Stage::Encrypted(encryption) = &mut *stage {
            return encryption.read(&self.0.socket, buffer);
        }
        drop(stage);
        loop {
            match (&self.0.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    tracing::debug!(%error, "reading from the client failed: it is gone");
                    return Ok(0);
                }
                result => return result,
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Stage::Encrypted(encryption) = &mut *self.0.stage.lock() {
            return encryption.write(&self.0.socket, bytes);
        }
        loop {
            match (&self.0.socket).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        let wake_ups = self.0.wake_ups.as_fd();
        loop {
            // Bytes that are decrypted already are not in the socket any more.
            if matches!(interest, Interest::Read | Interest::Either) && self.receive() == Some(true) {
                return Readiness::Ready;
            }
            let wants_write = self.wants_write();
            let socket_flags = match interest {
                Interest::Read if wants_write => Some(PollFlags::IN | PollFlags::OUT),
                Interest::Read => Some(PollFlags::IN),
                Interest::Write => Some(PollFlags::OUT),
                Interest::Either => Some(PollFlags::IN | PollFlags::OUT),
                // Without flags `poll` would report the client's hang-up again and again.
                Interest::Nothing => None,
            };
            let mut files = vec![PollFd::new(&wake_ups, PollFlags::IN)];
            files.extend(socket_flags.map(|flags| PollFd::new(&self.0.socket, flags)));
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout =
                left.map(|left| Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
            match poll(&mut files, timeout.as_ref()) {
                Ok(0) => return Readiness::TimedOut,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    // Only a lack of kernel memory remains; reading or writing will report it.
                    tracing::warn!(%error, "waiting for the client failed");
                    return Readiness::Ready;
                }
            }
            let woken = !files[0].revents().is_empty();
            // Reading eight bytes takes all wake-ups at once (eventfd(2)).
            if woken && (&self.0.wake_ups).read(&mut [0; 8]).is_ok() {
                return Readiness::Woken;
            }
            // What has arrived may be a part of a record, or none with data.
            if interest != Interest::Read || self.receive() != Some(false) {
                return Readiness::Ready;
            }
        }
    }

    fn waker(&self) -> Waker {
        let inner = self.0.clone();
        Waker::new(move || {
            // Fails only if 2^64 - 2 wake-ups are pending; then another one changes nothing.
            let _ = (&inner.wake_ups).write(&1_u64.to_ne_bytes());
        })
    }

    fn can_encrypt(&self) -> bool {
        self.0.tls.is_some() && !matches!(&*self.0.stage.lock(), Stage::Encrypted(_))
    }

    fn encrypt(&mut self) -> io::Result<()> {
        let tls = self.0.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        *self.0.stage.lock() = Stage::Encrypted(Box::new(Encryption::begin(tls, false)?));
        Ok(())
    }

    fn certificate(&self) -> Option<ClientCertificate> {
        match &*self.0.stage.lock() {
            Stage::Encrypted(encryption) => encryption.certificate(),
            Stage::Fresh | Stage::Plain => None,
        }
    }

    fn certificate_digest(&self) -> Option<Arc<str>> {
        match &*self.0.stage.lock() {
            Stage::Encrypted(encryption) => encryption.certificate_digest(),
            Stage::Fresh | Stage::Plain => None,
        }
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints { is_encrypted: matches!(&*self.0.stage.lock(), Stage::Encrypted(_)), ..self.0.endpoints }
    }
}
