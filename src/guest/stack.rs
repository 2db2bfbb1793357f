//! The depth of the stack, which limits recursion.
//!
//! `PostgreSQL` compares the depth of its stack with `max_stack_depth` wherever it may recurse
//! (`src/backend/utils/misc/stack_depth.c`). In wasm it can measure only the stack in linear memory, which contains
//! only variables whose address is taken. Functions without such variables would recurse until the native stack is
//! used up, which is a trap and ends the session. Therefore the native stack is measured as well, at one of several
//! places where `PostgreSQL` compares the depth, and `PostgreSQL` raises its own SQL error.

use wasmtime::{Caller, Linker};

use super::Guest;
use crate::{
    engine::WASM_STACK,
    instrument::{HOOK_MODULE, Hook},
    postgres::stack,
};

/// How many bytes of native stack count as one byte of `max_stack_depth`.
///
/// With this value the default of 2 MB allows as many levels as in native PostgreSQL; compiled wasm uses more stack.
const NATIVE_BYTES: usize = 4;

/// The native stack beyond the limit for functions that do not check the depth.
const SLOP: usize = NATIVE_BYTES * stack::DEPTH_SLOP.unsigned_abs() as usize;

/// The size of the stack in linear memory: PGlite is linked with `-sSTACK_SIZE=8MB`. Variables are below it.
const GUEST_STACK: i32 = 8 << 20;

/// The same of the stack in linear memory.
const GUEST_SLOP: i32 = stack::DEPTH_SLOP;

/// The native stack of the thread on which a guest runs.
#[derive(Clone, Copy, Default)]
pub(crate) struct NativeStack {
    /// The address at which the host's outermost call into the guest starts.
    base: usize,
}

impl NativeStack {
    /// Called where the host is about to call the guest.
    pub(crate) fn begin(&mut self) {
        self.base = here();
    }

    /// The depth to compare with `max_stack_depth`, when the stack in linear memory is `guest` bytes deep.
    fn depth(self, guest: i32) -> i32 {
        let native = self.base.saturating_sub(here());
        if native > WASM_STACK - SLOP || guest > GUEST_STACK - GUEST_SLOP {
            // An error for any value of max_stack_depth.
            return i32::MAX;
        }
        i32::try_from(native / NATIVE_BYTES).map_or(i32::MAX, |native| native.max(guest))
    }
}

/// An address on the stack near the caller's.
fn here() -> usize {
    let local = 0_u8;
    std::hint::black_box(&raw const local).addr()
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(HOOK_MODULE, Hook::StackDepth.name(), |caller: Caller<'_, Guest>, guest: i32| {
        caller.data().native_stack.depth(guest)
    })?;
    Ok(())
}
