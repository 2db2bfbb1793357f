//! `pglite-port`: real PostgreSQL (the official PGlite file) hosted in Wasmtime, spoken to in frames over
//! stdin and stdout or over a socket.
//!
//! # Layout, in reading order
//!
//! From the outside to a session:
//! * [`frame`]: frames, encoded and decoded.
//! * [`port`]: frames from stdin, frames to stdout; notices that the parent is gone.
//! * [`serve`]: a TCP or unix-socket listener, for use without frames.
//! * `router`: from a frame to its connection or request.
//! * `relay`, `socket`: the two kinds of client, one behind frames and one behind a socket.
//! * `outbox`: frames on their way to stdout.
//! * [`connection`]: one client from its first byte to its last.
//! * [`startup`]: the first packet of a connection.
//! * [`cancel`]: backend keys, and how a session is interrupted.
//! * [`error_response`]: errors as PostgreSQL tells them to its client.
//! * [`log`]: log lines on their way out.
//! * [`pruning`]: what the cache holds, and the removal of what nobody uses.
//!
//! From a session to the wasm:
//! * [`databases`]: which cluster a connection gets.
//! * `postmaster`: the shared cluster and its sessions.
//! * `cluster`: what the sessions of a cluster share besides its files.
//! * `isolated`: connections with a cluster of their own.
//! * [`template`]: clusters prepared and frozen, and their clones.
//! * `footprint`: how much memory a backend has for itself.
//! * `answer`: what PostgreSQL answers, as far as the host reads it.
//! * `backend`: one wasm instance of PostgreSQL, from its start to its end.
//! * `program`: the wasm, instrumented, compiled and linked.
//! * [`engine`]: Wasmtime's configuration, compiled code in the cache.
//! * [`instrument`]: the rewriter of the wasm before it is compiled.
//! * [`guest`]: the Emscripten host, everything that the wasm sees.
//! * [`icu`]: ICU's data besides those that PGlite has.
//! * [`fs`]: the guest's files, in memory, copied on write.
//! * `image`: the contents of a memory on disk, mapped copy-on-write.
//! * [`cache`]: the private directory for what is expensive to make.
//! * `sources`: digests of the sources, for the keys of what is stored.
//! * `backlog`: bytes on their way to an output that may be slow.
//! * `patient`: standard streams that may be non-blocking.
//! * `random`: bytes that nobody can guess.
//! * [`artefact`]: the pinned PGlite files.

mod answer;
pub mod artefact;
mod backend;
mod backlog;
pub mod cache;
pub mod cancel;
mod cluster;
pub mod connection;
pub mod databases;
pub mod engine;
pub mod error_response;
mod footprint;
pub mod frame;
pub mod fs;
pub mod guest;
pub mod icu;
mod image;
pub mod instrument;
mod isolated;
pub mod log;
mod outbox;
mod patient;
pub mod port;
mod postmaster;
mod program;
pub mod pruning;
mod random;
mod relay;
mod router;
pub mod serve;
mod socket;
mod sources;
pub mod startup;
pub mod template;
