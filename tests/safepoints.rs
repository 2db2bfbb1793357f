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

/// A side module whose function `changed` loads a value, begins a loop, loads the value again, and returns the second
/// one less the first one.
fn loads_twice() -> Vec<u8> {
    let load = || {
        let place = MemArg { offset: 0, align: 2, memory_index: 0 };
        [Instruction::I32Const(PLACE.cast_signed()), Instruction::I32Load(place)]
    };
    let mut body = Function::new([(1, ValType::I32)]);
    let [address, value] = load();
    let before = [address, value, Instruction::LocalSet(0), Instruction::Loop(BlockType::Empty)];
    let [address, value] = load();
    let after = [address, value, Instruction::LocalGet(0), Instruction::I32Sub, Instruction::LocalSet(0)];
    for instruction in
        before.iter().chain(&after).chain(&[Instruction::End, Instruction::LocalGet(0), Instruction::End])
    {
        body.instruction(instruction);
    }
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
    let code = instrument_side_module(&loads_twice()).expect("a side module");
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
