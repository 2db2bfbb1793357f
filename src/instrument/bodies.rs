//! Finds places to change, and addresses, in the bodies of the functions that were found.

use std::ops::Range;

use wasmparser::Operator;

use super::InstrumentError;
use super::target::Target;
use crate::postgres::{
    encoding::{functions, name},
    latch,
};

/// The body of `kill(pid, signal)`.
pub(super) struct Kill {
    pub(super) raise: u32,
    /// Address of `errno`.
    pub(super) errno: i32,
}

impl Kill {
    pub(super) fn read(target: &Target, operators: &[Operator], process_id: i32) -> Result<Self, InstrumentError> {
        match *operators {
            [
                Operator::LocalGet { local_index: 0 },
                Operator::I32Const { value },
                Operator::I32Eq,
                Operator::If { .. },
                Operator::LocalGet { local_index: 1 },
                Operator::Call { function_index: raise },
                Operator::Return,
                Operator::End,
                Operator::I32Const { value: errno },
                Operator::I32Const { .. },
                Operator::I32Store { memarg },
                Operator::I32Const { value: -1 },
                Operator::End,
            ] if value == process_id && memarg.offset == 0 => Ok(Self { raise, errno }),
            _ => Err(target.refusal("one with a different body")),
        }
    }
}

/// The places where a function calls another one.
///
/// # Errors
/// If there are none.
pub(super) fn calls_of(
    target: &Target,
    operators: &[Operator],
    function: u32,
) -> Result<impl Iterator<Item = usize>, InstrumentError> {
    let is_call = |it: &Operator| matches!(it, Operator::Call { function_index } if *function_index == function);
    let calls: Vec<usize> = operators.iter().enumerate().filter(|(_, it)| is_call(it)).map(|(at, _)| at).collect();
    if calls.is_empty() { Err(target.refusal("one that does not call it")) } else { Ok(calls.into_iter()) }
}

/// The place where `pgl_sendConnData` puts the cancel key into the message.
///
/// It passes the array `MyCancelKey` to `pq_sendint32` as a number, so the compiler made a constant of the array's
/// address in network byte order.
pub(super) struct CancelKey {
    /// Address of `MyCancelKey`.
    pub(super) address: u32,
    /// The index of the instruction with that constant.
    pub(super) sent_at: usize,
}

impl CancelKey {
    pub(super) fn read(target: &Target, operators: &[Operator]) -> Result<Self, InstrumentError> {
        let is_constant = |wanted: i32| {
            operators.iter().any(|operator| matches!(*operator, Operator::I32Const { value } if value == wanted))
        };
        let sent = |pair: &[Operator]| match *pair {
            [Operator::I32Const { value }, Operator::I32Store { memarg }] if memarg.align == 0 => {
                Some(value.swap_bytes()).filter(|&address| address != 0 && is_constant(address))
            }
            _ => None,
        };
        let (sent_at, address) = once(target, "an address sent as a number", operators, 2, sent)?;
        Ok(Self { address: address.cast_unsigned(), sent_at })
    }
}

/// The place where `WaitEventSetWait` called `poll()`, and the offset of `latch` in `struct WaitEventSet`.
///
/// PGlite's stub reports every descriptor as ready. Of its call only the argument is left: `set->pollfds` is loaded
/// and dropped. The latch is the target of `set->latch->maybe_sleeping = true` (in C guarded by two conditions).
pub(super) fn wait_site(target: &Target, operators: &[Operator]) -> Result<(usize, u64), InstrumentError> {
    let dropped = |triple: &[Operator]| match *triple {
        [Operator::LocalGet { local_index: 0 }, Operator::I32Load { .. }, Operator::Drop] => Some(()),
        _ => None,
    };
    let latch = |window: &[Operator]| match *window {
        [
            Operator::LocalGet { local_index: 0 },
            Operator::I32Load { memarg: latch },
            Operator::LocalTee { local_index: first },
            Operator::I32Eqz,
            Operator::BrIf { .. },
            Operator::LocalGet { local_index: second },
            Operator::I32Load { memarg: is_set },
            Operator::I32Eqz,
            Operator::If { .. },
            Operator::LocalGet { local_index: third },
            Operator::I32Const { value: 1 },
            Operator::I32Store { memarg: maybe_sleeping },
        ] if first == second
            && second == third
            && is_set.offset == latch::IS_SET
            && maybe_sleeping.offset == latch::MAYBE_SLEEPING =>
        {
            Some(latch.offset)
        }
        _ => None,
    };
    let (poll, ()) = once(target, "a dropped argument of poll()", operators, 3, dropped)?;
    let (_, latch) = once(target, "a latch marked as maybe sleeping", operators, 12, latch)?;
    Ok((poll + 3, latch))
}

