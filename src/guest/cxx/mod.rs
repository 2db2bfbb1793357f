//! The part of C++'s runtime that libraries in C++ import and PGlite does not export: exceptions, and the classes of
//! the standard library's exceptions.
//!
//! PGlite is compiled without the catching of exceptions, and so are libraries for it: there is a `throw` in them, and
//! no `catch`. A thrown exception is an SQL error here, with which `PostgreSQL` unwinds the stack as for any other.
//! Destructors of what was on the stack do not run.
//!
//! What has an address, such as vtables and type information, is in a side module that is made here (`module`) and
//! loaded when a library needs it. What is only called is a function of the host (`thrown`). The binary interface is
//! the "Itanium C++ ABI" (2.5 virtual tables, 2.9 run-time type information, 3 exceptions, 5.1 names), with the layouts
//! of libc++ and libc++abi.
//!
//! * `classes`: the classes and types
//! * `data`: bytes, and the pointers in them
//! * `module`: the side module
//! * `thrown`: what happens to an exception
//! * `lost`: the memory that exceptions cost a session

mod classes;
mod data;
mod lost;
mod module;
mod thrown;

pub(super) use lost::Lost;
pub(super) use module::{SYMBOLS, wasm};
pub(super) use thrown::{FUNCTIONS, add_to_linker};

/// The name of the side module, in place of the path of a library. No file of the guest's has this path.
pub(super) const NAME: &str = "C++ runtime";
