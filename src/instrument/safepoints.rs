//! Safepoints: where another thread can stop a process that does not check for interrupts.
//!
//! PostgreSQL relies on an operating system that can take the processor from a process at any instruction. Here a
//! process runs until it hands its turn over, which PostgreSQL's own code does only where it checks for interrupts. The
//! rewriter therefore adds a safepoint at the head of each loop: a load from [`SAFEPOINT_PAGE`], whose value is not
//! used. When the host takes the page's access away, the load faults, and the host's handler of that fault hands the
//! turn over before it lets the load succeed. The loads cost about two percent of the processor time of queries; a flag
//! and a branch would cost a fifth.
//!
//! The head of a loop is a place where a process may lose its turn: the compiler made loads and stores of the atomic
//! operations of PostgreSQL's spinlocks and lightweight locks, and there is no loop between the load and the store of
//! one operation. A loop that repeats an operation until it succeeds begins with a new load.
//!
//! A function that calls itself can run for ever without a loop. Nobody has looked at the functions of libraries that
//! did not come with the program, so these have a safepoint at their entry as well. A compiler makes no function of the
//! two halves of an atomic operation.

use wasm_encoder::{Function, Instruction, MemArg};

use super::InstrumentError;
use super::module::Module;

/// Where a module gets safepoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Safepoints {
    /// Nowhere.
    #[default]
    None,
    /// At the head of each loop.
    Loops,
    /// There and at the entry of each function.
    LoopsAndEntries,
}

/// The address of the page that safepoints load from: the last page of WebAssembly that the memory may have. The
/// memory never grows to it.
pub const SAFEPOINT_PAGE: u32 = 0x7fff_0000;

/// The size of a page of WebAssembly.
const PAGE: u64 = 1 << 16;

/// The loads of neighbouring safepoints have different addresses, because the compiler would otherwise take the value of an
/// outer loop's load for the one of an inner loop, and leave that out. All are in one cache line.
const ADDRESSES: u64 = 64;

/// Adds a safepoint to `body`, which has `number` of them until now.
pub(super) fn add(body: &mut Function, number: &mut u64) {
    let place = MemArg { offset: *number % ADDRESSES, align: 0, memory_index: 0 };
    *number += 1;
    body.instruction(&Instruction::I32Const(SAFEPOINT_PAGE.cast_signed()));
    body.instruction(&Instruction::I32Load8U(place));
    body.instruction(&Instruction::Drop);
}

/// Checks that the page is the last one that the backend's memory may have: an address beyond that would be known not
/// to exist when the loads are compiled.
///
/// # Errors
/// If it is another one.
pub(super) fn check(module: &Module) -> Result<(), InstrumentError> {
    let maximum = module.memory.and_then(|memory| memory.maximum);
    if maximum == Some(u64::from(SAFEPOINT_PAGE) / PAGE + 1) {
        return Ok(());
    }
    Err(InstrumentError::Unsupported(format!("the maximum of its memory is {maximum:?} pages, not 2 GiB")))
}
