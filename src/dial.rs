//! Sessions for the program's own commands: at a URL, or in a cluster of the program itself.
//!
//! * `mod`: the server, and a stream of bytes to a new session of it
//! * `address`: where it is, by a URL, options and the environment
//! * `cancel`: cancels what a session runs
//! * `encryption`: whether and how connections are encrypted, by the address and the environment
//! * `password`: the password, if none was given
//! * `ready`: whether a server takes clients
//! * `session`: a session by the simple protocol
//! * `tls`: encrypts a connection

mod address;
mod cancel;
mod encryption;
mod password;
mod ready;
mod session;
mod tls;

use std::{
    io::{self, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};

use crate::{
    connection::{Connections, Opening},
    log::LogSink,
    quota::Limits,
    serve::socket::SocketClient,
    session::Mode,
};

pub use address::{Address, AskForPassword};
pub use cancel::Cancel;
use encryption::Encryption;
pub use password::show_typing;
pub use ready::Readiness;
pub(crate) use session::{Report, Session};

/// The directory that is named in messages for a cluster of the program itself.
const OWN_DIRECTORY: &str = "/pglite";

/// The port of a server whose address names none.
const PORT: u16 = 5432;

/// A server, and as whom to connect to which of its databases.
pub struct Server {
    config: Config,
    encryption: Encryption,
    way: Way,
}

/// How a session is reached.
#[derive(Clone)]
enum Way {
    /// By the addresses in the configuration.
    Network,
    /// By a session that the program opens for itself.
    Own(Arc<dyn Fn() -> io::Result<UnixStream> + Send + Sync>),
}

/// A stream of bytes to a new session.
#[derive(Debug)]
pub(crate) struct Line {
    stream: Stream,
    /// The host as the address names it, and as the operating system has found it.
    pub(crate) host: String,
    pub(crate) address: Option<std::net::SocketAddr>,
    pub(crate) port: u16,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    /// To a server's socket, or to the thread that encrypts.
    Unix(UnixStream),
}

impl Server {
    /// The server at that address. If it asks for a password and there is none, the user is asked on the terminal.
    ///
    /// # Errors
    /// When the address is not one of a server, or nobody serves there.
    pub fn at(address: &Address) -> anyhow::Result<Self> {
        let (config, encryption) = address.resolve()?;
        let mut server = Self { config, encryption, way: Way::Network };
        server.config.ssl_mode(SslMode::Disable);
        server.find_password(address.ask)?;
        Ok(server)
    }

    /// The cluster `cluster`, or the default one, of the program that has these connections.
    pub fn of(connections: Arc<Connections>, cluster: Option<String>, log: LogSink) -> Self {
        let mut config = Config::new();
        config.user("postgres").dbname("postgres");
        let open = move || open_session(&connections, cluster.clone(), log.clone());
        Self { config, encryption: Encryption::default(), way: Way::Own(Arc::new(open)) }
    }

    /// The same with another database and user.
    #[must_use]
    pub fn with(mut self, database: Option<&str>, user: Option<&str>) -> Self {
        if let Some(database) = database {
            self.config.dbname(database);
        }
        if let Some(user) = user {
            self.config.user(user);
        }
        self
    }

    /// The database.
    pub(crate) fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or_default()
    }

    /// Another database of the same server.
    pub(crate) fn in_database(&self, database: &str) -> Self {
        let (config, encryption, way) = (self.config.clone(), self.encryption.clone(), self.way.clone());
        Self { config, encryption, way }.with(Some(database), None)
    }

    /// As whom to connect to which database, and with which options.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Asks for the password if the server does and none is known.
    fn find_password(&mut self, ask: AskForPassword) -> anyhow::Result<()> {
        if self.config.get_password().is_some() && ask != AskForPassword::Always {
            return Ok(());
        }
        let user = self.config.get_user().unwrap_or_default().to_owned();
        let found = match ask {
            AskForPassword::Always => Some(password::ask(&user)?),
            AskForPassword::IfNeeded if self.asks_for_password()? => password::ask(&user).ok(),
            AskForPassword::Never | AskForPassword::IfNeeded => None,
        };
        found.map(|password| self.config.password(password));
        Ok(())
    }

    /// Whether a new session begins with a question for a password.
    fn asks_for_password(&self) -> anyhow::Result<bool> {
        // A server that ends the session has refused it, for which the next one gets the error.
        Ok(Session::open(self, &[])?.next().is_ok_and(|message| session::asks_for_password(&message)))
    }

    /// Opens a session: its startup packet is the next thing to send.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(crate) fn dial(&self) -> anyhow::Result<Line> {
        match &self.way {
            Way::Network => self.dial_network(),
            Way::Own(open) => {
                let stream = Stream::Unix(open().context("no session can be opened in the cluster")?);
                Ok(Line { stream, host: OWN_DIRECTORY.to_owned(), address: None, port: PORT })
            }
        }
    }

    /// Tries the addresses in their order.
    fn dial_network(&self) -> anyhow::Result<Line> {
        let (hosts, addresses, ports) = (self.config.get_hosts(), self.config.get_hostaddrs(), self.config.get_ports());
        let port = |index: usize| match ports {
            [] => PORT,
            [port] => *port,
            ports => ports.get(index).copied().unwrap_or(PORT),
        };
        let mut last = None;
        for index in 0..hosts.len().max(addresses.len()) {
            let (host, port) = (hosts.get(index), port(index));
            let dialled = match (host, addresses.get(index)) {
                (Some(Host::Unix(directory)), _) => {
                    let path = directory.join(format!(".s.PGSQL.{port}"));
                    let host = directory.to_string_lossy().into_owned();
                    let stream = UnixStream::connect(&path)
                        .with_context(|| format!("no server answers at the socket {}", path.display()));
                    stream.map(|stream| Line { stream: Stream::Unix(stream), host, address: None, port })
                }
                (host, address) => {
                    let host = match (host, address) {
                        (Some(Host::Tcp(host)), _) => host.clone(),
                        (_, Some(address)) => address.to_string(),
                        _ => continue,
                    };
                    let target = address.map_or_else(|| host.clone(), ToString::to_string);
                    self.dial_tcp(&target, port).and_then(|stream| {
                        let (address, patience) = (stream.peer_addr().ok(), self.config.get_connect_timeout().copied());
                        let stream = match tls::encrypt(stream, &host, &self.encryption, patience) {
                            // As libpq, which then tries without.
                            Err(error) if self.encryption.mode == encryption::Mode::Prefer => {
                                tracing::debug!("going on without encryption: {error:#}");
                                Stream::Tcp(self.dial_tcp(&target, port)?)
                            }
                            stream => stream?,
                        };
                        Ok(Line { stream, host, address, port })
                    })
                }
            };
            match dialled {
                Ok(line) => return Ok(line),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("the address names no host")?)
    }

    fn dial_tcp(&self, host: &str, port: u16) -> anyhow::Result<TcpStream> {
        let mut last = None;
        let found = (host, port).to_socket_addrs().with_context(|| format!("the host {host} cannot be found"))?;
        for address in found {
            let connected = match self.config.get_connect_timeout() {
                Some(timeout) => TcpStream::connect_timeout(&address, *timeout),
                None => TcpStream::connect(address),
            };
            match connected {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = Some((address, error)),
            }
        }
        let (address, error) = last.with_context(|| format!("the host {host} has no address"))?;
        Err(error).with_context(|| format!("no server answers at {address}"))
    }

    /// Begins a session, with that name in `pg_stat_activity` unless the address has another.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the session.
    pub(crate) fn session(&self, application: &str) -> anyhow::Result<Session> {
        Session::begin(self, application)
    }
}

