//! What happens to an exception that is thrown: it becomes an SQL error, because nothing catches it.

use wasmtime::{AsContextMut, Caller, Linker, Ref, Val};

use super::classes::EXCEPTION;
use crate::{
    guest::{Guest, memory, report, table_function},
    instrument::{MULTIPLE, SINGLE},
    protocol::error_response::sqlstate,
};

/// The functions that [`add_to_linker`] adds for libraries, besides those that the main module imports.
pub(in crate::guest) const FUNCTIONS: [&str; 7] = [
    "__cxa_throw",
    "_ZSt9terminatev",
    "__cxa_uncaught_exceptions",
    "__cxa_current_primary_exception",
    "__cxa_rethrow_primary_exception",
    "__cxa_thread_atexit",
    "_ZSt15get_new_handlerv",
];

/// How many classes are looked at to find out what an exception is.
const CLASSES_MAX: usize = 100;
/// How many characters of a message are shown.
const TEXT_MAX: usize = 4096;

/// The place of `what` behind the two destructors in the vtable of an exception.
const WHAT: u32 = 8;

pub(in crate::guest) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "env",
        "__cxa_throw",
        |mut caller: Caller<'_, Guest>, object: u32, info: u32, destructor: u32| -> wasmtime::Result<()> {
            let thrown = Thrown::read(&mut caller, object, info)?;
            // Nobody can catch it, so that this is the end of its life.
            destroy(&mut caller, object, destructor)?;
            Err(raise(&mut caller, thrown))
        },
    )?;
    linker.func_wrap("env", "_ZSt9terminatev", |mut caller: Caller<'_, Guest>| -> wasmtime::Result<()> {
        Err(report::error(&mut caller, sqlstate::INTERNAL_ERROR, "code in C++ has called std::terminate()"))
    })?;
    // No exception is ever on its way, and none is being handled.
    linker.func_wrap("env", "__cxa_uncaught_exceptions", || 0_u32)?;
    linker.func_wrap("env", "__cxa_current_primary_exception", || 0_u32)?;
    linker.func_wrap("env", "__cxa_rethrow_primary_exception", |_exception: u32| {})?;
    // The only thread ends with the guest.
    linker.func_wrap("env", "__cxa_thread_atexit", |_destructor: u32, _object: u32, _library: u32| 0_i32)?;
    linker.func_wrap("env", "_ZSt15get_new_handlerv", || 0_u32)?;
    Ok(())
}

/// Raises the SQL error for an exception. One of too many ends the session.
fn raise(caller: &mut Caller<'_, Guest>, Thrown { class, message }: Thrown) -> wasmtime::Error {
    let detail = message.is_some().then(|| format!("It is a C++ exception of the class {class}."));
    let message = message.unwrap_or_else(|| format!("a C++ exception of the type {class}"));
    let guest = caller.data_mut();
    let too_much = guest.lost.count(guest.growth.bytes());
    // A session that has its cluster alone would take that with it. It has a limit of memory, which is an error.
    if let (Some((exceptions, bytes)), true) = (too_much, guest.seat.is_some()) {
        let lost = bytes >> 20;
        let end = format!(
            "this session has grown by {lost} MiB since the first of {exceptions} exceptions in C++: connect again"
        );
        return report::fatal(caller, sqlstate::OUT_OF_MEMORY, &end, Some(&format!("The last one: {message}")));
    }
    // As the errors that PostGIS raises itself for those of its libraries.
    report::error_with_detail(caller, sqlstate::INTERNAL_ERROR, &message, detail.as_deref())
}

/// An exception.
#[derive(Debug, PartialEq, Eq)]
struct Thrown {
    /// The name of its type.
    class: String,
    /// What it says, if it is a `std::exception`.
    message: Option<String>,
}

impl Thrown {
    /// Reads the exception at `object` with the type information at `info`.
    fn read(store: &mut impl AsContextMut<Data = Guest>, object: u32, info: u32) -> wasmtime::Result<Self> {
        let guest = store.as_context().data();
        let [single, multiple] = [SINGLE, MULTIPLE].map(|name| guest.facts.symbol(&format!("_ZTV{name}")));
        let memory = guest.memory()?;
        let info_at = |address| Info::read(memory.data(store.as_context()), address, single, multiple);
        let class = readable(&info_at(info)?.name);
        let Some(exception) = exception_in(object, info, info_at) else { return Ok(Self { class, message: None }) };
        let functions = memory::read_u32(memory.data(store.as_context()), exception)?;
        let what = memory::read_u32(memory.data(store.as_context()), functions.wrapping_add(WHAT))?;
        let what = table_function::<u32, u32>(store, what)?;
        let address = what.call(&mut *store, exception)?;
        let message = text(memory.data(store.as_context()), address)?;
        Ok(Self { class, message: Some(message).filter(|message| !message.is_empty()) })
    }
}

/// Type information of a class or another type.
#[derive(Debug)]
struct Info {
    name: String,
    /// Address of the type information of each base class, and the place of its part in an object.
    bases: Vec<(u32, u32)>,
}

