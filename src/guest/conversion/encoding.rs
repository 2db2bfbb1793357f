//! What the main module knows of an encoding: two tables in its memory, and functions in its table.

use wasmtime::{AsContextMut, Caller, bail};

use super::super::{Guest, memory, table_function};
use crate::postgres::encoding::{functions, name};

/// A character encoding that `PostgreSQL` knows.
pub(super) struct Encoding {
    /// Addresses of its entries in the two tables.
    name: u32,
    functions: u32,
}

impl Encoding {
    /// The encoding of that number.
    ///
    /// # Errors
    /// When there is none: the numbers in side modules are constants, so one that is unknown ends the guest.
    pub(super) fn find(caller: &mut Caller<'_, Guest>, number: i32) -> wasmtime::Result<Self> {
        let (memory, guest) = memory::of(caller)?;
        let index = number.cast_unsigned();
        let name = guest.facts.encoding_names.wrapping_add(index.wrapping_mul(name::SIZE));
        let functions = guest.facts.encoding_functions.wrapping_add(index.wrapping_mul(functions::SIZE));
        // Every entry says which it is.
        if number < 0 || memory::read_u32(memory, name.wrapping_add(name::ENCODING))? != index {
            bail!("a conversion is between encodings of which one has the number {number}, and there is none such");
        }
        Ok(Self { name, functions })
    }

    /// Its name.
    pub(super) fn name(&self, memory: &[u8]) -> wasmtime::Result<String> {
        let text = memory::read_u32(memory, self.name.wrapping_add(name::TEXT))?;
        Ok(memory::read_text(memory, text)?)
    }

    /// How many bytes its longest character has.
    pub(super) fn longest(&self, memory: &[u8]) -> wasmtime::Result<u32> {
        Ok(memory::read_u32(memory, self.functions.wrapping_add(functions::LONGEST))?)
    }

    /// How many bytes the character at `text` has, by its first byte or bytes.
    pub(super) fn length(&self, caller: &mut Caller<'_, Guest>, text: u32) -> wasmtime::Result<u32> {
        let function = memory::read_u32(memory::of(caller)?.0, self.functions.wrapping_add(functions::LENGTH))?;
        table_function::<u32, u32>(caller, function)?.call(caller.as_context_mut(), text)
    }

    /// The length of the character at `text`, of which `available` bytes are there, if it is valid; never 0, so that
    /// whoever goes on by it arrives.
    pub(super) fn verify(
        &self,
        caller: &mut Caller<'_, Guest>,
        text: u32,
        available: i32,
    ) -> wasmtime::Result<Option<u32>> {
        let function = memory::read_u32(memory::of(caller)?.0, self.functions.wrapping_add(functions::VERIFY))?;
        let length =
            table_function::<(u32, i32), i32>(caller, function)?.call(caller.as_context_mut(), (text, available))?;
        Ok(u32::try_from(length).ok().filter(|length| *length > 0))
    }
}
