//! The side module with everything of the runtime that has an address: vtables and type information of the classes, and
//! the functions in the vtables.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::LazyLock,
};

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, CustomSection, DataSection, ElementSection, Elements, Encode, EntityType,
    ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction,
    MemArg, MemoryType, Module, RefType, TableType, TypeSection, ValType,
};

use super::{
    classes::{CLASSES, Class, FUNDAMENTAL, FUNDAMENTAL_TYPE, POINTER, TYPE_INFOS, What},
    data::{Data, POINTER_SIZE, Pointee, Word},
};
use crate::instrument::{CLASS, SINGLE};

/// The bytes of a vtable before the place that objects point to: the offset of the whole object, and the type
/// information.
const VTABLE_HEAD: u32 = 2 * POINTER_SIZE;

/// The number of virtual functions of a class of type information (libc++abi, `src/private_typeinfo.h`).
const TYPE_INFO_FUNCTIONS: usize = 8;

/// In the type information of a pointer: what it points to is constant (2.9.5.7 of the ABI).
const CONSTANT: u32 = 1;

/// Where an exception with a message has it: a pointer to the characters.
const MESSAGE: u32 = 4;
/// libc++'s reference-counted string (`src/include/refstring.h`): its head before the characters, and in that the
/// number of further owners.
const STRING_HEAD: i32 = 12;
const STRING_OWNERS: u32 = 8;

/// Indices of imported globals and functions, and of types.
const MEMORY_BASE: u32 = 0;
const TABLE_BASE: u32 = 1;
const FIRST_SYMBOL: u32 = 2;
const FREE: u32 = 0;
const IMPORTED_FUNCTIONS: u32 = 1;
const ALONE: u32 = 0;
const OF_OBJECT: u32 = 1;
const WITH_RESULT: u32 = 2;

/// The side module.
pub(in crate::guest) fn wasm() -> Vec<u8> {
    Runtime::new().encode()
}

/// The symbols that it defines.
pub(in crate::guest) static SYMBOLS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let Runtime { data, methods, .. } = Runtime::new();
    data.symbols.into_keys().chain(methods.into_iter().flat_map(|method| method.symbols)).collect()
});

/// A function that takes the address of an object.
struct Method {
    symbols: Vec<String>,
    /// The index of its type.
    ty: u32,
    body: Vec<Instruction<'static>>,
}

#[derive(Default)]
struct Runtime {
    data: Data,
    /// In the order of the table.
    methods: Vec<Method>,
    /// The virtual functions of each class that was added: two destructors and `what`.
    virtual_functions: BTreeMap<&'static str, [u32; 3]>,
}

/// The value of the pointer at `offset` in the object.
fn load(offset: u32) -> Instruction<'static> {
    Instruction::I32Load(at(offset))
}

fn at(offset: u32) -> MemArg {
    MemArg { offset: offset.into(), align: 2, memory_index: 0 }
}

/// Destroys an exception with a message, which may have other owners.
fn release_message() -> Vec<Instruction<'static>> {
    vec![
        // The number of further owners, which is one less now.
        Instruction::LocalGet(0),
        load(MESSAGE),
        Instruction::I32Const(STRING_HEAD),
        Instruction::I32Sub,
        Instruction::LocalTee(1),
        Instruction::LocalGet(1),
        load(STRING_OWNERS),
        Instruction::I32Const(1),
        Instruction::I32Sub,
        Instruction::LocalTee(2),
        Instruction::I32Store(at(STRING_OWNERS)),
        Instruction::LocalGet(2),
        Instruction::I32Const(0),
        Instruction::I32LtS,
        Instruction::If(BlockType::Empty),
        Instruction::LocalGet(1),
        Instruction::Call(FREE),
        Instruction::End,
    ]
}

impl Runtime {
    fn new() -> Self {
        let mut runtime = Self::default();
        runtime.add_types();
        for class in &CLASSES {
            runtime.add_class(class);
        }
        runtime
    }

    /// Adds a method; returns its place in the table.
    fn method(&mut self, symbols: Vec<String>, ty: u32, mut body: Vec<Instruction<'static>>) -> u32 {
        body.push(Instruction::End);
        self.methods.push(Method { symbols, ty, body });
        u32::try_from(self.methods.len() - 1).unwrap_or(u32::MAX)
    }

