//! Dynamic linking: `dlopen` and `dlsym` for Emscripten's side modules.
//!
//! PL/pgSQL, Snowball, the encoding conversions and every extension are side modules. A loaded one has its data in
//! memory that the guest allocated, its functions in the shared table from a base on, and a *global offset table*:
//! imported mutable globals that hold addresses (`GOT.mem`) and table slots (`GOT.func`). The reference is
//! Emscripten's `src/lib/libdylink.js`.
//!
//! There are two differences from it. Symbols are searched in the library itself, then in the main module, then in the
//! other libraries in the order of loading, and functions once more when they are called for the first time; in
//! Emscripten the main module and a library loaded earlier override a later library's own symbols. But its compiler
//! calls most functions of the same library directly: a library with its own copy of another one, as all of PostGIS'
//! have of GDAL, would use its own copy's code with the data and vtables of somebody else's. A call of a function that
//! is still undefined raises an SQL error with its name; Emscripten's JavaScript throws a `TypeError` that ends the
//! session. A library that needs undefined data is not loaded.
//!
//! * `mod`: loading a library, and the state of a guest's libraries
//! * `dylink_section`: the description in a library's file
//! * `compiled`: the compiled libraries of the whole program
//! * `link`: the definitions of a library's imports
//! * `runtime`: the runtime of C++, loaded when a library needs it
//! * `missing`: a hint for libraries that are not installed
//! * `user`: what other libraries may be than those that came with the program
//! * `giving_up`: `abort()` and assertions of a library
//! * `receiver`: `libpqwalreceiver`, which does not connect
//! * `check`: whether a library can be linked that is to come with the program
//! * `restore`: restores the libraries of one guest in another

mod check;
mod compiled;
mod dylink_section;
mod giving_up;
mod link;
mod missing;
mod receiver;
mod restore;
mod runtime;
#[cfg(test)]
mod tests;
mod user;

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, anyhow, bail, ensure};
use wasmtime::{Caller, Instance, Linker};

use super::{Guest, cxx, memory, report, waiting};
use crate::{engine::artefact, instrument::SIDE_MODULE_START, protocol::error_response::sqlstate, quota::Held};
pub(crate) use compiled::{Library, LibraryStore};
use compiled::{NotBundled, Refused};
use link::{address, instantiate, reserve};
pub(super) use missing::explain as explain_missing;
pub(crate) use restore::restore;

/// The module that defines a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
enum Owner {
    Main,
    /// The library with this number, in the order of loading.
    Library(usize),
}

/// A side module in one guest.
struct Loaded {
    library: Arc<Library>,
    place: Placement,
    instance: Instance,
}

/// The place of a side module in memory and in the table.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Placement {
    /// Its path in the guest's files.
    path: String,
    /// The SHA-256 of its file.
    hash: String,
    memory_base: u32,
    table_base: u32,
    /// The values of its own mutable globals after its start function.
    globals: Vec<(String, i32)>,
    /// Its global offset table, in the order of its imports; empty until it is linked for the first time.
    offsets: Vec<u32>,
}

/// One of [`Libraries::claims`] in an image.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Claim {
    slot: u32,
    owner: Owner,
    name: String,
}

/// The libraries of one guest.
pub(crate) struct Libraries {
    loaded: Vec<Loaded>,
    /// What the code of those takes that did not come with the program, also if they could not be initialized: the
    /// guest keeps it until its end.
    code: Vec<(Arc<Library>, Held)>,
    /// The library of each handle that the guest's `dlopen` made.
    handles: HashMap<u32, usize>,
    /// Table slots of functions outside the modules' own elements, which `GOT.func` or `dlsym` requested, by the
    /// function's owner and name.
    claims: HashMap<(Owner, String), u32>,
    /// The first free table slot.
    free_slot: u32,
}

/// The state from which another guest loads the same libraries at the same places.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct LibrariesImage {
    places: Vec<Placement>,
    handles: Vec<(u32, usize)>,
    claims: Vec<Claim>,
    free_slot: u32,
}

