//! The kinds of processes that a postmaster starts, and the memory through which they signal it and the checkpointer.
//!
//! The kinds are the table `child_process_kinds` in PostgreSQL's `src/backend/postmaster/launch_backend.c`, read from
//! the initial memory of the module.

use serde::{Deserialize, Serialize};
use wasmparser::Operator;

use super::InstrumentError;
use super::bodies::{flag_set, once};
use super::target::Target;
use crate::postgres::child::{BACKGROUND_WRITER, CHECKPOINTER, INVALID, MAIN, ON_SHARED_MEMORY, ROW};

/// Names of two consecutive rows, by which the table is recognised.
const NEIGHBOURS: [&str; 2] = [BACKGROUND_WRITER, CHECKPOINTER];

/// A kind of child process of the postmaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildKind {
    /// Its name in the table.
    pub name: String,
    /// Its `BackendType` (`src/include/miscadmin.h`), the index in the table.
    pub number: u32,
    /// The function table slot of its main function, which takes a pointer to its start-up data and their length.
    pub main: u32,
}

/// All kinds with a main function.
///
/// # Errors
/// If the table is not found exactly once.
pub(super) fn kinds(memory: &[u8]) -> Result<Vec<ChildKind>, InstrumentError> {
    let rows = |address: usize| (address..memory.len()).step_by(ROW).map_while(|row| Row::read(memory, row));
    let is_named = |row: Row, name: &str| row.name == name.as_bytes();
    let found: Vec<usize> = (0..memory.len().saturating_sub(2 * ROW))
        .step_by(4)
        .filter(|&address| rows(address).zip(NEIGHBOURS).filter(|(row, name)| is_named(*row, name)).count() == 2)
        .collect();
    let [address] = found[..] else { return Err(no_table(&format!("{} such tables", found.len()))) };
    let first = (0..=address / ROW)
        .map(|rows| address - rows * ROW)
        .find(|&row| Row::read(memory, row).is_some_and(|row| is_named(row, INVALID)))
        .ok_or_else(|| no_table("one without a first row"))?;
    let kinds = (0..).zip(rows(first)).filter(|(_, row)| row.main != 0);
    Ok(kinds
        .map(|(number, row)| ChildKind { name: String::from_utf8_lossy(row.name).into_owned(), number, main: row.main })
        .collect())
}

/// A row in memory.
#[derive(Clone, Copy)]
struct Row<'a> {
    name: &'a [u8],
    main: u32,
}

impl<'a> Row<'a> {
    /// Reads the row at `address`; `None` if its name is not text or its last field is not a boolean.
    fn read(memory: &'a [u8], address: usize) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*memory.get(at..)?.first_chunk()?));
        let name = memory.get(word(address)? as usize..)?;
        let name = &name[..name.iter().take(64).position(|&byte| byte == 0)?];
        let is_row = !name.is_empty()
            && name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
            && word(address + ON_SHARED_MEMORY)? <= 1;
        Some(Self { name, main: word(address + MAIN)? }).filter(|_| is_row)
    }
}

fn no_table(found: &str) -> InstrumentError {
    InstrumentError::Evidence {
        function: "child_process_kinds".to_owned(),
        expected: format!("one table with rows named {NEIGHBOURS:?} after one named {INVALID:?}"),
        found: found.to_owned(),
    }
}

/// The shared memory of sessions and checkpointer: `CheckpointerShmemStruct` in
/// `src/backend/postmaster/checkpointer.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointerShmem {
    /// Address of `CheckpointerShmem`, a pointer to the structure, which begins with the checkpointer's process id.
    pub shared: u32,
    /// The offset in the structure of the number of queued requests to sync files, an `int` after the fields that
    /// request checkpoints.
    pub requests: u32,
}

impl CheckpointerShmem {
    /// Reads it from `ForwardSyncRequest`: `if (CheckpointerShmem->checkpointer_pid == 0 …`.
    pub(super) fn read(target: &Target, operators: &[Operator]) -> Result<Self, InstrumentError> {
        let process_id = |window: &[Operator]| match *window {
            [
                Operator::I32Const { value: address },
                Operator::I32Load { memarg: pointer },
                Operator::LocalTee { .. },
                Operator::I32Load { memarg: process_id },
                Operator::I32Eqz,
            ] if pointer.offset == 0 && process_id.offset == 0 => Some(address.cast_unsigned()),
            _ => None,
        };
        // `CheckpointerShmem->num_requests >= CheckpointerShmem->max_requests`
        let is_full = |window: &[Operator]| match *window {
            [
                Operator::I32Load { memarg: requests },
                Operator::LocalTee { .. },
                Operator::LocalGet { .. },
                Operator::I32Load { memarg: max_requests },
                Operator::I32GeS,
            ] => u32::try_from(requests.offset).ok().filter(|_| max_requests.offset > requests.offset),
            _ => None,
        };
        let (_, shared) = once(target, "a test of the checkpointer's process id", operators, 5, process_id)?;
        let (_, requests) = once(target, "a comparison with the queue's size", operators, 5, is_full)?;
        Ok(Self { shared, requests })
    }
}

