//! The classes of the standard library's exceptions, and the types that have type information without being classes.

/// What `what()` of a class says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// This text.
    Text(&'static str),
    /// The message that an object was made with.
    Message,
    /// What the base class says.
    Inherited,
}

/// A class of exceptions.
pub(super) struct Class {
    /// Its name as the compiler writes it.
    pub(super) name: &'static str,
    /// The name of its base class, which comes before it in [`CLASSES`].
    pub(super) base: Option<&'static str>,
    pub(super) what: What,
}

/// The class of all exceptions that say what has happened.
pub(super) const EXCEPTION: &str = "St9exception";

const LOGIC: &str = "St11logic_error";
const RUNTIME: &str = "St13runtime_error";
const BAD_ALLOC: &str = "St9bad_alloc";

/// Every class (libc++abi, `src/stdlib_exception.cpp`, `src/stdlib_new_delete.cpp`, `src/stdlib_stdexcept.cpp` and
/// `src/stdlib_typeinfo.cpp`).
pub(super) const CLASSES: [Class; 15] = [
    Class { name: EXCEPTION, base: None, what: What::Text("std::exception") },
    with_text("St13bad_exception", EXCEPTION, "std::bad_exception"),
    with_text(BAD_ALLOC, EXCEPTION, "std::bad_alloc"),
    with_text("St20bad_array_new_length", BAD_ALLOC, "bad_array_new_length"),
    with_text("St8bad_cast", EXCEPTION, "std::bad_cast"),
    with_text("St10bad_typeid", EXCEPTION, "std::bad_typeid"),
    with_message(LOGIC),
    derived("St12domain_error", LOGIC),
    derived("St16invalid_argument", LOGIC),
    derived("St12length_error", LOGIC),
    derived("St12out_of_range", LOGIC),
    with_message(RUNTIME),
    derived("St11range_error", RUNTIME),
    derived("St14overflow_error", RUNTIME),
    derived("St15underflow_error", RUNTIME),
];

const fn with_text(name: &'static str, base: &'static str, text: &'static str) -> Class {
    Class { name, base: Some(base), what: What::Text(text) }
}

const fn with_message(name: &'static str) -> Class {
    Class { name, base: Some(EXCEPTION), what: What::Message }
}

const fn derived(name: &'static str, base: &'static str) -> Class {
    Class { name, base: Some(base), what: What::Inherited }
}

/// The fundamental types (5.1.5 of the ABI). For each there is type information of the type, of a pointer to it and of
/// a pointer to a constant of it (2.9.2).
pub(super) const FUNDAMENTAL: [&str; 24] = [
    "v", "b", "c", "a", "h", "w", "Du", "Ds", "Di", "s", "t", "i", "j", "l", "m", "x", "y", "n", "o", "f", "d", "e",
    "g", "Dn",
];

/// The classes of type information whose vtables PGlite does not have. Only a `catch` calls their functions, so that
/// their vtables have none.
pub(super) const TYPE_INFOS: [&str; 6] = [
    FUNDAMENTAL_TYPE,
    POINTER,
    "N10__cxxabiv117__array_type_infoE",
    "N10__cxxabiv120__function_type_infoE",
    "N10__cxxabiv116__enum_type_infoE",
    "N10__cxxabiv129__pointer_to_member_type_infoE",
];

pub(super) const FUNDAMENTAL_TYPE: &str = "N10__cxxabiv123__fundamental_type_infoE";
pub(super) const POINTER: &str = "N10__cxxabiv119__pointer_type_infoE";
