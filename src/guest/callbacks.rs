//! PGlite's callbacks: reading from and writing to its client, and running commands.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use wasmtime::{Caller, Linker};

use super::{Guest, entropy, gathering::Gathered, memory, waiting};
use crate::{
    client::{Client, ClientCertificate, Interest, LAST_WORDS, Readiness, Waker, write_all},
    fs::Errno,
    instrument::HOOK_MODULE,
};

/// The exported functions that take the table slots of PGlite's callbacks, and the callbacks' import names, in the
/// order of their slots, which follow the module's own elements.
pub(crate) const CALLBACKS: [(&str, &[&str]); 4] = [
    ("pgl_set_system_fn", &["system"]),
    ("pgl_set_popen_fn", &["popen"]),
    ("pgl_set_pclose_fn", &["pclose"]),
    ("pgl_set_rw_cbs", &["read", "write"]),
];

/// The client of a backend, with bytes that it sent before the backend existed.
#[derive(Default)]
pub(crate) struct ClientStream {
    client: Option<Box<dyn Client>>,
    /// Bytes that are read before those of the client: the startup packet.
    before: VecDeque<u8>,
    on_key: Option<OnKey>,
    is_trusted: bool,
    /// Whether it has chosen channel binding.
    is_bound: bool,
    on_admitted: Option<OnAdmitted>,
    is_admitted: bool,
    sent: u64,
    /// Bytes that are held back from the client.
    held: Option<Vec<u8>>,
    gathered: Gathered,
    /// When what cannot be sent is given up, if the session was told to end.
    gives_up: Option<Instant>,
}

/// Called when the client has authenticated, or need not.
type OnAdmitted = Box<dyn FnOnce() + Send>;

/// Gets the secret key of the session before the client does.
type OnKey = Box<dyn FnOnce(&[u8]) + Send>;

impl ClientStream {
    /// A stream that returns `before` first.
    pub(crate) fn new(client: Box<dyn Client>, before: &[u8]) -> Self {
        Self { client: Some(client), before: before.iter().copied().collect(), ..Self::default() }
    }

    /// Calls `tell` with the secret key that `PostgreSQL` has made for the session, before the client gets it.
    pub(crate) fn on_key(mut self, tell: impl FnOnce(&[u8]) + Send + 'static) -> Self {
        self.on_key = Some(Box::new(tell));
        self
    }

    /// The same, with a client that need not authenticate if `is_trusted`.
    pub(crate) fn trusted(self, is_trusted: bool) -> Self {
        Self { is_trusted, ..self }
    }

    /// Calls `tell` when the client has authenticated, or need not.
    pub(crate) fn on_admitted(mut self, tell: impl FnOnce() + Send + 'static) -> Self {
        self.on_admitted = Some(Box::new(tell));
        self
    }

    /// The client is let in.
    pub(super) fn admit(&mut self) {
        self.is_admitted = true;
        if let Some(tell) = self.on_admitted.take() {
            tell();
        }
    }

