//! Where a process makes its caches of system catalogs, how it hears of changes of these, and what else differs in a
//! process that begins with those of another one.

use std::collections::BTreeSet;
use std::ops::Range;

use wasmparser::Operator;

use super::InstrumentError;
use super::bodies::once;
use super::target::Target;

/// The instructions of `InitPostgres` (`src/backend/utils/init/postinit.c`) from `RelationCacheInitialize` to
/// `RelationCacheInitializePhase2`. `create` and `register` are the functions `CreateCacheMemoryContext`, which the first
/// one calls, and `before_shmem_exit`, which is called after the last one.
///
/// # Errors
/// If they cannot be left out.
pub(super) fn caches_made(
    target: &Target,
    operators: &[Operator],
    create: u32,
    register: u32,
) -> Result<Range<usize>, InstrumentError> {
    let is_call = |at: usize, function: u32| matches!(operators.get(at), Some(Operator::Call { function_index }) if *function_index == function);
    let (create_at, ()) = once(target, "caches made", operators, 1, |window| match *window {
        [Operator::Call { function_index }] if function_index == create => Some(()),
        _ => None,
    })?;
    let depths = depths(operators);
    let is_outermost = |at: &usize| depths.get(*at) == Some(&0);
    // The first function makes room on the stack.
    let begins = |at: &usize| is_outermost(at) && matches!(operators[*at], Operator::GlobalGet { global_index: 0 });
    let start = (0..create_at).rfind(begins);
    let end = (create_at..operators.len()).find(|&at| is_outermost(&at) && is_call(at, register));
    // The parameters of the call are two constants.
    let range = start.zip(end.and_then(|end| end.checked_sub(2))).map(|(start, end)| start..end);
    let range = range.filter(|range| range.start < create_at && create_at < range.end);
    let range = range.ok_or_else(|| target.refusal("one that makes caches elsewhere"))?;
    let made = &operators[range.clone()];
    let leaves = made.iter().zip(&depths[range.clone()]).any(|(operator, depth)| branches_out(operator, *depth));
    if leaves || !is_independent(made, &operators[range.end..]) {
        return Err(target.refusal("one with caches whose making cannot be left out"));
    }
    Ok(range)
}

/// How many blocks each instruction is in, counted from the function's body. The ends of a block are in it.
fn depths(operators: &[Operator]) -> Vec<u32> {
    let mut depth = 0_u32;
    let mut depths = Vec::with_capacity(operators.len());
    for operator in operators {
        depths.push(depth);
        match operator {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => depth += 1,
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depths
}

/// Whether an instruction in so many blocks branches to the end of the function's body.
fn branches_out(operator: &Operator, depth: u32) -> bool {
    match operator {
        Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => *relative_depth >= depth,
        Operator::BrTable { targets } => {
            targets.default() >= depth || targets.targets().any(|target| target.map_or(true, |target| target >= depth))
        }
        Operator::Return => true,
        _ => false,
    }
}

/// Whether `after` sets each local variable that `made` sets before it reads it.
fn is_independent(made: &[Operator], after: &[Operator]) -> bool {
    let set = |operator: &Operator| match *operator {
        Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => Some(local_index),
        _ => None,
    };
    let mut unknown: BTreeSet<u32> = made.iter().filter_map(set).collect();
    after.iter().all(|operator| {
        if let Some(local) = set(operator) {
            unknown.remove(&local);
        }
        !matches!(operator, Operator::LocalGet { local_index } if unknown.contains(local_index))
    })
}

/// The address of `shmInvalBuffer`, the pointer to the queue of messages about changed catalogs in shared memory (`SISeg`
/// in `src/backend/storage/ipc/sinvaladt.c`), in `SharedInvalBackendInit`: `if (MyProcNumber < 0)`, then
/// `&shmInvalBuffer->procState[MyProcNumber]`.
pub(super) fn message_queue(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let negative = |window: &[Operator]| match *window {
        [
            Operator::I32Const { .. },
            Operator::I32Load { .. },
            Operator::LocalTee { .. },
            Operator::I32Const { value: 0 },
            Operator::I32GeS,
            Operator::If { .. },
            Operator::I32Const { value: queue },
            Operator::I32Load { .. },
        ] => Some(queue.cast_unsigned()),
        _ => None,
    };
    Ok(once(target, "a place that is checked", operators, 8, negative)?.1)
}

/// The address of `backend_startup_complete`, which `InitializeClientEncoding` sets.
pub(super) fn encoding_is_settled(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let set = |window: &[Operator]| match *window {
        [Operator::I32Const { value: address }, Operator::I32Const { value: 1 }, Operator::I32Store8 { memarg }]
            if memarg.offset == 0 =>
        {
            Some(address.cast_unsigned())
        }
        _ => None,
    };
    Ok(once(target, "a flag that is set", operators, 3, set)?.1)
}

/// The address of `signal_pending` in `schedule_alarm`: `if (signal_pending && now > signal_due_at + 10 * 1000)`.
pub(super) fn timer_runs(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let overdue = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value: address },
            Operator::I32Load { .. },
            Operator::I32Eqz,
            Operator::BrIf { .. },
            Operator::LocalGet { local_index: 0 },
            Operator::I32Const { .. },
            Operator::I64Load { .. },
            Operator::I64Const { value: 10_000 },
        ] => Some(address.cast_unsigned()),
        _ => None,
    };
    Ok(once(target, "a timer that is overdue", operators, 8, overdue)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_branches_out_or_sets_what_is_read_later_cannot_be_left_out() {
        assert!(!branches_out(&Operator::Br { relative_depth: 0 }, 1));
        assert!(branches_out(&Operator::BrIf { relative_depth: 1 }, 1));
        assert!(branches_out(&Operator::Return, 3));
        let set = [Operator::LocalSet { local_index: 4 }];
        let read = Operator::LocalGet { local_index: 4 };
        assert!(is_independent(&set, &[Operator::LocalTee { local_index: 4 }, read.clone()]));
        assert!(is_independent(&set, &[Operator::LocalGet { local_index: 5 }]));
        assert!(!is_independent(&set, &[read]));
    }

    #[test]
    fn depths_are_counted_from_the_body() {
        let block = Operator::Block { blockty: wasmparser::BlockType::Empty };
        assert_eq!(depths(&[block, Operator::Nop, Operator::End, Operator::Nop]), [0, 1, 1, 0]);
    }
}