impl Info {
    /// Reads it, given the addresses of the vtables for classes with a single base and with several ones ("Itanium C++
    /// ABI", 2.9.5).
    fn read(memory: &[u8], address: u32, single: Option<u32>, multiple: Option<u32>) -> wasmtime::Result<Self> {
        // In the description of a base: it is virtual, it is public; its place is in the bits from the eighth on.
        const VIRTUAL: u32 = 1;
        const PUBLIC: u32 = 2;
        const PLACE: u32 = 8;
        let word = |offset: u32| memory::read_u32(memory, address.wrapping_add(offset));
        let name = text(memory, word(4)?)?;
        // Objects point behind the head of the vtable.
        let kind = word(0)?.checked_sub(8);
        let mut bases = Vec::new();
        if kind.is_some() && kind == single {
            bases.push((word(8)?, 0));
        } else if kind.is_some() && kind == multiple {
            for base in (0..word(12)?).take(CLASSES_MAX) {
                let (info, place) = (word(16 + 8 * base)?, word(20 + 8 * base)?);
                if place & (VIRTUAL | PUBLIC) == PUBLIC {
                    bases.push((info, place >> PLACE));
                }
            }
        }
        Ok(Self { name, bases })
    }
}

/// The `std::exception` in the object of a class, or `None` if it is none.
fn exception_in(object: u32, info: u32, info_at: impl Fn(u32) -> wasmtime::Result<Info>) -> Option<u32> {
    let mut parts = vec![(info, object)];
    for _ in 0..CLASSES_MAX {
        let (info, object) = parts.pop()?;
        let Info { name, bases } = info_at(info).ok()?;
        if name == EXCEPTION {
            return Some(object);
        }
        parts.extend(bases.into_iter().map(|(info, place)| (info, object.wrapping_add(place))));
    }
    None
}

/// Calls the destructor, if the exception has one, and frees its memory.
fn destroy(store: &mut impl AsContextMut<Data = Guest>, object: u32, destructor: u32) -> wasmtime::Result<()> {
    let (table, instance) = {
        let exports = store.as_context().data().exports()?;
        (exports.table, exports.instance)
    };
    if let Some(Ref::Func(Some(destructor))) = table.get(&mut *store, destructor.into()) {
        // Destructors of the compiler return the object, others nothing.
        let mut results = vec![Val::I32(0); destructor.ty(&*store).results().len()];
        destructor.call(&mut *store, &[Val::I32(object.cast_signed())], &mut results)?;
    }
    let free = instance.get_typed_func::<u32, ()>(&mut *store, "__cxa_free_exception")?;
    free.call(store, object)
}

fn text(memory: &[u8], address: u32) -> wasmtime::Result<String> {
    let text = memory::read_c_string(memory, address)?;
    Ok(String::from_utf8_lossy(&text[..text.len().min(TEXT_MAX)]).into_owned())
}

/// The name of a class as in a source, or as the compiler writes it if it is no plain name (5.1.2 of the ABI).
fn readable(name: &str) -> String {
    plain_name(name).unwrap_or_else(|| name.to_owned())
}

fn plain_name(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix('N').map_or(Some(name), |nested| nested.strip_suffix('E'))?;
    let mut parts = Vec::new();
    if let Some(of_std) = rest.strip_prefix("St") {
        parts.push("std");
        rest = of_std;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let length: usize = rest[..digits].parse().ok()?;
        let part = rest.get(digits..digits.checked_add(length)?)?;
        parts.push(if part.starts_with("_GLOBAL__N") { "(anonymous namespace)" } else { part });
        rest = &rest[digits + length..];
    }
    (!parts.is_empty()).then(|| parts.join("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_classes_are_readable_and_others_stay() {
        assert_eq!(readable("N4geos4util17TopologyExceptionE"), "geos::util::TopologyException");
        assert_eq!(readable("St13runtime_error"), "std::runtime_error");
        assert_eq!(readable("9Exception"), "Exception");
        assert_eq!(readable("N12_GLOBAL__N_11XE"), "(anonymous namespace)::X");
        for name in ["i", "PKc", "", "N", "NE", "N99aE", "N3abcIiEE", "N18446744073709551615aE", "é"] {
            assert_eq!(readable(name), name);
        }
    }

    /// Type information: 100 derives from 200 and 300, 300 from itself.
    fn info_at(address: u32) -> wasmtime::Result<Info> {
        let (name, bases) = match address {
            100 => ("Derived", vec![(300, 0), (200, 12)]),
            200 => (EXCEPTION, vec![]),
            300 => ("Circle", vec![(300, 4)]),
            _ => wasmtime::bail!("there is nothing at {address}"),
        };
        Ok(Info { name: name.to_owned(), bases })
    }

    #[test]
    fn the_exception_is_found_in_an_object_that_has_several_bases() {
        assert_eq!(exception_in(1000, 100, info_at), Some(1012));
        assert_eq!(exception_in(1000, 200, info_at), Some(1000));
        assert_eq!(exception_in(1000, 300, info_at), None, "the search ends");
        assert_eq!(exception_in(1000, 400, info_at), None);
    }

    #[test]
    fn type_information_is_read_as_the_compiler_lays_it_out() {
        let mut memory = vec![0; 256];
        memory[100..104].copy_from_slice(b"Name");
        let words = [
            (0, 48),
            (4, 100),
            (8, 7), // a single base: 7
            (16, 68),
            (20, 100),
            (28, 3),
            (32, 7),
            (36, 2),
            (40, 8),
            (44, 0x502),
            (48, 9),
            (52, 3),
        ];
        for (at, word) in words {
            memory[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        let read = |address| Info::read(&memory, address, Some(40), Some(60)).unwrap();
        assert_eq!((read(0).name.as_str(), read(0).bases), ("Name", vec![(7, 0)]));
        // The virtual base is left out.
        assert_eq!(read(16).bases, [(7, 0), (8, 5)]);
        assert!(Info::read(&memory, 255, None, None).is_err());
    }
}
