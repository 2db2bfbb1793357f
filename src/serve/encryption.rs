//! One encrypted connection over a non-blocking socket, of a client's or of the program's own.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

use rustls::{ClientConnection, Connection};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::{PROTOCOL, Tls};
use crate::client::ClientCertificate;

/// How much of what a session writes is encrypted before the socket takes it, in bytes: one record of TLS.
pub(crate) const RECORD: usize = 16 << 10;

/// An end of an encrypted connection.
pub(crate) struct Encryption {
    connection: Connection,
    /// That of the server's certificate, at the server's end.
    certificate_digest: Option<Arc<str>>,
    /// Whether the client has begun with TLS at once, for which it has to name the protocol.
    is_direct: bool,
    /// Decrypted bytes that have not been read.
    readable: usize,
    /// Whether nothing more can come, because the other end has closed its side or has broken the protocol.
    is_ended: bool,
}

impl Encryption {
    /// The connection of a client that is about to begin its handshake.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn begin(tls: &Tls, is_direct: bool) -> io::Result<Self> {
        let (connection, certificate_digest) = tls.begin().map_err(io::Error::other)?;
        Ok(Self { connection: connection.into(), certificate_digest, is_direct, readable: 0, is_ended: false })
    }

    /// The client's end of a connection after its handshake.
    pub(crate) fn of_client(connection: ClientConnection) -> Self {
        let connection = connection.into();
        let mut this = Self { connection, certificate_digest: None, is_direct: false, readable: 0, is_ended: false };
        // What has come with the end of the handshake.
        this.process();
        this
    }

    /// Reads decrypted bytes; 0 if no more can come.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]
    pub(crate) fn read(&mut self, socket: &File, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(socket);
        if self.readable > 0 && !buffer.is_empty() {
            let read = self.connection.reader().read(buffer)?;
            self.readable -= read.min(self.readable);
            return Ok(read);
        }
        if self.is_ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Takes what the socket has, until there is something to read. Returns whether there is, or nothing more comes.
    pub(super) fn receive(&mut self, socket: &File) -> bool {
        while self.readable == 0 && !self.is_ended {
            match self.connection.read_tls(&mut &*socket) {
                Ok(0) => self.is_ended = true,
                Ok(_) => self.process(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "reading from the other end failed: it is gone");
                    self.is_ended = true;
                }
            }
        }
        // Answers of the handshake, and alerts. What the socket does not take now is sent when it does.
        let _ = self.flush(socket);
        self.readable > 0 || self.is_ended
    }

    fn process(&mut self) {
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.readable = state.plaintext_bytes_to_read();
                self.is_ended |= state.peer_has_closed();
                let is_named = self.connection.alpn_protocol() == Some(PROTOCOL);
                if self.is_direct && !self.connection.is_handshaking() && !is_named {
                    tracing::debug!("direct TLS without the name of the protocol (ALPN)");
                    (self.readable, self.is_ended) = (0, true);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "TLS with the other end has failed");
                (self.readable, self.is_ended) = (0, true);
            }
        }
    }

    /// Encrypts some of `bytes`, if the socket has taken what was encrypted before; returns how many.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]; others when the other end is gone.
    pub(crate) fn write(&mut self, socket: &File, bytes: &[u8]) -> io::Result<usize> {
        self.flush(socket)?;
        let written = self.connection.writer().write(&bytes[..bytes.len().min(RECORD)])?;
        if written == 0 && !bytes.is_empty() {
            // Much was written before the end of the handshake, and the other end does not go on with it.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.flush(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(written),
        }
    }

    /// Gives the socket what is encrypted.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn flush(&mut self, socket: &File) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut &*socket) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The client's certificate, which rustls has verified.
    pub(super) fn certificate(&self) -> Option<ClientCertificate> {
        let certificate = self.connection.peer_certificates()?.first()?;
        let common_name = X509Certificate::from_der(certificate).ok().and_then(|(_, certificate)| {
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
            // It would end there for PostgreSQL.
            (!name.contains('\0')).then(|| name.to_owned())
        });
        Some(ClientCertificate { common_name })
    }

    /// The digest of the server's certificate, in base64.
    pub(super) fn certificate_digest(&self) -> Option<Arc<str>> {
        self.certificate_digest.clone()
    }

    /// Whether there is something encrypted that the socket has not taken.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Tells the other end that nothing more is sent.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
