//! The places where a session waits on the semaphore of its process slot, in most cases for a lightweight lock.
//!
//! `PGSemaphoreLock` is inlined, and Emscripten's `sem_wait` without threads does nothing (`library_pthread_stub.c`).
//! Only a loop is left that tests a flag that another session resets: `for (;;) { PGSemaphoreLock(proc->sem); if
//! (!proc->lwWaiting) break; extraWaits++; }`.

use wasmparser::Operator;

use super::InstrumentError;
use super::changes::{Edit, Surroundings};
use super::hooks::Hook;
use super::module::Module;

/// The number of waits in PostgreSQL 18: `LWLockAcquire`, `LWLockAcquireOrWait`, `LWLockWaitForVar`,
/// `LWLockDequeueSelf`, `ProcArrayGroupClearXid` and `TransactionGroupUpdateXidStatus`.
const WAITS: usize = 6;

/// Each wait's function, and the edit that calls the host there.
///
/// # Errors
/// If the number of waits is not [`WAITS`].
pub(super) fn waits(module: &Module, around: &Surroundings) -> Result<Vec<(u32, Edit)>, InstrumentError> {
    let mut waits = Vec::new();
    for function in module.defined_functions() {
        let operators = module.operators(function)?;
        let sites = operators.windows(7).enumerate().filter(|(_, window)| is_wait(window));
        for (at, _) in sites.filter(|(at, _)| ends_loop(&operators[at + 7..])) {
            waits.push((function, Edit { at: at + 1..at + 2, with: vec![around.call(Hook::SemaphoreWait)] }));
        }
    }
    if waits.len() == WAITS {
        return Ok(waits);
    }
    let functions: Vec<u32> = waits.iter().map(|(function, _)| *function).collect();
    Err(InstrumentError::Evidence {
        function: "PGSemaphoreLock".to_owned(),
        expected: format!("{WAITS} loops that wait on the semaphore of a process"),
        found: format!("{}, in the functions {functions:?}", functions.len()),
    })
}

/// `proc->sem`, loaded and dropped, and `extraWaits++`.
fn is_wait(window: &[Operator]) -> bool {
    matches!(
        *window,
        [
            Operator::I32Load { memarg },
            Operator::Drop,
            Operator::LocalGet { local_index: before },
            Operator::LocalTee { .. },
            Operator::I32Const { value: 1 },
            Operator::I32Add,
            Operator::LocalSet { local_index: after },
        ] if memarg.offset != 0 && before == after
    )
}

/// Continues while a flag of the process is set; the process is in a local, or loaded again.
fn ends_loop(rest: &[Operator]) -> bool {
    let ([Operator::LocalGet { .. }, flag @ ..]
    | [Operator::I32Const { .. }, Operator::I32Load { .. }, Operator::LocalTee { .. }, flag @ ..]) = rest
    else {
        return false;
    };
    matches!(flag, [Operator::I32Load8U { .. }, Operator::BrIf { relative_depth: 0 }, ..])
}
