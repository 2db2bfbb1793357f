//! `mmap` and `munmap` of files, into memory of the guest's own `malloc`.
//!
//! In a backend with its own cluster the file is copied in, and copied back at the end. In a shared cluster, a file
//! that is mapped shared becomes a memory object of the operating system, which is mapped over that memory in each
//! process: `PostgreSQL`'s dynamic shared memory (`src/backend/storage/ipc/dsm_impl.c`). The C library makes anonymous
//! mappings by itself; the host only clears their memory.

use rustix::param::page_size;
use wasmtime::{Caller, Linker, bail};

use super::{Guest, memory};
use crate::{
    cluster::{Region, UNIT, clear_mapping, map_zeros_over, whole_pages},
    fs::{Errno, Mapping},
    instrument::{HOOK_MODULE, Hook},
};

const PROT_WRITE: u32 = 2;
const MAP_PRIVATE: u32 = 2;
/// The alignment of mappings: a page of WebAssembly's memory.
const PAGE: u32 = 1 << 16;

/// What lies between an anonymous mapping and the next chunk of `malloc`, at most: the C library's `struct map`, and the
/// chunk's head.
const BETWEEN: u32 = 64;
/// How many chunks are tried until one follows a mapping: free ones elsewhere may come first.
const ATTEMPTS: usize = 64;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap("env", "_mmap_js", map)?;
    linker.func_wrap("env", "_munmap_js", unmap)?;
    linker.func_wrap(HOOK_MODULE, Hook::ClearMapping.name(), clear)?;
    Ok(())
}

/// Maps `length` bytes of `fd` from `offset` on. Stores the address at `address`, and stores at `allocated` that the C
/// library has to free it (Emscripten, `system/lib/libc/emscripten_mmap.c`; it handles anonymous mappings itself).
#[expect(clippy::too_many_arguments, reason = "the C library's signature")]
fn map(
    mut caller: Caller<'_, Guest>,
    length: u32,
    protection: u32,
    flags: u32,
    fd: i32,
    offset: i64,
    allocated: u32,
    address: u32,
) -> wasmtime::Result<i32> {
    let write_back = protection & PROT_WRITE != 0 && flags & MAP_PRIVATE == 0;
    let is_shared = write_back && caller.data().seat.is_some();
    let prepared = u64::try_from(offset).map_err(|_| Errno::EINVAL).and_then(|offset| {
        let size = length.checked_next_multiple_of(PAGE).filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
        Ok((size, caller.data().files.prepare_mapping(fd, 0, offset, write_back)?))
    });
    let (size, mut mapping) = match prepared {
        Ok(prepared) => prepared,
        Err(errno) => return Ok(-errno.number()),
    };
    let Some(allocate) = caller.data().exports()?.memalign.clone() else {
        bail!("the guest maps a file, and has no memalign")
    };
    mapping.address = allocate.call(&mut caller, (PAGE, size))?;
    if mapping.address == 0 {
        return Ok(-Errno::ENOMEM.number());
    }
    let start = mapping.address;
    if is_shared {
        mapping.shared = u32::try_from((length as usize).next_multiple_of(page_size()))?;
        if let Err(errno) = map_shared(&mut caller, mapping) {
            return Ok(-errno.number());
        }
    } else {
        let (memory, guest) = memory::of(&mut caller)?;
        // To the end of the last page: POSIX requires zeros there after the end of the file.
        let bytes = memory::bytes_mut(memory, start, size)?;
        let (mapped, rest) = bytes.split_at_mut(length as usize);
        rest.fill(0);
        if let Err(errno) = guest.files.map(mapping, mapped) {
            return Ok(-errno.number());
        }
    }
    let (memory, _) = memory::of(&mut caller)?;
    memory::write_u32(memory, allocated, 1)?;
    memory::write_u32(memory, address, start)?;
    Ok(0)
}

