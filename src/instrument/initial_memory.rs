//! The initial contents of a memory, made by data segments and the start function.

use std::ops::Range;

use wasmparser::Operator;

use super::module::Module as Parsed;
use super::{InstrumentError, PageLimits};

/// The bytes of a new memory up to the last one that a data segment sets.
pub(super) fn initial_memory(
    limits: PageLimits,
    data: &[(u32, &[u8])],
    zeroed: &[Range<u32>],
) -> Result<Vec<u8>, InstrumentError> {
    let beyond = || InstrumentError::Unsupported("a data segment does not fit into its memory".into());
    let mut memory = Vec::new();
    for &(offset, bytes) in data {
        let end = (offset as usize).checked_add(bytes.len()).ok_or_else(beyond)?;
        if end as u64 > limits.minimum_bytes() {
            return Err(beyond());
        }
        if memory.len() < end {
            memory.resize(end, 0);
        }
        memory[offset as usize..end].copy_from_slice(bytes);
    }
    for range in zeroed {
        let end = memory.len().min(range.end as usize);
        let start = end.min(range.start as usize);
        memory[start..end].fill(0);
    }
    Ok(memory)
}

/// The ranges of memory that the start function fills with zeros.
///
/// # Errors
/// If it does anything else, because then it cannot be left out.
pub(super) fn zeroed_by_start(module: &Parsed) -> Result<Vec<Range<u32>>, InstrumentError> {
    let Some(start) = module.start else {
        return Ok(Vec::new());
    };
    let operators = module.operators(start)?;
    let Some((Operator::End, fills)) = operators.split_last() else {
        return Err(InstrumentError::Unsupported("its start function is imported".into()));
    };
    let range = |fill: &[Operator]| match *fill {
        [
            Operator::I32Const { value: start },
            Operator::I32Const { value: 0 },
            Operator::I32Const { value: length },
            Operator::MemoryFill { mem: 0 },
        ] => Some(start.cast_unsigned()..start.cast_unsigned().checked_add(length.cast_unsigned())?),
        _ => None,
    };
    fills.chunks(4).map(range).collect::<Option<_>>().ok_or_else(|| {
        InstrumentError::Unsupported(format!("its start function {start} does more than fill memory with zeros"))
    })
}
