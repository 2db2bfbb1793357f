//! `pglite-port`: real PostgreSQL (the official PGlite build) in Wasmtime, for clients on a socket or in frames over
//! stdin and stdout.
//!
//! # Layout, in reading order
//!
//! A room uses only rooms below it (`tests/rooms.rs`).
//!
//! From clients to sessions:
//! * [`port`]: frames from stdin, frames to stdout.
//! * [`serve`]: a TCP or unix-socket listener, for use without frames.
//! * [`connection`]: one client from its first byte to its last.
//! * [`databases`]: chooses a connection's cluster, the shared one or its own.
//! * [`administration`]: administration of the program: figures, templates, configuration.
//! * [`session`]: the interface between the rooms above.
//! * [`pruning`]: lists the cache and removes what has not been used for long.
//!
//! From sessions to the wasm:
//! * [`template`]: clusters prepared and frozen, and their clones.
//! * `backend`: one wasm instance of PostgreSQL, from its start to its end.
//! * [`guest`]: the Emscripten host, everything that the wasm can use.
//! * `cluster`: what the processes of a cluster share besides its files.
//! * [`protocol`]: the parts of PostgreSQL's protocol that the host reads and writes.
//! * [`engine`]: Wasmtime's configuration, compiled code in the cache, the pinned PGlite files.
//! * [`instrument`]: the rewriter of the wasm before it is compiled.
//! * `image`: the contents of a memory on disk, mapped copy-on-write.
//!
//! Used by all of them:
//! * [`log`]: log lines, and the program's log on stderr.
//! * [`fs`]: the guest's files, in memory, copied on write.
//! * [`client`]: a client's byte stream, as a backend uses it.
//! * [`icu`]: ICU data that PGlite does not contain.
//! * `postgres`: numbers and offsets that are compiled into the guest, with their sources.
//! * `random`: unpredictable bytes.
//! * `sync`: locks, which a model checker can replace.
//! * `sources`: digests of the sources, for the keys in the cache.

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