/// Maps a file as one memory object for all processes of the cluster.
fn map_shared(caller: &mut Caller<'_, Guest>, mapping: Mapping) -> Result<(), Errno> {
    let (start, length, offset) = (mapping.address, mapping.shared, mapping.offset);
    let end = start.checked_add(length).ok_or(Errno::ENOMEM)?;
    if !offset.is_multiple_of(page_size() as u64) {
        return Err(Errno::EINVAL);
    }
    let memory = caller.data().memory().map_err(|_| Errno::ENOMEM)?;
    let object = caller.data_mut().files.map_shared(mapping)?;
    Region::new(&(start..end), object, offset).map_over(caller, memory).map_err(|error| {
        tracing::warn!("{length} bytes of dynamic shared memory cannot be mapped: {error:#}");
        // It was mapped a moment ago, so this cannot fail.
        let _ = caller.data_mut().files.unmap(start, &[]);
        Errno::ENOMEM
    })
}

/// Ends the mapping at `address`. The descriptor that the C library passes is not used: it may have been closed since,
/// or be another file's. The C library frees the memory, and ignores the result.
fn unmap(
    mut caller: Caller<'_, Guest>,
    address: u32,
    length: u32,
    _protection: u32,
    _flags: u32,
    _fd: i32,
    _offset: i64,
) -> wasmtime::Result<i32> {
    let shared = caller.data().files.shared_at(address).unwrap_or(0);
    if shared > 0 {
        // The C library returns the pages to `malloc`, and later users of the memory must not write into shared pages.
        let memory = caller.data().memory()?;
        map_zeros_over(&mut caller, memory, address, shared as usize).map_err(wasmtime::Error::from_anyhow)?;
    }
    let (memory, guest) = memory::of(&mut caller)?;
    let bytes = memory::read_bytes(memory, address, length).map_err(Errno::from);
    let result = bytes.and_then(|bytes| guest.files.unmap(address, bytes));
    Ok(result.map_or_else(|errno| -errno.number(), |()| 0))
}

/// Clears `length` bytes at `address`, which the C library has allocated for an anonymous mapping. If the guest is going
/// to fork, its children may share the mapping: the main segment, and small ones, which are less than a page on some
/// machines.
fn clear(mut caller: Caller<'_, Guest>, address: u32, length: u32) -> wasmtime::Result<()> {
    let memory = caller.data().memory()?;
    memory::read_bytes(memory.data(&caller), address, length)?;
    let shared = match caller.data().before_fork {
        Some(_) => shared_length(&mut caller, address, length)?,
        None => 0,
    };
    let region = clear_mapping(&mut caller, memory, address, length, shared);
    caller.data_mut().anonymous.extend(region.map_err(wasmtime::Error::from_anyhow)?);
    Ok(())
}

/// How many bytes from `address` on can be shared of a mapping of `length` bytes: whole units, so that it does not depend
/// on the size of this machine's pages. A mapping need not end with a unit, and what `malloc` allocates
/// behind it would then be shared as well; so that memory is allocated here, and never freed.
fn shared_length(caller: &mut Caller<'_, Guest>, address: u32, length: u32) -> wasmtime::Result<u32> {
    let Some(whole) = length.checked_next_multiple_of(UNIT).filter(|_| address.is_multiple_of(UNIT)) else {
        return Ok(whole_pages(address, length));
    };
    let (Some(end), Some(allocate)) = (address.checked_add(length), caller.data().exports()?.memalign.clone()) else {
        return Ok(whole_pages(address, length));
    };
    if whole == length {
        return Ok(whole);
    }
    for _ in 0..ATTEMPTS {
        let chunk = allocate.call(&mut *caller, (16, UNIT))?;
        if (end..=end + BETWEEN).contains(&chunk) {
            return Ok(whole);
        }
    }
    tracing::debug!(address, length, "no memory follows the main segment");
    Ok(whole_pages(address, length))
}
