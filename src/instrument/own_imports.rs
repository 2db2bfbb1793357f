//! Imports of a side module that it defines itself.
//!
//! Compilers of C++ let a library import functions that it exports as well, such as instances of templates, so that all
//! libraries of a process have one definition. Emscripten's loader makes such an import a function of JavaScript that
//! calls the export. Here the module is written again without the import, and calls the function itself.

use std::{collections::HashMap, convert::Infallible};

use wasm_encoder::ImportSection;
use wasm_encoder::reencode::{self, Reencode};
use wasmparser::{ExternalKind, Import, ImportSectionReader, Parser, Payload, TypeRef};

use super::InstrumentError;
use super::module::Module;

/// The import module of symbols.
const SYMBOLS: &str = "env";

/// `wasm` without the functions among its imports that it exports itself, with the same type; `None` if it has none.
///
/// # Errors
/// If the bytes are not a module.
pub(super) fn resolve(wasm: &[u8]) -> Result<Option<Vec<u8>>, InstrumentError> {
    let module = Module::parse(wasm)?;
    let exports = module.exports.iter().filter(|export| export.kind == ExternalKind::Func);
    let defined: HashMap<&str, u32> = exports.map(|export| (export.name, export.index)).collect();
    let mut indices = Vec::new();
    let (mut kept, mut own) = (0, Vec::new());
    for (index, import) in (0..).zip(imported_functions(wasm)?) {
        let definition = defined.get(import.name).copied().filter(|_| import.module == SYMBOLS);
        let is_own = |definition: &u32| {
            *definition >= module.imported_functions && module.function_type(*definition) == module.function_type(index)
        };
        if let Some(definition) = definition.filter(is_own) {
            own.push(index);
            indices.push(definition);
        } else {
            indices.push(kept);
            kept += 1;
        }
    }
    if own.is_empty() {
        return Ok(None);
    }
    let removed = module.imported_functions - kept;
    // Those that stand for a definition have its index in the original until now.
    for &index in &own {
        indices[index as usize] -= removed;
    }
    let mut writer = Writer { indices, own, removed, function: 0 };
    let mut output = wasm_encoder::Module::new();
    writer.parse_core_module(&mut output, Parser::new(0), wasm)?;
    Ok(Some(output.finish()))
}

fn imported_functions(wasm: &[u8]) -> Result<Vec<Import<'_>>, InstrumentError> {
    let mut functions = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let Payload::ImportSection(section) = payload? else { continue };
        for import in section.into_imports() {
            let import = import?;
            if matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                functions.push(import);
            }
        }
    }
    Ok(functions)
}

struct Writer {
    /// The new index of each imported function.
    indices: Vec<u32>,
    /// The imports that are left out, in ascending order.
    own: Vec<u32>,
    /// Their number.
    removed: u32,
    /// The index of the imported function that is next.
    function: u32,
}

impl Reencode for Writer {
    type Error = Infallible;

    fn function_index(&mut self, index: u32) -> Result<u32, reencode::Error<Infallible>> {
        Ok(self.indices.get(index as usize).copied().unwrap_or(index.wrapping_sub(self.removed)))
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: ImportSectionReader<'_>,
    ) -> Result<(), reencode::Error<Infallible>> {
        for import in section.into_imports() {
            let import = import?;
            if matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                let index = self.function;
                self.function += 1;
                if self.own.binary_search(&index).is_ok() {
                    continue;
                }
            }
            self.parse_import(imports, import)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{
        CodeSection, ConstExpr, ElementSection, Elements, EntityType, ExportKind, ExportSection, Function,
        FunctionSection, Instruction, MemoryType, RefType, TableSection, TableType, TypeSection, ValType,
    };
    use wasmtime::{Engine, Instance, Store};

    use super::*;

    /// A module that imports `host`, `own` and `other`, defines `own` (41) and `other` (of another type), and calls `own`
    /// directly and through its table.
    fn sample() -> Vec<u8> {
        let mut module = wasm_encoder::Module::new();
        let mut types = TypeSection::new();
        types.ty().function([], [ValType::I32]);
        types.ty().function([], []);
        let mut imports = ImportSection::new();
        let memory = MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None };
        imports.import("env", "memory", memory);
        for name in ["own", "host", "other"] {
            imports.import("env", name, EntityType::Function(0));
        }
        let mut functions = FunctionSection::new();
        functions.function(0).function(1).function(0);
        let mut tables = TableSection::new();
        let element_type = RefType::FUNCREF;
        tables.table(TableType { element_type, minimum: 2, maximum: None, table64: false, shared: false });
        let mut exports = ExportSection::new();
        for (name, index) in [("own", 3), ("other", 4), ("sum", 5)] {
            exports.export(name, ExportKind::Func, index);
        }
        let mut elements = ElementSection::new();
        elements.active(None, &ConstExpr::i32_const(0), Elements::Functions((&[0_u32, 1][..]).into()));
        let mut code = CodeSection::new();
        let call = |index| Instruction::CallIndirect { type_index: 0, table_index: index };
        let bodies: [&[Instruction<'_>]; 3] = [
            &[Instruction::I32Const(41), Instruction::End],
            &[Instruction::End],
            &[
                Instruction::Call(0),
                Instruction::Call(1),
                Instruction::I32Add,
                Instruction::Call(2),
                Instruction::I32Add,
                Instruction::I32Const(0),
                call(0),
                Instruction::I32Add,
                Instruction::End,
            ],
        ];
        for body in bodies {
            let mut function = Function::new([]);
            for instruction in body {
                function.instruction(instruction);
            }
            code.function(&function);
        }
        module.section(&types).section(&imports).section(&functions).section(&tables).section(&exports);
        module.section(&elements).section(&code);
        module.finish()
    }

    #[test]
    fn what_a_module_defines_itself_is_called_and_no_longer_imported() {
        let resolved = resolve(&sample()).unwrap().unwrap();
        wasmparser::validate(&resolved).unwrap();
        let engine = Engine::default();
        let module = wasmtime::Module::new(&engine, &resolved).unwrap();
        let names: Vec<_> = module.imports().map(|import| import.name().to_owned()).collect();
        // What has another type is not the same function.
        assert_eq!(names, ["memory", "host", "other"]);
        let mut store = Store::new(&engine, ());
        let memory = wasmtime::Memory::new(&mut store, wasmtime::MemoryType::new(1, None)).unwrap();
        let host = wasmtime::Func::wrap(&mut store, || 1000_i32);
        let other = wasmtime::Func::wrap(&mut store, || 500_i32);
        let instance = Instance::new(&mut store, &module, &[memory.into(), host.into(), other.into()]).unwrap();
        let sum = instance.get_typed_func::<(), i32>(&mut store, "sum").unwrap();
        assert_eq!(sum.call(&mut store, ()).unwrap(), 41 + 1000 + 500 + 41);
        assert_eq!(resolve(&resolved).unwrap(), None);
    }
}
