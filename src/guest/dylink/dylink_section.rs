//! The description of an Emscripten side module ("shared object") for its loader: its requirements, symbols and data.
//!
//! The format is the tool conventions' `dylink.0` section (WebAssembly tool-conventions, `DynamicLinking.md`). The
//! code is separated from the data (`instrument_side_module`), because the memory of a clone already contains the data
//! as they were changed since.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, bail, ensure};
use wasmparser::{
    DataKind, Dylink0Subsection, ElementItems, ElementKind, ExternalKind, KnownCustom, Operator, Parser, Payload,
    SymbolFlags, TypeRef,
};

use crate::instrument::side_module_globals;

/// The description of a side module for its loader.
#[derive(Debug, Default)]
pub(crate) struct Description {
    /// Bytes of memory for its data.
    pub(crate) memory_size: u32,
    /// The alignment of that memory in bytes.
    pub(crate) memory_alignment: u32,
    /// The number of table entries for its functions.
    pub(crate) table_size: u32,
    /// Names of libraries that must be loaded before it.
    pub(crate) needed: Vec<String>,
    /// Symbols that may be undefined.
    pub(crate) weak: HashSet<String>,
    /// Initial data, by offset from its memory base.
    pub(crate) data: Vec<(u32, Vec<u8>)>,
    /// Names of the mutable globals that it defines. Its start function computes them, once in the life of a memory.
    pub(crate) mutable_globals: Vec<String>,
    /// Its exports, by name.
    pub(crate) symbols: HashMap<String, Symbol>,
}

/// The meaning of an exported name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// A function, and its offset from the table base if the module's own elements contain it.
    Function(Option<u32>),
    /// A datum, by its offset from the memory base.
    Data(u32),
}

impl Description {
    /// The description of the side module `wasm`.
    ///
    /// # Errors
    /// When it is not a side module, or uses features that Emscripten's loader does not support.
    pub(crate) fn parse(wasm: &[u8]) -> anyhow::Result<Self> {
        ensure!(wasm.starts_with(b"\0asm"), "it is not WebAssembly");
        let mut description = Self { mutable_globals: side_module_globals(wasm)?, ..Self::default() };
        let mut is_side_module = false;
        let mut constants = Vec::new(); // the values of the globals that the module defines
        let mut imported_globals = 0;
        let mut elements = HashMap::new();
        let mut exports = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::CustomSection(section) => {
                    if let KnownCustom::Dylink0(subsections) = section.as_known() {
                        is_side_module = true;
                        read_dylink(subsections, &mut description)?;
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        imported_globals += u32::from(matches!(import?.ty, TypeRef::Global(_)));
                    }
                }
                Payload::GlobalSection(section) => {
                    for global in section {
                        constants.push(constant(&global?.init_expr)?);
                    }
                }
                Payload::ElementSection(section) => {
                    for element in section {
                        read_element(element?, &mut elements)?;
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        exports.push((export.name.to_owned(), export.kind, export.index));
                    }
                }
                Payload::DataSection(section) => {
                    for segment in section {
                        let segment = segment?;
                        let DataKind::Active { offset_expr, .. } = segment.kind else {
                            bail!("it has passive data segments, which are not supported");
                        };
                        let offset = constant(&offset_expr)?.context("the offset of a data segment is not constant")?;
                        description.data.push((offset, segment.data.to_vec()));
                    }
                }
                _ => {}
            }
        }
        ensure!(is_side_module, "it is not an Emscripten side module: there is no dylink.0 section");
        for (name, kind, index) in exports {
            let symbol = match kind {
                ExternalKind::Func => Symbol::Function(elements.get(&index).copied()),
                ExternalKind::Global => {
                    let value = index.checked_sub(imported_globals).and_then(|index| *constants.get(index as usize)?);
                    match value {
                        Some(offset) => Symbol::Data(offset),
                        None => continue,
                    }
                }
                _ => continue,
            };
            description.symbols.insert(name, symbol);
        }
        Ok(description)
    }
}

fn read_dylink(subsections: wasmparser::Dylink0SectionReader<'_>, description: &mut Description) -> anyhow::Result<()> {
    for subsection in subsections {
        match subsection? {
            Dylink0Subsection::MemInfo(info) => {
                let alignment =
                    1_u32.checked_shl(info.memory_alignment).context("its memory alignment is too large")?;
                description.memory_size = info.memory_size;
                description.memory_alignment = alignment;
                description.table_size = info.table_size;
                ensure!(info.table_alignment == 0, "it requires aligned table entries, which are not supported");
            }
            Dylink0Subsection::ImportInfo(imports) => {
                let weak = imports.iter().filter(|import| import.flags.contains(SymbolFlags::BINDING_WEAK));
                description.weak = weak.map(|import| import.field.to_owned()).collect();
            }
            Dylink0Subsection::Needed(needed) => {
                description.needed = needed.iter().map(|&name| name.to_owned()).collect();
            }
            _ => {}
        }
    }
    Ok(())
}

