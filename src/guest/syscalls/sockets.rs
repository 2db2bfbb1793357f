//! Sockets: the guest has none.
//!
//! Under Emscripten a socket is a `WebSocket`, of the family `AF_INET` only. Here no family is supported. The other
//! calls then get a descriptor that cannot be a socket, which Emscripten's `getSocketFromFD` (`libsyscall.js`)
//! answers with `EBADF`.

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