/// The place where a function uses the constant process id of `getpid()`: it compares it, as `proc_exit` does, or
/// stores it as the argument of a format, as `XLogFileInitInternal` does for the name of a file.
pub(super) fn own_process_id(
    target: &Target,
    operators: &[Operator],
    process_id: i32,
) -> Result<usize, InstrumentError> {
    let used = |pair: &[Operator]| match *pair {
        [Operator::I32Const { value }, Operator::I32Eq | Operator::I32Ne | Operator::I32Store { .. }] => {
            (value == process_id).then_some(())
        }
        _ => None,
    };
    Ok(once(target, "a use of the process id", operators, 2, used)?.0)
}

/// The address of `pqsignal_handlers` in the signal wrapper: `(*pqsignal_handlers[signal])(signal)`.
pub(super) fn signal_handlers(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let handler = |window: &[Operator]| match *window {
        [
            Operator::LocalGet { local_index: 0 },
            Operator::LocalGet { local_index: 0 },
            Operator::I32Const { value: 2 },
            Operator::I32Shl,
            Operator::I32Const { value: handlers },
            Operator::I32Add,
            Operator::I32Load { memarg },
            Operator::CallIndirect { .. },
        ] if memarg.offset == 0 => Some(handlers.cast_unsigned()),
        _ => None,
    };
    Ok(once(target, "a call of a signal's handler", operators, 8, handler)?.1)
}

/// The address of `MyCancelKeyLength` in `InitPostgres`: `ProcSignalInit(MyCancelKey, MyCancelKeyLength)`.
pub(super) fn cancel_key_length(target: &Target, operators: &[Operator], key: u32) -> Result<u32, InstrumentError> {
    let argument = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value },
            Operator::I32Const { value: length },
            Operator::I32Load { memarg },
            Operator::Call { .. },
        ] if value.cast_unsigned() == key && memarg.offset == 0 => Some(length.cast_unsigned()),
        _ => None,
    };
    same(target, "a length of the cancel key", operators, 4, argument)
}

/// The instructions of `memset(address, 0, length)` in `mmap`, and the locals with the address and the length. `memset`
/// is the index of that function.
pub(super) fn cleared(
    target: &Target,
    operators: &[Operator],
    memset: u32,
) -> Result<(Range<usize>, [u32; 2]), InstrumentError> {
    let call = |window: &[Operator]| match *window {
        [
            Operator::LocalGet { local_index: address },
            Operator::I32Const { value: 0 },
            Operator::LocalGet { local_index: length },
            Operator::Call { function_index },
            Operator::Drop,
        ] if function_index == memset => Some([address, length]),
        _ => None,
    };
    let (at, arguments) = once(target, "a call of memset", operators, 5, call)?;
    Ok((at..at + 5, arguments))
}

/// The place where `check_stack_depth` or `stack_is_too_deep` measures the stack.
pub(super) struct StackMeasure {
    /// Addresses of `stack_base_ptr` and `max_stack_depth_bytes`, the lower first.
    pub(super) variables: [u32; 2],
    /// The instruction that compares the depth with its limit; the depth is on top of the operand stack.
    pub(super) compared_at: usize,
}

