//! Libraries that tests make: side modules of Emscripten with functions for PostgreSQL.

use std::ops::Range;

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, CustomSection, DataSection, ElementSection, Elements, Encode, EntityType,
    ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType, HeapType, ImportSection,
    Instruction, MemArg, MemorySection, MemoryType, Module, RefType, StartSection, TableSection, TableType,
    TypeSection, ValType,
};

use super::power::Dice;

/// The index of the first function, after the two about the library.
pub const FIRST: u32 = 2;

/// Types of imported functions: from a number to a number, three numbers to nothing, nothing to nothing, two numbers to a
/// number, four numbers to nothing.
pub const NUMBER: EntityType = EntityType::Function(1);
pub const THREE: EntityType = EntityType::Function(2);
pub const NOTHING: EntityType = EntityType::Function(3);
pub const TWO: EntityType = EntityType::Function(4);
pub const FOUR: EntityType = EntityType::Function(5);
/// The type of an imported address, which is the global after [`BASES`] and those before it.
pub const ADDRESS: EntityType = EntityType::Global(GlobalType { val_type: ValType::I32, mutable: true, shared: false });
/// The number of the globals of every library.
pub const BASES: u32 = 2;

/// A library with these functions, each by its name in SQL and what it does (`src/include/fmgr.h`).
pub fn with_functions(functions: &[(&str, &[Instruction<'static>])]) -> Vec<u8> {
    with_imports(&[], functions)
}

/// A library whose function `keep` takes the lock `AddinShmemInitLock`, which is the one of number 21, and runs for ever.
pub fn that_keeps_a_lock() -> Vec<u8> {
    // LWLockPadded has 128 bytes (`src/include/storage/lwlock.h`), and LW_EXCLUSIVE is 0.
    let keep = [
        Instruction::GlobalGet(BASES),
        Instruction::I32Load(MemArg { offset: 0, align: 2, memory_index: 0 }),
        Instruction::I32Const(21 * 128),
        Instruction::I32Add,
        Instruction::I32Const(0),
        Instruction::Call(0),
        Instruction::Drop,
        Instruction::Loop(BlockType::Empty),
        Instruction::Br(0),
        Instruction::End,
        Instruction::Unreachable,
    ];
    let imports = [("env", "LWLockAcquire", TWO), ("GOT.mem", "MainLWLockArray", ADDRESS)];
    with_imports(&imports, &[("keep", &keep)])
}

/// A library whose functions compute a number of Fibonacci as its definition says, without a loop: `small` the 20th, and
/// `large` the 90th, which takes centuries.
pub fn that_recurses() -> Vec<u8> {
    let fibonacci = [
        Instruction::LocalGet(0),
        Instruction::I32Const(2),
        Instruction::I32LtU,
        Instruction::If(BlockType::Result(ValType::I32)),
        Instruction::LocalGet(0),
        Instruction::Else,
        Instruction::LocalGet(0),
        Instruction::I32Const(1),
        Instruction::I32Sub,
        Instruction::Call(FIRST),
        Instruction::LocalGet(0),
        Instruction::I32Const(2),
        Instruction::I32Sub,
        Instruction::Call(FIRST),
        Instruction::I32Add,
        Instruction::End,
    ];
    let of = |number| [Instruction::I32Const(number), Instruction::Call(FIRST)];
    with_functions(&[("fibonacci", &fibonacci), ("small", &of(20)), ("large", &of(90))])
}

/// As [`with_functions`], with imports by space and name. Imported functions come before all others.
pub fn with_imports(imported: &[(&str, &str, EntityType)], functions: &[(&str, &[Instruction<'static>])]) -> Vec<u8> {
    with_types_and_imports(&[], imported, functions)
}

/// As [`with_functions`], and it imports a function `invoke_v…` for each number of parameters, which all are `i`.
pub fn with_invokes(parameters: Range<usize>, functions: &[(&str, &[Instruction<'static>])]) -> Vec<u8> {
    let types: Vec<_> = parameters.clone().map(|number| vec![ValType::I32; number + 1]).collect();
    let names: Vec<_> = parameters.map(|number| format!("invoke_v{}", "i".repeat(number))).collect();
    let imported: Vec<_> =
        (TYPES..).zip(&names).map(|(ty, name)| ("env", &name[..], EntityType::Function(ty))).collect();
    with_types_and_imports(&types, &imported, functions)
}

/// How many types of functions each library has before its own.
const TYPES: u32 = 6;

/// As [`with_imports`], with types of functions without results.
fn with_types_and_imports(
    further: &[Vec<ValType>],
    imported: &[(&str, &str, EntityType)],
    functions: &[(&str, &[Instruction<'static>])],
) -> Vec<u8> {
    let mut module = Module::new();
    // Subsection 1 (memory information), 4 bytes: size 128, alignment 2^2, no table.
    module.section(&CustomSection { name: "dylink.0".into(), data: (&[1_u8, 5, 0x80, 0x01, 2, 0, 0][..]).into() });
    let mut types = TypeSection::new();
    types.ty().function([], [ValType::I32]);
    types.ty().function([ValType::I32], [ValType::I32]);
    types.ty().function([ValType::I32; 3], []);
    types.ty().function([], []);
    types.ty().function([ValType::I32; 2], [ValType::I32]);
    types.ty().function([ValType::I32; 4], []);
    assert_eq!(types.len(), TYPES);
    for parameters in further {
        types.ty().function(parameters.iter().copied(), []);
    }
    module.section(&types);
    let base = EntityType::Global(GlobalType { val_type: ValType::I32, mutable: false, shared: false });
    let mut imports = ImportSection::new();
    imports.import("env", "memory", memory(1)).import("env", "__indirect_function_table", table(1));
    imports.import("env", "__memory_base", base).import("env", "__table_base", base);
    let mut first = 0;
    for (space, name, ty) in imported {
        imports.import(space, name, *ty);
        first += u32::from(matches!(ty, EntityType::Function(_)));
    }
    module.section(&imports);
    let mut defined = FunctionSection::new();
    defined.function(0).function(0);
    let mut exports = ExportSection::new();
    exports.export("Pg_magic_func", ExportKind::Func, first);
    let mut code = CodeSection::new();
    code.function(&body(&[Instruction::GlobalGet(0)]));
    code.function(&body(&[Instruction::GlobalGet(0), Instruction::I32Const(64), Instruction::I32Add]));
    for (index, (name, instructions)) in (first + FIRST..).zip(functions) {
        defined.function(1);
        exports.export(name, ExportKind::Func, index).export(&format!("pg_finfo_{name}"), ExportKind::Func, first + 1);
        code.function(&body(instructions));
    }
    module.section(&defined).section(&exports).section(&code);
    // Pg_magic_struct: its size, the version of the ABI, FUNC_MAX_ARGS, INDEX_MAX_KEYS, NAMEDATALEN, no 64-bit Datum,
    // abi_extra, no name and no version. Behind it Pg_finfo_record: API version 1.
    let mut bytes: Vec<u8> = [64_u32, 1800, 100, 32, 64, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(b"PostgreSQL");
    bytes.resize(64, 0);
    bytes.extend(1_u32.to_le_bytes());
    let mut data = DataSection::new();
    data.active(0, &ConstExpr::global_get(0), bytes);
    module.section(&data);
    module.finish()
}

/// A memory of at least that many pages.
pub fn memory(minimum: u64) -> MemoryType {
    MemoryType { minimum, maximum: None, memory64: false, shared: false, page_size_log2: None }
}

/// A table of at least that many functions.
pub fn table(minimum: u64) -> TableType {
    TableType { element_type: RefType::FUNCREF, minimum, maximum: None, table64: false, shared: false }
}

/// A function without further variables.
pub fn body(instructions: &[Instruction<'static>]) -> Function {
    let mut function = Function::new([]);
    for instruction in instructions {
        function.instruction(instruction);
    }
    function.instruction(&Instruction::End);
    function
}

/// SQL that writes `bytes` into the file `path` of the guest.
pub fn export(bytes: &[u8], path: &str) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("SELECT lo_from_bytea(1, '\\x{digits}'); SELECT lo_export(1, '{path}'); SELECT lo_unlink(1)")
}

/// A random side module, which may be wrong in any way. Its code does not write memory: what that does to the session is
/// not the host's. It ends by itself.
pub fn hostile(dice: &mut Dice) -> Vec<u8> {
    random(dice, 0)
}

/// As [`hostile`], but what it does may take for ever: it has endless loops, and functions that call each other more often
/// than can be waited for.
pub fn hostile_and_endless(dice: &mut Dice) -> Vec<u8> {
    random(dice, 40)
}

/// A random side module. If `tower` is not 0, it has endless loops, and calls the first one of so many functions each of
/// which calls the next one eight times.
fn random(dice: &mut Dice, tower: u32) -> Vec<u8> {
    let mut module = Module::new();
    module.section(&CustomSection { name: "dylink.0".into(), data: dylink(dice).into() });
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([], [ValType::I32]);
    types.ty().function([ValType::I32; 3], [ValType::I64]);
    module.section(&types);
    let mut imports = ImportSection::new();
    let mut imported = 0;
    if !one_in(dice, 8) {
        let base = GlobalType { val_type: ValType::I32, mutable: false, shared: false };
        imports.import("env", "memory", memory(1)).import("env", "__indirect_function_table", table(1));
        imports.import("env", "__memory_base", base);
    }
    for _ in 0..dice.below(3) {
        imported += import(dice, &mut imports);
    }
    module.section(&imports);
    let defined = 1 + u32::try_from(dice.below(4)).expect("a few");
    let mut functions = FunctionSection::new();
    for _ in 0..defined + tower {
        functions.function(0);
    }
    module.section(&functions);
    if one_in(dice, 12) {
        module.section(TableSection::new().table(table(size(dice))));
    }
    if one_in(dice, 12) {
        module.section(MemorySection::new().memory(memory(size(dice))));
    }
    let mut globals = GlobalSection::new();
    for _ in 0..dice.below(3) {
        let ty = GlobalType { val_type: ValType::I32, mutable: one_in(dice, 2), shared: false };
        globals.global(ty, &ConstExpr::i32_const(i32::try_from(dice.below(1 << 30)).expect("it fits")));
    }
    module.section(&globals);
    let mut exports = ExportSection::new();
    for (at, name) in
        ["__wasm_call_ctors", "_PG_init", "__wasm_apply_data_relocs", "malloc", "\n\u{1b}[2J"].iter().enumerate()
    {
        if at == 0 || one_in(dice, 3) {
            let past_the_end = u32::from(one_in(dice, 20));
            exports.export(name, ExportKind::Func, imported + below(dice, defined) + past_the_end);
        }
    }
    module.section(&exports);
    if one_in(dice, 8) {
        module.section(&StartSection { function_index: imported + below(dice, defined) });
    }
    if one_in(dice, 4) {
        let offset = ConstExpr::i32_const(i32::try_from(size(dice)).unwrap_or(-1));
        let mut elements = ElementSection::new();
        elements.active(None, &offset, Elements::Functions(vec![imported; 3].into()));
        module.section(&elements);
    }
    let mut code = CodeSection::new();
    for _ in 0..defined {
        let pieces = dice.below(6);
        let instructions: Vec<_> = (0..pieces).flat_map(|_| piece(dice, imported + defined, tower > 0)).collect();
        code.function(&body(&instructions));
    }
    for next in 1..=tower {
        let calls = if next < tower { 8 } else { 0 };
        code.function(&body(&vec![Instruction::Call(imported + defined + next); calls]));
    }
    module.section(&code);
    if one_in(dice, 6) {
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::i32_const(i32::try_from(size(dice) / 2).expect("it fits")), [7; 100]);
        module.section(&data);
    }
    let mut bytes = module.finish();
    for _ in 0..if one_in(dice, 4) { 1 + dice.below(4) } else { 0 } {
        let at = usize::try_from(dice.below(bytes.len() as u64)).expect("it fits");
        bytes[at] = byte(dice);
    }
    bytes
}

fn one_in(dice: &mut Dice, many: u64) -> bool {
    dice.below(many) == 0
}

fn byte(dice: &mut Dice) -> u8 {
    u8::try_from(dice.below(256)).expect("it fits")
}

fn below(dice: &mut Dice, limit: u32) -> u32 {
    u32::try_from(dice.below(limit.into())).expect("it fits")
}

/// A size that is small, or near some limit.
fn size(dice: &mut Dice) -> u64 {
    [0, 1, 2, 1000, 65_535, 65_536, 1 << 20, 1 << 31, u64::from(u32::MAX)]
        [usize::try_from(dice.below(9)).expect("it fits")]
}

/// The content of a section `dylink.0`.
fn dylink(dice: &mut Dice) -> Vec<u8> {
    if one_in(dice, 10) {
        return (0..dice.below(20)).map(|_| byte(dice)).collect();
    }
    let mut numbers = Vec::new();
    let sizes = if one_in(dice, 3) { [size(dice), dice.below(40), size(dice), 0] } else { [64, 4, 3, 0] };
    for number in sizes {
        u32::try_from(number).expect("it fits").encode(&mut numbers);
    }
    let mut content = vec![1];
    numbers.encode(&mut content);
    if one_in(dice, 6) {
        let mut needed = Vec::new();
        1_u32.encode(&mut needed);
        ["/tmp/0.so", "/dev/zero", ""][usize::try_from(dice.below(3)).expect("it fits")].encode(&mut needed);
        content.push(2);
        needed.encode(&mut content);
    }
    content
}

/// Adds an import; returns how many functions that are.
fn import(dice: &mut Dice, imports: &mut ImportSection) -> u32 {
    let base = GlobalType { val_type: ValType::I32, mutable: false, shared: false };
    match dice.below(16) {
        0 => imports.import("env", "memory", memory(size(dice).min(1 << 16))),
        1 => imports.import("env", "__indirect_function_table", table(size(dice).min(1 << 20))),
        2..=4 => imports.import("env", "__memory_base", base),
        5 => imports.import("GOT.mem", "CurrentMemoryContext", GlobalType { mutable: true, ..base }),
        6 => imports.import("GOT.func", "there_is_none", GlobalType { mutable: true, ..base }),
        7 => imports.import("env", "memory", table(1)),
        _ => {
            let names = ["palloc", "invoke_vii", "invoke_\n", "there_is_none", "proc_exit", "_dlopen_js"];
            let name = names[usize::try_from(dice.below(6)).expect("it fits")];
            imports.import("env", name, EntityType::Function(below(dice, 3)));
            return 1;
        }
    };
    0
}

/// Instructions that leave the stack as it is. There are so many functions, and, if it may be endless, the first one of
/// the tower.
fn piece(dice: &mut Dice, functions: u32, may_be_endless: bool) -> Vec<Instruction<'static>> {
    let number = Instruction::I32Const(i32::try_from(size(dice)).unwrap_or(-1));
    match dice.below(if may_be_endless { 14 } else { 8 }) {
        0 => vec![number, Instruction::MemoryGrow(0), Instruction::Drop],
        1 if one_in(dice, 6) => {
            vec![Instruction::RefNull(HeapType::FUNC), number, Instruction::TableGrow(0), Instruction::Drop]
        }
        2 => vec![Instruction::Call(below(dice, functions))],
        // Other functions than those at the ends of the table may do anything to the session.
        3 => vec![
            Instruction::I32Const(-i32::from(one_in(dice, 2))),
            Instruction::CallIndirect { type_index: 0, table_index: 0 },
        ],
        4 => vec![number, Instruction::I32Const(0), Instruction::I32DivU, Instruction::Drop],
        5 => vec![Instruction::Unreachable],
        6 => vec![number, Instruction::GlobalGet(u32::from(one_in(dice, 10))), Instruction::I32Add, Instruction::Drop],
        8 | 9 => vec![Instruction::Loop(BlockType::Empty), Instruction::Br(0), Instruction::End],
        10 => vec![
            Instruction::Loop(BlockType::Empty),
            number,
            Instruction::MemoryGrow(0),
            Instruction::Drop,
            Instruction::Br(0),
            Instruction::End,
        ],
        11.. => vec![Instruction::Call(functions)],
        _ => vec![Instruction::Block(BlockType::Empty), Instruction::Nop, Instruction::End],
    }
}
