//! The exports of an instance, looked up once.

use anyhow::Context;
use wasmtime::{AsContextMut, Instance, Memory, Table, TypedFunc};

use super::Guest;

/// The functions, memory and table of the guest that host functions and the backend use.
pub(crate) struct Exports {
    pub(crate) instance: Instance,
    pub(crate) memory: Memory,
    pub(crate) table: Table,
    pub(crate) malloc: TypedFunc<u32, u32>,
    /// Only in the backend and in `initdb`; `pg_dump` maps no files.
    pub(crate) memalign: Option<TypedFunc<(u32, u32), u32>>,
    pub(crate) timeout: TypedFunc<(u32, f64), ()>,
    /// Only in the backend; the other programs raise no signals.
    pub(crate) raise: Option<TypedFunc<i32, i32>>,
}

impl Exports {
    pub(crate) fn find(store: &mut impl AsContextMut<Data = Guest>, instance: Instance) -> anyhow::Result<Self> {
        Ok(Self {
            instance,
            memory: instance.get_memory(&mut *store, "memory").context("the module exports no memory")?,
            table: instance
                .get_table(&mut *store, "__indirect_function_table")
                .context("the module exports no table")?,
            malloc: instance.get_typed_func(&mut *store, "malloc")?,
            memalign: instance.get_typed_func(&mut *store, "emscripten_builtin_memalign").ok(),
            timeout: instance.get_typed_func(&mut *store, "_emscripten_timeout")?,
            raise: instance.get_typed_func(&mut *store, "raise").ok(),
        })
    }
}
