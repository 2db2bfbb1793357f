//! The side modules of the whole program: each is parsed and compiled once for all guests.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use parking_lot::Mutex;
use wasmtime::{AsContextMut, Extern, Func, Instance, Linker, Module, ModuleExport};

use super::{super::Guest, dylink_section::Description, link::main_name};
use crate::{
    engine::Compiler,
    instrument,
    sources::{self, hex_digest},
};

/// A compiled side module, shared by all guests.
pub(crate) struct Library {
    hash: String,
    description: Description,
    module: Module,
    from_main: OnceLock<Vec<Option<ModuleExport>>>,
}

impl Library {
    /// The SHA-256 of its file.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    pub(super) fn description(&self) -> &Description {
        &self.description
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }

    /// For each of its imports, in order, the export of the main module that provides it, if there is one. Only one
    /// main module loads libraries, so this is stored: looking names up for every clone would take longer than the
    /// rest of the loading.
    pub(super) fn from_main(&self, main: &Module) -> &[Option<ModuleExport>] {
        self.from_main.get_or_init(|| {
            let imports = self.module.imports();
            imports.map(|import| main.get_export_index(main_name(import.module(), import.name())?)).collect()
        })
    }
}

/// Compiles side modules and keeps them.
pub(crate) struct LibraryStore {
    compiler: Compiler,
    linker: Linker<Guest>,
    libraries: Mutex<HashMap<String, Arc<Library>>>,
    invokes: Mutex<HashMap<String, Module>>,
}

impl LibraryStore {
    /// A store that links against the host functions of `linker`.
    pub(crate) fn new(compiler: Compiler, linker: Linker<Guest>) -> Self {
        Self { compiler, linker, libraries: Mutex::default(), invokes: Mutex::default() }
    }

    /// The host functions.
    pub(crate) fn linker(&self) -> &Linker<Guest> {
        &self.linker
    }

    /// The host function `name` in the import module of the hooks, which also contains PGlite's callbacks, as a
    /// function of that store.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn host_function(
        &self,
        store: &mut impl AsContextMut<Data = Guest>,
        name: &str,
    ) -> anyhow::Result<Func> {
        match self.linker.get(store, instrument::HOOK_MODULE, name) {
            Ok(Extern::Func(function)) => Ok(function),
            _ => anyhow::bail!("there is no host function {name}"),
        }
    }

    /// The library whose file `path` holds the bytes `wasm`.
    ///
    /// # Errors
    /// When they are not a side module, or cannot be compiled.
    pub(crate) fn library(&self, path: &str, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        let hash = hex_digest(&[wasm]);
        if let Some(library) = self.libraries.lock().get(&hash) {
            return Ok(library.clone());
        }
        // Without the lock, so that other guests can load other libraries meanwhile.
        let description = Description::parse(wasm)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let module =
            self.compiler.module(name, &sources::code_key(&hash), || Ok(instrument::instrument_side_module(wasm)?))?;
        let library = Arc::new(Library { hash: hash.clone(), description, module, from_main: OnceLock::new() });
        Ok(self.libraries.lock().entry(hash).or_insert(library).clone())
    }

    /// The function `invoke_*` for a signature that the main module does not use.
    pub(super) fn invoke(&self, store: &mut impl AsContextMut<Data = Guest>, name: &str) -> anyhow::Result<Func> {
        let known = self.invokes.lock().get(name).cloned();
        let module = if let Some(module) = known {
            module
        } else {
            let module = self.compiler.module(name, &sources::code_key(name), || {
                instrument::invoke_module(name)
                    .with_context(|| format!("the signature of {name} is not one of Emscripten's"))
            })?;
            self.invokes.lock().entry(name.to_owned()).or_insert(module).clone()
        };
        let main = store.as_context().data().exports()?.instance;
        let imports = module
            .imports()
            .map(|import| {
                main.get_export(&mut *store, import.name())
                    .with_context(|| format!("the main module does not export {}", import.name()))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let instance = Instance::new(&mut *store, &module, &imports)?;
        instance.get_func(store, name).with_context(|| format!("{name} was not made"))
    }
}
