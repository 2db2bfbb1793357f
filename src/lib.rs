//! `pglite-port`: real PostgreSQL (the official PGlite file) hosted in Wasmtime, spoken to in frames over
//! stdin and stdout or over a socket.
//!
//! # Layout, in reading order
//!
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
//! * [`log`]: log lines of a guest on their way out.
//! * [`guest`]: the Emscripten host, everything that the wasm sees.

pub mod cancel;
pub mod connection;
pub mod error_response;
pub mod frame;
pub mod guest;
pub mod log;
mod outbox;
pub mod port;
mod relay;
mod router;
pub mod serve;
mod socket;
pub mod startup;
