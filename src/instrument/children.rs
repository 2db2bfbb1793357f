//! The kinds of processes that a postmaster starts: the table `child_process_kinds` in PostgreSQL's
//! `src/backend/postmaster/launch_backend.c`, read out of the memory of a fresh backend.

use serde::{Deserialize, Serialize};

use super::InstrumentError;

/// Bytes of a row: pointer to the name, table slot of the main function, whether it attaches to shared memory.
const ROW: usize = 12;

/// Names of two rows that follow each other, by which the table is recognised.
const NEIGHBOURS: [&str; 2] = ["bgwriter", "checkpointer"];
/// Name of the first row.
const FIRST: &str = "invalid";

/// A kind of children of the postmaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildKind {
    /// Its name in the table.
    pub name: String,
    /// Its `BackendType` (`src/include/miscadmin.h`), by which the table is indexed.
    pub number: u32,
    /// Slot in the function table of its main function, which takes a pointer to its start-up data and their length.
    pub main: u32,
}

/// All kinds that have a main function.
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
    let [address] = found[..] else { return Err(refusal(&format!("{} such tables", found.len()))) };
    let first = (0..=address / ROW)
        .map(|rows| address - rows * ROW)
        .find(|&row| Row::read(memory, row).is_some_and(|row| is_named(row, FIRST)))
        .ok_or_else(|| refusal("one without a first row"))?;
    let kinds = (0..).zip(rows(first)).filter(|(_, row)| row.main != 0);
    Ok(kinds
        .map(|(number, row)| ChildKind { name: String::from_utf8_lossy(row.name).into_owned(), number, main: row.main })
        .collect())
}

/// A row as it is in memory.
#[derive(Clone, Copy)]
struct Row<'a> {
    name: &'a [u8],
    main: u32,
}

impl<'a> Row<'a> {
    /// The row at `address`, if it can be one: its name is text, its last field a truth value.
    fn read(memory: &'a [u8], address: usize) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*memory.get(at..)?.first_chunk()?));
        let name = memory.get(word(address)? as usize..)?;
        let name = &name[..name.iter().take(64).position(|&byte| byte == 0)?];
        let is_row = !name.is_empty()
            && name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
            && word(address + 8)? <= 1;
        Some(Self { name, main: word(address + 4)? }).filter(|_| is_row)
    }
}

fn refusal(found: &str) -> InstrumentError {
    InstrumentError::Evidence {
        function: "child_process_kinds".to_owned(),
        expected: format!("one table with rows named {NEIGHBOURS:?} behind one named {FIRST:?}"),
        found: found.to_owned(),
    }
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
