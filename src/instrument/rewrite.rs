//! Writes a module again with additional imports, globals, exports and instructions, and adjusts every index.

mod functions;

use std::collections::BTreeMap;
use std::convert::Infallible;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind, ExportSection,
    FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction, MemorySection, NameMap, NameSection,
    RawSection, StartSection, TableSection, TagSection, TypeSection, ValType,
};
use wasmparser::{
    BinaryReader, CodeSectionReader, CustomSectionReader, FunctionBody, FunctionSectionReader, KnownCustom, Parser,
    Payload, TypeRef,
};

use super::bulk::{self, Bulk};
use super::changes::Edit;
use super::hooks::{HOOK_MODULE, Hook};
use super::module::Module;
use super::outline::Outline;
use super::safepoints::Safepoints;
use super::{AUTHENTICATION, InstrumentError};

/// The differences between a rewritten module and the original.
#[derive(Default)]
pub(super) struct Rewrite {
    /// Functions imported from [`HOOK_MODULE`], after the original's.
    pub(super) hooks: &'static [Hook],
    /// Mutable `i32` globals, initially zero, exported under these names; after the original's.
    pub(super) globals: &'static [&'static str],
    /// Additional exports, by the original's indices.
    pub(super) exports: Vec<(String, ExportKind, u32)>,
    /// Edits of a function's body, in ascending order.
    pub(super) edits: BTreeMap<u32, Vec<Edit>>,
    /// Whether data segments and the start function, which initialise memory, are left out.
    pub(super) without_data: bool,
    /// Whether an imported memory becomes the module's own, and its table gets [`SPARE_TABLE_ELEMENTS`] more elements
    /// and a limit.
    pub(super) own_memory: bool,
    /// Where there are safepoints. If there are any, large copies are made in pieces.
    pub(super) safepoints: Safepoints,
    /// Names of functions for backtraces, by the original's indices.
    pub(super) names: BTreeMap<u32, String>,
    /// What becomes the last function, [`AUTHENTICATION`].
    pub(super) outline: Option<Outline>,
}

/// Elements that are added to the table, so that callbacks and the usual side modules fit without copying the table.
const SPARE_TABLE_ELEMENTS: u64 = 1024;

/// The limit of the table's size if the module has none: many times what all of PGlite's extensions use. Without a
/// limit, a library could make the host allocate any amount of memory.
const MAX_TABLE_ELEMENTS: u64 = 1 << 20;

impl Rewrite {
    /// Makes a function of a part of another one, which calls it there.
    ///
    /// # Errors
    /// If something else in that part is changed, or the module has no function without parameters and results.
    pub(super) fn outline(&mut self, module: &Module, outline: Outline) -> Result<(), InstrumentError> {
        let edits = self.edits.entry(outline.function).or_default();
        if edits.iter().any(|edit| edit.at.start < outline.region.end && outline.region.start <= edit.at.end) {
            return Err(InstrumentError::Unsupported("what becomes a function of its own is changed as well".into()));
        }
        let index = module.function_count();
        let hooks = u32::try_from(self.hooks.len()).unwrap_or(u32::MAX);
        edits.push(Edit { at: outline.region.clone(), with: vec![Instruction::Call(index + hooks)] });
        self.exports.push((AUTHENTICATION.to_owned(), ExportKind::Func, index));
        self.names.insert(index, AUTHENTICATION.to_owned());
        self.outline = Some(outline);
        Ok(())
    }

    /// Writes `module` with these changes.
    pub(super) fn apply(&self, module: &Module) -> Result<Vec<u8>, InstrumentError> {
        let added_functions = u32::try_from(self.hooks.len()).unwrap_or(u32::MAX);
        let first_bulk = (self.safepoints != Safepoints::None && Bulk::is_in(module))
            .then_some(module.function_count() + added_functions + u32::from(self.outline.is_some()));
        let mut writer = Writer {
            rewrite: self,
            original: module,
            added_functions,
            first_bulk,
            function: module.imported_functions,
        };
        let mut output = wasm_encoder::Module::new();
        for payload in Parser::new(0).parse_all(module.wasm) {
            writer.section(&mut output, payload?)?;
        }
        if !self.names.is_empty() {
            output.section(&writer.names());
        }
        Ok(output.finish())
    }
}

