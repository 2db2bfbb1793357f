//! Sockets: the guest has none.
//!
//! Under Emscripten a socket is a `WebSocket`, of the family `AF_INET` only. Here no family is supported. Descriptors
//! in the other calls cannot be sockets, so these fail with `EBADF`, as Emscripten's `getSocketFromFD`
//! (`libsyscall.js`).

use wasmtime::Linker;

use crate::{fs::Errno, guest::Guest};

const CALLS: [(&str, Errno); 7] = [
    ("__syscall_socket", Errno::EAFNOSUPPORT),
    ("__syscall_accept4", Errno::EBADF),
    ("__syscall_bind", Errno::EBADF),
    ("__syscall_connect", Errno::EBADF),
    ("__syscall_listen", Errno::EBADF),
    ("__syscall_recvfrom", Errno::EBADF),
    ("__syscall_sendto", Errno::EBADF),
];

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for (name, errno) in CALLS {
        linker.func_wrap("env", name, move |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| -errno.number())?;
    }
    Ok(())
}
