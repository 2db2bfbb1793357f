//! `pglite-port`: real PostgreSQL (the official PGlite file) hosted in Wasmtime, spoken to in frames over
//! stdin and stdout or over a socket.
//!
//! # Layout, in reading order
//!
//! A room knows those below it, never those above (`tests/rooms.rs`).
//!
//! From the outside to a session:
//! * [`port`]: frames from stdin, frames to stdout.
//! * [`serve`]: a TCP or unix-socket listener, for use without frames.
//! * [`connection`]: one client from its first byte to its last.
//! * [`databases`]: which cluster a connection gets: the shared one, or one of its own.
//! * [`administration`]: what administers the program: figures, templates, configuration.
//! * [`session`]: what serves clients and what makes their sessions have in common.
//! * [`pruning`]: what the cache holds, and the removal of what was not used for long.
//!
//! From a session to the wasm:
//! * [`template`]: clusters prepared and frozen, and their clones.
//! * `backend`: one wasm instance of PostgreSQL, from its start to its end.
//! * [`guest`]: the Emscripten host, everything that the wasm sees.
//! * `cluster`: what the processes of a cluster share besides its files.
//! * [`protocol`]: PostgreSQL's protocol, as far as the host reads and writes it.
//! * [`engine`]: Wasmtime's configuration, compiled code in the cache, the pinned PGlite files.
//! * [`instrument`]: the rewriter of the wasm before it is compiled.
//! * `image`: the contents of a memory on disk, mapped copy-on-write.
//!
//! What the others stand on:
//! * [`log`]: log lines on their way out.
//! * [`fs`]: the guest's files, in memory, copied on write.
//! * [`client`]: a client's byte stream, as a backend sees it.
//! * [`icu`]: ICU's data besides those that PGlite has.
//! * `postgres`: numbers and offsets that are compiled into the guest, with their sources.
//! * `random`: bytes that nobody can guess.
//! * `sync`: locks, which a model checker can take the place of.
//! * `sources`: digests of the sources, for the keys of what is stored.

pub mod administration;
mod backend;
pub mod client;
mod cluster;
pub mod connection;
pub mod databases;
pub mod engine;
pub mod fs;
pub mod guest;
pub mod icu;
mod image;
pub mod instrument;
pub mod log;
pub mod port;
mod postgres;
pub mod protocol;
pub mod pruning;
mod random;
pub mod serve;
pub mod session;
mod sources;
mod sync;
pub mod template;
