//! One client's session in a backend of its own (`isolated` mode): startup, messages, end.

use std::time::Instant;

use wasmtime::AsContextMut;
use wasmtime_wasi::I32Exit;

use super::{Backend, boot::EXIT_ALIVE};
use crate::{
    guest::{
        ClientStream, deliver,
        client::{Client, Interest, Readiness},
        memory,
    },
    startup::StartupMessage,
};

/// With this status an error has reached the main loop (PGlite, `pglite.ts`: `POSTGRES_MAIN_LONGJMP`).
const EXIT_LONGJMP: i32 = 100;

/// The bootstrap superuser, as whom a backend is started.
pub(crate) const BOOTSTRAP_USER: &str = "postgres";

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client has said that it goes, or is gone.
    Client,
    /// `PostgreSQL` has ended the session itself and has told the client why.
    Fatal,
}

/// The key with which a session can be cancelled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackendKey {
    pub(crate) process_id: i32,
    pub(crate) secret: [u8; 4],
}
