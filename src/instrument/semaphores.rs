//! The places where a session waits on the semaphore of its process slot, in most cases for a lightweight lock.
//!
//! `PGSemaphoreLock` is inlined, and Emscripten's `sem_wait` without threads does nothing (`library_pthread_stub.c`).
//! Only a loop is left that tests a flag that another session resets: `for (;;) { PGSemaphoreLock(proc->sem); if
//! (!proc->lwWaiting) break; extraWaits++; }`.

use wasm_encoder::Instruction;
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
        waits.extend(sites.filter_map(|(at, _)| {
            let flag = loop_flag(&operators[at + 7..])?.cast_signed();
            // The address of the process is on the stack. The host gets that of its flag.
            let with = vec![Instruction::I32Const(flag), Instruction::I32Add, around.call(Hook::SemaphoreWait)];
            Some((function, Edit { at: at..at + 2, with }))
        }));
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

/// The offset in `PGPROC` of the flag while which the loop continues; the process is in a local, or loaded again.
fn loop_flag(rest: &[Operator]) -> Option<u32> {
    let ([Operator::LocalGet { .. }, flag @ ..]
    | [Operator::I32Const { .. }, Operator::I32Load { .. }, Operator::LocalTee { .. }, flag @ ..]) = rest
    else {
        return None;
    };
    match flag {
        [Operator::I32Load8U { memarg }, Operator::BrIf { relative_depth: 0 }, ..] => memarg.offset.try_into().ok(),
        _ => None,
    }
}
