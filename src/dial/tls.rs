//! Encrypts a connection to a server as libpq does (`src/interfaces/libpq/fe-secure-openssl.c`).
//!
//! What speaks PostgreSQL's protocol here is a driver, `pg_dump` in its guest, or a file of SQL, and waits for its
//! connection in its own way. Each has a socket; a thread at the other end of the socket encrypts.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::event::{PollFd, PollFlags, poll};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring::default_provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

use super::{
    Stream,
    encryption::{Authorities, Encryption, Mode},
};
use crate::serve::{
    encryption::{Encryption as Encrypted, RECORD},
    tls::{self, PROTOCOL, credentials, unusable},
};

/// The stream to the server `host`, encrypted if that is asked for or possible. The handshake has `patience`, if there
/// is a limit.
///
/// # Errors
/// When the server does not encrypt or is not the right one, and `encryption` asks for that.
pub(super) fn encrypt(
    mut stream: TcpStream,
    host: &str,
    encryption: &Encryption,
    patience: Option<Duration>,
) -> anyhow::Result<Stream> {
    if encryption.mode == Mode::Disable {
        return Ok(Stream::Tcp(stream));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let mut answer = [0];
    stream.set_read_timeout(patience)?;
    let found = stream
        .write_all(&request)
        .and_then(|()| stream.peek(&mut answer))
        .with_context(|| format!("the server at {host} does not say whether it encrypts connections"))?;
    if found == 1 && &answer == b"S" {
        stream.read_exact(&mut answer)?;
    } else if encryption.mode == Mode::Prefer {
        // Anything but a refusal is for the session: it may be an error in place of an answer.
        if &answer == b"N" {
            stream.read_exact(&mut answer)?;
        }
        stream.set_read_timeout(None)?;
        return Ok(Stream::Tcp(stream));
    } else if found == 0 || &answer != b"N" {
        bail!("what answers at {host} ends the connection, or does not speak PostgreSQL's protocol");
    } else {
        bail!(
            "the server at {host} does not encrypt connections, which sslmode={} asks for: set up TLS there, or use \
             sslmode=disable",
            encryption.mode
        );
    }
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host:?} is no name of a host"))?;
    let mut connection = ClientConnection::new(Arc::new(config(encryption)?), name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| explained(error, host))?;
    }
    stream.set_read_timeout(None)?;
    stream.set_nonblocking(true)?;
    let (line, far_end) = UnixStream::pair()?;
    far_end.set_nonblocking(true)?;
    let (encrypted, socket) = (Encrypted::of_client(connection), File::from(OwnedFd::from(stream)));
    let relay = move || {
        if let Err(error) = relay(encrypted, &socket, &far_end) {
            tracing::debug!(%error, "an encrypted connection has ended");
        }
    };
    thread::Builder::new().name("tls".to_owned()).spawn(relay)?;
    Ok(Stream::Unix(line))
}

/// Says what to do about a handshake that has failed.
fn explained(error: io::Error, host: &str) -> anyhow::Error {
    let failure = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
    let advice = match failure {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ": no authority that is trusted has signed its certificate; sslrootcert=FILE names the certificate of one \
             that is, and sslrootcert=system those of the operating system"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => ": its certificate is for another name; sslmode=verify-ca does not compare names",
        Some(Error::InvalidCertificate(CertificateError::Other(_))) => {
            ": its certificate cannot be verified; one that an authority has signed can, and sslmode=require without \
             sslrootcert verifies none"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("the connection to {host} cannot be encrypted{advice}"))
}

fn config(encryption: &Encryption) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS12, &TLS13])?;
    let authority = |authorities: &Authorities| -> anyhow::Result<Arc<WebPkiServerVerifier>> {
        Ok(WebPkiServerVerifier::builder_with_provider(roots(authorities)?, provider.clone()).build()?)
    };
    // As libpq: whoever has a list of authorities wants it to be used.
    let authority = match (&encryption.authorities, encryption.mode) {
        (Some(authorities), Mode::Require | Mode::VerifyCa | Mode::VerifyFull) => Some(authority(authorities)?),
        (None, Mode::VerifyCa | Mode::VerifyFull) => bail!(
            "sslmode={} needs the certificates of authorities: sslrootcert=FILE names those to trust, and \
             sslrootcert=system is for those of the operating system",
            encryption.mode
        ),
        _ => None,
    };
    let verifier: Arc<dyn ServerCertVerifier> = match authority {
        Some(authority) if encryption.mode == Mode::VerifyFull => authority,
        authority => Arc::new(Lenient { authority, provider: provider.clone() }),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &encryption.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (chain, private) = credentials(certificate, key)?;
            builder.with_client_auth_cert(chain, private).with_context(|| unusable(certificate, key))?
        }
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn roots(authorities: &Authorities) -> anyhow::Result<Arc<RootCertStore>> {
    let roots = match authorities {
        Authorities::File(path) => tls::authorities(path)?,
        Authorities::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            ensure!(
                !roots.is_empty(),
                "the operating system has no certificates of authorities: install ca-certificates"
            );
            roots
        }
    };
    Ok(Arc::new(roots))
}

/// Passes bytes on between the server at `socket` and the connection's user at `line`, until one of them ends.
fn relay(mut encrypted: Encrypted, socket: &File, line: &UnixStream) -> io::Result<()> {
    let (mut received, mut sending) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; RECORD];
    let mut has_ended = false;
    loop {
        if received.is_empty() {
            match encrypted.read(socket, &mut buffer) {
                // Whoever still sends reads first what the server has said before its end.
                Ok(0) => {
                    line.shutdown(Shutdown::Write)?;
                    line.set_nonblocking(false)?;
                    return io::copy(&mut &*line, &mut io::sink()).map(drop);
                }
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if sending.is_empty() && !has_ended {
            match (&mut &*line).read(&mut buffer) {
                Ok(0) => {
                    has_ended = true;
                    encrypted.close();
                }
                Ok(read) => sending.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        let passed = pass(&mut received, |bytes| (&mut &*line).write(bytes))?;
        let passed = passed | pass(&mut sending, |bytes| encrypted.write(socket, bytes))?;
        match encrypted.flush(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        if has_ended && sending.is_empty() && !encrypted.wants_write() {
            return Ok(());
        }
        if passed {
            continue;
        }
        let of_socket = flags(received.is_empty(), encrypted.wants_write() || !sending.is_empty());
        let of_line = flags(sending.is_empty() && !has_ended, !received.is_empty());
        let wanted = [PollFd::new(socket, of_socket), PollFd::new(line, of_line)];
        // Of one that is not waited for, its end would be reported all the time.
        let mut wanted: Vec<_> = wanted
            .into_iter()
            .zip([of_socket, of_line])
            .filter(|(_, flags)| !flags.is_empty())
            .map(|(fd, _)| fd)
            .collect();
        match poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn flags(reads: bool, writes: bool) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, reads);
    flags.set(PollFlags::OUT, writes);
    flags
}

/// Writes what goes of `bytes` without waiting, and takes it out; whether there was something.
fn pass(bytes: &mut Vec<u8>, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
    if bytes.is_empty() {
        return Ok(false);
    }
    match write(bytes) {
        Ok(written) => {
            bytes.drain(..written);
            Ok(written > 0)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Verifies less of a certificate than its authority and the name in it.
#[derive(Debug)]
struct Lenient {
    /// Verifies the authority (`sslmode=verify-ca`). Without, every certificate does whose key the server has
    /// (`sslmode=require`): nobody can listen who does not take the server's place.
    authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is compared last.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