    /// Adds the type information of the types that are no classes.
    fn add_types(&mut self) {
        let functions = self.data.words((0..TYPE_INFO_FUNCTIONS + 2).map(|_| Word::Number(0)));
        for name in TYPE_INFOS {
            self.data.symbols.insert(format!("_ZTV{name}"), functions);
        }
        for name in FUNDAMENTAL {
            let is_of =
                |data: &Data, vtable| Word::Pointer(Pointee::Own(data.symbols[&format!("_ZTV{vtable}")] + VTABLE_HEAD));
            let text = self.data.text(name);
            let words = [is_of(&self.data, FUNDAMENTAL_TYPE), Word::Pointer(Pointee::Own(text))];
            let info = self.data.named(format!("_ZTI{name}"), words);
            for (prefix, flags) in [("P", 0), ("PK", CONSTANT)] {
                let text = self.data.text(&format!("{prefix}{name}"));
                let words = [
                    is_of(&self.data, POINTER),
                    Word::Pointer(Pointee::Own(text)),
                    Word::Number(flags),
                    Word::Pointer(Pointee::Own(info)),
                ];
                self.data.named(format!("_ZTI{prefix}{name}"), words);
            }
        }
    }

    /// Adds the type information, the vtable and the member functions of a class.
    fn add_class(&mut self, class: &Class) {
        let &Class { name, base, what } = class;
        let text = self.data.text(name);
        let kind = if base.is_some() { SINGLE } else { CLASS };
        let mut words = vec![
            Word::Pointer(Pointee::Imported(format!("_ZTV{kind}"), VTABLE_HEAD)),
            Word::Pointer(Pointee::Own(text)),
        ];
        words.extend(base.map(|base| Word::Pointer(Pointee::Own(self.data.symbols[&format!("_ZTI{base}")]))));
        let info = self.data.named(format!("_ZTI{name}"), words);

        let inherited = base.map(|base| self.virtual_functions[base]);
        let what = match (what, inherited) {
            (What::Text(text), _) => {
                let text = self.data.text(text).cast_signed();
                let address =
                    vec![Instruction::GlobalGet(MEMORY_BASE), Instruction::I32Const(text), Instruction::I32Add];
                self.method(vec![format!("_ZNK{name}4whatEv")], WITH_RESULT, address)
            }
            (What::Message, _) => {
                let message = vec![Instruction::LocalGet(0), load(MESSAGE)];
                self.method(vec![format!("_ZNK{name}4whatEv")], WITH_RESULT, message)
            }
            (What::Inherited, inherited) => inherited.unwrap_or_default()[2],
        };
        let has_message = !matches!(class.what, What::Text(_));
        let destroy = if has_message { release_message() } else { Vec::new() };
        let destructors = [1, 2].map(|kind| format!("_ZN{name}D{kind}Ev")).to_vec();
        let this = [&destroy[..], &[Instruction::LocalGet(0)]].concat();
        let destructor = self.method(destructors, WITH_RESULT, this);
        let delete = [&destroy[..], &[Instruction::LocalGet(0), Instruction::Call(FREE)]].concat();
        let deleting = self.method(vec![format!("_ZN{name}D0Ev")], OF_OBJECT, delete);

        let functions = [destructor, deleting, what];
        self.virtual_functions.insert(name, functions);
        let head = [Word::Number(0), Word::Pointer(Pointee::Own(info))];
        let words = head.into_iter().chain(functions.map(|function| Word::Pointer(Pointee::Function(function))));
        let vtable = self.data.named(format!("_ZTV{name}"), words);
        if !has_message {
            let constructors = [1, 2].map(|kind| format!("_ZN{name}C{kind}Ev")).to_vec();
            let mut body = vec![Instruction::LocalGet(0)];
            body.extend(address(&Pointee::Own(vtable + VTABLE_HEAD), &[]));
            body.extend([Instruction::I32Store(at(0)), Instruction::LocalGet(0)]);
            self.method(constructors, WITH_RESULT, body);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut module = Module::new();
        let count = u32::try_from(self.methods.len()).unwrap_or(u32::MAX);
        module.section(&CustomSection { name: "dylink.0".into(), data: requirements(self.data.end(), count).into() });
        let mut types = TypeSection::new();
        types.ty().function([], []);
        types.ty().function([ValType::I32], []);
        types.ty().function([ValType::I32], [ValType::I32]);
        module.section(&types);

        let symbols: BTreeSet<&str> = self.data.pointers.iter().filter_map(|(_, pointee)| imported(pointee)).collect();
        let symbols: Vec<&str> = symbols.into_iter().collect();
        let constant = GlobalType { val_type: ValType::I32, mutable: false, shared: false };
        let memory = MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None };
        let element_type = RefType::FUNCREF;
        let table = TableType { element_type, minimum: 1, maximum: None, table64: false, shared: false };
        let mut imports = ImportSection::new();
        imports.import("env", "memory", memory).import("env", "__indirect_function_table", table);
        imports.import("env", "__memory_base", constant).import("env", "__table_base", constant);
        for symbol in &symbols {
            imports.import("GOT.mem", symbol, GlobalType { mutable: true, ..constant });
        }
        imports.import("env", "free", EntityType::Function(OF_OBJECT));
        module.section(&imports);

        let (mut functions, mut code) = (FunctionSection::new(), CodeSection::new());
        let (mut globals, mut exports) = (GlobalSection::new(), ExportSection::new());
        for (index, method) in (IMPORTED_FUNCTIONS..).zip(&self.methods) {
            functions.function(method.ty);
            code.function(&function(&method.body));
            for symbol in &method.symbols {
                exports.export(symbol, ExportKind::Func, index);
            }
        }
        functions.function(ALONE);
        code.function(&function(&relocations(&self.data, &symbols)));
        exports.export("__wasm_apply_data_relocs", ExportKind::Func, IMPORTED_FUNCTIONS + count);
        let first_global = FIRST_SYMBOL + u32::try_from(symbols.len()).unwrap_or(u32::MAX);
        for (index, (symbol, offset)) in (first_global..).zip(&self.data.symbols) {
            globals.global(constant, &ConstExpr::i32_const(offset.cast_signed()));
            exports.export(symbol, ExportKind::Global, index);
        }
        module.section(&functions).section(&globals).section(&exports);

        let mut elements = ElementSection::new();
        let all: Vec<u32> = (IMPORTED_FUNCTIONS..).zip(&self.methods).map(|(index, _)| index).collect();
        elements.active(None, &ConstExpr::global_get(TABLE_BASE), Elements::Functions(all.into()));
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::global_get(MEMORY_BASE), self.data.bytes.iter().copied());
        module.section(&elements).section(&code).section(&data);
        module.finish()
    }
}

