//! `pglite-port`: real PostgreSQL (the official PGlite file) hosted in Wasmtime, spoken to in frames over
//! stdin and stdout or over a socket.
//!
//! # Layout, in reading order
//!
//! * [`fs`]: the guest's files, in memory, copied on write.
//! * [`guest`]: the Emscripten host, everything that the wasm sees.
//! * [`instrument`]: the rewriter of the wasm before it is compiled.

pub mod fs;
pub mod guest;
pub mod instrument;
