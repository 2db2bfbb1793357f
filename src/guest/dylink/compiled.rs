//! The side modules of the whole program: each is parsed and compiled once for all guests.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
};

use anyhow::Context;
use parking_lot::Mutex;
use wasmtime::{AsContextMut, Extern, Func, Instance, Linker, Module, ModuleExport};

use super::{super::Guest, dylink_section::Description, link::main_name, user};
use crate::{
    engine::{Compiler, artefact},
    instrument,
    sources::{self, hex_digest},
};

/// A compiled side module, shared by all guests.
pub(crate) struct Library {
    hash: String,
    description: Description,
    module: Module,
    /// Whether it came with the program.
    is_bundled: bool,
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

    pub(super) fn is_bundled(&self) -> bool {
        self.is_bundled
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

/// The file is none of the libraries that came with the program.
#[derive(Debug, thiserror::Error)]
#[error("it did not come with this program")]
pub(super) struct NotBundled;

/// Compiles side modules and keeps them.
pub(crate) struct LibraryStore {
    compiler: Compiler,
    linker: Linker<Guest>,
    /// Whether other libraries are loaded than those that came with the program.
    allows_others: bool,
    libraries: Mutex<HashMap<String, Arc<Library>>>,
    /// The others, while a guest has them.
    others: Mutex<HashMap<String, Weak<Library>>>,
    invokes: Mutex<HashMap<String, Module>>,
}

impl LibraryStore {
    /// A store that links against the host functions of `linker`. `allows_others`: it also has libraries that did not
    /// come with the program.
    pub(crate) fn new(compiler: Compiler, linker: Linker<Guest>, allows_others: bool) -> Self {
        let (libraries, others, invokes) = Default::default();
        Self { compiler, linker, allows_others, libraries, others, invokes }
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

    /// The library whose file holds the bytes `wasm`.
    ///
    /// # Errors
    /// [`NotBundled`]; and when they are not a side module, or cannot be compiled.
    pub(crate) fn library(&self, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        // What a file is, and not where it is, because SQL can write and rename files.
        let hash = hex_digest(&[wasm]);
        match artefact::library(&hash) {
            Some(file) => self.bundled(file.name, hash, wasm),
            None if self.allows_others => self.other(hash, wasm),
            None => Err(NotBundled.into()),
        }
    }

    fn bundled(&self, name: &str, hash: String, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        if let Some(library) = self.libraries.lock().get(&hash) {
            return Ok(library.clone());
        }
        // Without the lock, so that other guests can load other libraries meanwhile.
        let description = Description::parse(wasm)?;
        let module =
            self.compiler.module(name, &sources::code_key(&hash), || Ok(instrument::instrument_side_module(wasm)?))?;
        let library = Library { hash: hash.clone(), description, module, is_bundled: true, from_main: OnceLock::new() };
        Ok(self.libraries.lock().entry(hash).or_insert(Arc::new(library)).clone())
    }

    /// A library that did not come with the program. Nothing of it stays, in memory or in the cache, when no guest has
    /// it any more.
    fn other(&self, hash: String, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        if let Some(library) = self.others.lock().get(&hash).and_then(Weak::upgrade) {
            return Ok(library);
        }
        let description = user::describe(wasm)?;
        let module = self.compiler.passing_module(&instrument::instrument_side_module(wasm)?)?;
        let library =
            Library { hash: hash.clone(), description, module, is_bundled: false, from_main: OnceLock::new() };
        let library = Arc::new(library);
        let mut others = self.others.lock();
        others.retain(|_, library| library.strong_count() > 0);
        others.insert(hash, Arc::downgrade(&library));
        Ok(library)
    }

    /// The function `invoke_*` for a signature that the main module does not use, for a library that came with the
    /// program or another one.
    pub(super) fn invoke(
        &self,
        store: &mut impl AsContextMut<Data = Guest>,
        name: &str,
        is_bundled: bool,
    ) -> anyhow::Result<Func> {
        let wasm = || {
            instrument::invoke_module(name)
                .with_context(|| format!("the signature of {name} is not one of Emscripten's"))
        };
        let known = self.invokes.lock().get(name).cloned();
        let module = match known {
            Some(module) => module,
            None if is_bundled => {
                let module = self.compiler.module(name, &sources::code_key(name), wasm)?;
                self.invokes.lock().entry(name.to_owned()).or_insert(module).clone()
            }
            None => self.compiler.passing_module(&wasm()?)?,
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
