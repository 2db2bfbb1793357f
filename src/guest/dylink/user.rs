//! Libraries that did not come with the program, for `--allow-user-libraries`: what they may be.
//!
//! A library can do anything in its guest, as in PostgreSQL. These limits protect the host: what it allocates for a
//! library, and how long it compiles one.

use super::dylink_section::Description;
use anyhow::{bail, ensure};
use wasmparser::{
    FuncValidator, FuncValidatorAllocations, FunctionBody, ImportSectionReader, Operator, Parser, Payload, TypeRef,
    ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

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
/// How much memory that takes, in bytes for each.
const MEMORY_OF_WORK: u64 = 22;
/// The most parameters of a function. A call takes two bytes and copies each of them.
const PARAMETERS_MAX: usize = 100;
/// The most types, imports, exports and global variables, each: many times those of any library of PGlite.
const ENTRIES_MAX: u32 = 10_000;
/// The most functions `invoke_…` that it imports: the host makes those that PGlite does not have.
const INVOKING_MAX: u32 = 64;
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
/// table, and is not too large; and how many bytes of memory compiling it may take.
///
/// # Errors
/// When it is not so, or is not valid.
pub(super) fn describe(wasm: &[u8]) -> anyhow::Result<(Description, u64)> {
    ensure!(wasm.len() <= LENGTH_MAX, "it is longer than {LENGTH_MAX} bytes");
    // Two bytes of code would copy as many values as a function has results, or a block parameters: of 65 kB the
    // compiler makes more than 20 GB. C has at most one result, and no such blocks.
    let mut validator = Validator::new_with_features(FEATURES.difference(WasmFeatures::MULTI_VALUE));
    let (mut allocations, mut all_work) = (FuncValidatorAllocations::default(), 0);
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let ValidPayload::Func(function, body) = validator.payload(&payload)? {
            ensure!(body.range().len() <= BODY_MAX, "it has a function of more than {BODY_MAX} bytes");
            let mut function = function.into_validator(allocations);
            all_work += work(&mut function, &body)?;
            ensure!(all_work <= WORK_MAX, "compiling it takes too long: it branches and calls too often");
            allocations = function.into_allocations();
        }
        match payload {
            Payload::TypeSection(section) => {
                check_number(section.count(), "types")?;
                for ty in section.into_iter_err_on_gc_types() {
                    let has_few = ty?.params().len() <= PARAMETERS_MAX;
                    ensure!(has_few, "it has a function with more than {PARAMETERS_MAX} parameters");
                }
            }
            Payload::GlobalSection(section) => check_number(section.count(), "global variables")?,
            Payload::ExportSection(section) => check_number(section.count(), "exports")?,
            Payload::MemorySection(section) => ensure!(section.count() == 0, "it has a memory of its own"),
            Payload::TableSection(section) => ensure!(section.count() == 0, "it has a table of its own"),
            Payload::ImportSection(section) => {
                check_number(section.count(), "imports")?;
                check_imports(section)?;
            }
            Payload::CodeSectionStart { count, .. } => {
                ensure!(count <= FUNCTIONS_MAX, "it has more than {FUNCTIONS_MAX} functions");
            }
            _ => {}
        }
    }
    let description = Description::parse(wasm)?;
    ensure!(description.memory_size <= MEMORY_MAX, "it needs more than {MEMORY_MAX} bytes of memory");
    ensure!(description.memory_alignment <= ALIGNMENT_MAX, "its memory is aligned to more than {ALIGNMENT_MAX} bytes");
    ensure!(description.table_size <= TABLE_MAX, "it needs more than {TABLE_MAX} entries of the table");
    Ok((description, all_work * MEMORY_OF_WORK))
}

fn check_number(of: u32, what: &str) -> anyhow::Result<()> {
    ensure!(of <= ENTRIES_MAX, "it has more than {ENTRIES_MAX} {what}");
    Ok(())
}

/// Checks that these are few functions `invoke_…`, and no memory and no table but the guest's.
fn check_imports(imports: ImportSectionReader<'_>) -> anyhow::Result<()> {
    let mut invoking = 0;
    for import in imports.into_imports() {
        let import = import?;
        if let Some(signature) = import.name.strip_prefix("invoke_") {
            invoking += 1;
            ensure!(invoking <= INVOKING_MAX, "it has more than {INVOKING_MAX} imports named invoke_…");
            let is_short = signature.len() <= 1 + PARAMETERS_MAX;
            ensure!(is_short, "it has a function with more than {PARAMETERS_MAX} parameters");
        }
        let expected = match import.ty {
            TypeRef::Memory(_) => ("env", "memory"),
            TypeRef::Table(_) => ("env", "__indirect_function_table"),
            TypeRef::Tag(_) => bail!("it uses exceptions"),
            TypeRef::Func(_) | TypeRef::FuncExact(_) | TypeRef::Global(_) => continue,
        };
        ensure!((import.module, import.name) == expected, "it needs another memory or table");
    }
    Ok(())
}

/// Checks a function; how much work compiling it is. At each branch, also that to an error, and each call the compiler
/// notes which variables and values on the stack are needed behind it.
fn work(function: &mut FuncValidator<ValidatorResources>, body: &FunctionBody<'_>) -> anyhow::Result<u64> {
    let mut reader = body.get_binary_reader();
    function.read_locals(&mut reader)?;
    // Its parameters are among them.
    let variables = function.len_locals();
    ensure!(variables <= LOCALS_MAX, "it has a function with more than {LOCALS_MAX} variables");
    let (mut work, mut places) = (0, 0);
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        let (operator, offset) = operators.read_with_offset()?;
        ensure!(!matches!(operator, Operator::TableGrow { .. }), "it enlarges the table");
        let values = u64::from(function.operand_stack_height());
        function.op(offset, &operator)?;
        let branches = branches(&operator);
        work += (u64::from(variables) + values + 16) * branches;
        places += if matches!(operator, Operator::CallIndirect { .. }) { 1 } else { branches };
    }
    operators.get_binary_reader().finish_expression(&function.visitor(operators.original_position()))?;
    // One function with many branches takes more than several with as many.
    Ok(work + places * places / 16)
}

/// The number of branches and calls that an instruction becomes, one to an error included.
fn branches(operator: &Operator<'_>) -> u64 {
    match operator {
        Operator::BrTable { targets } => 1 + u64::from(targets.len()),
        // The index, the type and the function are looked at, which may not be there yet.
        Operator::CallIndirect { .. } => 16,
        // The length is looked at (`instrument/bulk.rs`).
        Operator::MemoryCopy { .. } | Operator::MemoryFill { .. } => 4,
        // A loop.
        Operator::TableFill { .. } | Operator::TableCopy { .. } | Operator::TableInit { .. } => 6,
        Operator::TableGet { .. } | Operator::TableSet { .. } => 3,
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::Return
        | Operator::Call { .. }
        | Operator::RefFunc { .. }
        | Operator::MemoryGrow { .. }
        | Operator::MemoryInit { .. }
        | Operator::DataDrop { .. }
        | Operator::ElemDrop { .. }
        | Operator::I32DivS
        | Operator::I32DivU
        | Operator::I32RemS
        | Operator::I32RemU
        | Operator::I64DivS
        | Operator::I64DivU
        | Operator::I64RemS
        | Operator::I64RemU
        | Operator::I32TruncF32S
        | Operator::I32TruncF32U
        | Operator::I32TruncF64S
        | Operator::I32TruncF64U
        | Operator::I64TruncF32S
        | Operator::I64TruncF32U
        | Operator::I64TruncF64S
        | Operator::I64TruncF64U => 1,
        _ => 0,
    }
}
