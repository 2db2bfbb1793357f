//! The side modules of the whole program: each is parsed and compiled once for all guests.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use anyhow::Context;
use parking_lot::{Mutex, MutexGuard};
use wasmtime::{AsContextMut, Extern, Func, Instance, Linker, Module, ModuleExport};

use super::{super::Guest, dylink_section::Description, link::main_name, receiver, user};
use crate::{
    capacity,
    engine::{Compiler, artefact},
    instrument::{self, InstrumentError},
    protocol::error_response::{ErrorResponse, sqlstate},
    quota,
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
    /// All functions `invoke_*` that it imports and the main module does not have, if it did not come with the program.
    invokes: OnceLock<Module>,
}

impl Library {
    fn new(hash: String, description: Description, module: Module, is_bundled: bool) -> Self {
        Self { hash, description, module, is_bundled, from_main: OnceLock::new(), invokes: OnceLock::new() }
    }

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

    /// How much memory its code takes, if it did not come with the program: that of the others is in a file.
    pub(super) fn code_size(&self) -> u64 {
        let size = |module: &Module| {
            let range = module.image_range();
            range.end.addr().saturating_sub(range.start.addr()) as u64
        };
        if self.is_bundled { 0 } else { size(&self.module) + self.invokes.get().map_or(0, size) }
    }

    /// The names of the functions `invoke_*` that it imports and `main` does not have.
    fn lacking_invokes<'a>(&'a self, main: &'a Module) -> BTreeSet<&'a str> {
        let imports = self.module.imports().zip(self.from_main(main));
        let lacking = imports.filter(|(import, export)| export.is_none() && instrument::is_invoke(import.name()));
        // The type is looked up last, because that takes longest.
        lacking.filter(|(import, _)| import.ty().func().is_some()).map(|(import, _)| import.name()).collect()
    }

    /// For each of its imports, in order, the export of the main module that provides it, if there is one. Only one
    /// main module loads libraries, so this is stored: looking names up for every clone would take longer than the
    /// rest of the loading.
    pub(super) fn from_main(&self, main: &Module) -> &[Option<ModuleExport>] {
        self.from_main.get_or_init(|| {
            let imports = self.module.imports();
            imports
                .map(|import| {
                    let name = main_name(import.module(), import.name())?;
                    if receiver::replaces(&self.hash, name) { None } else { main.get_export_index(name) }
                })
                .collect()
        })
    }
}

/// Prepares a side module for being compiled.
type Instrument = fn(&[u8]) -> Result<Vec<u8>, InstrumentError>;

/// The file is none of the libraries that came with the program.
#[derive(Debug, thiserror::Error)]
#[error("it did not come with this program")]
pub(super) struct NotBundled;

/// There is too little of something for a library that did not come with the program.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub(super) struct Refused(pub(super) ErrorResponse);

impl Refused {
    pub(super) fn out_of_memory(why: String) -> Self {
        Self(ErrorResponse::error(sqlstate::OUT_OF_MEMORY, format!("out of memory: {why}")))
    }
}

/// Compiles side modules and keeps them.
pub(crate) struct LibraryStore {
    compiler: Compiler,
    linker: Linker<Guest>,
    /// Whether other libraries are loaded than those that came with the program.
    allows_others: bool,
    /// The names of further libraries that count as those of the program, by the SHA-256 of their files.
    trusted: Mutex<HashMap<String, String>>,
    libraries: Mutex<HashMap<String, Arc<Library>>>,
    /// The others, while a guest has them.
    others: Mutex<HashMap<String, Weak<Library>>>,
    /// Held while one of the others is compiled: several at once would take as many times the memory.
    compiles_other: Mutex<()>,
    invokes: Mutex<HashMap<String, Module>>,
}

/// More memory than compiling the functions `invoke_*` of a library takes, in bytes.
const MEMORY_OF_INVOKES: u64 = 8 << 20;

/// How long a library that did not come with the program waits for others to be compiled.
const PATIENCE: Duration = Duration::from_secs(20);

impl LibraryStore {
    /// A store that links against the host functions of `linker`. `allows_others`: it also has libraries that did not
    /// come with the program.
    pub(crate) fn new(compiler: Compiler, linker: Linker<Guest>, allows_others: bool) -> Self {
        let (trusted, libraries, others, compiles_other, invokes) = Default::default();
        Self { compiler, linker, allows_others, trusted, libraries, others, compiles_other, invokes }
    }

    /// From now on the library whose file has the SHA-256 `hash` counts as one that came with the program.
    pub(crate) fn trust(&self, name: &str, hash: &str) {
        self.trusted.lock().insert(hash.to_owned(), name.to_owned());
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
        if let Some(file) = artefact::library(&hash) {
            return self.bundled(file.name, hash, wasm);
        }
        let trusted = self.trusted.lock().get(&hash).cloned();
        match trusted {
            Some(name) => {
                let key = sources::code_key(&format!("foreign {hash}"));
                self.kept(&name, hash, &key, wasm, instrument::instrument_foreign_side_module)
            }
            None if self.allows_others => self.other(hash, wasm),
            None => Err(NotBundled.into()),
        }
    }

    /// As [`LibraryStore::library`], and compiles what linking it to `main` takes besides.
    ///
    /// # Errors
    /// As [`LibraryStore::library`].
    pub(crate) fn library_to_link(&self, wasm: &[u8], main: &Module) -> anyhow::Result<Arc<Library>> {
        let library = self.library(wasm)?;
        if library.is_bundled {
            library.lacking_invokes(main).into_iter().try_for_each(|name| self.invoke_module(name).map(drop))?;
        } else if !library.lacking_invokes(main).is_empty() {
            self.other_invokes(&library, main)?;
        }
        Ok(library)
    }

