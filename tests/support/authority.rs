//! A certificate authority that is made here, servers that it vouches for, and clients that trust it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;

use super::{PATIENCE, server::Server, wire};

/// A certificate authority, and the files of a server that it vouches for.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority of a test");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("a disk");
        let authority = Self { directory, issuer: Issuer::new(parameters, key) };
        authority.issue("server", &["localhost"]);
        authority
    }

    /// Writes `NAME.pem` and `NAME.key` for a holder of these names.
    pub fn issue(&self, name: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let key_file = self.path(&format!("{name}.key"));
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("a disk");
        fs::write(&key_file, key.serialize_pem()).expect("a disk");
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("a disk");
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("text").to_owned()
    }

    /// The arguments of a server with its certificate.
    pub fn arguments(&self) -> [String; 4] {
        ["--tls-cert".to_owned(), self.path("server.pem"), "--tls-key".to_owned(), self.path("server.key")]
    }

    pub fn serve(&self, further: &[&str]) -> Server {
        let own = self.arguments();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Server::with(&[&own[..], &["--listen", "localhost:0"], further].concat())
    }

    /// A client that trusts the authority and no other.
    pub fn client(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.path("ca.pem")).expect("a certificate");
        roots.add(authority).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_protocol_versions(versions).expect("versions");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

/// The port of a server.
pub fn port(server: &Server) -> String {
    let port = server.url.rsplit(':').next().and_then(|rest| rest.split('/').next());
    port.expect("a port").to_owned()
}

/// Runs psql with these further connection parameters.
pub fn psql(server: &Server, parameters: &str, sql: &str) -> Output {
    let place = format!("host=localhost port={} dbname=postgres {parameters}", port(server));
    let user = if parameters.contains("user=") { "" } else { " user=postgres" };
    let mut psql = Command::new("psql");
    psql.args(["-X", "-w", "-A", "-t", "-c", sql, "-d", &format!("{place}{user}")]);
    psql.output().expect("psql is installed")
}

/// A session over TLS that has been asked for, or that the client begins at once.
pub fn session(
    server: &Server,
    config: Arc<ClientConfig>,
    is_direct: bool,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = TcpStream::connect(format!("localhost:{}", port(server))).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    if !is_direct {
        stream.write_all(&wire::ssl_request()).expect("it listens");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *b"S");
    }
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a client"), stream)
}
