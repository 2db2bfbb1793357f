//! Listening sockets of systemd's (`sd_listen_fds(3)`), which stay open when the program is started again: its clients
//! wait meanwhile instead of being refused.

use std::{
    env,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    process,
};

use anyhow::{Context, bail, ensure};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketType, sockopt},
};

/// The first descriptor that systemd passes on (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// More sockets are no list of systemd's.
const MOST: RawFd = 64;

/// Sockets that were passed on.
pub(super) enum Inherited {
    /// Those of TCP, at least one.
    Tcp(Vec<TcpListener>),
    /// A unix socket.
    Unix(UnixListener),
}

/// Takes the sockets; to be called once, before the program opens others.
///
/// # Errors
/// When there are none, or they are of kinds that are not served together.
pub(super) fn take() -> anyhow::Result<Inherited> {
    let variable = |name| env::var(name).ok().and_then(|value| value.parse::<RawFd>().ok());
    let is_for_this = variable("LISTEN_PID").is_some_and(|id| u32::try_from(id) == Ok(process::id()));
    let count = variable("LISTEN_FDS").filter(|count| is_for_this && (1..=MOST).contains(count)).context(
        "systemd has passed no socket on: start the program by a socket unit, or give --listen HOST:PORT or unix:PATH",
    )?;
    let mut tcp = Vec::new();
    let mut unix = Vec::new();
    for number in FIRST..FIRST + count {
        // SAFETY: it is only asked what it is, and closed by nobody meanwhile: what else may have this number is open for
        // as long as the program runs.
        let passed = unsafe { BorrowedFd::borrow_raw(number) };
        let is_listener = sockopt::socket_acceptconn(passed).unwrap_or(false)
            && sockopt::socket_type(passed) == Ok(SocketType::STREAM);
        ensure!(is_listener, "descriptor {number}, which systemd has passed on, is no socket that listens");
        // SAFETY: a socket that listens is not the program's own, which has opened none yet, so it is the one that the
        // parent says to have opened for this process; this function is called once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC).context("a socket of systemd's cannot be used")?;
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => tcp.push(TcpListener::from(socket)),
            Ok(AddressFamily::UNIX) => unix.push(UnixListener::from(socket)),
            domain => bail!("descriptor {number}, which systemd has passed on, is of the kind {domain:?}"),
        }
    }
    match (tcp.is_empty(), unix.pop()) {
        (false, None) => Ok(Inherited::Tcp(tcp)),
        (true, Some(listener)) if unix.is_empty() => Ok(Inherited::Unix(listener)),
        _ => bail!("one unix socket is served, or sockets of TCP: change ListenStream= of the socket unit"),
    }
}
