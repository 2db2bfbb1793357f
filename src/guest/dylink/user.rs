//! Libraries that did not come with the program, for `--allow-user-libraries`: what they may be.
//!
//! A library can do anything in its guest, as in PostgreSQL. These limits protect the host: what it allocates for a
//! library, and how long it compiles one.

use super::dylink_section::Description;
use anyhow::{bail, ensure};
use wasmparser::{Operator, Parser, Payload, TypeRef, Validator, WasmFeatures};

/// The longest file, in bytes: more than that of any library of PGlite.
const LENGTH_MAX: usize = 4 << 20;
/// The most functions that a library may define.
const FUNCTIONS_MAX: u32 = 20_000;
/// The longest body of a function, in bytes, and its most local variables. Compiling takes more than in proportion to
/// these.
const BODY_MAX: usize = 64 << 10;
const LOCALS_MAX: u32 = 1_000;
/// The most memory for its data, in bytes, and the coarsest alignment of that.
const MEMORY_MAX: u32 = 16 << 20;
const ALIGNMENT_MAX: u32 = 64 << 10;
/// The most entries of the table for its functions.
const TABLE_MAX: u32 = 64 << 10;

/// What compilers for C use. Other features make the host allocate memory that is not the guest's.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::GC_TYPES);

/// The description of the side module `wasm`, which has no memory and no table of its own, does not enlarge the guest's
/// table, and is not too large.
///
/// # Errors
/// When it is not so, or is not valid.
pub(super) fn describe(wasm: &[u8]) -> anyhow::Result<Description> {
    ensure!(wasm.len() <= LENGTH_MAX, "it is longer than {LENGTH_MAX} bytes");
    Validator::new_with_features(FEATURES).validate_all(wasm)?;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::MemorySection(section) => ensure!(section.count() == 0, "it has a memory of its own"),
            Payload::TableSection(section) => ensure!(section.count() == 0, "it has a table of its own"),
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let expected = match import.ty {
                        TypeRef::Memory(_) => ("env", "memory"),
                        TypeRef::Table(_) => ("env", "__indirect_function_table"),
                        TypeRef::Tag(_) => bail!("it uses exceptions"),
                        TypeRef::Func(_) | TypeRef::FuncExact(_) | TypeRef::Global(_) => continue,
                    };
                    ensure!((import.module, import.name) == expected, "it needs another memory or table");
                }
            }
            Payload::CodeSectionStart { count, .. } => {
                ensure!(count <= FUNCTIONS_MAX, "it has more than {FUNCTIONS_MAX} functions");
            }
            Payload::CodeSectionEntry(body) => {
                ensure!(body.range().len() <= BODY_MAX, "it has a function of more than {BODY_MAX} bytes");
                let mut locals = 0_u32;
                for group in body.get_locals_reader()? {
                    locals = locals.saturating_add(group?.0);
                }
                ensure!(locals <= LOCALS_MAX, "it has a function with more than {LOCALS_MAX} variables");
                for operator in body.get_operators_reader()? {
                    ensure!(!matches!(operator?, Operator::TableGrow { .. }), "it enlarges the table");
                }
            }
            _ => {}
        }
    }
    let description = Description::parse(wasm)?;
    ensure!(description.memory_size <= MEMORY_MAX, "it needs more than {MEMORY_MAX} bytes of memory");
    ensure!(description.memory_alignment <= ALIGNMENT_MAX, "its memory is aligned to more than {ALIGNMENT_MAX} bytes");
    ensure!(description.table_size <= TABLE_MAX, "it needs more than {TABLE_MAX} entries of the table");
    Ok(description)
}
