//! `libpqwalreceiver`, with which PostgreSQL receives from another server. This host has no connections for guests: the
//! library checks the connection strings of subscriptions, and connects to nobody.

use wasmtime::{AsContextMut, Caller, Func, FuncType};

use super::Library;
use crate::{
    engine::artefact,
    guest::{Guest, report},
    protocol::error_response::sqlstate,
};

/// The library's file.
const FILE: &str = "libpqwalreceiver.so";

/// What it calls before it connects, and nowhere else (`libpqsrv_connect_prepare` in
/// `src/include/libpq/libpq-be-fe-helpers.h`).
const CONNECT: &str = "AcquireExternalFD";

/// What it uses when it has connected, and PGlite does not have.
const USED_WHEN_CONNECTED: [&str; 2] = ["WalRcvIdentifySystemLsn", "pg_lsn_in"];

/// Whether the library is the one.
fn is_receiver(hash: &str) -> bool {
    artefact::library(hash).is_some_and(|file| file.name == FILE)
}

/// Whether it does without that address, because it never connects.
pub(super) fn does_without(library: &Library, name: &str) -> bool {
    is_receiver(library.hash()) && USED_WHEN_CONNECTED.contains(&name)
}

/// Whether the library is to have another function than PGlite's.
pub(super) fn replaces(hash: &str, name: &str) -> bool {
    name == CONNECT && is_receiver(hash)
}

/// The function `name` for `library`, if it is the one with which it begins to connect: an error.
pub(super) fn function(
    store: &mut impl AsContextMut<Data = Guest>,
    ty: &FuncType,
    name: &str,
    library: &Library,
) -> Option<Func> {
    replaces(library.hash(), name).then(|| {
        Func::new(store, ty.clone(), |mut caller: Caller<'_, Guest>, _, _| {
            Err(report::error_with_hint(
                &mut caller,
                sqlstate::FEATURE_NOT_SUPPORTED,
                "a cluster of this program cannot subscribe to another server",
                Some(
                    "It can publish: create the subscription on the other server. A subscription that is here can be dropped \
                     when it has no slot: ALTER SUBSCRIPTION ... DISABLE; ALTER SUBSCRIPTION ... SET (slot_name = NONE).",
                ),
            ))
        })
    })
}
