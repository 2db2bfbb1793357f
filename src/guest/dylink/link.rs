//! Linking: the definition of each import of a library, and the addresses of its symbols.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow};
use wasmtime::{AsContextMut, Caller, Extern, ExternType, Func, FuncType, Global, GlobalType, Instance, Ref, Val};

use super::{
    Library, Loaded, Owner, Placement,
    compiled::Refused,
    dylink_section::Symbol,
    giving_up::{self, ABORT},
    receiver,
};
use crate::{
    guest::{Guest, report},
    instrument,
    quota::{Held, Resource, Size},
};

/// Names that side modules import, with the names of the same functions in the main module's C library (Emscripten,
/// `src/lib/libcore.js`; without threads `fgetc` does what `getc` does).
const ALIASES: [(&str, &str); 3] =
    [("setTempRet0", "_emscripten_tempret_set"), ("getTempRet0", "_emscripten_tempret_get"), ("fgetc", "getc")];

/// Links `library` at `place`; its data must be in memory already. It becomes the last of the loaded libraries;
/// returns its number.
pub(super) fn instantiate(
    store: &mut impl AsContextMut<Data = Guest>,
    library: Arc<Library>,
    place: Placement,
) -> anyhow::Result<usize> {
    let (memory_base, table_base) = (place.memory_base, place.table_base);
    let mut imports = Vec::new();
    // A clone has the table of the library that it is copied from. Using it saves a hundred look-ups, which would take
    // longer than the rest.
    let mut known = place.offsets.clone().into_iter();
    let (mut offset_table, mut invokes) = (Vec::new(), None);
    let module = library.module().clone();
    let main = store.as_context().data().exports()?.instance;
    let main_module = main.module(&*store).clone();
    for (import, export) in module.imports().zip(library.from_main(&main_module)) {
        let (space, name) = (import.module(), import.name());
        if let Some(export) = export {
            imports.push(
                main.get_module_export(&mut *store, export)
                    .with_context(|| format!("{name} is not exported any more"))?,
            );
            continue;
        }
        imports.push(match (space, import.ty()) {
            ("env", ExternType::Global(ty)) if name == "__memory_base" => constant(store, ty, memory_base)?.into(),
            ("env", ExternType::Global(ty)) if name == "__table_base" => constant(store, ty, table_base)?.into(),
            ("GOT.mem" | "GOT.func", ExternType::Global(ty)) => {
                let value = known.next();
                let global = constant(store, ty, value.unwrap_or(0))?;
                if value.is_none() {
                    offset_table.push((global, space == "GOT.func", name.to_owned()));
                }
                global.into()
            }
            (_, ExternType::Func(ty)) => match giving_up::function(store, &ty, name, &place.path)
                .or_else(|| receiver::function(store, &ty, name, &library))
            {
                Some(function) => function.into(),
                None => match function(store, space, name, &library, &mut invokes)? {
                    Some(function) => function.into(),
                    None => later(&mut *store, ty, name).into(),
                },
            },
            _ => anyhow::bail!("undefined symbol: {name}"),
        });
    }
    count_code(store.as_context_mut().data_mut(), &library)?;
    // The cause alone, because the error of a segment outside of the table has a backtrace.
    let instance = Instance::new(&mut *store, &module, &imports).map_err(|error| anyhow!("{}", error.root_cause()))?;
    let mut context = store.as_context_mut();
    let loaded = &mut context.data_mut().libraries.loaded;
    let number = loaded.len();
    loaded.push(Loaded { library, place, instance });
    if let Err(error) = fill_offsets(store, number, offset_table) {
        store.as_context_mut().data_mut().libraries.forget(number);
        return Err(error);
    }
    Ok(number)
}

/// Sets the globals of the library's global offset table: each with whether it is a function's, and its name.
fn fill_offsets(
    store: &mut impl AsContextMut<Data = Guest>,
    number: usize,
    offset_table: Vec<(Global, bool, String)>,
) -> anyhow::Result<()> {
    for (global, is_function, name) in offset_table {
        let mut value = None;
        // The library itself comes first, as for the functions that it imports and defines itself.
        for owner in [Owner::Library(number), Owner::Main].into_iter().chain((0..number).map(Owner::Library)) {
            value = address(store, owner, &name)?;
            if value.is_some() {
                break;
            }
        }
        if value.is_none() {
            // Undefined weak symbols are null, which the library tests.
            tracing::debug!("undefined weak {} {name:?}", if is_function { "function" } else { "datum" });
        }
        let value = value.unwrap_or(0);
        global.set(&mut *store, Val::I32(value.cast_signed()))?;
        store.as_context_mut().data_mut().libraries.loaded[number].place.offsets.push(value);
    }
    Ok(())
}

/// Counts the code of a library that did not come with the program as memory of the guest's cluster, also if other
/// guests use the same.
///
/// # Errors
/// [`Refused`] when there is no room.
fn count_code(guest: &mut Guest, library: &Arc<Library>) -> Result<(), Refused> {
    let size = library.code_size();
    if size == 0 || guest.libraries.code.iter().any(|(counted, _)| Arc::ptr_eq(counted, library)) {
        return Ok(());
    }
    let mut held = Held::new(guest.files.tree().lock().quota().clone(), Resource::Code);
    if guest.growth.is_unlimited() {
        held.add(size);
    } else if !held.grow(size) {
        return Err(Refused::out_of_memory(format!("its code takes {}", Size(size))));
    }
    guest.libraries.code.push((library.clone(), held));
    Ok(())
}

