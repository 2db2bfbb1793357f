//! The parts of PostgreSQL's protocol that benchmarks need.

#[path = "../../tests/support/wire.rs"]
mod tests_wire;

#[allow(unused_imports, reason = "as in the module around this")]
pub use tests_wire::{message, query, startup, terminate};

/// Whether `answer` ends with a `ReadyForQuery`, the server's last message.
pub fn is_ready_for_query(answer: &[u8]) -> bool {
    matches!(answer, [.., b'Z', 0, 0, 0, 5, _])
}

/// `Parse` of a named statement without parameters, and `Sync`.
pub fn prepare(name: &str, sql: &str) -> Vec<u8> {
    [tests_wire::parse(name, sql), tests_wire::sync()].concat()
}

/// `Bind` of a named statement without parameters to the unnamed portal, `Execute`, `Sync`.
pub fn execute(name: &str) -> Vec<u8> {
    [tests_wire::bind("", name, &[]), tests_wire::execute("", 0), tests_wire::sync()].concat()
}