/// The guest's code ended while a library was loaded, by a trap, an exit or an SQL error. This is not a failure to
/// load the library; the caller of the guest handles it.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct GuestEnd(wasmtime::Error);

/// The hint when a library is refused because of its origin.
const ONLY_BUNDLED: &str = "Only the libraries of PGlite, of the packages beside it and of --extension are loaded. For \
    other code that you trust, start pglite-port with --allow-user-libraries.";

/// The maximum length of a chain of libraries each of which needs the next.
const NEEDING_MAX: usize = 16;

/// Offsets in `struct dso` (Emscripten, `system/lib/libc/dynlink.c`).
mod dso {
    pub(super) const MEM_ALLOCATED: u32 = 8;
    pub(super) const MEM_ADDR: u32 = 12;
    pub(super) const MEM_SIZE: u32 = 16;
    pub(super) const TABLE_ADDR: u32 = 20;
    pub(super) const TABLE_SIZE: u32 = 24;
    pub(super) const NAME: u32 = 36;
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap("env", "_dlopen_js", |mut caller: Caller<'_, Guest>, handle: u32| -> wasmtime::Result<i32> {
        let name = memory::read_text(memory::of(&mut caller)?.0, handle.wrapping_add(dso::NAME))?;
        match open(&mut caller, &name, handle) {
            Ok(()) => Ok(1),
            Err(error) => match error.downcast() {
                Ok(GuestEnd(error)) => Err(error),
                // dlerror() has no hint.
                Err(error) if error.is::<NotBundled>() => Err(report::error_with_hint(
                    &mut caller,
                    sqlstate::INSUFFICIENT_PRIVILEGE,
                    &format!("could not load library \"{name}\": {error:#}"),
                    Some(ONLY_BUNDLED),
                )),
                Err(error) => match error.downcast() {
                    Ok(Refused(report)) => Err(report::error_with_hint(
                        &mut caller,
                        report.code,
                        &format!("could not load library \"{name}\": {}", report.message),
                        report.hint.as_deref(),
                    )),
                    Err(error) => set_error(&mut caller, &format!("{name}: {error:#}")).map(|()| 0),
                },
            },
        }
    })?;
    linker.func_wrap(
        "env",
        "_dlsym_js",
        |mut caller: Caller<'_, Guest>, handle: u32, symbol: u32, _index: u32| -> wasmtime::Result<u32> {
            let name = memory::read_text(memory::of(&mut caller)?.0, symbol)?;
            let owner = match caller.data().libraries.handles.get(&handle) {
                Some(&library) => Owner::Library(library),
                None => Owner::Main,
            };
            match address(&mut caller, owner, &name) {
                Ok(Some(address)) => Ok(address),
                Ok(None) => set_error(&mut caller, &format!("undefined symbol: {name}")).map(|()| 0),
                Err(error) => set_error(&mut caller, &format!("{name}: {error:#}")).map(|()| 0),
            }
        },
    )?;
    Ok(())
}

/// Makes `dlerror` return `message`.
fn set_error(caller: &mut Caller<'_, Guest>, message: &str) -> wasmtime::Result<()> {
    let exports = caller.data().exports()?;
    let (instance, malloc) = (exports.instance, exports.malloc.clone());
    let mut text = message.replace('\0', "").into_bytes();
    text.push(0);
    let address = malloc.call(&mut *caller, u32::try_from(text.len())?)?;
    if address == 0 {
        return Ok(());
    }
    memory::write_bytes(memory::of(caller)?.0, address, &text)?;
    // The C side formats and copies the message.
    let set = instance.get_typed_func::<(u32, u32), ()>(&mut *caller, "__dl_seterr")?;
    set.call(&mut *caller, (address, 0))?;
    let free = instance.get_typed_func::<u32, ()>(&mut *caller, "free")?;
    free.call(&mut *caller, address)
}

