//! The listening socket: parsing its address, its URL, its file.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Mode,
    io::Errno,
    process::umask,
};

use super::{
    inherited::{self, Inherited},
    tls::Tls,
};
use crate::serve::socket::SocketClient;

/// The prefix that libpq expects in the name of a socket in a directory; the port number follows.
const SOCKET_PREFIX: &str = ".s.PGSQL.";
/// The port number that libpq uses by default.
const DEFAULT_PORT: &str = "5432";

/// The address that stands for the sockets of systemd's.
const SYSTEMD: &str = "systemd";

/// The number of attempts to find a port that is free on all addresses of a name.
const ATTEMPTS: usize = 20;

/// The socket that clients connect to.
pub struct Listener(Socket);

enum Socket {
    /// The same TCP port of one or more addresses; the sockets are non-blocking.
    Tcp(Vec<(TcpListener, SocketAddr)>),
    /// A unix socket.
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket.
struct SocketFile {
    path: PathBuf,
    /// Device and inode, to recognise a file that was replaced; `None` if the file is systemd's.
    identity: Option<(u64, u64)>,
}

/// A connection that was accepted.
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Accepted {
    /// The client of the connection, which can be encrypted if it is one of TCP.
    pub(super) fn client(self, tls: Option<Arc<Tls>>) -> io::Result<SocketClient> {
        match self {
            Self::Tcp(stream, peer) => SocketClient::tcp(stream, peer, tls),
            Self::Unix(stream) => SocketClient::unix(stream),
        }
    }
}

impl Listener {
    /// Listens on `HOST:PORT`, on all addresses of that host, or on `unix:PATH`. If the path is a directory, the
    /// socket is `.s.PGSQL.5432` in it, where libpq looks. `systemd` stands for the sockets of a socket unit, with which
    /// this process was started. `socket_mode` are the permissions of its file; without, the
    /// process' umask decides.
    ///
    /// # Errors
    /// If it cannot listen there, with what to do about it.
    pub fn bind(listen: &str, socket_mode: Option<u32>) -> anyhow::Result<Self> {
        match listen.strip_prefix("unix:") {
            Some(path) => Self::bind_unix(Path::new(path), socket_mode),
            None if socket_mode.is_some() => bail!("--socket-mode is for --listen unix:PATH"),
            None if listen == SYSTEMD => Self::inherit(),
            None => Self::bind_tcp(listen),
        }
    }

    fn inherit() -> anyhow::Result<Self> {
        let cannot = "a socket of systemd's cannot be used";
        match inherited::take()? {
            Inherited::Tcp(listeners) => {
                let prepare = |listener: TcpListener| -> io::Result<_> {
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    Ok((listener, address))
                };
                let listeners: io::Result<_> = listeners.into_iter().map(prepare).collect();
                Ok(Self(Socket::Tcp(listeners.context(cannot)?)))
            }
            Inherited::Unix(listener) => {
                listener.set_nonblocking(false).context(cannot)?;
                let address = listener.local_addr().context(cannot)?;
                let path =
                    address.as_pathname().context("a socket of systemd's has no path: give ListenStream= one")?;
                let file = SocketFile { path: path.to_owned(), identity: None };
                Ok(Self(Socket::Unix(listener, file)))
            }
        }
    }

    fn bind_tcp(listen: &str) -> anyhow::Result<Self> {
        let mut addresses = Vec::new();
        let resolved = listen.to_socket_addrs().map(|resolved| {
            for address in resolved {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        });
        resolved.and_then(|()| bind_all(&addresses)).map(|listeners| Self(Socket::Tcp(listeners))).with_context(|| {
            format!("cannot listen on {listen:?}: give --listen HOST:PORT (port 0 for any free port) or unix:PATH")
        })
    }

    fn bind_unix(path: &Path, mode: Option<u32>) -> anyhow::Result<Self> {
        if path.as_os_str().is_empty() {
            // Linux would choose a name that clients do not know.
            bail!("cannot listen on \"unix:\": the path is missing; give --listen unix:PATH");
        }
        let path = if path.is_dir() { path.join(format!("{SOCKET_PREFIX}{DEFAULT_PORT}")) } else { path.to_owned() };
        // The file is never there with other permissions. No other thread makes files yet.
        let before = mode.map(|mode| umask(Mode::from_raw_mode(!mode & 0o777)));
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&path).and_then(|()| Ok(UnixListener::bind(&path)?))
            }
            result => result.map_err(anyhow::Error::from),
        };
        if let Some(before) = before {
            umask(before);
        }
        let listener = listener.with_context(|| {
            format!("cannot listen on {}: give --listen unix:PATH with a path that can be created", path.display())
        })?;
        let identity =
            identity(&path).with_context(|| format!("the attributes of {} cannot be read", path.display()))?;
        Ok(Self(Socket::Unix(listener, SocketFile { path, identity: Some(identity) })))
    }

    /// Waits for a client.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        match &self.0 {
            Socket::Tcp(listeners) => accept_any(listeners).map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Socket::Unix(listener, _) => listener.accept().map(|(stream, _)| Accepted::Unix(stream)),
        }
    }

    /// Checks that only this machine's programs can connect.
    ///
    /// # Errors
    /// When it listens on an address that others can reach.
    pub fn refuse_open_addresses(&self) -> anyhow::Result<()> {
        match self.ips().find(|address| !address.is_loopback()) {
            None => Ok(()),
            Some(address) => bail!(
                "every client that can reach {address} could connect as a superuser without a password: give --auth \
                 scram-sha-256 and --password-file FILE (or --auth FILE with rules), or --trust-everyone-who-can-connect \
                 if that is what you want"
            ),
        }
    }

    /// The IP addresses that it listens on.
    fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let listeners = match &self.0 {
            Socket::Tcp(listeners) => listeners.as_slice(),
            Socket::Unix(..) => &[],
        };
        listeners.iter().map(|(_, address)| address.ip())
    }

    /// The URL for clients on this machine.
    pub(super) fn url(&self) -> String {
        match &self.0 {
            // The first address of the host's name.
            Socket::Tcp(listeners) => listeners.first().map(|(_, address)| tcp_url(*address)).unwrap_or_default(),
            Socket::Unix(_, file) => unix_url(&file.path),
        }
    }

    /// Removes the socket's file, unless it was replaced.
    pub(super) fn remove_socket_file(&self) {
        if let Socket::Unix(_, file) = &self.0 {
            file.remove();
        }
    }
}

