//! Host names and addresses. The guest has no network: numeric addresses are parsed, for `pg_hba.conf`, and names are
//! not resolved.
//!
//! Emscripten invents an address for every name (`DNS` in its `src/lib/libcore.js`), which would be wrong here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wasmtime::{Caller, Linker};

use super::{Guest, memory};

const AF_UNSPEC: i32 = 0;
const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;

const AI_PASSIVE: i32 = 0x01;
const AI_CANONNAME: i32 = 0x02;
const AI_V4MAPPED: i32 = 0x08;
const AI_NUMERICSERV: i32 = 0x400;
/// The flags that musl knows; others are an error.
const AI_KNOWN: i32 = 0x43f;

const NI_NAMEREQD: i32 = 8;

/// Errors of `getaddrinfo`, as musl numbers them (Emscripten, `system/lib/libc/musl/include/netdb.h`).
mod eai {
    pub(super) const BADFLAGS: i32 = -1;
    pub(super) const NONAME: i32 = -2;
    pub(super) const FAMILY: i32 = -6;
    pub(super) const SOCKTYPE: i32 = -7;
    pub(super) const SERVICE: i32 = -8;
    pub(super) const MEMORY: i32 = -10;
    pub(super) const OVERFLOW: i32 = -12;
}

/// Sizes of `struct addrinfo`, `sockaddr_in` and `sockaddr_in6`.
const ADDRINFO: u32 = 32;
const SOCKADDR_IN: u32 = 16;
const SOCKADDR_IN6: u32 = 28;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap("env", "getaddrinfo", get_address_info)?;
    linker.func_wrap("env", "getnameinfo", get_name_info)?;
    Ok(())
}

/// The `hint` of a caller of `getaddrinfo`.
#[derive(Clone, Copy, Default)]
struct Hint {
    flags: i32,
    family: i32,
    socket_type: i32,
    protocol: i32,
}

/// One result of `getaddrinfo`.
#[derive(Debug, PartialEq, Eq)]
struct AddressInfo {
    address: IpAddr,
    port: u16,
    socket_type: i32,
    protocol: i32,
}

fn get_address_info(
    mut caller: Caller<'_, Guest>,
    node: u32,
    service: u32,
    hint: u32,
    out: u32,
) -> wasmtime::Result<i32> {
    let memory = memory::of(&mut caller)?.0;
    let string = |address: u32| match address {
        0 => Ok(None),
        address => memory::read_text(memory, address).map(Some),
    };
    let (node, service) = (string(node)?, string(service)?);
    let mut wanted = Hint::default();
    if hint != 0 {
        let fields = [&mut wanted.flags, &mut wanted.family, &mut wanted.socket_type, &mut wanted.protocol];
        for (field, offset) in fields.into_iter().zip([0, 4, 8, 12]) {
            *field = memory::read_u32(memory, hint.wrapping_add(offset))?.cast_signed();
        }
    }
    let info = match look_up(node.as_deref(), service.as_deref(), wanted) {
        Ok(info) => info,
        Err(code) => return Ok(code),
    };
    let address_length = if info.address.is_ipv6() { SOCKADDR_IN6 } else { SOCKADDR_IN };
    let malloc = caller.data().exports()?.malloc.clone();
    let (socket_address, entry) = (malloc.call(&mut caller, address_length)?, malloc.call(&mut caller, ADDRINFO)?);
    if socket_address == 0 || entry == 0 {
        return Ok(eai::MEMORY);
    }
    let memory = memory::of(&mut caller)?.0;
    let address = SocketAddr::new(info.address, info.port);
    memory::write_bytes(memory, socket_address, &encode_socket_address(Some(address)))?;
    let family = if info.address.is_ipv6() { AF_INET6 } else { AF_INET };
    let words = [
        0, // ai_flags
        family.cast_unsigned(),
        info.socket_type.cast_unsigned(),
        info.protocol.cast_unsigned(),
        address_length,
        socket_address,
        0, // ai_canonname
        0, // ai_next
    ];
    for (word, offset) in words.into_iter().zip((0..).step_by(4)) {
        memory::write_u32(memory, entry.wrapping_add(offset), word)?;
    }
    memory::write_u32(memory, out, entry)?;
    Ok(0)
}

/// The checks of Emscripten's `getaddrinfo`, in its order.
fn look_up(node: Option<&str>, service: Option<&str>, hint: Hint) -> Result<AddressInfo, i32> {
    let Hint { flags, family, mut socket_type, mut protocol } = hint;
    if socket_type != 0 && protocol == 0 {
        protocol = if socket_type == SOCK_DGRAM { IPPROTO_UDP } else { IPPROTO_TCP };
    }
    if socket_type == 0 && protocol != 0 {
        socket_type = if protocol == IPPROTO_UDP { SOCK_DGRAM } else { SOCK_STREAM };
    }
    if protocol == 0 {
        protocol = IPPROTO_TCP;
    }
    if socket_type == 0 {
        socket_type = SOCK_STREAM;
    }
    if node.is_none() && service.is_none() {
        return Err(eai::NONAME);
    }
    if flags & !AI_KNOWN != 0 || (flags & AI_CANONNAME != 0 && node.is_none()) {
        return Err(eai::BADFLAGS);
    }
    if socket_type != SOCK_STREAM && socket_type != SOCK_DGRAM {
        return Err(eai::SOCKTYPE);
    }
    if ![AF_UNSPEC, AF_INET, AF_INET6].contains(&family) {
        return Err(eai::FAMILY);
    }
    let port = match service {
        None => 0,
        Some(service) => {
            service.parse().map_err(|_| if flags & AI_NUMERICSERV != 0 { eai::NONAME } else { eai::SERVICE })?
        }
    };
    let address = match node {
        None if flags & AI_PASSIVE != 0 && family == AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        None if flags & AI_PASSIVE != 0 => Ipv4Addr::UNSPECIFIED.into(),
        None if family == AF_INET6 => Ipv6Addr::LOCALHOST.into(),
        None => Ipv4Addr::LOCALHOST.into(),
        Some(node) => match node.parse().map_err(|_| eai::NONAME)? {
            IpAddr::V4(address) if family == AF_INET6 && flags & AI_V4MAPPED != 0 => address.to_ipv6_mapped().into(),
            IpAddr::V4(_) if family == AF_INET6 => return Err(eai::NONAME),
            IpAddr::V6(_) if family == AF_INET => return Err(eai::NONAME),
            address => address,
        },
    };
    Ok(AddressInfo { address, port, socket_type, protocol })
}