/// Loads the library with that name unless it is already loaded, and assigns it to `handle`.
fn open(caller: &mut Caller<'_, Guest>, name: &str, handle: u32) -> anyhow::Result<()> {
    let number = find_or_load(caller, name, &mut Vec::new())?;
    let loaded = &caller.data().libraries.loaded[number];
    let layout = loaded.library.description();
    let fields = [
        (dso::MEM_ADDR, loaded.place.memory_base),
        (dso::MEM_SIZE, layout.memory_size),
        (dso::TABLE_ADDR, loaded.place.table_base),
        (dso::TABLE_SIZE, layout.table_size),
    ];
    let memory = memory::of(caller)?.0;
    memory::write_bytes(memory, handle.wrapping_add(dso::MEM_ALLOCATED), &[1])?;
    for (offset, value) in fields {
        memory::write_u32(memory, handle.wrapping_add(offset), value)?;
    }
    caller.data_mut().libraries.handles.insert(handle, number);
    Ok(())
}

/// The number of the library at `path`, which is loaded if necessary. `needing` contains the paths of the libraries
/// that are being loaded, each of which needs the next.
fn find_or_load(caller: &mut Caller<'_, Guest>, path: &str, needing: &mut Vec<String>) -> anyhow::Result<usize> {
    let known = caller.data().libraries.loaded.iter().position(|loaded| loaded.place.path == path);
    match known {
        Some(number) => Ok(number),
        None => load(caller, path.to_owned(), needing),
    }
}

/// Loads the library at `path` and those that it needs; otherwise as [`find_or_load`].
fn load(caller: &mut Caller<'_, Guest>, path: String, needing: &mut Vec<String>) -> anyhow::Result<usize> {
    // Every level takes native stack, of which a host function has little.
    ensure!(needing.len() < NEEDING_MAX, "it is needed at the end of a chain of {NEEDING_MAX} libraries");
    ensure!(path != cxx::NAME, "a library cannot have this name");
    let wasm =
        caller.data_mut().files.read_file(path.as_bytes()).map_err(|errno| anyhow!("cannot be read: {errno}"))?;
    let store = caller.data().library_store.clone();
    let main = caller.data().exports()?.instance.module(&*caller).clone();
    // Compiling takes seconds, and nobody else has to wait for it.
    let library = waiting::without_turn(caller, |_| store.library_to_link(&wasm, &main)).map_err(GuestEnd)??;
    // The same file at another path. Otherwise copies of a library would take memory and slots of the table without
    // limit.
    if let Some(number) = caller.data().libraries.loaded.iter().position(|it| it.library.hash() == library.hash()) {
        return Ok(number);
    }
    needing.push(path.clone());
    let beside = |name: &str| path.rsplit_once('/').map_or_else(|| name.to_owned(), |(at, _)| format!("{at}/{name}"));
    let first = artefact::first_library(library.hash()).map(beside);
    for needed in library.description().needed.iter().chain(&first) {
        // Libraries may need each other.
        if !needing.contains(needed) {
            find_or_load(caller, needed, needing).with_context(|| format!("{needed}, which it needs"))?;
        }
    }
    needing.pop();
    if runtime::is_needed(caller, &library)? {
        runtime::load(caller)?;
    }
    if let Some(name) = undefined(caller, &library)? {
        bail!("undefined symbol: {name}");
    }
    add(caller, library, path)
}

