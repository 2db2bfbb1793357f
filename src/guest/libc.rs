//! Functions of the C library and of the compiler's that side modules need and PGlite neither has nor exports.
//!
//! PGlite has the functions that itself uses. Here are those that PostGIS uses besides.

use wasmtime::{Caller, Linker};

use super::{Guest, call, memory};

/// The functions that [`add_to_linker`] adds. PGlite imports none of them.
pub(super) const FUNCTIONS: [&str; 14] = [
    "__floatuntidf",
    "hypotf",
    "islower",
    "atol",
    "atoll",
    "rewind",
    "posix_memalign",
    "getrlimit",
    "pthread_spin_init",
    "pthread_spin_lock",
    "pthread_spin_unlock",
    "pthread_spin_destroy",
    "pthread_attr_init",
    "pthread_attr_setdetachstate",
];

/// `ENOMEM` (Emscripten, `system/lib/libc/musl/arch/emscripten/bits/errno.h`).
const ENOMEM: i32 = 48;

/// `struct rlimit` with two times `RLIM_INFINITY`.
const UNLIMITED: [u8; 16] = [0xff; 16];

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap("env", "__floatuntidf", |low: u64, high: u64| float(low, high))?;
    linker.func_wrap("env", "hypotf", f32::hypot)?;
    linker.func_wrap("env", "islower", |character: i32| {
        i32::from(u8::try_from(character).is_ok_and(|character| character.is_ascii_lowercase()))
    })?;
    linker.func_wrap("env", "atol", |mut caller: Caller<'_, Guest>, text: u32| {
        call::export::<(u32, u32, i32), i32>(&mut caller, "strtol", (text, 0, 10))
    })?;
    linker.func_wrap("env", "atoll", |mut caller: Caller<'_, Guest>, text: u32| {
        call::export::<(u32, u32, i32), i64>(&mut caller, "strtoll", (text, 0, 10))
    })?;
    linker.func_wrap("env", "rewind", |mut caller: Caller<'_, Guest>, file: u32| {
        call::export::<(u32, i32, i32), i32>(&mut caller, "fseek", (file, 0, 0)).map(drop)
    })?;
    linker.func_wrap(
        "env",
        "posix_memalign",
        |mut caller: Caller<'_, Guest>, result: u32, alignment: u32, size: u32| -> wasmtime::Result<i32> {
            // Unlike `aligned_alloc` it takes a size that is no multiple of the alignment.
            let address: u32 = call::export(&mut caller, "emscripten_builtin_memalign", (alignment, size))?;
            if address == 0 {
                return Ok(ENOMEM);
            }
            memory::write_u32(memory::of(&mut caller)?.0, result, address)?;
            Ok(0)
        },
    )?;
    linker.func_wrap(
        "env",
        "getrlimit",
        |mut caller: Caller<'_, Guest>, _resource: i32, limits: u32| -> wasmtime::Result<i32> {
            memory::write_bytes(memory::of(&mut caller)?.0, limits, &UNLIMITED)?;
            Ok(0)
        },
    )?;
    // There is one thread.
    linker.func_wrap("env", "pthread_spin_init", |_lock: u32, _is_shared: i32| 0_i32)?;
    linker.func_wrap("env", "pthread_attr_setdetachstate", |_attributes: u32, _state: i32| 0_i32)?;
    for name in ["pthread_spin_lock", "pthread_spin_unlock", "pthread_spin_destroy", "pthread_attr_init"] {
        linker.func_wrap("env", name, |_object: u32| 0_i32)?;
    }
    Ok(())
}

/// The `double` that is nearest to an integer of 128 bits.
#[expect(clippy::cast_precision_loss, reason = "that is what it is for")]
fn float(low: u64, high: u64) -> f64 {
    (u128::from(high) << 64 | u128::from(low)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_of_128_bits_is_rounded_once() {
        assert_eq!(float(7, 0).to_bits(), 7_f64.to_bits());
        assert_eq!(float(0, 1).to_bits(), 18_446_744_073_709_551_616_f64.to_bits());
        // Just above the middle of two doubles: rounding the halves one by one gives the lower one.
        let high = 1_u64 << 52;
        assert_eq!(float((1 << 63) + 1, high).to_bits(), float(0, high + 1).to_bits());
        assert_eq!(float(1 << 63, high).to_bits(), float(0, high).to_bits(), "ties to even");
    }
}