/// A global of the imported type.
///
/// # Errors
/// When the type is not `i32`.
fn constant(store: &mut impl AsContextMut<Data = Guest>, ty: GlobalType, value: u32) -> anyhow::Result<Global> {
    Ok(Global::new(store, ty, Val::I32(value.cast_signed()))?)
}

/// The name under which the main module may export an import of a library; none for imports that the loader makes, and
/// for what is another function for libraries.
pub(super) fn main_name<'a>(space: &str, name: &'a str) -> Option<&'a str> {
    if space.starts_with("GOT.") || ["__memory_base", "__table_base", ABORT].contains(&name) {
        return None;
    }
    Some(ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| *name))
}

/// The function for an import of a library that the main module does not export.
fn function(
    store: &mut impl AsContextMut<Data = Guest>,
    space: &str,
    name: &str,
    library: &Library,
    invokes: &mut Option<Instance>,
) -> anyhow::Result<Option<Func>> {
    let library_store = store.as_context().data().library_store.clone();
    if let Some(function) = of_libraries(store, name) {
        return Ok(Some(function));
    }
    if let Ok(Extern::Func(function)) = library_store.linker().get(&mut *store, space, name) {
        return Ok(Some(function));
    }
    if instrument::is_invoke(name) {
        return library_store.invoke(store, name, library, invokes).map(Some);
    }
    Ok(None)
}

/// The function of that name in the first of the loaded libraries that defines it.
fn of_libraries(store: &mut impl AsContextMut<Data = Guest>, name: &str) -> Option<Func> {
    let loaded = &store.as_context().data().libraries.loaded;
    let instances: Vec<Instance> = loaded.iter().map(|loaded| loaded.instance).collect();
    instances.into_iter().find_map(|instance| instance.get_func(&mut *store, name))
}

/// A function that nothing defines yet. Libraries may need each other, so that one that is loaded later defines it: it
/// is looked up when it is called, until it is found. Until then a call is an SQL error.
fn later(store: &mut impl AsContextMut<Data = Guest>, ty: FuncType, name: &str) -> Func {
    let (name, expected, definition) = (name.to_owned(), ty.clone(), OnceLock::new());
    Func::new(store, ty, move |mut caller: Caller<'_, Guest>, arguments, results| {
        let function = match definition.get() {
            Some(function) => *function,
            None => match of_libraries(&mut caller, &name).filter(|it| FuncType::eq(&it.ty(&caller), &expected)) {
                Some(function) => *definition.get_or_init(|| function),
                None => return Err(report::undefined(&mut caller, &name)),
            },
        };
        function.call(&mut caller, arguments, results)
    })
}

/// The address of a datum, or the table slot of a function, that `owner` defines.
pub(super) fn address(
    store: &mut impl AsContextMut<Data = Guest>,
    owner: Owner,
    name: &str,
) -> anyhow::Result<Option<u32>> {
    let guest = store.as_context().data();
    let instance = match owner {
        Owner::Main => {
            if let Some(address) = guest.facts.symbol(name) {
                return Ok(Some(address));
            }
            guest.exports()?.instance
        }
        Owner::Library(number) => {
            let loaded = &guest.libraries.loaded[number];
            match loaded.library.description().symbols.get(name) {
                None => return Ok(None),
                Some(Symbol::Data(offset)) => return Ok(Some(loaded.place.memory_base.wrapping_add(*offset))),
                Some(Symbol::Function(Some(offset))) => return Ok(Some(loaded.place.table_base.wrapping_add(*offset))),
                Some(Symbol::Function(None)) => loaded.instance,
            }
        }
    };
    let claim = (owner, name.to_owned());
    if let Some(&slot) = guest.libraries.claims.get(&claim) {
        return Ok(Some(slot));
    }
    let table = guest.exports()?.table;
    let Some(function) = instance.get_func(&mut *store, name) else { return Ok(None) };
    let slot = reserve(store, 1)?;
    table.set(&mut *store, slot.into(), Ref::Func(Some(function)))?;
    let mut context = store.as_context_mut();
    context.data_mut().libraries.claims.insert(claim, slot);
    Ok(Some(slot))
}

/// Reserves `count` free table slots and returns the first. The table grows when its spare slots are used up.
pub(super) fn reserve(store: &mut impl AsContextMut<Data = Guest>, count: u32) -> anyhow::Result<u32> {
    let table = store.as_context().data().exports()?.table;
    let first = store.as_context().data().libraries.free_slot;
    let end = first.checked_add(count).context("the table is full")?;
    let missing = u64::from(end).saturating_sub(table.size(&*store));
    if missing > 0 {
        table.grow(&mut *store, missing, Ref::Func(None))?;
    }
    store.as_context_mut().data_mut().libraries.free_slot = end;
    Ok(first)
}
