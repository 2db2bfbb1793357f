//! Facts from the functions that start a session, with which the host starts a session in a backend that already runs.

use serde::{Deserialize, Serialize};
use wasmparser::Operator;

use super::InstrumentError;
use super::bodies::once;
use super::target::Target;

/// A setting with libraries to load when a session starts, and the arguments of `load_libraries` for it
/// (`process_session_preload_libraries` in `src/backend/utils/init/miscinit.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preload {
    /// Address of the pointer to the setting's value.
    pub value: u32,
    /// Address of the setting's name.
    pub name: u32,
    /// Whether only libraries of the directory `plugins` are allowed.
    pub is_restricted: i32,
}

/// The settings for which `InitPostgres` calls `load_libraries`, the function with that index.
pub(super) fn preloads(
    target: &Target,
    operators: &[Operator],
    load_libraries: u32,
) -> Result<[Preload; 2], InstrumentError> {
    let call = |window: &[Operator]| match *window {
        [
            Operator::I32Const { value: pointer },
            Operator::I32Load { memarg },
            Operator::I32Const { value: name },
            Operator::I32Const { value: is_restricted },
            Operator::Call { function_index },
        ] if function_index == load_libraries && memarg.offset == 0 => {
            Some(Preload { value: pointer.cast_unsigned(), name: name.cast_unsigned(), is_restricted })
        }
        _ => None,
    };
    let found: Vec<Preload> = operators.windows(5).filter_map(call).collect();
    found.try_into().map_err(|found: Vec<_>| {
        target.refusal(&format!("one that loads the libraries of {} settings instead of two", found.len()))
    })
}

/// The offset of `isRegularBackend` in `struct PGPROC`, which `InitProcess` sets to `MyBackendType == B_BACKEND`.
pub(super) fn is_regular_backend(target: &Target, operators: &[Operator]) -> Result<u32, InstrumentError> {
    let stored = |window: &[Operator]| match *window {
        [Operator::I32Const { value: 1 }, Operator::I32Eq, Operator::I32Store8 { memarg }] => {
            u32::try_from(memarg.offset).ok()
        }
        _ => None,
    };
    Ok(once(target, "a comparison with B_BACKEND stored", operators, 3, stored)?.1)
}
