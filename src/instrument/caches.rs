//! Where a process makes its caches of system catalogs, how it hears of changes of these, and what else differs in a
//! process that begins with those of another one.

use std::ops::Range;

use wasmparser::Operator;

use super::InstrumentError;
use super::bodies::{calls_of, flag_set, once};
use super::outline::{is_closed, read_first, set};
use super::target::Target;

/// The instructions of `InitPostgres` (`src/backend/utils/init/postinit.c`) from `RelationCacheInitialize` to
/// `RelationCacheInitializePhase2`. `create` and `register` are the functions `CreateCacheMemoryContext`, which the first
/// one calls, and `before_shmem_exit`, which is called after the last one.
///
/// # Errors
/// If they cannot be left out: if they jump out of themselves or return, or set a variable that is read after them.
pub(super) fn caches_made(
    target: &Target,
    operators: &[Operator],
    create: u32,
    register: u32,
) -> Result<Range<usize>, InstrumentError> {
    let mut creates = calls_of(target, operators, create)?;
    let create_at = creates.next().filter(|_| creates.next().is_none());
    let create_at = create_at.ok_or_else(|| target.refusal("one that makes caches in several places"))?;
    // The first function makes room on the stack. The parameters of the call are two constants.
    let makes_room = |it: &Operator| matches!(it, Operator::GlobalGet { global_index: 0 });
    let start = operators[..create_at].iter().rposition(makes_room);
    let end = calls_of(target, operators, register)?.find(|at| *at > create_at + 2).map(|at| at - 2);
    let Some((start, end)) = start.zip(end) else { return Err(target.refusal("one that makes caches elsewhere")) };
    let (inside, after) = (&operators[start..end], &operators[end..]);
    if !is_closed(inside) || !read_first(after).is_disjoint(&set(inside).collect()) {
        return Err(target.refusal("one with caches whose making cannot be left out"));
    }
    Ok(start..end)
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
    Ok(once(target, "a flag that is set", operators, 3, flag_set)?.1)
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
    use wasmparser::BlockType;

    use super::*;
    use crate::instrument::target::{Evidence, signature};

    const CREATE: u32 = 7;
    const REGISTER: u32 = 8;
    const CALL: Operator = Operator::Call { function_index: CREATE };
    const SET: Operator = Operator::LocalSet { local_index: 4 };

    /// What is found in a body in which `inside` is part of what makes caches, and `after` follows it.
    fn found(inside: &[Operator], after: &[Operator]) -> Result<Range<usize>, InstrumentError> {
        let target = Target { name: "f", signature: signature(0, 0), evidence: Evidence::Exported, changes: &[] };
        let constant = Operator::I32Const { value: 0 };
        let register = Operator::Call { function_index: REGISTER };
        let begin = [Operator::Nop, Operator::GlobalGet { global_index: 0 }, CALL];
        let end = [constant.clone(), constant, register];
        caches_made(&target, &[&begin[..], inside, &end, after].concat(), CREATE, REGISTER)
    }

    #[test]
    fn a_part_that_branches_out_or_sets_what_is_read_later_cannot_be_left_out() {
        let block = |depth| {
            [Operator::Block { blockty: BlockType::Empty }, Operator::BrIf { relative_depth: depth }, Operator::End]
        };
        let read = Operator::LocalGet { local_index: 4 };
        assert_eq!(found(&[], &[]).unwrap(), 1..3);
        assert_eq!(found(&block(0), &[]).unwrap(), 1..6);
        assert_eq!(found(&[SET], &[SET, read.clone()]).unwrap(), 1..4);
        assert!(found(&block(1), &[]).is_err());
        assert!(found(&[Operator::Return], &[]).is_err());
        assert!(found(&[SET], &[read]).is_err());
        assert!(found(&[CALL], &[]).is_err(), "it makes them twice");
    }
}
