//! The vtables of C++'s own classes of type information, which libraries in C++ need and PGlite does not export.
//!
//! `dynamic_cast` calls virtual functions of these classes (libc++abi, `src/private_typeinfo.h`). PGlite has them,
//! because ICU is written in C++. Each is found from its name: the name is a string, its type information points to
//! the name, its vtable points to the type information ("Itanium C++ ABI", 2.5.2 and 2.9.5).

use super::InstrumentError;

/// The name of each class, as the compiler writes it. The symbol of its vtable is `_ZTV` and that.
pub(crate) const CLASS: &str = "N10__cxxabiv117__class_type_infoE";
/// A class with one public base at offset 0.
pub(crate) const SINGLE: &str = "N10__cxxabiv120__si_class_type_infoE";
/// A class with other bases.
pub(crate) const MULTIPLE: &str = "N10__cxxabiv121__vmi_class_type_infoE";

/// The prefix of a vtable's symbol.
const VTABLE: &str = "_ZTV";

/// The size of a pointer.
const WORD: usize = 4;

/// Symbol and address of each vtable.
///
/// # Errors
/// If one is not found exactly once.
pub(super) fn vtables(memory: &[u8]) -> Result<Vec<(String, u32)>, InstrumentError> {
    [CLASS, SINGLE, MULTIPLE].into_iter().map(|name| Ok((format!("{VTABLE}{name}"), vtable(memory, name)?))).collect()
}

fn vtable(memory: &[u8], name: &str) -> Result<u32, InstrumentError> {
    let text = [b"\0", name.as_bytes(), b"\0"].concat();
    let strings = memory.windows(text.len()).enumerate().filter(|(_, window)| *window == text).map(|(at, _)| at + 1);
    // A pointer to the vtable comes before the one to the name, and the offset of the whole object, 0, before the one
    // to the type information.
    let infos = strings.flat_map(|name| pointers_to(memory, name)).filter_map(|at| at.checked_sub(WORD));
    let tables = infos.flat_map(|info| pointers_to(memory, info)).filter_map(|at| at.checked_sub(WORD));
    let found: Vec<usize> = tables.filter(|&table| memory[table..table + WORD] == [0; WORD]).collect();
    match found[..] {
        [table] => Ok(u32::try_from(table).unwrap_or(u32::MAX)),
        _ => Err(InstrumentError::Evidence {
            function: format!("{VTABLE}{name}"),
            expected: "one vtable whose type information has this name".to_owned(),
            found: format!("{} of them", found.len()),
        }),
    }
}

/// Where the aligned words are that hold `address`.
fn pointers_to(memory: &[u8], address: usize) -> Vec<usize> {
    let wanted = u32::try_from(address).unwrap_or(u32::MAX).to_le_bytes();
    memory.chunks_exact(WORD).enumerate().filter(|(_, word)| *word == wanted).map(|(at, _)| at * WORD).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory with names at 65, 113 and 161, type information before and vtables behind them, and `more`.
    fn memory(more: &[(usize, u32)]) -> Vec<u8> {
        let mut memory = vec![0; 512];
        for (at, name) in [(65, CLASS), (113, SINGLE), (161, MULTIPLE)] {
            memory[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
        let words = [(8, 300), (12, 65), (16, 340), (20, 113), (24, 380), (28, 161), (296, 8), (336, 16), (376, 24)];
        for &(at, word) in words.iter().chain(more) {
            memory[at..at + WORD].copy_from_slice(&word.to_le_bytes());
        }
        memory
    }

    #[test]
    fn a_vtable_is_found_by_the_name_of_its_class() {
        let found = vtables(&memory(&[])).unwrap();
        let expected = [(CLASS, 292), (SINGLE, 332), (MULTIPLE, 372)];
        assert_eq!(found, expected.map(|(name, address)| (format!("_ZTV{name}"), address)));
    }

    #[test]
    fn what_only_derives_from_a_class_is_not_its_vtable() {
        // Type information of a derived class has its own name before the pointer to the base.
        vtables(&memory(&[(400, 300), (404, 450), (408, 8)])).unwrap();
        let two = vtables(&memory(&[(404, 8)])).unwrap_err().to_string();
        assert!(two.contains("2 of them"), "{two}");
    }
}
