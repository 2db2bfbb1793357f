//! The runtime of C++ ([`cxx`]) as a library of a guest, which is loaded when another library needs it.

use std::sync::Arc;

use wasmtime::{Caller, Module};

use super::{GuestEnd, Library, LibraryStore, add};
use crate::{
    guest::{Guest, cxx, waiting},
    sources::hex_digest,
};

/// Whether `library` needs something of the runtime that neither it nor the main module has.
pub(super) fn is_needed(caller: &mut Caller<'_, Guest>, library: &Library) -> anyhow::Result<bool> {
    let main = caller.data().exports()?.instance;
    for import in library.module().imports() {
        let name = import.name();
        let is_there = caller.data().facts.symbol(name).is_some() || library.description().symbols.contains_key(name);
        if cxx::SYMBOLS.contains(name) && !is_there && main.get_func(&mut *caller, name).is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loads the runtime, unless the guest has it.
pub(super) fn load(caller: &mut Caller<'_, Guest>) -> anyhow::Result<()> {
    if caller.data().libraries.loaded.iter().all(|loaded| loaded.place.path != cxx::NAME) {
        let store = caller.data().library_store.clone();
        // It may have to be compiled, or another program does it.
        let library = waiting::without_turn(caller, |_| store.cxx_runtime()).map_err(GuestEnd)??;
        add(caller, library, cxx::NAME.to_owned())?;
    }
    Ok(())
}

impl LibraryStore {
    /// The library that an image of a guest has under `path`, whose file `read` reads, to be linked to `main`.
    ///
    /// # Errors
    /// Those of `read` and [`LibraryStore::library_to_link`].
    pub(crate) fn captured(
        &self,
        path: &str,
        main: &Module,
        read: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Arc<Library>> {
        if path == cxx::NAME { self.cxx_runtime() } else { self.library_to_link(&read()?, main) }
    }

    fn cxx_runtime(&self) -> anyhow::Result<Arc<Library>> {
        let wasm = cxx::wasm();
        self.bundled(cxx::NAME, hex_digest(&[&wasm]), &wasm)
    }
}
