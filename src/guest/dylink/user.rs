//! Libraries that did not come with the program, for `--allow-user-libraries`: what they may be.
//!
//! A library can do anything in its guest, as in PostgreSQL. These limits protect the host: what it allocates for a
//! library, and how long it compiles one.

use super::dylink_section::Description;
use anyhow::{bail, ensure};
use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef, Validator, WasmFeatures};

/// The longest file, in bytes: more than that of any library of PGlite.
const LENGTH_MAX: usize = 4 << 20;
/// The most functions that a library may define.
const FUNCTIONS_MAX: u32 = 20_000;
/// The longest body of a function, in bytes, and its most local variables. Compiling takes more than in proportion to
/// these.
const BODY_MAX: usize = 64 << 10;
const LOCALS_MAX: u32 = 1_000;
/// The most [`work`] of compiling its functions, several times that of any library of PGlite. The worst that was found
/// compiles for two seconds of a processor's time, with 250 MB.
const WORK_MAX: u64 = 12_000_000;
/// The most parameters of a function. A call takes two bytes and copies each of them.
const PARAMETERS_MAX: usize = 100;
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
    // Two bytes of code would copy as many values as a function has results, or a block parameters: of 65 kB the
    // compiler makes more than 20 GB. C has at most one result, and no such blocks.
    Validator::new_with_features(FEATURES.difference(WasmFeatures::MULTI_VALUE)).validate_all(wasm)?;
    let (mut parameters, mut functions, mut all_work) = (Vec::new(), Vec::new().into_iter(), 0);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    parameters.push(ty?.params().len());
                }
                let most = parameters.iter().max().copied().unwrap_or(0);
                ensure!(most <= PARAMETERS_MAX, "it has a function with more than {PARAMETERS_MAX} parameters");
            }
            Payload::FunctionSection(section) => {
                functions = section.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
            }
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
                let ty = functions.next().and_then(|ty: u32| usize::try_from(ty).ok());
                all_work += work(&body, ty.and_then(|ty| parameters.get(ty).copied()).unwrap_or(0))?;
                ensure!(all_work <= WORK_MAX, "compiling it takes too long: it branches and calls too often");
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

/// Checks a function with so many parameters; how much work compiling it is. At each branch, also that to an error, the
/// compiler notes which variables are needed behind it. A call through the table is many branches.
fn work(body: &FunctionBody<'_>, parameters: usize) -> anyhow::Result<u64> {
    let mut locals = 0_u32;
    for group in body.get_locals_reader()? {
        locals = locals.saturating_add(group?.0);
    }
    ensure!(locals <= LOCALS_MAX, "it has a function with more than {LOCALS_MAX} variables");
    let (mut branches, mut indirect_calls) = (0_u64, 0_u64);
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::TableGrow { .. } => bail!("it enlarges the table"),
            Operator::CallIndirect { .. } => indirect_calls += 1,
            Operator::BrTable { targets } => branches += 1 + u64::from(targets.len()),
            Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::Else
            | Operator::Br { .. }
            | Operator::BrIf { .. }
            | Operator::Call { .. }
            | Operator::I32DivS
            | Operator::I32DivU
            | Operator::I32RemS
            | Operator::I32RemU
            | Operator::I64DivS
            | Operator::I64DivU
            | Operator::I64RemS
            | Operator::I64RemU => branches += 1,
            _ => {}
        }
    }
    let variables = parameters as u64 + u64::from(locals);
    // One function with many branches takes more than several with as many.
    let places = branches + indirect_calls;
    Ok((variables + 16) * (branches + 16 * indirect_calls) + places * places / 16)
}
