//! What clients are encrypted with: certificate and key of the server, and the authorities of clients' certificates.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use parking_lot::RwLock;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use crate::protocol::end_point;

/// The protocol that a client names when it begins with TLS at once (`PG_ALPN_PROTOCOL` in
/// `src/include/libpq/pqcomm.h`).
pub(crate) const PROTOCOL: &[u8] = b"postgresql";

/// The files, and what is asked of clients.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate of the server, followed by those of intermediate authorities (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// Certificates of the authorities by which the certificates of clients are verified (PEM). A client need not have
    /// one.
    pub client_authorities: Option<PathBuf>,
    /// The oldest version of TLS.
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2
    #[default]
    Tls12,
    /// TLS 1.3
    Tls13,
}

impl FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err("use 1.2 or 1.3".to_owned()),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        })
    }
}

/// How connections are encrypted. The files are read again on demand; connections keep what they began with.
pub struct Tls {
    files: TlsFiles,
    identity: RwLock<Identity>,
}

/// What the files say.
#[derive(Clone)]
struct Identity {
    config: Arc<ServerConfig>,
    /// The digest of the certificate, in base64.
    certificate_digest: Option<Arc<str>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be used; the message names it.
    pub fn open(files: TlsFiles) -> anyhow::Result<Self> {
        let identity = RwLock::new(identity(&files)?);
        Ok(Self { files, identity })
    }

    /// Reads the files again. If they cannot be used, those before stay in use.
    pub fn reload(&self) {
        match identity(&self.files) {
            Ok(identity) => *self.identity.write() = identity,
            Err(error) => tracing::warn!("TLS goes on with the files from before: {error:#}"),
        }
    }

    /// The server's end of a new connection, and the digest of the certificate that the client is shown.
    pub(super) fn begin(&self) -> Result<(ServerConnection, Option<Arc<str>>), rustls::Error> {
        let Identity { config, certificate_digest } = self.identity.read().clone();
        Ok((ServerConnection::new(config)?, certificate_digest))
    }
}

fn identity(files: &TlsFiles) -> anyhow::Result<Identity> {
    let TlsFiles { certificate, key, client_authorities, min_version } = files;
    let versions: &[&SupportedProtocolVersion] = match min_version {
        TlsVersion::Tls12 => &[&TLS12, &TLS13],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let (chain, private) = credentials(certificate, key)?;
    let certificate_digest = chain.first().and_then(|first| end_point::digest(first).ok().flatten()).map(Arc::from);
    let config = builder.with_single_cert(chain, private);
    let mut config = config.with_context(|| unusable(certificate, key))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // As in PostgreSQL, every connection has a handshake of its own.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Identity { config: Arc::new(config), certificate_digest })
}

/// The certificates of authorities in a file (PEM).
///
/// # Errors
/// When there is none, or the file cannot be read.
pub(crate) fn authorities(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).with_context(|| format!("{} has no authority's certificate", path.display()))?;
    }
    Ok(roots)
}

/// The certificates and the private key in these files (PEM).
///
/// # Errors
/// When one is missing or cannot be read, or others can read the key.
pub(crate) fn credentials(
    certificate: &Path,
    key: &Path,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(certificate)?;
    check_permissions(key)?;
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("{} has no private key", key.display()))?;
    Ok((chain, private))
}

/// What is said if rustls refuses the contents of these files.
pub(crate) fn unusable(certificate: &Path, key: &Path) -> String {
    format!("the certificate in {} and the key in {} cannot be used", certificate.display(), key.display())
}

/// The certificates in a file (PEM).
fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().with_context(|| format!("{} cannot be read as certificates", path.display()))?;
    ensure!(!certificates.is_empty(), "{} has no certificate", path.display());
    Ok(certificates)
}

/// Refuses a private key that others can read, as `PostgreSQL` does (`check_ssl_key_file_permissions` in
/// `src/backend/libpq/be-secure-common.c`): a group may, if the file is root's.
fn check_permissions(key: &Path) -> anyhow::Result<()> {
    let metadata = fs::metadata(key).with_context(|| format!("{} cannot be read", key.display()))?;
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    let mode = metadata.mode() & 0o777;
    if mode & !allowed != 0 {
        let key = key.display();
        bail!("others can read the private key in {key} (mode {mode:04o}): chmod 600 {key}, or 640 if it is root's");
    }
    Ok(())
}