/// The content of the section `dylink.0`: so many bytes of memory, aligned to pointers, and so many places in the table
/// (WebAssembly tool-conventions, `DynamicLinking.md`).
fn requirements(memory: u32, table: u32) -> Vec<u8> {
    let mut numbers = Vec::new();
    for number in [memory, POINTER_SIZE.ilog2(), table, 0] {
        number.encode(&mut numbers);
    }
    let mut content = vec![1];
    numbers.encode(&mut content);
    content
}

fn imported(pointee: &Pointee) -> Option<&str> {
    if let Pointee::Imported(symbol, _) = pointee { Some(symbol) } else { None }
}

/// Instructions for the address of `pointee`. `symbols` are those that are imported.
fn address(pointee: &Pointee, symbols: &[&str]) -> [Instruction<'static>; 3] {
    let (base, offset) = match pointee {
        Pointee::Own(offset) => (MEMORY_BASE, offset),
        Pointee::Function(place) => (TABLE_BASE, place),
        Pointee::Imported(symbol, offset) => {
            let number = symbols.iter().position(|it| it == symbol).unwrap_or(symbols.len());
            (FIRST_SYMBOL + u32::try_from(number).unwrap_or(u32::MAX), offset)
        }
    };
    [Instruction::GlobalGet(base), Instruction::I32Const(offset.cast_signed()), Instruction::I32Add]
}

/// Writes all pointers, which is done once, when the module has its place in memory.
fn relocations(data: &Data, symbols: &[&str]) -> Vec<Instruction<'static>> {
    let mut body = Vec::new();
    for (offset, pointee) in &data.pointers {
        body.push(Instruction::GlobalGet(MEMORY_BASE));
        body.extend(address(pointee, symbols));
        body.push(Instruction::I32Store(at(*offset)));
    }
    body.push(Instruction::End);
    body
}

/// A function with two local variables besides its parameter.
fn function(body: &[Instruction<'_>]) -> Function {
    let mut function = Function::new([(2, ValType::I32)]);
    for instruction in body {
        function.instruction(instruction);
    }
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_valid() {
        wasmparser::validate(&wasm()).unwrap();
    }
}
