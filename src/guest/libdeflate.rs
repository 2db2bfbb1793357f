//! The part of libdeflate that libtiff calls, which PostGIS' rasters are built with and do not contain.
//!
//! A compressor is nothing but its level for the library, and a decompressor nothing at all, so that there is nothing to
//! allocate: their addresses, which only these functions look at, are numbers. The interface is `libdeflate.h`.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use wasmtime::{Caller, Linker};

use super::{Guest, memory, waiting};

/// The functions that [`add_to_linker`] adds. PGlite imports none of them.
pub(super) const FUNCTIONS: [&str; 7] = [
    "libdeflate_alloc_compressor",
    "libdeflate_free_compressor",
    "libdeflate_zlib_compress_bound",
    "libdeflate_zlib_compress",
    "libdeflate_alloc_decompressor",
    "libdeflate_free_decompressor",
    "libdeflate_zlib_decompress",
];

/// The highest level of libdeflate.
const LEVEL_MAX: u32 = 12;
/// The highest level of zlib.
const ZLIB_LEVEL_MAX: u32 = 9;

/// `enum libdeflate_result`.
const SUCCESS: i32 = 0;
const BAD_DATA: i32 = 1;
const SHORT_OUTPUT: i32 = 2;
const INSUFFICIENT_SPACE: i32 = 3;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap("env", "libdeflate_alloc_compressor", compressor)?;
    linker.func_wrap("env", "libdeflate_alloc_decompressor", || 1_u32)?;
    for name in ["libdeflate_free_compressor", "libdeflate_free_decompressor"] {
        linker.func_wrap("env", name, |_: u32| ())?;
    }
    linker.func_wrap("env", "libdeflate_zlib_compress_bound", |_compressor: u32, length: u32| bound(length))?;
    linker.func_wrap(
        "env",
        "libdeflate_zlib_compress",
        |mut caller: Caller<'_, Guest>, compressor: u32, input: u32, length: u32, output: u32, space: u32| {
            work(&mut caller, (input, length), (output, space), |input, output| compress(compressor, input, output))
        },
    )?;
    linker
        .func_wrap(
            "env",
            "libdeflate_zlib_decompress",
            |mut caller: Caller<'_, Guest>,
             _decompressor: u32,
             input: u32,
             length: u32,
             output: u32,
             space: u32,
             written: u32|
             -> wasmtime::Result<i32> {
                let (result, count) = work(&mut caller, (input, length), (output, space), decompress)?;
                if written != 0 {
                    memory::write_u32(memory::of(&mut caller)?.0, written, count)?;
                } else if result == SUCCESS && count < space {
                    return Ok(SHORT_OUTPUT);
                }
                Ok(result)
            },
        )
        .map(drop)
}

/// Calls `act` with the bytes at the address and of the length `input`, and those of `output`. If these overlap, it gets no
/// input.
fn work<T>(
    caller: &mut Caller<'_, Guest>,
    input: (u32, u32),
    output: (u32, u32),
    act: impl FnOnce(&[u8], &mut [u8]) -> T,
) -> wasmtime::Result<T> {
    let memory = caller.data().memory()?;
    waiting::without_turn_if_long(caller, input.1.max(output.1) as usize, |context| {
        let memory = memory.data_mut(context);
        // Whether they are in the memory.
        memory::read_bytes(memory, input.0, input.1)?;
        memory::read_bytes(memory, output.0, output.1)?;
        let [input, output] = [input, output].map(|(at, length)| at as usize..at as usize + length as usize);
        let (bytes, space) = if input.end <= output.start {
            let (before, after) = memory.split_at_mut(output.start);
            (&before[input], &mut after[..output.len()])
        } else if output.end <= input.start {
            let (before, after) = memory.split_at_mut(input.start);
            (&after[..input.len()], &mut before[output])
        } else {
            (&[][..], &mut memory[output])
        };
        Ok(act(bytes, space))
    })?
}

/// The address of a compressor of that level, or 0 if there is no such level.
fn compressor(level: u32) -> u32 {
    if level <= LEVEL_MAX { level + 1 } else { 0 }
}

/// How many bytes so many become at most: each has nine bits, or the blocks of what cannot be compressed have a head.
fn bound(length: u32) -> u32 {
    length.saturating_add(length / 8).saturating_add(64)
}

/// Compresses `input` to `output`. Returns the number of bytes there, or 0 if they do not fit.
fn compress(compressor: u32, input: &[u8], output: &mut [u8]) -> u32 {
    let level = compressor.saturating_sub(1).min(ZLIB_LEVEL_MAX);
    let mut compress = Compress::new(Compression::new(level), true);
    match compress.compress(input, output, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => u32::try_from(compress.total_out()).unwrap_or(0),
        _ => 0,
    }
}

/// Decompresses `input` to `output`. Returns the result and the number of bytes there.
fn decompress(input: &[u8], output: &mut [u8]) -> (i32, u32) {
    let mut decompress = Decompress::new(true);
    let ended = decompress.decompress(input, output, FlushDecompress::Finish);
    let count = decompress.total_out();
    let result = match ended {
        Ok(Status::StreamEnd) => SUCCESS,
        Ok(_) if count == output.len() as u64 => INSUFFICIENT_SPACE,
        _ => BAD_DATA,
    };
    (result, u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes that cannot be compressed: the upper ones of a generator's numbers.
    fn noise(length: u32) -> Vec<u8> {
        let numbers = std::iter::successors(Some(1_u32), |number| Some(number.wrapping_mul(747_796_405)));
        numbers.take(length as usize).map(|number| (number >> 24) as u8).collect()
    }

    #[test]
    fn what_is_compressed_fits_and_is_the_same_afterwards_at_every_level() {
        for level in 0..=LEVEL_MAX {
            for length in [0, 1, 100, 65_536, 300_000] {
                for input in [noise(length), vec![7; length as usize]] {
                    let mut output = vec![0; bound(length) as usize];
                    let count = compress(compressor(level), &input, &mut output) as usize;
                    assert!(count > 0, "{length} bytes at level {level} do not fit");
                    assert_eq!(compress(compressor(level), &input, &mut output[..count - 1]), 0);
                    let count = compress(compressor(level), &input, &mut output) as usize;
                    let mut again = vec![0; length as usize];
                    assert_eq!(decompress(&output[..count], &mut again), (SUCCESS, length));
                    assert_eq!(again, input);
                }
            }
        }
        assert_eq!(compressor(LEVEL_MAX + 1), 0);
    }

    #[test]
    fn what_is_damaged_or_too_long_is_told() {
        let mut output = [0; 1000];
        let count = compress(compressor(6), &[7; 500], &mut output) as usize;
        let whole = output[..count].to_vec();
        assert_eq!(decompress(&whole, &mut output[..600]), (SUCCESS, 500));
        assert_eq!(decompress(&whole, &mut output[..400]), (INSUFFICIENT_SPACE, 400));
        assert_eq!(output[..400], [7; 400]);
        assert_eq!(decompress(&whole[..count - 1], &mut output).0, BAD_DATA);
        assert_eq!(decompress(&[], &mut output).0, BAD_DATA);
        assert_eq!(decompress(b"something else", &mut output).0, BAD_DATA);
    }
}
