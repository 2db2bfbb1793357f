//! Helpers of the tests of the program: a program or a port that exchanges frames, PostgreSQL's protocol, fake
//! sessions.

// Every test file compiles this module, and none uses all of it.
#![allow(dead_code, unreachable_pub)]

pub mod authority;
pub mod cache;
pub mod extension;
pub mod fake;
pub mod library;
pub mod local;
pub mod logical;
pub mod mappings;
pub mod panics;
pub mod peer;
pub mod place;
pub mod port;
pub mod power;
pub mod process;
pub mod program;
pub mod server;
pub mod serving;
pub mod session;
pub mod trend;
pub mod walsender;
pub mod wire;

use std::time::Duration;

/// How long a test waits for an expected event before it fails.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A statement that is a chain of so many links; its planning checks for no interrupts, and takes seconds for hundreds,
/// minutes for thousands.
pub fn unstoppable(links: u32) -> String {
    let chain: String = (1..=links).map(|n| format!(", c{n} as (select x from c{})", n - 1)).collect();
    format!("with c0 as (select 1 as x){chain} select x from c{links}")
}

/// A statement that computes for an hour and more, without a check for interrupts and without allocating memory.
pub const DEAF: &str = "select length(translate(repeat('a', 1000000), repeat('b', 1000000), ''))";

/// Texts to compare with what was received.
pub fn texts<const N: usize>(texts: [&str; N]) -> [String; N] {
    texts.map(str::to_owned)
}