impl Line {
    /// Reads what has arrived; `None` if nothing has and `waits` is false. 0 is the end.
    pub(crate) fn receive(&self, buffer: &mut [u8], waits: bool) -> io::Result<Option<usize>> {
        let flags = if waits { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        loop {
            match recv(self, &mut *buffer, flags) {
                Ok((_, received)) => return Ok(Some(received)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if !waits => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all of `bytes`.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).write_all(bytes),
            Stream::Unix(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    /// Sends the beginning of `bytes`, as much as goes without waiting, and returns its length.
    fn send_some(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    /// Waits until there is room to send, or, if it `receives`, something to receive; which of them.
    fn wait(&self, receives: bool) -> io::Result<(bool, bool)> {
        let wanted = if receives { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT };
        let mut fds = [PollFd::new(self, wanted)];
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                polled => {
                    polled?;
                    let events = fds[0].revents();
                    // An end or an error is found by receiving.
                    return Ok((events.contains(PollFlags::OUT), events != PollFlags::OUT));
                }
            }
        }
    }

    /// Ends the session and every wait for it, from any thread.
    pub(crate) fn hang_up(&self) {
        // It has ended already if this fails.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Opens a session of the cluster `cluster`, or of the default one, for the program itself, which need not
/// authenticate; the other end of its socket.
///
/// # Errors
/// The operating system's.
pub(crate) fn open_session(
    connections: &Arc<Connections>,
    cluster: Option<String>,
    log: LogSink,
) -> io::Result<UnixStream> {
    let (here, there) = UnixStream::pair()?;
    let (mode, template, limits) = (Mode::Shared, None, Limits::default());
    let opening = Opening { id: 0, mode, cluster, template, limits, is_trusted: true, log };
    connections.start(SocketClient::unix(there)?, opening, |_, _| {})?;
    Ok(here)
}
