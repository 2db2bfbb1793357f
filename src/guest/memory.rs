//! Reading and writing the guest's linear memory, with checked bounds.
//!
//! An address outside the memory is a bug of the guest. A system call returns `EFAULT` for it, as a kernel does; in
//! any other host function it ends the instance as a trap does. The caller's `?` selects one of the two, through the
//! conversions of [`OutOfBounds`].

use std::io;

use anyhow::ensure;
use wasmtime::{AsContext, Caller, Memory};

use super::Guest;
use crate::fs::Errno;

/// The guest passed an address outside its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at address {address:#x} are outside the guest's memory")]
pub(crate) struct OutOfBounds {
    /// The first address.
    address: u32,
    /// The number of bytes from there on.
    length: u32,
}

impl From<OutOfBounds> for Errno {
    fn from(_: OutOfBounds) -> Self {
        Self::EFAULT
    }
}

impl From<OutOfBounds> for io::Error {
    fn from(error: OutOfBounds) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The memory and the state of the guest that called.
///
/// # Errors
/// While the instance is being made; see [`Guest::exports`].
pub(crate) fn of<'a>(caller: &'a mut Caller<'_, Guest>) -> wasmtime::Result<(&'a mut [u8], &'a mut Guest)> {
    let memory = caller.data().memory()?;
    Ok(memory.data_and_store_mut(caller))
}

/// The address of the aligned 32-bit word `address` in the host's memory. It stays valid, because a memory neither
/// moves nor shrinks.
///
/// # Errors
/// When it is outside of the memory, or not aligned.
pub(crate) fn word(store: &impl AsContext, memory: Memory, address: u32) -> anyhow::Result<*mut i32> {
    read_bytes(memory.data(store), address, 4)?;
    ensure!(address.is_multiple_of(4), "the address {address:#x} is not aligned");
    Ok(memory.data_ptr(store).wrapping_add(address as usize).cast())
}

/// `length` bytes at `address`.
pub(crate) fn read_bytes(memory: &[u8], address: u32, length: u32) -> Result<&[u8], OutOfBounds> {
    let rest = memory.get(address as usize..).and_then(|rest| rest.get(..length as usize));
    rest.ok_or(OutOfBounds { address, length })
}

/// `length` bytes at `address`, for writing.
pub(crate) fn bytes_mut(memory: &mut [u8], address: u32, length: u32) -> Result<&mut [u8], OutOfBounds> {
    let rest = memory.get_mut(address as usize..).and_then(|rest| rest.get_mut(..length as usize));
    rest.ok_or(OutOfBounds { address, length })
}

/// The bytes of a C string, without its final NUL.
pub(crate) fn read_c_string(memory: &[u8], address: u32) -> Result<&[u8], OutOfBounds> {
    let rest = memory.get(address as usize..).unwrap_or_default();
    let text = rest.split(|byte| *byte == 0).next();
    // A string that extends to the end of the memory has no NUL.
    text.filter(|text| text.len() < rest.len()).ok_or(OutOfBounds { address, length: 1 })
}

/// The C string at `address` as text; bytes that are not UTF-8 are replaced.
pub(crate) fn read_text(memory: &[u8], address: u32) -> Result<String, OutOfBounds> {
    Ok(String::from_utf8_lossy(read_c_string(memory, address)?).into_owned())
}

/// Copies `bytes` to `address`.
pub(crate) fn write_bytes(memory: &mut [u8], address: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
    let length = u32::try_from(bytes.len()).map_err(|_| OutOfBounds { address, length: u32::MAX })?;
    bytes_mut(memory, address, length)?.copy_from_slice(bytes);
    Ok(())
}

/// The bytes of an object at `address`.
pub(super) fn array_at<const N: usize>(memory: &[u8], address: u32) -> Result<&[u8; N], OutOfBounds> {
    let bytes = memory.get(address as usize..).and_then(|rest| rest.first_chunk());
    bytes.ok_or(OutOfBounds { address, length: u32::try_from(N).unwrap_or(u32::MAX) })
}

