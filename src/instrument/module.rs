//! The facts about a WebAssembly module that the rewriter needs, read once.

use std::collections::BTreeMap;
use std::ops::Range;

use wasmparser::{
    Data, DataKind, Element, ElementItems, ElementKind, Export, ExternalKind, FuncType, FunctionBody, GlobalType,
    KnownCustom, MemoryType, Name, Operator, Parser, Payload, TypeRef,
};

use super::InstrumentError;

/// A module's sections, in the index spaces of the WebAssembly specification.
#[derive(Default)]
pub(super) struct Module<'a> {
    pub(super) wasm: &'a [u8],
    /// Function types by type index.
    pub(super) types: Vec<FuncType>,
    pub(super) imported_functions: u32,
    /// Type index of every function, imported ones first.
    function_types: Vec<u32>,
    /// Bodies of the functions that are not imported.
    pub(super) bodies: Vec<FunctionBody<'a>>,
    pub(super) exports: Vec<Export<'a>>,
    pub(super) imported_globals: u32,
    /// Every global, imported ones first.
    pub(super) globals: Vec<Global>,
    pub(super) memory: Option<MemoryType>,
    /// Initial number of elements of the module's own table.
    pub(super) table_elements: Option<u64>,
    /// For every function that an element segment puts into the table at a constant index, its first slot.
    table_slots: BTreeMap<u32, u32>,
    /// Whether there are other element segments.
    table_is_filled_otherwise: bool,
    pub(super) data: Vec<Data<'a>>,
    pub(super) start: Option<u32>,
    /// Function names of imports and of the `name` section.
    pub(super) names: BTreeMap<u32, &'a str>,
}

/// A global variable of a module.
pub(super) struct Global {
    pub(super) ty: GlobalType,
    /// The initial value, if it is a constant `i32`.
    pub(super) initial: Option<i32>,
}

/// A mutable global and its export name, which it may get only by the rewrite.
pub(super) struct MutableGlobal {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_exported: bool,
}

impl<'a> Module<'a> {
    /// Reads a module.
    ///
    /// # Errors
    /// If the bytes are not a module, or one with more than one memory.
    pub(super) fn parse(wasm: &'a [u8]) -> Result<Self, InstrumentError> {
        let mut module = Self { wasm, ..Self::default() };
        for payload in Parser::new(0).parse_all(wasm) {
            module.read(payload?)?;
        }
        Ok(module)
    }

    fn read(&mut self, payload: Payload<'a>) -> Result<(), InstrumentError> {
        match payload {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    self.types.push(ty?);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    self.import(import.name, import.ty)?;
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.function_types.push(ty?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.table_elements.get_or_insert(table?.ty.initial);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.add_memory(memory?)?;
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let global = global?;
                    let initial = constant(&global.init_expr)?;
                    self.globals.push(Global { ty: global.ty, initial });
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    self.exports.push(export?);
                }
            }
            Payload::ElementSection(section) => {
                for element in section {
                    self.elements(element?)?;
                }
            }
            Payload::StartSection { func, .. } => self.start = Some(func),
            Payload::CodeSectionEntry(body) => self.bodies.push(body),
            Payload::DataSection(section) => {
                for data in section {
                    self.data.push(data?);
                }
            }
            Payload::CustomSection(section) => self.custom(&section.as_known())?,
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, name: &'a str, ty: TypeRef) -> Result<(), InstrumentError> {
        match ty {
            TypeRef::Func(ty) | TypeRef::FuncExact(ty) => {
                self.names.insert(self.imported_functions, name);
                self.imported_functions += 1;
                self.function_types.push(ty);
            }
            TypeRef::Global(ty) => {
                self.imported_globals += 1;
                self.globals.push(Global { ty, initial: None });
            }
            TypeRef::Memory(ty) => self.add_memory(ty)?,
            TypeRef::Table(_) | TypeRef::Tag(_) => {}
        }
        Ok(())
    }

    fn elements(&mut self, element: Element<'a>) -> Result<(), InstrumentError> {
        let first = match element.kind {
            ElementKind::Active { offset_expr, .. } => constant(&offset_expr)?,
            ElementKind::Passive | ElementKind::Declared => None,
        };
        let (Some(first), ElementItems::Functions(functions)) = (first, element.items) else {
            self.table_is_filled_otherwise = true;
            return Ok(());
        };
        for (function, slot) in functions.into_iter().zip(first.cast_unsigned()..=u32::MAX) {
            self.table_slots.entry(function?).or_insert(slot);
        }
        Ok(())
    }

    fn add_memory(&mut self, memory: MemoryType) -> Result<(), InstrumentError> {
        match self.memory.replace(memory) {
            None => Ok(()),
            Some(_) => Err(InstrumentError::Unsupported("it has more than one memory".into())),
        }
    }

    /// Reads the names of functions, if the custom section has them.
    fn custom(&mut self, section: &KnownCustom<'a>) -> Result<(), InstrumentError> {
        let KnownCustom::Name(subsections) = section else { return Ok(()) };
        for subsection in subsections.clone() {
            if let Name::Function(names) = subsection? {
                for naming in names {
                    let naming = naming?;
                    self.names.insert(naming.index, naming.name);
                }
            }
        }
        Ok(())
    }

    /// The number of functions, imported ones included.
    pub(super) fn function_count(&self) -> u32 {
        u32::try_from(self.function_types.len()).unwrap_or(u32::MAX)
    }