/// Finds `labs(stack_base_ptr - &here) > max_stack_depth_bytes`.
pub(super) fn stack_measure(target: &Target, operators: &[Operator]) -> Result<StackMeasure, InstrumentError> {
    let absolute = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value: 31 },
            Operator::I32ShrS,
            Operator::LocalTee { local_index: sign },
            Operator::I32Xor,
            Operator::LocalGet { local_index: subtracted },
            Operator::I32Sub,
            Operator::I32GeS | Operator::I32LtS,
        ] if sign == subtracted => Some(()),
        _ => None,
    };
    let variable = |pair: &[Operator]| match *pair {
        [Operator::I32Const { value: address }, Operator::I32Load { memarg }] if memarg.offset == 0 => {
            Some(address.cast_unsigned())
        }
        _ => None,
    };
    let (at, ()) = once(target, "an absolute difference compared", operators, 7, absolute)?;
    let mut variables: Vec<u32> = operators[..at].windows(2).filter_map(variable).collect();
    variables.sort_unstable();
    match variables[..] {
        [first, second] => Ok(StackMeasure { variables: [first, second], compared_at: at + 6 }),
        _ => Err(target.refusal(&format!("one that measures with {} variables", variables.len()))),
    }
}

/// The place where `ReportGUCOption` reports a setting (`src/backend/utils/misc/guc.c`).
pub(super) struct Report {
    /// Offset of `last_reported` in `struct config_generic`.
    pub(super) last_reported: u64,
    /// Locals with the value reported before and the value to report.
    pub(super) before: u32,
    pub(super) value: u32,
    /// The instruction after the message is sent, where PostgreSQL stores the value.
    pub(super) sent_at: usize,
}

impl Report {
    pub(super) fn read(target: &Target, operators: &[Operator]) -> Result<Self, InstrumentError> {
        let compared = |window: &[Operator]| match *window {
            [
                Operator::LocalGet { local_index: 0 },
                Operator::I32Load { memarg },
                Operator::LocalTee { local_index: before },
                Operator::If { .. },
            ] => Some((memarg.offset, before)),
            _ => None,
        };
        // pq_endmessage(), the end of the condition, pfree(value).
        let sent = |window: &[Operator]| match *window {
            [
                Operator::Call { .. },
                Operator::End,
                Operator::LocalGet { local_index: value },
                Operator::Call { .. },
            ] => Some(value),
            _ => None,
        };
        let (_, (last_reported, before)) = once(target, "a comparison of last_reported", operators, 4, compared)?;
        let (at, value) = once(target, "a value sent and freed", operators, 4, sent)?;
        Ok(Self { last_reported, before, value, sent_at: at + 1 })
    }
}

/// The place where `BeginReportingGUCOptions` calls `report`, the function with that index, and the local with the
/// setting that it passes.
pub(super) fn reported_all(
    target: &Target,
    operators: &[Operator],
    report: u32,
) -> Result<(usize, u32), InstrumentError> {
    let call = |pair: &[Operator]| match *pair {
        [Operator::LocalGet { local_index }, Operator::Call { function_index }] => {
            (function_index == report).then_some(local_index)
        }
        _ => None,
    };
    once(target, "a setting reported", operators, 2, call)
}

/// The address of `pg_enc2name_tbl`, whose entries have eight bytes and begin with a name. The function's error
/// messages load a name four times.
pub(super) fn encoding_names(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let named = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value: shift },
            Operator::I32Shl,
            Operator::I32Const { value: table },
            Operator::I32Add,
            Operator::I32Load { memarg },
        ] if 1_u32.checked_shl(shift.cast_unsigned()) == Some(name::SIZE) && memarg.offset == u64::from(name::TEXT) => {
            Some(table.cast_unsigned())
        }
        _ => None,
    };
    same(target, "a name of an encoding", operators, 5, named)
}

/// The address of `pg_wchar_table`, whose entries have seven words, the last of which is `maxmblen`.
pub(super) fn encoding_functions(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let longest = |window: &[Operator]| match *window {
        [
            Operator::LocalGet { local_index: 0 },
            Operator::I32Const { value: size },
            Operator::I32Mul,
            Operator::I32Const { value: table },
            Operator::I32Add,
            Operator::I32Load { memarg },
        ] if size.cast_unsigned() == functions::SIZE && memarg.offset == u64::from(functions::LONGEST) => {
            Some(table.cast_unsigned())
        }
        _ => None,
    };
    Ok(once(target, "a load from the table of encodings", operators, 6, longest)?.1)
}