/// Stores the first offset of every function in a segment at the table base.
fn read_element(element: wasmparser::Element<'_>, elements: &mut HashMap<u32, u32>) -> anyhow::Result<()> {
    let ElementKind::Active { offset_expr, .. } = element.kind else { return Ok(()) };
    let base = constant(&offset_expr)?.context("the offset of an element segment is not constant")?;
    let ElementItems::Functions(functions) = element.items else { return Ok(()) };
    for (function, slot) in functions.into_iter().zip(base..=u32::MAX) {
        elements.entry(function?).or_insert(slot);
    }
    Ok(())
}

/// The constant in `base + constant`, `base` or `constant`, where base is an imported global; `None` for anything
/// else.
fn constant(expression: &wasmparser::ConstExpr<'_>) -> anyhow::Result<Option<u32>> {
    let mut value = Some(0_u32);
    for operator in expression.get_operators_reader() {
        value = match operator? {
            Operator::I32Const { value: constant } => value.map(|value| value.wrapping_add(constant.cast_unsigned())),
            Operator::GlobalGet { .. } | Operator::I32Add | Operator::End => value,
            _ => None,
        };
    }
    Ok(value)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::instrument::instrument_side_module;

    /// A side module with one datum `answer` at offset 4, one function `f` in the table at offset 1, and 8 bytes of
    /// data.
    pub(in crate::guest::dylink) fn side_module() -> Vec<u8> {
        use wasm_encoder::*;
        let mut module = Module::new();
        module.section(&CustomSection {
            name: "dylink.0".into(),
            // Subsection 1 (memory information), 4 bytes: size 16, alignment 2^4, table size 2, table alignment 2^0.
            data: (&[1_u8, 4, 16, 4, 2, 0][..]).into(),
        });
        let mut types = TypeSection::new();
        types.ty().function([], []);
        module.section(&types);
        let mut imports = ImportSection::new();
        let base = GlobalType { val_type: ValType::I32, mutable: false, shared: false };
        imports.import(
            "env",
            "memory",
            MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None },
        );
        imports.import(
            "env",
            "__indirect_function_table",
            TableType { element_type: RefType::FUNCREF, minimum: 2, maximum: None, table64: false, shared: false },
        );
        imports.import("env", "__memory_base", base);
        imports.import("env", "__table_base", base);
        module.section(&imports);
        let mut functions = FunctionSection::new();
        functions.function(0).function(0);
        module.section(&functions);
        let mut globals = GlobalSection::new();
        globals.global(base, &ConstExpr::i32_const(4));
        module.section(&globals);
        let mut exports = ExportSection::new();
        exports.export("f", ExportKind::Func, 1).export("g", ExportKind::Func, 0).export(
            "answer",
            ExportKind::Global,
            2,
        );
        module.section(&exports);
        let mut elements = ElementSection::new();
        elements.active(
            None,
            &ConstExpr::extended([Instruction::GlobalGet(1), Instruction::I32Const(1), Instruction::I32Add]),
            Elements::Functions((&[1_u32][..]).into()),
        );
        module.section(&elements);
        module.section(&DataCountSection { count: 1 });
        let mut code = CodeSection::new();
        for _ in 0..2 {
            let mut body = Function::new([]);
            body.instruction(&Instruction::End);
            code.function(&body);
        }
        module.section(&code);
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::global_get(0), *b"\0\0\0\0\x2a\0\0\0");
        module.section(&data);
        module.finish()
    }

    #[test]
    fn a_side_module_is_taken_apart() {
        let wasm = side_module();
        wasmparser::validate(&wasm).unwrap();
        let description = Description::parse(&wasm).unwrap();
        assert_eq!((description.memory_size, description.memory_alignment, description.table_size), (16, 16, 2));
        let symbols = [("f", Symbol::Function(Some(1))), ("g", Symbol::Function(None)), ("answer", Symbol::Data(4))];
        assert_eq!(description.symbols, symbols.map(|(name, symbol)| (name.to_owned(), symbol)).into());
        assert_eq!(description.data, [(0, b"\0\0\0\0\x2a\0\0\0".to_vec())]);
    }

    #[test]
    fn the_code_of_a_side_module_is_valid_and_has_no_data() {
        let code = instrument_side_module(&side_module()).unwrap();
        wasmparser::validate(&code).unwrap();
        assert!(Description::parse(&code).unwrap().data.is_empty());
    }

    #[test]
    fn a_file_that_is_no_side_module_is_refused() {
        assert!(
            Description::parse(&wasm_encoder::Module::new().finish()).unwrap_err().to_string().contains("dylink.0")
        );
        assert!(Description::parse(b"\x7fELF").is_err());
    }
}