/// `struct sockaddr_in` or `sockaddr_in6`, or the nameless address that `accept` returns for a client of a unix
/// socket.
pub(crate) fn encode_socket_address(address: Option<SocketAddr>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SOCKADDR_IN6 as usize);
    let family = match address {
        None => AF_UNIX,
        Some(SocketAddr::V4(_)) => AF_INET,
        Some(SocketAddr::V6(_)) => AF_INET6,
    };
    // Of the two bytes of the family, little-endian, the second is 0.
    bytes.extend(&family.to_le_bytes()[..2]);
    match address {
        None => {}
        Some(SocketAddr::V4(address)) => {
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.resize(SOCKADDR_IN as usize, 0);
        }
        Some(SocketAddr::V6(address)) => {
            bytes.extend(address.port().to_be_bytes());
            bytes.extend([0; 4]); // sin6_flowinfo
            bytes.extend(address.ip().octets());
            bytes.resize(SOCKADDR_IN6 as usize, 0); // sin6_scope_id
        }
    }
    bytes
}

fn decode_socket_address(bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let word = |at: usize| Some([*bytes.get(at)?, *bytes.get(at + 1)?]);
    let (family, port) = (u16::from_le_bytes(word(0)?), u16::from_be_bytes(word(2)?));
    let address = match i32::from(family) {
        AF_INET => IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?),
        _ => return None,
    };
    Some((address, port))
}

#[expect(clippy::too_many_arguments, reason = "these are getnameinfo's")]
fn get_name_info(
    mut caller: Caller<'_, Guest>,
    address: u32,
    address_length: u32,
    node: u32,
    node_length: u32,
    service: u32,
    service_length: u32,
    flags: i32,
) -> wasmtime::Result<i32> {
    let memory = memory::of(&mut caller)?.0;
    let Some((address, port)) = decode_socket_address(memory::read_bytes(memory, address, address_length)?) else {
        return Ok(eai::FAMILY);
    };
    let mut overflowed = false;
    if node != 0 && node_length != 0 {
        if flags & NI_NAMEREQD != 0 {
            return Ok(eai::NONAME);
        }
        overflowed |= !write_c_string(memory, node, node_length, &address.to_string())?;
    }
    if service != 0 && service_length != 0 {
        overflowed |= !write_c_string(memory, service, service_length, &port.to_string())?;
    }
    Ok(if overflowed { eai::OVERFLOW } else { 0 })
}

/// Writes `text` and a NUL if they fit into `length` bytes, and returns whether they do.
fn write_c_string(memory: &mut [u8], address: u32, length: u32, text: &str) -> wasmtime::Result<bool> {
    let bytes = [text.as_bytes(), b"\0"].concat();
    let fits = bytes.len() <= length as usize;
    if fits {
        memory::write_bytes(memory, address, &bytes)?;
    }
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_addresses_are_parsed() {
        let info = look_up(Some("127.0.0.1"), Some("5432"), Hint::default()).unwrap();
        assert_eq!((info.address, info.port), (Ipv4Addr::LOCALHOST.into(), 5432));
        let info = look_up(Some("::1"), None, Hint::default()).unwrap();
        assert_eq!(
            (info.address, info.socket_type, info.protocol),
            (Ipv6Addr::LOCALHOST.into(), SOCK_STREAM, IPPROTO_TCP)
        );
    }

    #[test]
    fn names_are_not_invented() {
        assert_eq!(look_up(Some("example.org"), None, Hint::default()), Err(eai::NONAME));
    }

    #[test]
    fn a_wrong_family_type_flag_or_service_has_its_own_error() {
        let hint = |flags, family, socket_type| Hint { flags, family, socket_type, protocol: 0 };
        assert_eq!(look_up(None, None, Hint::default()), Err(eai::NONAME));
        assert_eq!(look_up(Some("::1"), None, hint(0, AF_INET, 0)), Err(eai::NONAME));
        assert_eq!(look_up(Some("::1"), None, hint(0, 1, 0)), Err(eai::FAMILY));
        assert_eq!(look_up(Some("::1"), None, hint(0, 0, 5)), Err(eai::SOCKTYPE));
        assert_eq!(look_up(Some("::1"), None, hint(0x1000, 0, 0)), Err(eai::BADFLAGS));
        assert_eq!(look_up(Some("::1"), Some("postgresql"), hint(0, 0, 0)), Err(eai::SERVICE));
    }

    #[test]
    fn a_socket_address_is_read_back_as_it_was_written() {
        for address in ["10.1.2.3", "2001:db8::7"] {
            let address: IpAddr = address.parse().unwrap();
            let encoded = encode_socket_address(Some(SocketAddr::new(address, 77)));
            assert_eq!(decode_socket_address(&encoded), Some((address, 77)));
        }
        assert_eq!(decode_socket_address(&[2, 0, 1]), None);
        assert_eq!(decode_socket_address(&encode_socket_address(None)), None);
    }
}