/// Gives `library`, whose file is at `path`, a place in memory and in the table, links and initializes it.
fn add(caller: &mut Caller<'_, Guest>, library: Arc<Library>, path: String) -> anyhow::Result<usize> {
    let layout = library.description();
    let exports = caller.data().exports()?;
    let instance = exports.instance;
    let memory_base = if layout.memory_size == 0 {
        0
    } else {
        let calloc = instance.get_typed_func::<(u32, u32), u32>(&mut *caller, "calloc")?;
        let size = layout.memory_size.checked_add(layout.memory_alignment).context("it needs too much memory")?;
        let address = calloc.call(&mut *caller, (size, 1)).map_err(GuestEnd)?;
        ensure!(address != 0, "out of memory");
        address.checked_next_multiple_of(layout.memory_alignment).context("its memory is not aligned")?
    };
    let table_base = reserve(caller, layout.table_size)?;
    let memory = memory::of(caller)?.0;
    for (offset, bytes) in &layout.data {
        memory::write_bytes(memory, memory_base.wrapping_add(*offset), bytes)?;
    }
    let place = Placement {
        path,
        hash: library.hash().to_owned(),
        memory_base,
        table_base,
        globals: Vec::new(),
        offsets: Vec::new(),
    };
    let number = instantiate(caller, library.clone(), place)?;
    let instance = caller.data().libraries.loaded[number].instance;
    // Zeroing and globals, addresses inside the data, then constructors: once in the life of a memory, not in its
    // clones.
    for initializer in [SIDE_MODULE_START, "__wasm_apply_data_relocs", "__wasm_call_ctors"] {
        if let Some(function) = instance.get_func(&mut *caller, initializer) {
            let initialized = function.typed::<(), ()>(&mut *caller)?.call(&mut *caller, ());
            if let Err(ended) = initialized {
                caller.data_mut().libraries.forget(number);
                return Err(GuestEnd(ended).into());
            }
        }
    }
    let mut globals = Vec::new();
    for name in &library.description().mutable_globals {
        let global = instance.get_global(&mut *caller, name).with_context(|| format!("it has no global {name}"))?;
        globals.extend(global.get(&mut *caller).i32().map(|value| (name.clone(), value)));
    }
    caller.data_mut().libraries.loaded[number].place.globals = globals;
    Ok(number)
}

/// An undefined symbol whose address `library` needs.
fn undefined(caller: &mut Caller<'_, Guest>, library: &Library) -> anyhow::Result<Option<String>> {
    let main = caller.data().exports()?.instance;
    for import in library.module().imports().filter(|import| import.module().starts_with("GOT.")) {
        let (name, guest) = (import.name(), caller.data());
        let is_there = guest.facts.symbol(name).is_some()
            || library.description().symbols.contains_key(name)
            || library.description().weak.contains(name)
            || receiver::does_without(library, name)
            || guest.libraries.loaded.iter().any(|loaded| loaded.library.description().symbols.contains_key(name));
        if !is_there && main.get_func(&mut *caller, name).is_none() {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

impl Libraries {
    /// No libraries; their table slots will start at `free_slot`.
    pub(super) fn new(free_slot: u32) -> Self {
        Self { loaded: Vec::new(), code: Vec::new(), handles: HashMap::new(), claims: HashMap::new(), free_slot }
    }

    /// The loaded libraries, in the order of loading.
    pub(crate) fn loaded(&self) -> Vec<Arc<Library>> {
        self.loaded.iter().map(|loaded| loaded.library.clone()).collect()
    }

    /// Removes a library that could not be initialized. Its table slots stay reserved.
    fn forget(&mut self, number: usize) {
        // A library that its constructors have loaded depends on its number.
        if number + 1 == self.loaded.len() {
            self.loaded.truncate(number);
            self.claims.retain(|(owner, _), _| *owner != Owner::Library(number));
        }
    }

    fn set(&mut self, image: &LibrariesImage) {
        self.handles = image.handles.iter().copied().collect();
        self.claims = image.claims.iter().map(|claim| ((claim.owner, claim.name.clone()), claim.slot)).collect();
    }

    /// The state that another guest with a copy of this one's memory needs.
    pub(crate) fn image(&self) -> LibrariesImage {
        let claim = |(&(owner, ref name), &slot): (&(Owner, String), &u32)| Claim { slot, owner, name: name.clone() };
        LibrariesImage {
            places: self.loaded.iter().map(|loaded| loaded.place.clone()).collect(),
            handles: self.handles.iter().map(|(&handle, &number)| (handle, number)).collect(),
            claims: self.claims.iter().map(claim).collect(),
            free_slot: self.free_slot,
        }
    }
}
