//! The Emscripten host: what one wasm instance of PGlite sees of the world.

pub mod client;

use wasmtime::Memory;
use wasmtime_wasi::p1::WasiP1Ctx;

/// The state that host functions find in the store of one wasm instance.
pub struct Guest {
    /// Clocks, randomness, environment and `proc_exit` of WASI preview 1; its `fd_*` functions are not used.
    pub wasi: WasiP1Ctx,
    /// The linear memory, known once the instance has been linked.
    pub memory: Option<Memory>,
}