impl SocketFile {
    /// Removes it, unless it was replaced or removed.
    fn remove(&self) {
        if self.identity.is_some_and(|own| identity(&self.path).is_ok_and(|identity| identity == own))
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket file was not removed");
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Listens on all of `addresses`, on one port.
fn bind_all(addresses: &[SocketAddr]) -> io::Result<Vec<(TcpListener, SocketAddr)>> {
    let is_any_port = addresses.iter().any(|address| address.port() == 0);
    let mut attempts = if is_any_port { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_once(addresses) {
            // The port that is free on the first address is used on another one.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
            result => return result,
        }
    }
}

fn bind_once(addresses: &[SocketAddr]) -> io::Result<Vec<(TcpListener, SocketAddr)>> {
    let mut listeners: Vec<(TcpListener, SocketAddr)> = Vec::new();
    let mut unavailable = None;
    for &address in addresses {
        let mut address = address;
        if let (0, Some((_, first))) = (address.port(), listeners.first()) {
            address.set_port(first.port());
        }
        match TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                listeners.push((listener, address));
            }
            // localhost may resolve to ::1 on a machine without IPv6.
            Err(error) if is_unavailable(&error) => unavailable = Some(error),
            Err(error) => return Err(error),
        }
    }
    match unavailable {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

/// Whether this machine does not have the address or its address family.
fn is_unavailable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// Waits for a client of any listener.
fn accept_any(listeners: &[(TcpListener, SocketAddr)]) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let mut files: Vec<_> = listeners.iter().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)).collect();
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // The limit of open files has become lower than the number of listeners (poll(2)).
            Err(Errno::INVAL) => return Err(Errno::MFILE.into()),
            Err(error) => return Err(error.into()),
        }
        for (listener, _) in listeners {
            match listener.accept() {
                // Another listener's client, or one that is gone.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// Removes a socket file without a listener.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        bail!("cannot listen on {shown}: it exists and is not a socket; choose another path with --listen unix:PATH");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {shown}: remove it yourself"))
        }
        // Another program listens, or the file's owner is another user.
        _ => bail!(
            "cannot listen on {shown}: another program listens there; stop it or choose another path with --listen"
        ),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn tcp_url(address: SocketAddr) -> String {
    // Not every system can connect to an unspecified address.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("postgresql://postgres@{}/postgres", SocketAddr::new(ip, address.port()))
}

/// libpq gets the directory and the port of a file with the name that it expects; other drivers get the path.
fn unix_url(path: &Path) -> String {
    let port = path.file_name().and_then(|name| name.to_str()?.strip_prefix(SOCKET_PREFIX));
    let (host, port) = match (port, path.parent()) {
        (Some(port), Some(directory)) => (directory, format!("&port={port}")),
        _ => (path, String::new()),
    };
    let host = std::path::absolute(host).unwrap_or_else(|_| host.to_owned());
    format!("postgresql://postgres@/postgres?host={}{port}", percent_encode(&host))
}

/// A path as the value of a URL's parameter (RFC 3986: everything except unreserved characters and `/` is encoded).
fn percent_encode(path: &Path) -> String {
    let encode = |&byte: &u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.as_os_str().as_encoded_bytes().iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_port(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("an address"), 0)
    }

    #[test]
    fn all_addresses_of_a_name_get_the_same_port() {
        let ips = ["127.0.0.1", "127.0.0.2", "::1"].map(any_port);
        let available: Vec<_> = ips.into_iter().filter(|address| TcpListener::bind(address).is_ok()).collect();
        // A kernel without IPv6 has only two.
        assert!(available.len() >= 2, "{available:?}");
        let listeners = bind_all(&ips).expect("ports");
        let ports: Vec<_> = listeners.iter().map(|(_, address)| address.port()).collect();
        assert_eq!(ports, vec![ports[0]; available.len()]);
        for (_, address) in &listeners {
            let client = TcpStream::connect(address).expect("it listens");
            let (_, peer) = accept_any(&listeners).expect("a client");
            assert_eq!(client.local_addr().expect("its address"), peer);
        }
    }

    #[test]
    fn an_address_that_this_machine_has_not_is_passed_over_unless_it_is_the_only_one() {
        // An address for documentation (RFC 5737), which no machine has.
        let foreign = any_port("203.0.113.77");
        assert_eq!(bind_all(&[foreign, any_port("127.0.0.1")]).expect("a port").len(), 1);
        let error = bind_all(&[foreign]).expect_err("there is nothing to listen on");
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn an_address_on_which_the_port_is_taken_is_an_error_though_others_are_free() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("its address").port();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|ip| SocketAddr::new(any_port(ip).ip(), port));
        assert_eq!(bind_all(&addresses).expect_err("it is taken").kind(), io::ErrorKind::AddrInUse);
    }
}
