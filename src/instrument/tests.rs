//! The rewriter on small modules; `tests/instrument_artefact.rs` tests it on the real one.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, ElementSection, Elements, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction, MemorySection, MemoryType,
    RefType, StartSection, TableSection, TableType, TypeSection, ValType,
};
use wasmparser::Operator;
use wasmtime::{Caller, Engine, Func, Instance, Linker, Store, Val};

use super::changes::Edit;
use super::hooks::Hook;
use super::initial_memory::{initial_memory, zeroed_by_start};
use super::module::Module;
use super::rewrite::Rewrite;
use super::safepoints;
use super::target::{Evidence, Signature, Target};
use super::{
    InstrumentError, PageLimits, SIDE_MODULE_START, bodies, instrument, instrument_foreign_side_module,
    instrument_plain, instrument_side_module, side_module_globals,
};

/// A module whose function 1 returns 7. Its exported function 2, `run`, passes function 1's result to the imported
/// function 0, called directly, through the table and through a reference, and adds the results to 1000.
struct Sample {
    start: Option<Vec<Instruction<'static>>>,
    passive: bool,
}

impl Sample {
    fn encode(&self) -> Vec<u8> {
        let mut types = TypeSection::new();
        types.ty().function([ValType::I32], [ValType::I32]);
        types.ty().function([], [ValType::I32]);
        types.ty().function([], []);
        let mut imports = ImportSection::new();
        imports.import("env", "double", EntityType::Function(0));
        let mut functions = FunctionSection::new();
        functions.function(1).function(1).function(2);
        let mut tables = TableSection::new();
        let element_type = RefType::FUNCREF;
        tables.table(TableType { element_type, minimum: 3, maximum: None, table64: false, shared: false });
        let mut memories = MemorySection::new();
        memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut globals = GlobalSection::new();
        let mutable = |mutable| GlobalType { val_type: ValType::I32, mutable, shared: false };
        globals.global(mutable(true), &ConstExpr::i32_const(1000));
        globals.global(mutable(false), &ConstExpr::i32_const(64));
        let mut exports = ExportSection::new();
        exports.export("run", ExportKind::Func, 2).export("symbol", ExportKind::Global, 1);
        let mut elements = ElementSection::new();
        elements.active(None, &ConstExpr::i32_const(0), Elements::Functions(vec![1].into()));
        let reference = [ConstExpr::ref_func(1)];
        elements.active(
            None,
            &ConstExpr::i32_const(1),
            Elements::Expressions(RefType::FUNCREF, reference.as_slice().into()),
        );
        let mut code = CodeSection::new();
        code.function(&body(&[Instruction::I32Const(7)]));
        code.function(&body(&[
            Instruction::GlobalGet(0),
            Instruction::Call(1),
            Instruction::Call(0),
            Instruction::I32Add,
            Instruction::I32Const(0),
            Instruction::CallIndirect { type_index: 1, table_index: 0 },
            Instruction::I32Add,
            Instruction::I32Const(2),
            Instruction::RefFunc(1),
            Instruction::TableSet(0),
            Instruction::I32Const(2),
            Instruction::CallIndirect { type_index: 1, table_index: 0 },
            Instruction::I32Add,
            Instruction::I32Const(1),
            Instruction::CallIndirect { type_index: 1, table_index: 0 },
            Instruction::I32Add,
        ]));
        code.function(&body(self.start.as_deref().unwrap_or_default()));
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::i32_const(64), *b"symbol\0");
        if self.passive {
            data.passive(*b"later");
        }
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&imports).section(&functions).section(&tables).section(&memories);
        module.section(&globals).section(&exports);
        if self.start.is_some() {
            module.section(&StartSection { function_index: 3 });
        }
        module.section(&elements).section(&code).section(&data);
        module.finish()
    }
}

const PLAIN: Sample = Sample { start: None, passive: false };

fn body(instructions: &[Instruction]) -> Function {
    let mut function = Function::new([]);
    for instruction in instructions {
        function.instruction(instruction);
    }
    function.instruction(&Instruction::End);
    function
}

