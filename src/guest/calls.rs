//! Counts calls between functions of PGlite: only with the feature `record-calls`.

use std::{collections::HashMap, sync::LazyLock};

use parking_lot::Mutex;
use wasmtime::Linker;

use super::Guest;
use crate::instrument::{CALLED, HOOK_MODULE};

/// Numbers of a caller and of what it calls, and how often.
pub type Counts = HashMap<(u32, u32), u64>;

static COUNTS: LazyLock<Mutex<Counts>> = LazyLock::new(Mutex::default);

/// The direct calls in all backends of this process since the last call of this function: the numbers of the caller and
/// of what it calls among the functions that PGlite's file defines, and how often.
#[must_use]
pub fn take_calls() -> Counts {
    std::mem::take(&mut COUNTS.lock())
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(HOOK_MODULE, CALLED, |caller: u32, callee: u32| {
        *COUNTS.lock().entry((caller, callee)).or_default() += 1;
    })?;
    Ok(())
}
