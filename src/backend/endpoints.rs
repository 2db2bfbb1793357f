//! `MyProcPort`: what a backend knows of its client's connection (`struct Port` in `src/include/libpq/libpq-be.h`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::ensure;

use super::Backend;
use crate::{
    client::Endpoints,
    guest::encode_socket_address,
    postgres::port_struct::{LOCAL_ADDRESS, REMOTE_ADDRESS, REMOTE_HOST, REMOTE_PORT, SSL_IN_USE, STORAGE},
};

/// The client that `pgl_startPGlite` invents.
const INVENTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5432);

/// What stands for the name of the machine of a unix socket's client (`getnameinfo_unix` in `src/common/ip.c`).
const LOCAL: &str = "[local]";

impl Backend {
    /// Fills in the new `Port` at that address where the client is, as `pq_init` and `BackendInitialize`
    /// (`src/backend/tcop/backend_startup.c`) do.
    ///
    /// # Errors
    /// When this version of PGlite has its `Port` laid out in another way.
    pub(super) fn set_endpoints(&mut self, port: u32, endpoints: Endpoints) -> anyhow::Result<()> {
        let invented = socket_address(Some(INVENTED));
        let address = usize::try_from(port.wrapping_add(REMOTE_ADDRESS))?;
        let found = self.memory()?.get(address..address + invented.len());
        ensure!(found == Some(&invented[..]), "the layout of struct Port in this version of PGlite is not known");
        for (offset, address) in [(LOCAL_ADDRESS, endpoints.local), (REMOTE_ADDRESS, endpoints.peer)] {
            self.write(port.wrapping_add(offset), &socket_address(address))?;
        }
        // Rules for `hostssl` and `hostnossl` look at it. This build encrypts nothing by itself.
        self.write(port.wrapping_add(SSL_IN_USE), &[endpoints.is_encrypted.into()])?;
        let (host, service) = match endpoints.peer {
            Some(peer) => (peer.ip().to_string(), peer.port().to_string()),
            None => (LOCAL.to_owned(), String::new()),
        };
        for (offset, text) in [(REMOTE_HOST, host), (REMOTE_PORT, service)] {
            let text = self.keep_string(&text)?;
            self.write_u32(port.wrapping_add(offset), text)?;
        }
        Ok(())
    }

    /// A C string that lives as long as the backend.
    fn keep_string(&mut self, text: &str) -> anyhow::Result<u32> {
        let context = self.read_u32(self.facts().address("TopMemoryContext")?)?;
        let stack: u32 = self.call("emscripten_stack_get_current", ())?;
        let text = self.push_string(text.as_bytes())?;
        let kept = self.call("MemoryContextStrdup", (context, text))?;
        self.call::<u32, ()>("_emscripten_stack_restore", stack)?;
        Ok(kept)
    }
}

/// A `SockAddr`.
fn socket_address(address: Option<SocketAddr>) -> Vec<u8> {
    let mut bytes = encode_socket_address(address);
    let length = bytes.len();
    bytes.resize(STORAGE, 0);
    bytes.extend(&length.to_le_bytes()[..4]);
    bytes
}
