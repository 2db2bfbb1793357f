//! Memory contents as modules of their own: each only defines a memory, fills it from data segments and exports it.
//!
//! Wasmtime maps such a memory copy-on-write from the compiled file, so that instances share every page that they do
//! not write. All segments are active with constant offsets, which is what it needs for that.

use std::ops::Range;

use wasm_encoder::{
    ConstExpr, DataSection, ExportKind, ExportSection, MemorySection, MemoryType, Module,
};
use wasmparser::Operator;

use super::module::Module as Parsed;
use super::{InstrumentError, PageLimits};

/// Size of the pages by which zeros are left out of an image: an operating system's page, which is what gets mapped.
const PAGE: usize = 4096;

/// The most data segments that engines accept (the JavaScript embedding's limit, which wasmparser enforces).
const MAX_SEGMENTS: usize = 100_000;

/// Builds a module that defines a memory with these contents and exports it as `memory`.
///
/// `contents` are pieces of memory by their offsets in bytes, in ascending order and without overlap; whatever they do
/// not cover is zero. Adjacent pieces become one data segment, and zeros at the end of a segment are left out. The
/// number of segments stays within the engines' limit: where there are more, those with the smallest gaps between them
/// are joined by zeros. A piece beyond the memory's initial size makes a module that cannot be instantiated.
pub fn memory_image<'a>(
    limits: PageLimits,
    contents: impl IntoIterator<Item = (u32, &'a [u8])>,
) -> Vec<u8> {
    let mut segments: Vec<Segment> = Vec::new();
    for (offset, bytes) in contents {
        match segments.last_mut() {
            Some(last) if last.end() == u64::from(offset) => last.bytes.extend_from_slice(bytes),
            _ => segments.push(Segment {
                offset,
                bytes: bytes.to_vec(),
            }),
        }
    }
    for segment in &mut segments {
        let used = segment
            .bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        segment.bytes.truncate(used);
    }
    segments.retain(|segment| !segment.bytes.is_empty());
    encode(limits, &join_smallest_gaps(segments, MAX_SEGMENTS))
}

/// The memory of a freshly instantiated module: its data segments, then what its start function zeroes.
pub(super) fn initial_image(
    limits: PageLimits,
    data: &[(u32, &[u8])],
    zeroed: &[Range<u32>],
) -> Result<Vec<u8>, InstrumentError> {
    let memory = initial_memory(limits, data, zeroed)?;
    let pages = (0_u32..).step_by(PAGE).zip(memory.chunks(PAGE));
    Ok(memory_image(
        limits,
        pages.filter(|(_, page)| page.iter().any(|&byte| byte != 0)),
    ))
}

/// The bytes of a fresh memory up to the last one that a data segment sets.
pub(super) fn initial_memory(
    limits: PageLimits,
    data: &[(u32, &[u8])],
    zeroed: &[Range<u32>],
) -> Result<Vec<u8>, InstrumentError> {
    let beyond =
        || InstrumentError::Unsupported("a data segment does not fit into its memory".into());
    let mut memory = Vec::new();
    for &(offset, bytes) in data {
        let end = (offset as usize)
            .checked_add(bytes.len())
            .ok_or_else(beyond)?;
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
/// If it does anything else: then it cannot be left out.
pub(super) fn zeroed_by_start(module: &Parsed) -> Result<Vec<Range<u32>>, InstrumentError> {
    let Some(start) = module.start else {
        return Ok(Vec::new());
    };
    let operators = module.operators(start)?;
    let Some((Operator::End, fills)) = operators.split_last() else {
        return Err(InstrumentError::Unsupported(
            "its start function is imported".into(),
        ));
    };
    let range = |fill: &[Operator]| match *fill {
        [
            Operator::I32Const { value: start },
            Operator::I32Const { value: 0 },
            Operator::I32Const { value: length },
            Operator::MemoryFill { mem: 0 },
        ] => {
            Some(start.cast_unsigned()..start.cast_unsigned().checked_add(length.cast_unsigned())?)
        }
        _ => None,
    };
    fills
        .chunks(4)
        .map(range)
        .collect::<Option<_>>()
        .ok_or_else(|| {
            InstrumentError::Unsupported(format!(
                "its start function {start} does more than fill memory with zeros"
            ))
        })
}

struct Segment {
    offset: u32,
    bytes: Vec<u8>,
}

impl Segment {
    fn end(&self) -> u64 {
        u64::from(self.offset) + self.bytes.len() as u64
    }

    /// How many bytes lie between this segment and the one after it.
    fn gap(&self, next: &Segment) -> u64 {
        u64::from(next.offset).saturating_sub(self.end())
    }
}

/// Joins neighbours, nearest first, until there are at most `limit` segments.
fn join_smallest_gaps(segments: Vec<Segment>, limit: usize) -> Vec<Segment> {
    let Some(excess) = segments
        .len()
        .checked_sub(limit)
        .filter(|&excess| excess > 0)
    else {
        return segments;
    };
    let mut gaps: Vec<u64> = segments
        .windows(2)
        .map(|pair| pair[0].gap(&pair[1]))
        .collect();
    let (_, &mut widest, _) = gaps.select_nth_unstable(excess - 1);
    let mut joined: Vec<Segment> = Vec::with_capacity(limit);
    for segment in segments {
        match joined.last_mut() {
            Some(last) if last.gap(&segment) <= widest => {
                last.bytes
                    .resize((segment.offset - last.offset) as usize, 0);
                last.bytes.extend_from_slice(&segment.bytes);
            }
            _ => joined.push(segment),
        }
    }
    joined
}

fn encode(limits: PageLimits, segments: &[Segment]) -> Vec<u8> {
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: limits.minimum,
        maximum: limits.maximum,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    let mut exports = ExportSection::new();
    exports.export("memory", ExportKind::Memory, 0);
    let mut data = DataSection::new();
    for segment in segments {
        let offset = ConstExpr::i32_const(segment.offset.cast_signed());
        data.active(0, &offset, segment.bytes.iter().copied());
    }
    let mut module = Module::new();
    module.section(&memories).section(&exports).section(&data);
    module.finish()
}

#[cfg(test)]
mod tests;
