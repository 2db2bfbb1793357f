//! The functions that `pgoutput` needs and PGlite lacks. `pgoutput` is `PostgreSQL`'s plugin for logical replication, a
//! side module of PGlite's; what only it calls, the linker has left out of the main module.
//!
//! The messages are those of the logical replication protocol ("Logical Replication Message Formats" in `PostgreSQL`'s
//! manual), as `src/backend/replication/logical/proto.c` writes them. Most other functions are short; those that are
//! in the main module without an export, the rewriter exports (`instrument::publishing`).
//!
//! * `message`: a message that is being written
//! * `transactions`: messages about whole transactions
//! * `changes`: messages about rows
//! * `relations`: messages about tables and types, and which columns are published
//! * `publications`: reading publications, lists and sets, and the rest

mod changes;
mod message;
mod publications;
mod relations;
mod transactions;

use wasmtime::Linker;

use super::Guest;
pub(super) use message::Calls;

/// The functions that [`add_to_linker`] adds. PGlite imports none of them.
pub(super) const FUNCTIONS: [&[&str]; 4] =
    [&transactions::FUNCTIONS, &changes::FUNCTIONS, &relations::FUNCTIONS, &publications::FUNCTIONS];

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    transactions::add_to_linker(linker)?;
    changes::add_to_linker(linker)?;
    relations::add_to_linker(linker)?;
    publications::add_to_linker(linker)
}
