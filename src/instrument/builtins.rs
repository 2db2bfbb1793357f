//! `PostgreSQL`'s built-in functions: the table `fmgr_builtins`, which is generated from
//! `src/include/catalog/pg_proc.dat`, read from the initial memory of the module.

use wasmparser::Operator;

use super::{InstrumentError, module::Module};

/// A built-in function that returns a global variable, a `TimestampTz`.
pub(super) struct Getter {
    /// Its name.
    pub(super) name: &'static str,
    /// Its object identifier in `pg_proc`.
    pub(super) oid: u32,
}

pub(super) const START_TIME: Getter = Getter { name: "pg_postmaster_start_time", oid: 2560 };
pub(super) const LOAD_TIME: Getter = Getter { name: "pg_conf_load_time", oid: 2034 };

/// Offsets in a row (`FmgrBuiltin` in `src/include/utils/fmgrtab.h`), which begins with the object identifier.
const NAME: usize = 8;
const FUNCTION: usize = 12;
const ROW: usize = 16;

impl Getter {
    /// The address of the variable.
    ///
    /// # Errors
    /// If there is not one row for the function, or the function does not load one variable.
    pub(super) fn variable(&self, module: &Module, memory: &[u8]) -> Result<u32, InstrumentError> {
        let rows = memory.windows(ROW).step_by(4).filter(|row| self.is_in(row, memory));
        let slots: Vec<u32> = rows.filter_map(|row| word(row, FUNCTION)).collect();
        let [slot] = slots[..] else { return Err(self.refusal("one row", &format!("{} rows", slots.len()))) };
        let function = module.function_in(slot).ok_or_else(|| self.refusal("a function", "an empty table slot"))?;
        let operators = module.operators(function)?;
        let loads = operators.windows(2).filter_map(|pair| match *pair {
            [Operator::I32Const { value }, Operator::I64Load { memarg }] => {
                value.cast_unsigned().checked_add(u32::try_from(memarg.offset).ok()?)
            }
            _ => None,
        });
        match loads.collect::<Vec<_>>()[..] {
            [address] => Ok(address),
            ref loads => Err(self.refusal("one that loads one variable", &format!("{} loads", loads.len()))),
        }
    }

    fn is_in(&self, row: &[u8], memory: &[u8]) -> bool {
        let name = word(row, NAME).and_then(|address| memory.get(address as usize..));
        word(row, 0) == Some(self.oid)
            && name.and_then(|name| name.strip_prefix(self.name.as_bytes())).is_some_and(|rest| rest.starts_with(&[0]))
    }

    fn refusal(&self, expected: &str, found: &str) -> InstrumentError {
        InstrumentError::Evidence {
            function: self.name.to_owned(),
            expected: format!("{expected} in fmgr_builtins"),
            found: found.to_owned(),
        }
    }
}

fn word(row: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*row.get(at..)?.first_chunk()?))
}
