//! What `libpqwalreceiver`, PostgreSQL's client for replication, needs of PGlite: a variable for its functions, which
//! PGlite has and does not export.

use wasmparser::Operator;

use super::{InstrumentError, module::Module};

/// The name of the variable, and so of its symbol.
pub(super) const FUNCTIONS: &str = "WalReceiverFunctions";

/// The name by which the library is loaded.
const LIBRARY: &[u8] = b"\0libpqwalreceiver\0";

/// The address of `WalReceiverFunctions` (`src/backend/replication/walreceiver.c`): where a WAL receiver has loaded the
/// library, it looks at once whether the library has set it.
///
/// # Errors
/// If it is not found.
pub(super) fn functions(module: &Module, memory: &[u8]) -> Result<u32, InstrumentError> {
    let names: Vec<usize> =
        memory.windows(LIBRARY.len()).enumerate().filter(|(_, text)| *text == LIBRARY).map(|(at, _)| at + 1).collect();
    let refusal = |found: String| InstrumentError::Evidence {
        function: FUNCTIONS.to_owned(),
        expected: "a variable that is looked at when libpqwalreceiver was loaded".to_owned(),
        found,
    };
    let [name] = names[..] else { return Err(refusal(format!("its name {} times", names.len()))) };
    let mut found = Vec::new();
    for function in module.defined_functions() {
        found.extend(module.operators(function)?.windows(6).filter_map(|window| match *window {
            [
                Operator::I32Const { value: library },
                Operator::I32Const { value: 0 },
                Operator::Call { .. },
                Operator::I32Const { value: address },
                Operator::I32Load { memarg },
                Operator::If { .. },
            ] if library.cast_unsigned() as usize == name && memarg.offset == 0 => Some(address.cast_unsigned()),
            _ => None,
        }));
    }
    match found[..] {
        [address] => Ok(address),
        _ => Err(refusal(format!("{} of them", found.len()))),
    }
}