/// The variables through which a child signals its postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostmasterSignals {
    /// Address of `PostmasterPid` (`src/backend/utils/init/globals.c`).
    pub process_id: u32,
    /// Address of `PMSignalState` (`src/backend/storage/ipc/pmsignal.c`), a pointer to a structure that begins with
    /// one flag, an `int`, for every `PMSignalReason`.
    pub state: u32,
}

impl PostmasterSignals {
    /// Reads it from `SendPostmasterSignal`: `PMSignalState->PMSignalFlags[reason] = true; kill(PostmasterPid,
    /// SIGUSR1);`.
    pub(super) fn read(target: &Target, operators: &[Operator]) -> Result<Self, InstrumentError> {
        let sent = |window: &[Operator]| match *window {
            [
                Operator::I32Const { value: state },
                Operator::I32Load { memarg: pointer },
                Operator::LocalGet { local_index: 0 },
                Operator::I32Const { value: 2 },
                Operator::I32Shl,
                Operator::I32Add,
                Operator::I32Const { value: 1 },
                Operator::I32Store { memarg: flag },
                Operator::I32Const { value: process_id },
                Operator::I32Load { memarg: target },
                Operator::I32Const { value: 10 },
                Operator::Call { .. },
            ] if pointer.offset == 0 && flag.offset == 0 && target.offset == 0 => {
                Some(Self { process_id: process_id.cast_unsigned(), state: state.cast_unsigned() })
            }
            _ => None,
        };
        Ok(once(target, "a flag set and SIGUSR1 sent", operators, 12, sent)?.1)
    }
}

/// The address of `IsPostmasterEnvironment` (`src/backend/utils/init/globals.c`) in `pgl_startPGlite`, which sets it
/// and `IsUnderPostmaster`.
pub(super) fn is_postmaster_environment(
    target: &Target,
    operators: &[Operator],
    is_under_postmaster: u32,
) -> Result<u32, InstrumentError> {
    let set = |window: &[Operator]| flag_set(window).filter(|&address| address != is_under_postmaster);
    Ok(once(target, "a flag set besides IsUnderPostmaster", operators, 3, set)?.1)
}

/// The address of `whereToSendOutput` (`src/backend/tcop/postgres.c`) in `pgl_startPGlite`: `whereToSendOutput =
/// DestRemote`.
pub(super) fn where_to_send_output(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let stored = |window: &[Operator]| match *window {
        [Operator::I32Const { value: address }, Operator::I32Const { value: 2 }, Operator::I32Store { memarg }]
            if memarg.offset == 0 =>
        {
            Some(address.cast_unsigned())
        }
        _ => None,
    };
    Ok(once(target, "output sent to the client", operators, 3, stored)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory with these names and main functions in a table at address 1000.
    fn memory(rows: &[(&str, u32)]) -> Vec<u8> {
        let mut memory = vec![0; 2000];
        let mut text = 8;
        for (row, (name, main)) in rows.iter().enumerate() {
            memory[text..text + name.len()].copy_from_slice(name.as_bytes());
            for (field, word) in [u32::try_from(text).expect("small"), *main, 1].into_iter().enumerate() {
                memory[1000 + row * ROW + 4 * field..][..4].copy_from_slice(&word.to_le_bytes());
            }
            text += name.len() + 1;
        }
        memory
    }

    #[test]
    fn kinds_are_numbered_by_their_rows_and_those_without_a_main_function_left_out() {
        let memory = memory(&[("invalid", 0), ("backend", 7), ("wal sender", 0), ("bgwriter", 8), ("checkpointer", 9)]);
        let kinds = kinds(&memory).unwrap();
        let seen: Vec<_> = kinds.iter().map(|kind| (&kind.name[..], kind.number, kind.main)).collect();
        assert_eq!(seen, [("backend", 1, 7), ("bgwriter", 3, 8), ("checkpointer", 4, 9)]);
    }

    #[test]
    fn a_memory_without_the_table_is_refused_by_its_name() {
        for rows in [&[("invalid", 0), ("bgwriter", 8)][..], &[("bgwriter", 8), ("checkpointer", 9)], &[]] {
            let error = kinds(&memory(rows)).unwrap_err().to_string();
            assert!(error.starts_with("child_process_kinds: "), "{error}");
        }
    }
}