    /// A library that came with the program. Its functions have no safepoints but those of their loops, because its
    /// speed counts and it is known.
    pub(super) fn bundled(&self, name: &str, hash: String, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        let key = sources::code_key(&hash);
        self.kept(name, hash, &key, wasm, instrument::instrument_side_module)
    }

    /// A library that is kept in memory, and in the cache under `key`, as `instrument` makes it.
    fn kept(
        &self,
        name: &str,
        hash: String,
        key: &str,
        wasm: &[u8],
        instrument: Instrument,
    ) -> anyhow::Result<Arc<Library>> {
        if let Some(library) = self.libraries.lock().get(&hash) {
            return Ok(library.clone());
        }
        // Without the lock, so that other guests can load other libraries meanwhile.
        let description = Description::parse(wasm)?;
        let module = self.compiler.module(name, key, || Ok(instrument(wasm)?))?;
        let library = Library::new(hash.clone(), description, module, true);
        Ok(self.libraries.lock().entry(hash).or_insert(Arc::new(library)).clone())
    }

    /// A library that did not come with the program. Nothing of it stays, in memory or in the cache, when no guest has
    /// it any more.
    fn other(&self, hash: String, wasm: &[u8]) -> anyhow::Result<Arc<Library>> {
        let known = || self.others.lock().get(&hash).and_then(Weak::upgrade);
        if let Some(library) = known() {
            return Ok(library);
        }
        let (description, memory) = user::describe(wasm)?;
        let _compiling = self.wait_to_compile()?;
        // Another session may have waited for the same one.
        if let Some(library) = known() {
            return Ok(library);
        }
        check_room(memory)?;
        tracing::info!("compiling a library of {} bytes that did not come with this program", wasm.len());
        let module = self.compiler.passing_module(&instrument::instrument_foreign_side_module(wasm)?)?;
        let library = Arc::new(Library::new(hash.clone(), description, module, false));
        let mut others = self.others.lock();
        others.retain(|_, library| library.strong_count() > 0);
        others.insert(hash, Arc::downgrade(&library));
        Ok(library)
    }

    /// The functions `invoke_*` that `library`, which did not come with the program, imports and `main` does not have:
    /// in one module, because each module takes memory mappings.
    fn other_invokes<'a>(&self, library: &'a Library, main: &Module) -> anyhow::Result<&'a Module> {
        if let Some(module) = library.invokes.get() {
            return Ok(module);
        }
        let _compiling = self.wait_to_compile()?;
        if let Some(module) = library.invokes.get() {
            return Ok(module);
        }
        check_room(MEMORY_OF_INVOKES)?;
        let names: Vec<&str> = library.lacking_invokes(main).into_iter().collect();
        let module = self.compiler.passing_module(&invoke_wasm(&names)?)?;
        Ok(library.invokes.get_or_init(|| module))
    }

    /// Waits until nothing else is compiled that did not come with the program, and holds that off until what it returns
    /// is dropped.
    ///
    /// # Errors
    /// [`Refused`] when that takes too long.
    fn wait_to_compile(&self) -> Result<MutexGuard<'_, ()>, Refused> {
        self.compiles_other.try_lock_for(PATIENCE).ok_or_else(|| {
            let message = format!("other libraries have been compiled for {} seconds", PATIENCE.as_secs());
            Refused(ErrorResponse::error(sqlstate::INSUFFICIENT_RESOURCES, message).with_hint("Try again."))
        })
    }

    /// The function `invoke_*` for a signature that the main module does not use, for `library`. `others` are all that
    /// it needs, once there is an instance of them.
    pub(super) fn invoke(
        &self,
        store: &mut impl AsContextMut<Data = Guest>,
        name: &str,
        library: &Library,
        others: &mut Option<Instance>,
    ) -> anyhow::Result<Func> {
        let main = store.as_context().data().exports()?.instance;
        let instance = match *others {
            Some(instance) => instance,
            None if library.is_bundled => Self::instance(store, main, &self.invoke_module(name)?)?,
            None => {
                let module = self.other_invokes(library, main.module(&*store))?;
                *others.insert(Self::instance(store, main, module)?)
            }
        };
        instance.get_func(store, name).with_context(|| format!("{name} was not made"))
    }

    /// An instance of a module that imports exports of `main`.
    fn instance(
        store: &mut impl AsContextMut<Data = Guest>,
        main: Instance,
        module: &Module,
    ) -> anyhow::Result<Instance> {
        let imports = module
            .imports()
            .map(|import| {
                main.get_export(&mut *store, import.name())
                    .with_context(|| format!("the main module does not export {}", import.name()))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Instance::new(&mut *store, module, &imports)?)
    }

    /// The module of the function `name`, compiled once.
    fn invoke_module(&self, name: &str) -> anyhow::Result<Module> {
        if let Some(module) = self.invokes.lock().get(name) {
            return Ok(module.clone());
        }
        let module = self.compiler.module(name, &sources::code_key(name), || invoke_wasm(&[name]))?;
        Ok(self.invokes.lock().entry(name.to_owned()).or_insert(module).clone())
    }
}

/// Checks that there are memory mappings for a module, and so many bytes of memory for compiling it.
fn check_room(memory: u64) -> Result<(), Refused> {
    capacity::check_for_library().map_err(Refused)?;
    if quota::has_room_for_copy(memory) {
        return Ok(());
    }
    Err(Refused::out_of_memory(format!("compiling it may take {}", quota::Size(memory))))
}

fn invoke_wasm(names: &[&str]) -> anyhow::Result<Vec<u8>> {
    let what = || format!("the signature of {} is not one of Emscripten's", names.join(" or "));
    instrument::invoke_module(names).with_context(what)
}
