//! How deep the stack is: what stops unbounded recursion.
//!
//! `PostgreSQL` compares the depth of its stack with `max_stack_depth` wherever it may recurse
//! (`src/backend/utils/misc/stack_depth.c`). What it can measure in wasm is the stack in linear memory, where a
//! function has only what it takes the address of: some have nothing there, and recurse without end until the native
//! stack is used up, which is a trap and ends the session. So the native stack is measured as well, where
//! `PostgreSQL` makes its comparison, and the SQL error is its own.

use wasmtime::{Caller, Linker};

use super::Guest;
use crate::{
    engine::WASM_STACK,
    instrument::{HOOK_MODULE, Hook},
};

/// How many bytes of native stack count as one of `max_stack_depth`.
///
/// So that as many levels fit into its default, 2 MB, as in PostgreSQL on the machine itself: compiled wasm takes
/// more than its native stack.
const NATIVE_BYTES: usize = 4;

/// What functions that do not look at the depth may use beyond the limit (`STACK_DEPTH_SLOP` in
/// `src/include/miscadmin.h` is a quarter of it).
const SLOP: usize = 2 << 20;

/// The size of the stack in linear memory: PGlite is linked with `-sSTACK_SIZE=8MB`. Below it are variables.
const GUEST_STACK: i32 = 8 << 20;

/// `STACK_DEPTH_SLOP` for the stack in linear memory.
const GUEST_SLOP: i32 = 512 << 10;

/// The native stack of the thread on which a guest runs.
#[derive(Clone, Copy, Default)]
pub(crate) struct NativeStack {
    /// The address at which the host's outermost call into the guest began.
    base: usize,
}

impl NativeStack {
    /// The host is about to call the guest from here.
    pub(crate) fn begin(&mut self) {
        self.base = here();
    }

    /// The depth in bytes of `max_stack_depth`, when the stack in linear memory is `guest` bytes deep.
    fn depth(self, guest: i32) -> i32 {
        let native = self.base.saturating_sub(here());
        if native > WASM_STACK - SLOP || guest > GUEST_STACK - GUEST_SLOP {
            // Whatever max_stack_depth is set to.
            return i32::MAX;
        }
        i32::try_from(native / NATIVE_BYTES).map_or(i32::MAX, |native| native.max(guest))
    }
}

/// An address on the stack, not far from the caller's.
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