/// The result of all matches of `length` instructions in a body, which must be equal.
fn same(
    target: &Target,
    what: &str,
    operators: &[Operator],
    length: usize,
    matches: impl Fn(&[Operator]) -> Option<u32>,
) -> Result<u32, InstrumentError> {
    let mut found: Vec<u32> = operators.windows(length).filter_map(matches).collect();
    found.dedup();
    match found[..] {
        [address] => Ok(address),
        _ => Err(target.refusal(&format!("one where {what} is at {} addresses", found.len()))),
    }
}

/// The address of `MessageContext` in `PostgresMainLoopOnce`: `MemoryContextSwitchTo(MessageContext);
/// MemoryContextReset(MessageContext)`.
pub(super) fn message_context(target: &Target, operators: &[Operator], current: u32) -> Result<u32, InstrumentError> {
    let switched_to = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value },
            Operator::I32Const { value: address },
            Operator::I32Load { memarg },
            Operator::LocalTee { local_index: stored },
            Operator::I32Store { .. },
            Operator::LocalGet { local_index: reset },
            Operator::Call { .. },
        ] if value.cast_unsigned() == current && memarg.offset == 0 && stored == reset => Some(address.cast_unsigned()),
        _ => None,
    };
    Ok(once(target, "a memory context switched to and reset", operators, 7, switched_to)?.1)
}

/// The address of `_gm_` in `malloc`: a small request (`MAX_SMALL_REQUEST`) reads `smallmap`, its first word.
pub(super) fn heap_state(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let small_request = |window: &[Operator]| match *window {
        [
            Operator::LocalGet { local_index: 0 },
            Operator::I32Const { value: 244 },
            Operator::I32LeU,
            Operator::If { .. },
            Operator::I32Const { value: address },
            Operator::I32Load { memarg },
        ] if memarg.offset == 0 => Some(address.cast_unsigned()),
        _ => None,
    };
    let (_, state) = once(target, "a small request", operators, 6, small_request)?;
    // dvsize, topsize, dv, top, treebins (32 of them), and the list of segments after these.
    let is_laid_out = [8, 12, 20, 24, 304, 448].into_iter().all(|offset| {
        let address = state.checked_add(offset).map(u32::cast_signed);
        operators.iter().any(|operator| matches!(*operator, Operator::I32Const { value } if Some(value) == address))
    });
    if is_laid_out { Ok(state) } else { Err(target.refusal("one with another layout of the heap's state")) }
}

/// The address of the variable that a function loads first.
pub(super) fn first_variable(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let load = |pair: &[Operator]| match *pair {
        [Operator::I32Const { value: address }, Operator::I32Load { memarg } | Operator::I32Load8U { memarg }] => {
            address.cast_unsigned().checked_add(u32::try_from(memarg.offset).ok()?)
        }
        _ => None,
    };
    let first = operators.windows(2).next().and_then(load);
    first.ok_or_else(|| target.refusal("one that does not begin with a load of a variable"))
}

/// The address of the byte that three instructions set to 1.
pub(super) fn flag_set(window: &[Operator]) -> Option<u32> {
    match *window {
        [Operator::I32Const { value: address }, Operator::I32Const { value: 1 }, Operator::I32Store8 { memarg }]
            if memarg.offset == 0 =>
        {
            Some(address.cast_unsigned())
        }
        _ => None,
    }
}

/// The only place in a body where `length` instructions match, and the result of the match.
pub(super) fn once<T>(
    target: &Target,
    what: &str,
    operators: &[Operator],
    length: usize,
    matches: impl Fn(&[Operator]) -> Option<T>,
) -> Result<(usize, T), InstrumentError> {
    let windows = operators.windows(length).enumerate();
    let mut found: Vec<_> = windows.filter_map(|(at, window)| Some((at, matches(window)?))).collect();
    match (found.pop(), found.len()) {
        (Some(place), 0) => Ok(place),
        (None, _) => Err(target.refusal(&format!("one without {what}"))),
        (Some(_), others) => Err(target.refusal(&format!("one with {what} in {} places", others + 1))),
    }
}
