//! What the tests of the outside share: a program or a port to speak frames with, the Postgres protocol
//! in small, fake sessions.

// Every test file compiles this for itself, as a part of itself, and none uses all of it.
#![allow(dead_code, unreachable_pub)]

pub mod cache;
pub mod fake;
pub mod local;
pub mod peer;
pub mod port;
pub mod power;
pub mod process;
pub mod program;
pub mod server;
pub mod session;
pub mod wire;

use std::time::Duration;

/// How long a test waits for an event that has to come, before it fails.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Texts to compare with what was received.
pub fn texts<const N: usize>(texts: [&str; N]) -> [String; N] {
    texts.map(str::to_owned)
}
