//! Connections that have no session yet, and those that get none, of the whole program: which cluster they would have
//! come to is not always known.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

use super::Errors;

/// The numbers of this process.
pub static ENTRANCE: LazyLock<Entrance> = LazyLock::new(Entrance::default);

/// Connections on their way to a session.
#[derive(Default)]
pub struct Entrance {
    /// Errors of the program itself that ended connections without a session, by their class. What PostgreSQL refuses
    /// is an error of its cluster.
    pub refused: Errors,
    half_open: AtomicU64,
}

impl Entrance {
    /// A client has connected.
    pub fn enter(&self) {
        self.half_open.fetch_add(1, Ordering::Relaxed);
    }

    /// Such a client was let in, or its connection has ended.
    pub fn settle(&self) {
        self.half_open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections whose clients have not been let in yet.
    #[must_use]
    pub fn half_open(&self) -> u64 {
        self.half_open.load(Ordering::Relaxed)
    }
}
