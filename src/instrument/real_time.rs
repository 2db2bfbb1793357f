//! What goes by real time while a cluster's clock is set: everything that PostgreSQL waits for or limits to a rate.
//!
//! PostgreSQL takes the time of day for both what SQL shows (`now()`, the start of a statement, the time of a commit)
//! and how long something lasts. The functions of the table in [`super::targets()`] with
//! [`Change::RealTime`](super::target::Change::RealTime), and those here, do the latter. In all other functions, and
//! in side modules, the time of day is that of the cluster's clock. `WaitLatch`, `EXPLAIN ANALYZE` and others take the
//! monotonic clock, which nothing sets. PostgreSQL's own processes, among them autovacuum, are no sessions; their clock
//! shows real time.

use wasm_encoder::Instruction;
use wasmparser::Operator;

use super::InstrumentError;
use super::bodies::once;
use super::changes::{Edit, Surroundings};
use super::hooks::Hook;
use super::module::Module;
use super::target::Target;
use crate::postgres::timestamp::EPOCH;

/// How often these functions of PostgreSQL 18 ask for the time: twice in `handle_sig_alarm`; once each in
/// `enable_timeout_every` and in `begin_startup_progress_phase`, into which that is inlined, in `reschedule_timeouts`,
/// `enable_timeout_after`, `enable_timeouts`, `disable_timeout` and `disable_timeouts`.
const TIMEOUTS: usize = 9;

/// The functions that schedule PostgreSQL's timer, and the edits with which they do so by real time.
///
/// They call `schedule_alarm`, a function of `src/backend/utils/misc/timeout.c`, which has all of PostgreSQL's
/// timeouts: those of statements, locks, transactions, idle sessions, and the one after which a deadlock is looked for.
///
/// # Errors
/// If the number of times that they ask for is not [`TIMEOUTS`].
pub(super) fn timeouts(module: &Module, around: &Surroundings) -> Result<Vec<(u32, Edit)>, InstrumentError> {
    let (schedule_alarm, now) =
        (around.found.function("schedule_alarm")?, around.found.function("GetCurrentTimestamp")?);
    let mut edits = Vec::new();
    for function in module.defined_functions() {
        let operators = module.operators(function)?;
        if operators.iter().any(|it| is_call(it, schedule_alarm)) {
            let asks = operators.iter().enumerate().filter(|(_, it)| is_call(it, now));
            edits.extend(asks.map(|(at, _)| (function, Edit { at: at..at + 1, with: real_timestamp(around) })));
        }
    }
    if edits.len() == TIMEOUTS {
        return Ok(edits);
    }
    Err(InstrumentError::Evidence {
        function: "schedule_alarm".to_owned(),
        expected: format!("{TIMEOUTS} calls of GetCurrentTimestamp in the functions that call it"),
        found: edits.len().to_string(),
    })
}

/// The edits with which a function takes real time.
///
/// # Errors
/// If it takes no time.
pub(super) fn edits(
    target: &Target,
    operators: &[Operator],
    around: &Surroundings,
) -> Result<Vec<Edit>, InstrumentError> {
    let [now, stop, time] =
        ["GetCurrentTimestamp", "GetCurrentTransactionStopTimestamp", "time"].map(|name| around.found.function(name));
    let (now, stop, time) = (now?, stop?, time?);
    let edits: Vec<Edit> = operators
        .iter()
        .enumerate()
        .filter_map(|(at, it)| {
            let with = if is_call(it, now) || is_call(it, stop) {
                real_timestamp(around)
            } else if is_call(it, time) {
                real_seconds(around)
            } else {
                return None;
            };
            Some(Edit { at: at..at + 1, with })
        })
        .collect();
    if edits.is_empty() { Err(target.refusal("one that does not ask for the time")) } else { Ok(edits) }
}

/// The place where `ProcSleep` stores the start of the timeout that looks for deadlocks as `MyProc->waitStart`, which
/// `pg_locks` shows.
pub(super) fn wait_start(target: &Target, operators: &[Operator]) -> Result<usize, InstrumentError> {
    let stored = |triple: &[Operator]| match triple {
        [Operator::I32Const { .. }, Operator::I64Load { .. }, Operator::I64Store { .. }] => Some(()),
        _ => None,
    };
    Ok(once(target, "a start of a timeout that is stored", operators, 3, stored)?.0 + 2)
}

fn is_call(operator: &Operator, function: u32) -> bool {
    matches!(operator, Operator::Call { function_index } if *function_index == function)
}

fn real_timestamp(around: &Surroundings) -> Vec<Instruction<'static>> {
    vec![around.call(Hook::RealTimestamp)]
}

/// `time(NULL)`: seconds since 1970. The argument is on the stack.
fn real_seconds(around: &Surroundings) -> Vec<Instruction<'static>> {
    vec![
        Instruction::Drop,
        around.call(Hook::RealTimestamp),
        Instruction::I64Const(EPOCH),
        Instruction::I64Add,
        Instruction::I64Const(1_000_000),
        Instruction::I64DivS,
    ]
}
