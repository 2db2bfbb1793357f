//! Encodings in the main module: two tables in its memory, and functions in its table.

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
    /// The encoding with that number.
    ///
    /// # Errors
    /// When there is none. Side modules contain the numbers as constants, so an unknown number ends the guest.
    pub(super) fn find(caller: &mut Caller<'_, Guest>, number: i32) -> wasmtime::Result<Self> {
        let (memory, guest) = memory::of(caller)?;
        let index = number.cast_unsigned();
        let name = guest.facts.encoding_names.wrapping_add(index.wrapping_mul(name::SIZE));
        let functions = guest.facts.encoding_functions.wrapping_add(index.wrapping_mul(functions::SIZE));
        // Every entry contains its own number.
        if number < 0 || memory::read_u32(memory, name.wrapping_add(name::ENCODING))? != index {
            bail!("a conversion uses the encoding number {number}, which does not exist");
        }
        Ok(Self { name, functions })
    }

    /// Its name.
    pub(super) fn name(&self, memory: &[u8]) -> wasmtime::Result<String> {
        let text = memory::read_u32(memory, self.name.wrapping_add(name::TEXT))?;
        Ok(memory::read_text(memory, text)?)
    }

    /// The length of its longest character in bytes.
    pub(super) fn longest(&self, memory: &[u8]) -> wasmtime::Result<u32> {
        Ok(memory::read_u32(memory, self.functions.wrapping_add(functions::LONGEST))?)
    }

    /// The length in bytes of the character at `text`, by its first byte or bytes.
    pub(super) fn length(&self, caller: &mut Caller<'_, Guest>, text: u32) -> wasmtime::Result<u32> {
        let function = memory::read_u32(memory::of(caller)?.0, self.functions.wrapping_add(functions::LENGTH))?;
        table_function::<u32, u32>(caller, function)?.call(caller.as_context_mut(), text)
    }

    /// The length of the character at `text` if it is valid and within `available` bytes. It is never 0, so that a
    /// loop that advances by it ends.
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