    /// The type of the function with this index.
    pub(super) fn function_type(&self, index: u32) -> Option<&FuncType> {
        self.types.get(*self.function_types.get(index as usize)? as usize)
    }

    /// The body of the function with this index, unless it is imported.
    pub(super) fn body(&self, index: u32) -> Option<&FunctionBody<'a>> {
        self.bodies.get(index.checked_sub(self.imported_functions)? as usize)
    }

    /// All instructions of the function with this index, the closing `end` included; none if it is imported.
    pub(super) fn operators(&self, index: u32) -> Result<Vec<Operator<'a>>, InstrumentError> {
        match self.body(index) {
            Some(body) => Ok(body.get_operators_reader()?.into_iter().collect::<Result<_, _>>()?),
            None => Ok(Vec::new()),
        }
    }

    /// Indices of the functions that are not imported.
    pub(super) fn defined_functions(&self) -> Range<u32> {
        self.imported_functions..self.function_count()
    }

    /// The index of the export of this kind and name.
    pub(super) fn exported(&self, kind: ExternalKind, name: &str) -> Option<u32> {
        self.exports.iter().find(|export| export.kind == kind && export.name == name).map(|export| export.index)
    }

    /// Every active data segment with a constant offset, as offset and bytes.
    ///
    /// # Errors
    /// If a segment is passive, or its offset is known only when the module is instantiated.
    pub(super) fn static_data(&self) -> Result<Vec<(u32, &'a [u8])>, InstrumentError> {
        let place = |(number, data): (usize, &Data<'a>)| {
            let offset = match &data.kind {
                DataKind::Active { offset_expr, .. } => constant(offset_expr)?,
                DataKind::Passive => None,
            };
            offset.map(|offset| (offset.cast_unsigned(), data.data)).ok_or_else(|| {
                InstrumentError::Unsupported(format!("data segment {number} is not written to a constant offset"))
            })
        };
        self.data.iter().enumerate().map(place).collect()
    }

    /// Checks that data segments are only written when the module is instantiated.
    ///
    /// # Errors
    /// If one is passive, or an instruction uses one.
    pub(super) fn refuse_passive_data(&self) -> Result<(), InstrumentError> {
        if let Some(number) = self.data.iter().position(|data| matches!(data.kind, DataKind::Passive)) {
            return Err(InstrumentError::Unsupported(format!("data segment {number} is passive")));
        }
        for (function, body) in (self.imported_functions..).zip(&self.bodies) {
            for operator in body.get_operators_reader()? {
                if let Operator::MemoryInit { .. } | Operator::DataDrop { .. } = operator? {
                    let what = format!("function {function} uses a data segment at run time");
                    return Err(InstrumentError::Unsupported(what));
                }
            }
        }
        Ok(())
    }

    /// Data symbols by name: Emscripten exports each as an immutable global whose value is its address.
    pub(super) fn data_symbols(&self) -> BTreeMap<String, u32> {
        let symbol = |export: &Export| {
            let global = self.globals.get(export.index as usize)?;
            let is_symbol = export.kind == ExternalKind::Global && !global.ty.mutable;
            let address = global.initial.filter(|_| is_symbol)?;
            Some((export.name.to_owned(), address.cast_unsigned()))
        };
        self.exports.iter().filter_map(symbol).collect()
    }

    /// The first table slot of every exported function that has one, by name.
    ///
    /// # Errors
    /// If the table is filled with anything but functions at constant indices.
    pub(super) fn exported_table_slots(&self) -> Result<BTreeMap<String, u32>, InstrumentError> {
        if self.table_is_filled_otherwise {
            let what = "its table is not filled with functions at constant indices";
            return Err(InstrumentError::Unsupported(what.into()));
        }
        let functions = self.exports.iter().filter(|export| export.kind == ExternalKind::Func);
        let slot = |export: &Export| Some((export.name.to_owned(), *self.table_slots.get(&export.index)?));
        Ok(functions.filter_map(slot).collect())
    }

    /// The function whose first table slot that is.
    pub(super) fn function_in(&self, slot: u32) -> Option<u32> {
        self.table_slots.iter().find(|(_, it)| **it == slot).map(|(&function, _)| function)
    }

    /// The module's own mutable globals. One that is not exported gets a name.
    pub(super) fn mutable_globals(&self) -> Vec<MutableGlobal> {
        let own = (0_u32..).zip(&self.globals).skip(self.imported_globals as usize);
        // The first export of one counts.
        let exports = self.exports.iter().rev().filter(|it| it.kind == ExternalKind::Global);
        let exports: BTreeMap<u32, _> = exports.map(|it| (it.index, it)).collect();
        let named = |(index, _)| {
            let exported = exports.get(&index);
            MutableGlobal {
                index,
                name: exported.map_or_else(|| format!("pglite_port.global.{index}"), |it| it.name.to_owned()),
                is_exported: exported.is_some(),
            }
        };
        own.filter(|(_, global)| global.ty.mutable).map(named).collect()
    }
}

/// The value of an initialiser that is a single `i32.const`.
fn constant(expression: &wasmparser::ConstExpr) -> Result<Option<i32>, InstrumentError> {
    let mut operators = expression.get_operators_reader();
    match (operators.read()?, operators.read()?) {
        (Operator::I32Const { value }, Operator::End) => Ok(Some(value)),
        _ => Ok(None),
    }
}
