//! The TCP connections of this machine in Linux' tables: whether a process still has the other end of one open.
//!
//! The end of a client's stream means that it sends no more. Over TCP, a client that has closed its socket and one
//! that still reads look the same until something is sent to them. For a client on the same machine, in the same
//! network namespace, the kernel's tables have the answer.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The tables (Linux, `Documentation/networking/proc_net_tcp.rst`).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The column of the socket's inode, which is 0 when no process has the socket open.
const INODE: usize = 9;

/// The connections at one moment: the inode by local and remote address.
pub(super) struct TcpTable(HashMap<(SocketAddr, SocketAddr), u64>);

impl TcpTable {
    /// Reads the tables.
    ///
    /// # Errors
    /// When the system does not provide them.
    pub(super) fn read() -> io::Result<Self> {
        let mut table = HashMap::new();
        for path in TABLES {
            match fs::read_to_string(path) {
                Ok(text) => table.extend(text.lines().filter_map(parse)),
                // A kernel without IPv6 has only the first table.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !table.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(table))
    }

    /// Whether the end `local` of the connection to `remote` is on this machine, and no process has it open.
    pub(super) fn is_abandoned(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.get(&(local, remote)) == Some(&0)
    }
}

/// A line of the table; `None` for its heading.
fn parse(line: &str) -> Option<((SocketAddr, SocketAddr), u64)> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let addresses = (address(columns.get(1)?)?, address(columns.get(2)?)?);
    Some((addresses, columns.get(INODE)?.parse().ok()?))
}

/// An address: words in the machine's own byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::with_capacity(16);
    for word in words.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// Whether the client's end is abandoned after `leave`.
    fn is_abandoned(host: &str, leave: impl FnOnce(TcpStream) -> Option<TcpStream>) -> bool {
        let listener = TcpListener::bind((host, 0)).expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("it listens");
        let addresses = (client.local_addr().expect("its address"), client.peer_addr().expect("its address"));
        let _accepted = listener.accept().expect("a client");
        let _client = leave(client);
        TcpTable::read().expect("on Linux").is_abandoned(addresses.0, addresses.1)
    }

    #[test]
    fn a_client_that_has_closed_its_socket_is_told_from_one_that_still_reads() {
        let hosts = ["127.0.0.1", "::1"].into_iter().filter(|host| TcpListener::bind((*host, 0)).is_ok());
        for host in hosts {
            assert!(!is_abandoned(host, Some), "{host}");
            let half = |client: TcpStream| {
                client.shutdown(Shutdown::Write).expect("it is open");
                Some(client)
            };
            assert!(!is_abandoned(host, half), "{host}");
            assert!(is_abandoned(host, |_closed| None), "{host}");
        }
    }

    #[test]
    fn what_is_no_line_of_the_table_is_passed_over() {
        let heading =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(parse(heading), None);
        assert_eq!(parse("0: 0100007F:1538 zz:1539"), None);
        assert_eq!(parse(""), None);
    }
}
