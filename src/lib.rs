//! `pglite-port`: real PostgreSQL (the official PGlite build) in Wasmtime, for clients on a socket or in frames over
//! stdin and stdout.
//!
//! # Layout, in reading order
//!
//! A room uses only rooms below it (`tests/rooms.rs`).
//!
//! From clients to sessions:
//! * [`metrics`]: an HTTP endpoint for Prometheus.
//! * [`port`]: stdin and stdout: `frame`, `router`, `requests`, `relay` (a `Client`), `outbox`; detects the parent's
//!   end.
//! * [`moving`]: moves a database to another server while it is in use.
//! * [`dump`]: dumps of databases by PostgreSQL's `pg_dump`, which runs as a guest.
//! * [`script`]: SQL files, such as plain dumps, run in a session.
//! * [`dial`]: sessions for the program's own commands: at a URL, or in a cluster of the program.
//! * [`serve`]: a TCP or unix-socket listener, `socket` (the other `Client`), detection of clients that hang up.
//! * [`backup`]: backups of a cluster, over SQL or out of its directory, and restoring them.
//! * [`connection`]: one client from its first byte to its last; counts and ends connections.
//! * [`databases`]: `Sessions` and `Administration`: clusters by name (`registry`, `shared`), `isolated` clusters.
//! * [`administration`]: administration of the program: figures, templates, configuration.
//! * [`session`]: what the rooms above share: `Sessions`, tasks, cancel keys, control of a session from outside.
//! * [`precompile`]: compiles what the program runs in advance, for its archives.
//! * [`pruning`]: lists the cache and removes what has not been used for long.
//!
//! From sessions to the wasm:
//! * [`template`]: `initdb`, building, snapshots, the store on disk, the pool of clones.
//! * `extensions`: extensions beside PGlite and the user's own: found, checked, offered to clusters.
//! * `backend`: one instance: made, booted, forked, serving a session; `program`: the wasm, compiled and linked.
//! * [`guest`]: the Emscripten host: everything that the wasm can use; one file for each concern.
//! * `cluster`: what the processes of one cluster share: turns, signals, memory.
//! * `capacity`: what the system allows the process; refuses clients, clusters and libraries before that is used up.
//! * [`protocol`]: PostgreSQL's protocol: startup packet, messages, their boundaries, errors for clients.
//! * [`engine`]: Wasmtime's configuration, compiled code in the private `cache`, PGlite's pinned files (`artefact`).
//! * [`instrument`]: the rewriter of the wasm; does no I/O.
//! * `image`: contents of a memory on disk, mapped copy-on-write.
//!
//! Used by all of them:
//! * [`log`]: log lines, the program's log on stderr, a guest's terminal, bounded queues of bytes (`backlog`).
//! * [`fs`]: the guest's files, in memory or in a directory of the host; independent of PostgreSQL and Wasmtime.
//! * [`client`]: a client's byte stream, as a backend uses it.
//! * [`icu`]: ICU data that PGlite does not contain.
//! * `postgres`: numbers and offsets that are compiled into the guest, with their sources.
//! * [`quota`]: how much memory and disk a cluster may use, and how much memory the program.
//! * [`clock`]: the clock that the sessions of a cluster see, which tests can set.
//! * `random`: random bytes: unpredictable ones, and those of a seed.
//! * [`tally`]: counters and histograms of what happens in a cluster.
//! * `sync`: locks, which a model checker can replace.
//! * `fuzz`: inputs for tests of what reads bytes from outside, of a kept corpus and damaged.
//! * `sources`: digests of the program's sources, which are part of the keys in the cache.

pub mod administration;
mod backend;
pub mod backup;
mod capacity;
pub mod client;
pub mod clock;
mod cluster;
pub mod connection;
pub mod databases;
pub mod dial;
pub mod dump;
pub mod engine;
mod extensions;
pub mod fs;
#[cfg(test)]
mod fuzz;
pub mod guest;
pub mod icu;
mod image;
pub mod instrument;
pub mod log;
pub mod metrics;
pub mod moving;
pub mod port;
mod postgres;
pub mod precompile;
pub mod protocol;
pub mod pruning;
pub mod quota;
mod random;
pub mod script;
pub mod serve;
pub mod session;
mod sources;
mod sync;
pub mod tally;
pub mod template;
