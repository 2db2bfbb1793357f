//! Safepoints: where another thread can stop a process that does not check for interrupts.
//!
//! PostgreSQL relies on an operating system that can take the processor from a process at any instruction. Here a
//! process runs until it hands its turn over, which PostgreSQL's own code does only where it checks for interrupts. The
//! rewriter therefore adds a safepoint at the head of each loop: a store to [`SAFEPOINT_PAGE`], which nothing reads. When
//! the host takes the page's access away, the store faults, and the host's handler of that fault hands the turn over
//! before it lets the store succeed. A flag and a branch would cost a fifth of the processor time of queries.
//!
//! The head of a loop is a place where a process may lose its turn: the compiler made loads and stores of the atomic
//! operations of PostgreSQL's spinlocks and lightweight locks, and there is no loop between the load and the store of
//! one operation. A loop that repeats an operation until it succeeds begins with a new load. Cranelift keeps it that way
//! because a safepoint is a store: it takes no value that was loaded before a store for one that is loaded after it
//! (`alias_analysis.rs` in `cranelift-codegen`). With a load in its place, a value from before the loss of a turn could
//! be used after it, above all in a function with copies of others (`inlining`), in which no call is between them.
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

/// The address of the page that safepoints write to: the last page of WebAssembly that the memory may have. The
/// memory never grows to it.
pub const SAFEPOINT_PAGE: u32 = 0x7fff_0000;

/// The size of a page of WebAssembly.
const PAGE: u64 = 1 << 16;

/// Neighbouring safepoints have different addresses, and those with the same address different values, because the
/// compiler leaves out a store of what it knows to be there. All are in one cache line.
const ADDRESSES: u64 = 64;

/// Adds a safepoint to `body`, which has `number` of them until now.
pub(super) fn add(body: &mut Function, number: &mut u64) {
    let place = MemArg { offset: *number % ADDRESSES, align: 0, memory_index: 0 };
    // A byte of it is stored: enough for 16,384 loops.
    let value = i32::try_from(*number / ADDRESSES).unwrap_or(i32::MAX);
    *number += 1;
    body.instruction(&Instruction::I32Const(SAFEPOINT_PAGE.cast_signed()));
    body.instruction(&Instruction::I32Const(value));
    body.instruction(&Instruction::I32Store8(place));
}

/// Checks that the page is the last one that the backend's memory may have: an address beyond that would be known not
/// to exist when the stores are compiled.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wasm_encoder::{CodeSection, FunctionSection, TypeSection};
    use wasmparser::Operator;

    use super::*;

    #[test]
    fn no_two_safepoints_of_a_function_store_the_same_value_at_the_same_address() {
        let (mut body, mut number) = (Function::new([]), 0);
        (0..1000).for_each(|_| add(&mut body, &mut number));
        body.instruction(&Instruction::End);
        let (mut types, mut functions, mut code) = (TypeSection::new(), FunctionSection::new(), CodeSection::new());
        types.ty().function([], []);
        functions.function(0);
        code.function(&body);
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&functions).section(&code);
        let wasm = module.finish();
        let operators = Module::parse(&wasm).unwrap().operators(0).unwrap();
        let stored: BTreeSet<(i32, u64)> = operators
            .windows(2)
            .filter_map(|window| match *window {
                [Operator::I32Const { value }, Operator::I32Store8 { memarg }] => Some((value, memarg.offset)),
                _ => None,
            })
            .collect();
        assert_eq!(stored.len(), 1000);
        assert!(stored.iter().all(|(value, offset)| *value < 256 && *offset < ADDRESSES));
    }
}