    /// Whether the client was let in.
    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted
    }

    /// The client itself, for another session: what was read from it is lost.
    pub(crate) fn into_client(self) -> Option<Box<dyn Client>> {
        self.client
    }

    /// Whether the client need not authenticate.
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// The client's certificate, if it has one that was verified.
    pub(super) fn certificate(&self) -> Option<ClientCertificate> {
        self.client.as_ref().and_then(|client| client.certificate())
    }

    /// As [`Client::certificate_digest`].
    pub(super) fn certificate_digest(&self) -> Option<Arc<str>> {
        self.client.as_ref().and_then(|client| client.certificate_digest())
    }

    /// The client has chosen a mechanism of SASL: with channel binding or without.
    pub(super) fn bind(&mut self, is_bound: bool) {
        self.is_bound = is_bound;
    }

    /// Whether it has chosen channel binding.
    pub(super) fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// The handle with which other threads end its waits.
    pub(crate) fn waker(&self) -> Option<Waker> {
        self.client.as_ref().map(|client| client.waker())
    }

    /// As [`Client::wait`]. Without a client only the deadline ends it, and without both it ends at once.
    pub(super) fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        // What cannot be sent now is sent before the next message, and a client that is gone is noticed there.
        let _ = self.send_gathered();
        if let Some(client) = &mut self.client {
            client.wait(interest, deadline)
        } else {
            let Some(deadline) = deadline else { return Readiness::Ready };
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            Readiness::TimedOut
        }
    }

    /// The session was told to end.
    pub(super) fn begin_to_end(&mut self) {
        self.gives_up.get_or_insert_with(|| Instant::now() + LAST_WORDS);
    }

    /// When that is given up, because the session was told to end: only what cannot be sent is.
    pub(super) fn gives_up(&self, interest: Interest) -> Option<Instant> {
        self.gives_up.filter(|_| interest == Interest::Write)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.before.is_empty() {
            return io::Read::read(&mut self.before, buffer);
        }
        match &mut self.client {
            Some(client) => client.read(buffer),
            None => Ok(0),
        }
    }

    /// The session's next message about a transaction is not the last one: it need not be sent before the next.
    pub(super) fn transaction_goes_on(&mut self) {
        self.gathered.transaction_goes_on();
    }

    fn send_gathered(&mut self) -> io::Result<()> {
        let Self { client: Some(client), gathered, sent, .. } = self else { return Ok(()) };
        gathered.send(|bytes| {
            let written = client.write(bytes)?;
            *sent += written as u64;
            Ok(written)
        })
    }

    /// Holds back what is written, from now on.
    pub(crate) fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// Stops holding back, and returns the bytes that were held back.
    pub(crate) fn release(&mut self) -> Vec<u8> {
        self.held.take().unwrap_or_default()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.held {
            held.extend(bytes);
            return Ok(bytes.len());
        }
        if self.gathered.takes(bytes) {
            return Ok(bytes.len());
        }
        self.send_gathered()?;
        if self.gathered.takes(bytes) {
            return Ok(bytes.len());
        }
        let written = match &mut self.client {
            Some(client) => client.write(bytes)?,
            None => bytes.len(),
        };
        self.sent += written as u64;
        Ok(written)
    }

    /// The number of bytes that the backend has sent to its client.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Sends all of `bytes` in place of the backend, between two of its messages, and waits where necessary. A client
    /// that is gone gets nothing.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) {
        if let Some(held) = &mut self.held {
            return held.extend(bytes);
        }
        // A client that is gone is noticed below.
        let _ = self.send_gathered();
        self.sent += bytes.len() as u64;
        if let Some(client) = &mut self.client {
            // The backend notices a client that is gone at its next read.
            let _ = write_all(&mut **client, bytes);
        }
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        "read",
        |mut caller: Caller<'_, Guest>, address: u32, length: u32| -> wasmtime::Result<i32> {
            let count = transfer(&mut caller, Interest::Read, |client, memory| {
                client.read(memory::bytes_mut(memory, address, length)?)
            })?;
            if let Ok(count @ 1..) = u64::try_from(count) {
                caller.data().tally.received.add(count);
                caller.data_mut().growth.set_refused(false);
                entropy::follow_seed(&mut caller)?;
            }
            Ok(count)
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        "write",
        |mut caller: Caller<'_, Guest>, address: u32, length: u32| -> wasmtime::Result<i32> {
            announce_key(&mut caller)?;
            let count = transfer(&mut caller, Interest::Write, |client, memory| {
                client.write(memory::read_bytes(memory, address, length)?)
            })?;
            caller.data().tally.sent.add(u64::try_from(count).unwrap_or(0));
            Ok(count)
        },
    )?;
    super::commands::add_to_linker(linker)
}

/// Passes the session's secret key on as soon as it exists.
fn announce_key(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let (memory, guest) = memory::of(caller)?;
    if guest.client.on_key.is_some() {
        let length = memory::read_u32(memory, guest.facts.my_cancel_key_length)?;
        if length != 0
            && let Some(tell) = guest.client.on_key.take()
        {
            tell(memory::read_bytes(memory, guest.facts.my_cancel_key, length)?);
        }
    }
    Ok(())
}

/// Reads or writes. If that is not possible at once, it waits here when nothing else can happen meanwhile. Otherwise
/// it lets `PostgreSQL` wait (`secure_read` and `secure_write` in `src/backend/libpq/be-secure.c`), which handles
/// interrupts and, in a shared cluster, reports the wait in `pg_stat_activity`.
fn transfer(
    caller: &mut Caller<'_, Guest>,
    interest: Interest,
    mut attempt: impl FnMut(&mut ClientStream, &mut [u8]) -> io::Result<usize>,
) -> wasmtime::Result<i32> {
    let errno = loop {
        let (memory, guest) = memory::of(caller)?;
        match attempt(&mut guest.client, memory) {
            Ok(count) => return Ok(i32::try_from(count)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let gives_up = guest.client.gives_up(interest);
                if gives_up.is_some_and(|at| at <= Instant::now()) {
                    break Errno::ECONNRESET;
                }
                if guest.seat.is_some() || guest.signals.any() {
                    break Errno::EAGAIN;
                }
                let deadline = [guest.timers.next(), gives_up].into_iter().flatten().min();
                match waiting::wait(caller, interest, deadline)? {
                    Readiness::Ready => {}
                    Readiness::Woken | Readiness::TimedOut => break Errno::EAGAIN,
                }
            }
            // The buffer is outside the memory.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error.into()),
            Err(_) => break Errno::ECONNRESET,
        }
    };
    let (memory, guest) = memory::of(caller)?;
    // Only an operation on a client fails, and only a backend, the module of the facts, has a client.
    memory::write_u32(memory, guest.facts.errno, errno.number().cast_unsigned())?;
    Ok(-1)
}
