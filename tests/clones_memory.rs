//! What becomes of the memory of clones that are closed. Nothing else may run in this process meanwhile.

mod support;

use pglite_port::databases::Settings;
use support::{
    cache,
    local::{Connect, Local},
    process,
};

#[test]
fn resident_memory_stays_where_it_is_when_clones_come_and_go() {
    const ROUNDS: u32 = 10_000;
    let connections = cache::connections(Settings::default());
    let round = |id: u32| {
        let connect = Connect { id, ..Connect::default() };
        Local::connect(&connections, connect).0.values("CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n");
    };
    // The allocator and the page cache have had what they want after these.
    (0..50).for_each(round);
    let memory = || process::anonymous_memory(std::process::id());
    let before = memory();
    (0..ROUNDS).for_each(round);
    let grown = memory().saturating_sub(before);
    // One clone has more than 1 MB for itself: if one in a thousand stayed, it would show.
    assert!(grown < 8 << 20, "{grown} bytes more after {ROUNDS} rounds");
}