/// Instantiates a module with `env.double` and hooks that count their calls.
fn instantiate(wasm: &[u8]) -> (Store<u32>, Instance) {
    let engine = Engine::default();
    let mut store = Store::new(&engine, 0);
    let mut linker = Linker::new(&engine);
    linker.func_wrap("env", "double", |number: i32| number * 2).unwrap();
    let module = wasmtime::Module::new(&engine, wasm).unwrap();
    for import in module.imports().filter(|import| import.module() == super::HOOK_MODULE) {
        let ty = import.ty().unwrap_func().clone();
        let count = |mut caller: Caller<'_, u32>, _: &[Val], results: &mut [Val]| {
            *caller.data_mut() += 1;
            results.fill(Val::I32(0));
            Ok(())
        };
        let hook = Func::new(&mut store, ty, count);
        linker.define(&store, import.module(), import.name(), hook).unwrap();
    }
    let instance = linker.instantiate(&mut store, &module).unwrap();
    (store, instance)
}

fn run(store: &mut Store<u32>, instance: Instance) -> i32 {
    instance.get_typed_func::<(), i32>(&mut *store, "run").unwrap().call(store, ()).unwrap()
}

fn message(refused: Result<impl Sized, InstrumentError>) -> String {
    match refused {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_index_follows_when_imports_are_added() {
    let wasm = PLAIN.encode();
    let (mut store, instance) = instantiate(&wasm);
    let result = run(&mut store, instance);
    assert_eq!(result, 1000 + 14 + 7 + 7 + 7);

    let module = Module::parse(&wasm).unwrap();
    let call = |at: Range<usize>| Edit { at, with: vec![Instruction::Call(1)] };
    let rewrite = Rewrite {
        hooks: &Hook::ALL,
        exports: vec![("seven".into(), ExportKind::Func, 1)],
        edits: BTreeMap::from([(2, vec![call(0..0), call(5..5)])]),
        names: BTreeMap::from([(0, "double".into()), (1, "seven".into()), (2, "run".into())]),
        ..Rewrite::default()
    };
    let rewritten = rewrite.apply(&module).unwrap();
    wasmparser::validate(&rewritten).unwrap();
    let (mut store, instance) = instantiate(&rewritten);
    assert_eq!(run(&mut store, instance), result);
    assert_eq!(*store.data(), 2, "both edits call the first hook");
    let seven = instance.get_typed_func::<(), i32>(&mut store, "seven").unwrap();
    assert_eq!(seven.call(&mut store, ()).unwrap(), 7);
    let again = Module::parse(&rewritten).unwrap();
    let own = 1 + u32::try_from(Hook::ALL.len()).unwrap();
    assert_eq!(
        (again.names[&0], again.names[&1], again.names[&own], again.names[&(own + 1)]),
        ("double", "init_process", "seven", "run")
    );
}

#[test]
fn an_edit_can_replace_instructions() {
    let wasm = PLAIN.encode();
    let module = Module::parse(&wasm).unwrap();
    let eight = Edit { at: 0..1, with: vec![Instruction::I32Const(4), Instruction::I32Const(4), Instruction::I32Add] };
    let rewrite = Rewrite { edits: BTreeMap::from([(1, vec![eight])]), ..Rewrite::default() };
    let (mut store, instance) = instantiate(&rewrite.apply(&module).unwrap());
    assert_eq!(run(&mut store, instance), 1000 + 16 + 8 + 8 + 8);
}

#[test]
fn a_start_function_that_only_zeroes_memory_can_be_left_out() {
    let zero = |start, length| {
        [
            Instruction::I32Const(start),
            Instruction::I32Const(0),
            Instruction::I32Const(length),
            Instruction::MemoryFill(0),
        ]
    };
    let wasm = Sample { start: Some([zero(100, 20), zero(200, 1)].concat()), passive: false }.encode();
    assert_eq!(zeroed_by_start(&Module::parse(&wasm).unwrap()).unwrap(), [100..120, 200..201]);
    assert!(zeroed_by_start(&Module::parse(&PLAIN.encode()).unwrap()).unwrap().is_empty());
}

#[test]
fn a_start_function_that_does_more_is_refused() {
    let more = [
        vec![Instruction::I32Const(0), Instruction::GlobalSet(0)],
        vec![Instruction::I32Const(9), Instruction::I32Const(1), Instruction::I32Const(4), Instruction::MemoryFill(0)],
        vec![Instruction::I32Const(-1), Instruction::I32Const(0), Instruction::I32Const(4), Instruction::MemoryFill(0)],
    ];
    for instructions in more {
        let wasm = Sample { start: Some(instructions), passive: false }.encode();
        let message = message(zeroed_by_start(&Module::parse(&wasm).unwrap()));
        assert!(message.contains("start function 3 does more"), "{message}");
    }
}

#[test]
fn data_that_is_not_written_at_instantiation_is_refused() {
    let wasm = Sample { start: None, passive: true }.encode();
    for message in [message(instrument(&wasm)), message(instrument_side_module(&wasm))] {
        assert!(message.contains("data segment 1 is passive"), "{message}");
    }
}

#[test]
fn code_that_uses_a_data_segment_while_it_runs_is_refused() {
    let wasm = Sample { start: Some(vec![Instruction::DataDrop(0)]), passive: false }.encode();
    for message in [message(instrument(&wasm)), message(instrument_side_module(&wasm))] {
        assert!(message.contains("function 3 uses a data segment"), "{message}");
    }
}

#[test]
fn a_memory_whose_last_page_is_not_the_one_of_the_safepoints_is_refused() {
    let wasm = PLAIN.encode();
    let error = safepoints::check(&Module::parse(&wasm).unwrap()).unwrap_err();
    assert!(error.to_string().contains("the maximum of its memory is None pages, not 2 GiB"), "{error}");
}

/// The numbers of the instructions at which the safepoints of a function begin that has one loop in another, and their
/// addresses.
fn safepoints_of(instrument: fn(&[u8]) -> Result<Vec<u8>, InstrumentError>) -> Vec<(usize, u64)> {
    use Instruction::{Br, BrIf, End, I32Const, Loop, Nop};
    let start = vec![Nop, Loop(BlockType::Empty), Loop(BlockType::Empty), I32Const(0), BrIf(0), Br(1), End, End];
    let wasm = instrument(&Sample { start: Some(start), passive: false }.encode()).unwrap();
    let module = Module::parse(&wasm).unwrap();
    let page = safepoints::SAFEPOINT_PAGE.cast_signed();
    let operators = module.operators(3).unwrap();
    let safepoints = operators.windows(3).enumerate().filter_map(|(at, window)| match *window {
        [Operator::I32Const { value }, Operator::I32Const { value: 0 }, Operator::I32Store { memarg }]
            if value == page =>
        {
            Some((at, memarg.offset))
        }
        _ => None,
    });
    safepoints.collect()
}

#[test]
fn every_loop_has_a_safepoint_with_an_address_of_its_own_where_it_is_repeated() {
    // After nop, loop, loop, i32.const, if; after br, end.
    assert_eq!(safepoints_of(instrument_side_module), [(5, 0), (10, 4)]);
}

#[test]
fn functions_of_libraries_that_did_not_come_with_the_program_begin_with_a_safepoint_as_their_loops_do() {
    assert_eq!(safepoints_of(instrument_foreign_side_module), [(0, 0), (5, 4), (9, 8)]);
}

#[test]
fn a_module_that_is_not_pglite_is_refused_by_a_function_that_it_lacks() {
    assert!(message(instrument(&PLAIN.encode())).starts_with("getpid: expected an exported function"));
    assert!(matches!(instrument(b"\0asm"), Err(InstrumentError::Malformed(_))));
}

#[test]
fn a_side_module_does_nothing_until_its_start_function_is_called() {
    let start = vec![Instruction::I32Const(2000), Instruction::GlobalSet(0)];
    let wasm = Sample { start: Some(start), passive: false }.encode();
    let code = instrument_side_module(&wasm).unwrap();
    let (mut store, instance) = instantiate(&code);
    assert_eq!(run(&mut store, instance), 1035);
    instance.get_typed_func::<(), ()>(&mut store, SIDE_MODULE_START).unwrap().call(&mut store, ()).unwrap();
    assert_eq!(run(&mut store, instance), 2035);

    let globals = side_module_globals(&wasm).unwrap();
    let [global] = &globals[..] else { panic!("{globals:?}") };
    instance.get_global(&mut store, global).unwrap().set(&mut store, Val::I32(3000)).unwrap();
    assert_eq!(run(&mut store, instance), 3035, "a clone sets what the start function had set");
    assert!(Module::parse(&code).unwrap().data.is_empty());
}

#[test]
fn a_data_symbol_is_an_exported_global_that_holds_an_address() {
    let wasm = PLAIN.encode();
    let symbols = Module::parse(&wasm).unwrap().data_symbols();
    assert_eq!(symbols, BTreeMap::from([("symbol".to_owned(), 64)]));
}

#[test]
fn a_body_in_which_the_place_to_change_is_missing_or_not_the_only_one_is_refused() {
    use wasmparser::Operator::{End, I32Const, I32Eq, I32Ne, I32Store};
    let target = Target {
        name: "proc_exit",
        signature: Signature { parameters: 1, i64_at: None, result: None },
        evidence: Evidence::Exported,
        changes: &[],
    };
    let compare = [I32Const { value: 1 }, I32Const { value: 42 }, I32Ne];
    let place = |operators: &[_]| bodies::own_process_id(&target, operators, 42);
    assert_eq!(place(&compare).unwrap(), 1);
    assert!(message(place(&[I32Const { value: 42 }, End, I32Eq])).contains("found one without a use"));
    let memarg = wasmparser::MemArg { align: 2, max_align: 2, offset: 80, memory: 0 };
    let store = [I32Const { value: 42 }, I32Store { memarg }];
    assert_eq!(place(&store).unwrap(), 0);
    assert!(message(place(&[&compare[..], &store].concat())).contains("a use of the process id in 2 places"));
}

proptest! {
    #[test]
    fn a_fresh_memory_holds_what_segments_and_then_the_start_function_write(
        segments in prop::collection::vec((0_u32..900, prop::collection::vec(any::<u8>(), 0..100)), 0..8),
        zeroed in prop::collection::vec((0_u32..900, 0_u32..100), 0..4),
    ) {
        let mut expected = vec![0; 65_536];
        for (offset, bytes) in &segments {
            expected[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        for (start, length) in &zeroed {
            expected[*start as usize..][..*length as usize].fill(0);
        }
        let data: Vec<(u32, &[u8])> = segments.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
        let ranges: Vec<Range<u32>> = zeroed.iter().map(|(start, length)| *start..start + length).collect();
        let mut memory = initial_memory(PageLimits { minimum: 1, maximum: None }, &data, &ranges).unwrap();
        memory.resize(expected.len(), 0);
        prop_assert_eq!(memory, expected);
    }

    #[test]
    fn bytes_that_are_no_module_are_refused_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let module = [b"\0asm\x01\0\0\0", &bytes[..]].concat();
        prop_assert!(instrument(&module).is_err());
        prop_assert!(instrument(&bytes).is_err());
    }

    #[test]
    fn a_damaged_module_is_written_or_refused_and_not_a_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        passive: bool,
    ) {
        let mut wasm = Sample { start: Some(Vec::new()), passive }.encode();
        for (place, byte) in damage {
            *place.get_mut(&mut wasm) = byte;
        }
        let _ = (instrument_plain(&wasm), instrument_side_module(&wasm), side_module_globals(&wasm));
    }
}

#[test]
fn a_segment_beyond_the_memory_is_refused() {
    let limits = PageLimits { minimum: 1, maximum: None };
    assert!(initial_memory(limits, &[(65_535, b"a")], &[]).is_ok());
    assert!(message(initial_memory(limits, &[(65_535, b"ab")], &[])).contains("does not fit"));
}