struct Writer<'a> {
    rewrite: &'a Rewrite,
    original: &'a Module<'a>,
    added_functions: u32,
    /// The index of the first function of [`Bulk::ALL`], which are the last ones of the module, if it needs them.
    first_bulk: Option<u32>,
    /// Index of the function whose body is next.
    function: u32,
}

impl Reencode for Writer<'_> {
    type Error = Infallible;

    fn function_index(&mut self, index: u32) -> Result<u32, reencode::Error<Infallible>> {
        Ok(if index < self.original.imported_functions { index } else { index + self.added_functions })
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: FunctionBody<'_>,
    ) -> Result<(), reencode::Error<Infallible>> {
        let function = self.function;
        self.function += 1;
        let edits = self.rewrite.edits.get(&function);
        if edits.is_none() && self.rewrite.safepoints == Safepoints::None {
            return reencode::utils::parse_function_body(self, code, body);
        }
        let edits = edits.map_or(&[][..], Vec::as_slice);
        code.function(&self.rewritten(function, &body, edits)?);
        Ok(())
    }
}

impl Writer<'_> {
    fn section(&mut self, output: &mut wasm_encoder::Module, payload: Payload) -> Result<(), InstrumentError> {
        match payload {
            Payload::TypeSection(section) => {
                let mut types = TypeSection::new();
                self.parse_type_section(&mut types, section)?;
                for hook in self.rewrite.hooks {
                    types.ty().function(hook.parameters().iter().copied(), hook.results().iter().copied());
                }
                if self.first_bulk.is_some() {
                    types.ty().function(bulk::PARAMETERS, []);
                }
                output.section(&types);
            }
            Payload::ImportSection(section) => {
                let mut imports = ImportSection::new();
                for import in section.into_imports() {
                    let import = import?;
                    if !(self.rewrite.own_memory && matches!(import.ty, TypeRef::Memory(_))) {
                        self.parse_import(&mut imports, import)?;
                    }
                }
                let first_type = u32::try_from(self.original.types.len()).unwrap_or(u32::MAX);
                for (ty, hook) in (first_type..).zip(self.rewrite.hooks) {
                    imports.import(HOOK_MODULE, hook.name(), EntityType::Function(ty));
                }
                output.section(&imports);
            }
            Payload::FunctionSection(section) => {
                output.section(&self.functions(section)?);
            }
            Payload::TableSection(section) => {
                let mut tables = TableSection::new();
                for table in section {
                    let table = table?;
                    let mut ty = self.table_type(table.ty)?;
                    if self.rewrite.own_memory {
                        ty.minimum += SPARE_TABLE_ELEMENTS;
                        ty.maximum = Some(ty.maximum.unwrap_or(MAX_TABLE_ELEMENTS).max(ty.minimum));
                    }
                    tables.table(ty);
                }
                output.section(&tables);
                if let (true, Some(memory)) = (self.rewrite.own_memory, self.original.memory) {
                    let mut memories = MemorySection::new();
                    memories.memory(self.memory_type(memory)?);
                    output.section(&memories);
                }
            }
            Payload::MemorySection(section) => {
                let mut memories = MemorySection::new();
                self.parse_memory_section(&mut memories, section)?;
                output.section(&memories);
            }
            Payload::GlobalSection(section) => {
                let mut globals = GlobalSection::new();
                self.parse_global_section(&mut globals, section)?;
                for _ in self.rewrite.globals {
                    let ty = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
                    globals.global(ty, &ConstExpr::i32_const(0));
                }
                output.section(&globals);
            }
            Payload::ExportSection(section) => {
                let mut exports = ExportSection::new();
                self.parse_export_section(&mut exports, section)?;
                self.add_exports(&mut exports)?;
                output.section(&exports);
            }
            Payload::StartSection { func, .. } if !self.rewrite.without_data => {
                output.section(&StartSection { function_index: self.function_index(func)? });
            }
            Payload::ElementSection(section) => {
                let mut elements = ElementSection::new();
                self.parse_element_section(&mut elements, section)?;
                output.section(&elements);
            }
            Payload::DataCountSection { count, .. } if !self.rewrite.without_data => {
                output.section(&DataCountSection { count });
            }
            Payload::CodeSectionStart { range, .. } => {
                let reader = BinaryReader::new(&self.original.wasm[range.clone()], range.start);
                output.section(&self.code(CodeSectionReader::new(reader)?)?);
            }
            Payload::DataSection(section) if !self.rewrite.without_data => {
                let mut data = DataSection::new();
                self.parse_data_section(&mut data, section)?;
                output.section(&data);
            }
            Payload::CustomSection(section) => self.copy_custom_section(output, &section),
            Payload::TagSection(section) => {
                let mut tags = TagSection::new();
                self.parse_tag_section(&mut tags, section)?;
                output.section(&tags);
            }
            Payload::UnknownSection { id, .. } => {
                return Err(InstrumentError::Unsupported(format!("it has a section of unknown kind {id}")));
            }
            _ => {}
        }
        Ok(())
    }

    fn functions(&mut self, section: FunctionSectionReader) -> Result<FunctionSection, InstrumentError> {
        let mut functions = FunctionSection::new();
        self.parse_function_section(&mut functions, section)?;
        if self.rewrite.outline.is_some() {
            functions.function(self.plain_type()?);
        }
        if self.first_bulk.is_some() {
            let last_type = u32::try_from(self.original.types.len() + self.rewrite.hooks.len()).unwrap_or(u32::MAX);
            for _ in Bulk::ALL {
                functions.function(last_type);
            }
        }
        Ok(functions)
    }

    fn code(&mut self, section: CodeSectionReader) -> Result<CodeSection, InstrumentError> {
        let mut code = CodeSection::new();
        self.parse_code_section(&mut code, section)?;
        if let Some(outline) = &self.rewrite.outline {
            code.function(&self.outlined(outline)?);
        }
        if self.first_bulk.is_some() {
            for bulk in Bulk::ALL {
                code.function(&bulk.function());
            }
        }
        Ok(code)
    }

    /// The index of the type of functions without parameters and results.
    fn plain_type(&self) -> Result<u32, InstrumentError> {
        let mut types = (0_u32..).zip(&self.original.types);
        let plain = types.find(|(_, ty)| ty.params().is_empty() && ty.results().is_empty());
        let missing = || InstrumentError::Unsupported("it has no function without parameters and results".into());
        plain.map(|(index, _)| index).ok_or_else(missing)
    }

    /// Copies a custom section, except for that of names, which is replaced.
    fn copy_custom_section(&self, output: &mut wasm_encoder::Module, section: &CustomSectionReader) {
        if self.rewrite.names.is_empty() || !matches!(section.as_known(), KnownCustom::Name(_)) {
            output.section(&RawSection { id: 0, data: &self.original.wasm[section.range()] });
        }
    }

    fn add_exports(&mut self, exports: &mut ExportSection) -> Result<(), InstrumentError> {
        for (name, kind, index) in &self.rewrite.exports {
            let index = if *kind == ExportKind::Func { self.function_index(*index)? } else { *index };
            exports.export(name, *kind, index);
        }
        let first_global = u32::try_from(self.original.globals.len()).unwrap_or(u32::MAX);
        for (index, name) in (first_global..).zip(self.rewrite.globals) {
            exports.export(name, ExportKind::Global, index);
        }
        Ok(())
    }

    fn names(&self) -> NameSection {
        let imported = self.original.imported_functions;
        let (imports, defined) = (self.rewrite.names.range(..imported), self.rewrite.names.range(imported..));
        let mut functions = NameMap::new();
        for (&index, name) in imports {
            functions.append(index, name);
        }
        for (index, hook) in (imported..).zip(self.rewrite.hooks) {
            functions.append(index, hook.name());
        }
        for (&index, name) in defined {
            functions.append(index + self.added_functions, name);
        }
        for (index, bulk) in self.first_bulk.into_iter().flat_map(|first| (first..).zip(Bulk::ALL)) {
            functions.append(index, bulk.name());
        }
        let mut names = NameSection::new();
        names.functions(&functions);
        names
    }
}
