use bolero::check;
use wasm_encoder::{ExportKind, ExportSection, FunctionSection, TypeSection};
use wasmtime::{Engine, Instance, Store};

use super::*;
use crate::engine::artefact::PGLITE_WASM;

/// A module with functions of one `i32` that return one, each with one local besides; the first is exported as
/// `run`.
fn module(functions: &[&[Instruction<'static>]]) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32], [ValType::I32]);
    let mut defined = FunctionSection::new();
    let mut code = CodeSection::new();
    for instructions in functions {
        defined.function(0);
        let mut function = Function::new([(1, ValType::I32)]);
        instructions.iter().chain([&Instruction::End]).for_each(|instruction| {
            function.instruction(instruction);
        });
        code.function(&function);
    }
    let mut exports = ExportSection::new();
    exports.export("run", ExportKind::Func, 0);
    let mut module = wasm_encoder::Module::new();
    module.section(&types).section(&defined).section(&exports).section(&code);
    module.finish()
}

fn calls(pairs: &[(u32, u32)]) -> Calls {
    Calls(pairs.iter().copied().collect())
}

/// What `run` returns for the numbers from 0 to 9.
fn results(wasm: &[u8]) -> Vec<i32> {
    let engine = Engine::default();
    let module = wasmtime::Module::new(&engine, wasm).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let run = instance.get_typed_func::<i32, i32>(&mut store, "run").unwrap();
    (0..10).map(|number| run.call(&mut store, number).unwrap()).collect()
}

/// The numbers of the functions that each function calls.
fn called(wasm: &[u8]) -> Vec<Vec<u32>> {
    let module = Module::parse(wasm).unwrap();
    let calls = |function| {
        let calls = module.operators(function).unwrap().into_iter().filter_map(|operator| match operator {
            Operator::Call { function_index } => Some(function_index),
            _ => None,
        });
        calls.collect()
    };
    module.defined_functions().map(calls).collect()
}

/// `run` adds what function 1 returns for its argument and the numbers below it. Function 1 returns early from a
/// block for one number, counts in a local that has to be 0 at first, and calls function 2, which doubles.
fn sum() -> Vec<u8> {
    use Instruction::{
        Block, Br, BrIf, Call, Else, I32Add, I32Const, I32Eq, I32Mul, I32Sub, If, LocalGet, LocalSet, LocalTee, Loop,
        Return,
    };
    let run = [
        Loop(BlockType::Empty),
        LocalGet(1),
        LocalGet(0),
        Call(1),
        I32Add,
        LocalSet(1),
        LocalGet(0),
        I32Const(1),
        I32Sub,
        LocalTee(0),
        BrIf(0),
        Instruction::End,
        LocalGet(1),
    ];
    let once = [
        Block(BlockType::Empty),
        LocalGet(0),
        I32Const(3),
        I32Eq,
        If(BlockType::Empty),
        I32Const(1000),
        Return,
        Else,
        LocalGet(0),
        I32Const(4),
        I32Eq,
        BrIf(1),
        Instruction::End,
        LocalGet(1),
        I32Const(1),
        I32Add,
        LocalSet(1),
        Br(0),
        Instruction::End,
        LocalGet(0),
        Call(2),
        LocalGet(1),
        I32Add,
    ];
    module(&[&run, &once, &[LocalGet(0), I32Const(2), I32Mul]])
}

#[test]
fn copies_do_what_calls_did() {
    let wasm = sum();
    let inlined = inline(&wasm, &calls(&[(0, 1), (1, 2)])).unwrap();
    assert!(called(&inlined).iter().all(Vec::is_empty));
    assert_eq!(results(&inlined), results(&wasm));
    // Two of each number that is not 3, and 1 for each that is neither 3 nor 4.
    assert_eq!(results(&wasm)[5], 2 * (5 + 4 + 2 + 1) + 1000 + 3);
}

#[test]
fn only_the_given_calls_become_copies() {
    let inlined = inline(&sum(), &calls(&[(0, 1)])).unwrap();
    assert_eq!(called(&inlined), [vec![2], vec![2], vec![]]);
    assert_eq!(results(&inlined), results(&sum()));
    assert_eq!(inline(&sum(), &Calls::default()).unwrap(), sum());
}

#[test]
fn functions_with_loops_and_functions_that_call_themselves_are_not_copied() {
    let recursive = [
        Instruction::LocalGet(0),
        Instruction::If(BlockType::Result(ValType::I32)),
        Instruction::LocalGet(0),
        Instruction::I32Const(1),
        Instruction::I32Sub,
        Instruction::Call(1),
        Instruction::Else,
        Instruction::I32Const(7),
        Instruction::End,
    ];
    let wasm = module(&[&[Instruction::LocalGet(0), Instruction::Call(1)], &recursive]);
    let inlined = inline(&wasm, &calls(&[(0, 1), (1, 1)])).unwrap();
    assert_eq!(called(&inlined), [vec![1], vec![1]]);
    assert_eq!(results(&inlined), results(&wasm));

    let looping = [Instruction::Loop(BlockType::Empty), Instruction::End, Instruction::LocalGet(0)];
    let wasm = module(&[&[Instruction::LocalGet(0), Instruction::Call(1)], &looping]);
    assert_eq!(called(&inline(&wasm, &calls(&[(0, 1)])).unwrap()), [vec![1], vec![]]);
}

#[test]
fn any_module_stays_valid_with_copies_for_all_its_calls() {
    check!().for_each(|bytes: &[u8]| {
        let config = wasm_smith::Config { gc_enabled: false, max_memories: 1, ..wasm_smith::Config::default() };
        let Ok(module) = wasm_smith::Module::new(config, &mut arbitrary::Unstructured::new(bytes)) else { return };
        let wasm = module.to_bytes();
        let all = (0..100).flat_map(|caller| (0..100).map(move |callee| (caller, callee)));
        let inlined = inline(&wasm, &Calls(all.collect())).expect("it was valid");
        wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all()).validate_all(&inlined).unwrap();
    });
}

#[test]
fn the_calls_were_counted_in_the_pinned_file() {
    let counted = Calls::counted(PGLITE_WASM.sha256);
    assert!(counted.0.len() > 1000, "`make calls` has to be run with this version of PGlite");
    assert_eq!(Calls::counted("of another file"), Calls::default());
}
