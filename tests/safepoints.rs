//! What safepoints rely on: no value that was loaded before one is used in place of a load after it, and no safepoint
//! lies between the two halves of an operation that was an atomic one.

use std::ffi::c_void;

use pglite_port::instrument::{SAFEPOINT_PAGE, instrument_side_module};
use rustix::{
    mm::{MprotectFlags, mprotect},
    param::page_size,
};
use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection,
    Instruction, MemArg, MemoryType, Module, TypeSection, ValType,
};
use wasmtime::{Engine, Instance, Memory, Store, unix::StoreExt};

/// Where the function below loads from.
const PLACE: u32 = 64;

/// A side module whose function `changed` loads a value, does so twice more in a loop, which is repeated in this way, and
/// returns the last one less the first one. The way begins behind whether the loop is to be repeated.
fn loads_again(way: &[Instruction]) -> Vec<u8> {
    use Instruction::{End, I32Add, I32Const, I32LtU, I32Sub, LocalGet, LocalSet, LocalTee, Loop};
    const FIRST: u32 = 0;
    const DIFFERENCE: u32 = 1;
    const ROUNDS: u32 = 2;
    let place = MemArg { offset: 0, align: 2, memory_index: 0 };
    let load = [I32Const(PLACE.cast_signed()), Instruction::I32Load(place)];
    let mut body = Function::new([(4, ValType::I32)]);
    let mut add = |instructions: &[Instruction]| {
        for instruction in instructions {
            body.instruction(instruction);
        }
    };
    add(&load);
    add(&[LocalSet(FIRST), Loop(BlockType::Empty)]);
    add(&load);
    add(&[LocalGet(FIRST), I32Sub, LocalSet(DIFFERENCE)]);
    add(&[LocalGet(ROUNDS), I32Const(1), I32Add, LocalTee(ROUNDS), I32Const(2), I32LtU]);
    add(way);
    add(&[End, LocalGet(DIFFERENCE), End]);
    let (mut types, mut imports, mut functions) = (TypeSection::new(), ImportSection::new(), FunctionSection::new());
    let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
    types.ty().function([], [ValType::I32]);
    let memory =
        MemoryType { minimum: 1, maximum: Some(1 << 15), memory64: false, shared: false, page_size_log2: None };
    imports.import("env", "memory", EntityType::Memory(memory));
    functions.function(0);
    exports.export("changed", ExportKind::Func, 0);
    code.function(&body);
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module.finish()
}

#[test]
fn a_value_that_another_process_changes_at_a_safepoint_is_loaded_again() {
    use Instruction::{Block, Br, BrIf, BrTable, End, If};
    assert_loaded_again(&[BrIf(0)]);
    assert_loaded_again(&[If(BlockType::Empty), Br(1), End]);
    // The head has the safepoint.
    assert_loaded_again(&[
        Instruction::LocalSet(3),
        Block(BlockType::Empty),
        Instruction::LocalGet(3),
        BrTable(vec![0].into(), 1),
        End,
    ]);
}

fn assert_loaded_again(way: &[Instruction]) {
    let code = instrument_side_module(&loads_again(way)).expect("a side module");
    let engine = Engine::default();
    let mut store = Store::new(&engine, ());
    let memory = Memory::new(&mut store, wasmtime::MemoryType::new(1, Some(1 << 15))).expect("a memory");
    let module = wasmtime::Module::new(&engine, &code).expect("it is valid");
    let instance = Instance::new(&mut store, &module, &[memory.into()]).expect("it has its imports");
    let changed = instance.get_typed_func::<(), i32>(&mut store, "changed").expect("it is exported");

    let (base, page) = (memory.data_ptr(&store).addr(), SAFEPOINT_PAGE as usize);
    // SAFETY: the handler runs while the guest is stopped at its safepoint, so that nothing else uses the memory. Both
    // addresses belong to the reservation of the memory, the first one to the memory itself.
    unsafe {
        store.set_signal_handler(move |_, fault, _| {
            if (*fault).si_addr().addr() & !(page_size() - 1) != base + page {
                return false;
            }
            std::ptr::with_exposed_provenance_mut::<i32>(base + PLACE as usize).write(7);
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            mprotect(std::ptr::with_exposed_provenance_mut::<c_void>(base + page), page_size(), access).is_ok()
        });
    }
    memory.data_ptr(&store).expose_provenance();
    assert_eq!(changed.call(&mut store, ()).expect("it is stopped once and goes on"), 7);
    assert_eq!(changed.call(&mut store, ()).expect("it is not stopped"), 0);
}