/// The bytes of a number at `address`.
fn read_array<const N: usize>(memory: &[u8], address: u32) -> Result<[u8; N], OutOfBounds> {
    array_at(memory, address).copied()
}

/// The 16-bit number at `address`.
pub(crate) fn read_u16(memory: &[u8], address: u32) -> Result<u16, OutOfBounds> {
    read_array(memory, address).map(u16::from_le_bytes)
}

/// The 32-bit number at `address`.
pub(crate) fn read_u32(memory: &[u8], address: u32) -> Result<u32, OutOfBounds> {
    read_array(memory, address).map(u32::from_le_bytes)
}

/// The 64-bit number at `address`.
pub(crate) fn read_u64(memory: &[u8], address: u32) -> Result<u64, OutOfBounds> {
    read_array(memory, address).map(u64::from_le_bytes)
}

/// Stores a 16-bit number at `address`.
pub(crate) fn write_u16(memory: &mut [u8], address: u32, number: u16) -> Result<(), OutOfBounds> {
    write_bytes(memory, address, &number.to_le_bytes())
}

/// Stores a 32-bit number at `address`.
pub(crate) fn write_u32(memory: &mut [u8], address: u32, number: u32) -> Result<(), OutOfBounds> {
    write_bytes(memory, address, &number.to_le_bytes())
}

/// Stores a 64-bit number at `address`.
pub(crate) fn write_u64(memory: &mut [u8], address: u32, number: u64) -> Result<(), OutOfBounds> {
    write_bytes(memory, address, &number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian_and_may_lie_at_odd_addresses() {
        let mut memory = [0; 16];
        write_u64(&mut memory, 1, 0x0807_0605_0403_0201).unwrap();
        assert_eq!(memory[..9], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(read_u16(&memory, 2), Ok(0x0302));
        assert_eq!(read_u32(&memory, 3), Ok(0x0605_0403));
        assert_eq!(read_u64(&memory, 1), Ok(0x0807_0605_0403_0201));
    }

    #[test]
    fn an_access_that_reaches_past_the_memory_is_refused_whole() {
        let mut memory = [0; 8];
        assert!(read_u32(&memory, 4).is_ok());
        assert!(read_u32(&memory, 5).is_err());
        assert!(write_bytes(&mut memory, 6, &[1, 2, 3]).is_err());
        assert_eq!(memory, [0; 8]);
        assert!(read_bytes(&memory, u32::MAX, u32::MAX).is_err());
        assert!(read_bytes(&memory, 8, 0).is_ok());
        assert_eq!(Errno::from(read_u32(&memory, 8).unwrap_err()), Errno::EFAULT);
    }

    #[test]
    fn a_word_is_aligned_and_inside_of_the_memory() {
        let mut store = wasmtime::Store::new(&wasmtime::Engine::default(), ());
        let memory = Memory::new(&mut store, wasmtime::MemoryType::new(1, None)).unwrap();
        let end = 1 << 16;
        memory.data_mut(&mut store)[end - 4] = 7;
        let last = word(&store, memory, 65_532).unwrap();
        // SAFETY: it is inside the memory, which has no other users.
        assert_eq!(unsafe { *last }, 7);
        for address in [65_533, 65_534, 65_536, u32::MAX - 3, u32::MAX, 2] {
            assert!(word(&store, memory, address).is_err(), "{address}");
        }
    }

    #[test]
    fn a_string_ends_at_its_nul_and_must_have_one() {
        let memory = b"ab\0cd";
        assert_eq!(read_c_string(memory, 0), Ok(b"ab".as_slice()));
        assert_eq!(read_c_string(memory, 2), Ok(b"".as_slice()));
        assert!(read_c_string(memory, 3).is_err());
        assert!(read_c_string(memory, 5).is_err());
        assert!(read_c_string(memory, 6).is_err());
        assert_eq!(read_text(b"a\xff\0", 0).as_deref(), Ok("a\u{fffd}"));
    }
}
