//! Safepoints: where another thread can stop a process that does not check for interrupts.
//!
//! PostgreSQL relies on an operating system that can take the processor from a process at any instruction. Here a
//! process runs until it hands its turn over, which PostgreSQL's own code does only where it checks for interrupts. The
//! rewriter therefore adds a safepoint to each loop: a store to [`SAFEPOINT_PAGE`], which nothing reads. When the host
//! takes the page's access away, the store faults, and the host's handler of that fault hands the turn over before it
//! lets the store succeed. A flag and a branch would cost a fifth of the processor time of queries.
//!
//! The beginning of an iteration is a place where a process may lose its turn: the compiler made loads and stores of
//! the atomic operations of PostgreSQL's spinlocks and lightweight locks, and there is no loop between the load and the
//! store of one operation. A loop that repeats an operation until it succeeds begins with a new load. Cranelift keeps
//! it that way because a safepoint is a store: it takes no value that was loaded before a store for one that is loaded
//! after it (`alias_analysis.rs` in `cranelift-codegen`). With a load in its place, a value from before the loss of a
//! turn could be used after it, above all in a function with copies of others (`inlining`), in which no call is between
//! them.
//!
//! Half of all iterations are the first ones of their loops, because most loops end soon. A safepoint is therefore on
//! the way back to the head of a loop, and only there. In front of a conditional branch to the head it would also be
//! met where the branch is not taken, which may be between a load and a store: a compare-and-swap that fails branches to
//! the head of its loop, and stores if it does not.
//!
//! A function that calls itself can run for ever without repeating a loop. Nobody has looked at the functions of
//! libraries that did not come with the program, so these have a safepoint at their entry as well, and one at the head of
//! each loop, however it is repeated. A compiler makes no function of the two halves of an atomic operation.

use std::collections::BTreeMap;

use wasm_encoder::{Function, Instruction, MemArg};
use wasmparser::{BlockType, Operator};

use super::InstrumentError;
use super::module::Module;

/// Where a module gets safepoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Safepoints {
    /// Nowhere.
    #[default]
    None,
    /// Where loops are repeated.
    Loops,
    /// At the head of each loop and at the entry of each function.
    LoopsAndEntries,
}

/// Where a safepoint is, beside an instruction of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// After it, which begins a loop.
    Head,
    /// Before it, which jumps to the head of a loop.
    Jump,
    /// In the way to that head, the label, which it takes on a condition.
    Branch(u32),
}

/// A loop of a function.
struct Loop {
    /// Whether the safepoint has to be at its head.
    at_head: bool,
    /// The instructions that repeat it.
    back: Vec<(usize, Place)>,
}

/// Where a function with these instructions gets its safepoints, by the numbers of instructions.
///
/// A loop has its safepoint at its head if something else than `br` and `br_if` repeats it, or if it has parameters,
/// which the block around a safepoint in a branch would hide.
pub(super) fn places(safepoints: Safepoints, operators: &[Operator]) -> BTreeMap<usize, Place> {
    if safepoints == Safepoints::None {
        return BTreeMap::new();
    }
    let mut loops: BTreeMap<usize, Loop> = BTreeMap::new();
    // The blocks around an instruction, and where those that are loops begin.
    let mut around: Vec<Option<usize>> = Vec::new();
    let begun = |around: &[Option<usize>], label: u32| around.iter().rev().nth(label as usize).copied().flatten();
    for (at, operator) in operators.iter().enumerate() {
        let mut back = |around: &[Option<usize>], label: u32, place: Place| {
            if let Some(repeated) = begun(around, label).and_then(|begins| loops.get_mut(&begins)) {
                match place {
                    Place::Head => repeated.at_head = true,
                    Place::Jump | Place::Branch(_) => repeated.back.push((at, place)),
                }
            }
        };
        match operator {
            Operator::Br { relative_depth } => back(&around, *relative_depth, Place::Jump),
            Operator::BrIf { relative_depth } => back(&around, *relative_depth, Place::Branch(*relative_depth)),
            Operator::BrTable { targets } => {
                let labels = targets.targets().filter_map(Result::ok).chain([targets.default()]);
                labels.for_each(|label| back(&around, label, Place::Head));
            }
            Operator::BrOnNull { relative_depth }
            | Operator::BrOnNonNull { relative_depth }
            | Operator::BrOnCast { relative_depth, .. }
            | Operator::BrOnCastFail { relative_depth, .. } => back(&around, *relative_depth, Place::Head),
            Operator::TryTable { try_table } => {
                for catch in &try_table.catches {
                    let (wasmparser::Catch::One { label, .. }
                    | wasmparser::Catch::OneRef { label, .. }
                    | wasmparser::Catch::All { label }
                    | wasmparser::Catch::AllRef { label }) = *catch;
                    back(&around, label, Place::Head);
                }
                around.push(None);
            }
            Operator::Loop { blockty } => {
                let at_head = safepoints == Safepoints::LoopsAndEntries || matches!(blockty, BlockType::FuncType(_));
                loops.insert(at, Loop { at_head, back: Vec::new() });
                around.push(Some(at));
            }
            Operator::Block { .. } | Operator::If { .. } | Operator::Try { .. } => around.push(None),
            Operator::End | Operator::Delegate { .. } => drop(around.pop()),
            _ => {}
        }
    }
    let places = loops.into_iter().flat_map(
        |(at, repeated)| {
            if repeated.at_head { vec![(at, Place::Head)] } else { repeated.back }
        },
    );
    places.collect()
}

/// The address of the page that safepoints write to: the last page of WebAssembly that the memory may have. The
/// memory never grows to it.
pub const SAFEPOINT_PAGE: u32 = 0x7fff_0000;

/// The size of a page of WebAssembly.
const PAGE: u64 = 1 << 16;

/// Neighbouring safepoints have different addresses, and those with the same address different values, because the
/// compiler leaves out a store of what it knows to be there, and one that another store to the same address follows in any
/// case. All are in one cache line.
const ADDRESSES: u64 = 16;

/// Whole numbers of 4 bytes are stored: for smaller ones the compiler first moves the value to a register.
const SIZE: u64 = 4;

/// Adds a safepoint to `body`, which has `number` of them until now.
pub(super) fn add(body: &mut Function, number: &mut u64) {
    let place = MemArg { offset: *number % ADDRESSES * SIZE, align: 2, memory_index: 0 };
    let value = i32::try_from(*number / ADDRESSES).unwrap_or(i32::MAX);
    *number += 1;
    body.instruction(&Instruction::I32Const(SAFEPOINT_PAGE.cast_signed()));
    body.instruction(&Instruction::I32Const(value));
    body.instruction(&Instruction::I32Store(place));
}

/// Checks that the page is the last one that the backend's memory may have: an address beyond that would be known not
/// to exist when the stores are compiled.
///
/// # Errors
/// If it is another one.
pub(super) fn check(module: &Module) -> Result<(), InstrumentError> {
    let maximum = module.memory.and_then(|memory| memory.maximum);
    if maximum == Some(u64::from(SAFEPOINT_PAGE) / PAGE + 1) {
        return Ok(());
    }
    Err(InstrumentError::Unsupported(format!("the maximum of its memory is {maximum:?} pages, not 2 GiB")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use wasm_encoder::BlockType::{Empty, FunctionType};
    use wasm_encoder::Instruction::{Block, Br, BrIf, BrTable, Else, End, If, LocalGet, Loop, TryTable};
    use wasm_encoder::{
        Catch, CodeSection, ExportKind, ExportSection, FunctionSection, MemorySection, MemoryType, TypeSection, ValType,
    };
    use wasmtime::{Engine, Instance, Store};

    use super::super::{instrument_foreign_side_module, instrument_side_module};
    use super::*;

    /// A module whose function `f`, with a parameter and a result, has this body.
    fn module(body: &Function) -> Vec<u8> {
        let (mut types, mut functions, mut code) = (TypeSection::new(), FunctionSection::new(), CodeSection::new());
        types.ty().function([ValType::I32], [ValType::I32]);
        functions.function(0);
        code.function(body);
        let (mut memories, mut exports) = (MemorySection::new(), ExportSection::new());
        // Up to the page of the safepoints.
        let minimum = u64::from(SAFEPOINT_PAGE) / PAGE + 1;
        memories.memory(MemoryType { minimum, maximum: None, memory64: false, shared: false, page_size_log2: None });
        exports.export("f", ExportKind::Func, 0);
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&functions).section(&memories).section(&exports).section(&code);
        module.finish()
    }

    fn push(body: &mut Function, instructions: &[Instruction]) {
        for instruction in instructions {
            body.instruction(instruction);
        }
    }

    fn places_in(safepoints: Safepoints, instructions: &[Instruction]) -> Vec<(usize, Place)> {
        let mut body = Function::new([]);
        push(&mut body, instructions);
        let wasm = module(&body);
        places(safepoints, &Module::parse(&wasm).unwrap().operators(0).unwrap()).into_iter().collect()
    }

    #[test]
    fn a_loop_has_its_safepoints_in_its_ways_back_and_nowhere_else() {
        let instructions = [
            Loop(Empty),
            Block(Empty),
            Loop(Empty),
            LocalGet(0),
            // Out of the inner loop.
            BrIf(1),
            LocalGet(0),
            // Back to the outer one.
            BrIf(2),
            LocalGet(0),
            If(Empty),
            // Back to the inner one.
            Br(1),
            Else,
            // Out of the function.
            Br(4),
            End,
            End,
            End,
            End,
            End,
        ];
        let foreign = places_in(Safepoints::LoopsAndEntries, &instructions);
        assert_eq!(places_in(Safepoints::Loops, &instructions), [(6, Place::Branch(2)), (9, Place::Jump)]);
        assert_eq!(foreign, [(0, Place::Head), (2, Place::Head)], "nobody has looked at these");
        assert_eq!(places_in(Safepoints::None, &instructions), []);
    }

    #[test]
    fn a_loop_that_something_else_repeats_or_that_has_parameters_has_its_safepoint_at_its_head() {
        // The label of a catch is relative to the surroundings of its block.
        let catch = TryTable(Empty, vec![Catch::All { label: 0 }].into());
        for instructions in [
            vec![Loop(Empty), LocalGet(0), BrTable(vec![0, 1].into(), 1), End, End],
            vec![Loop(Empty), LocalGet(0), BrTable(vec![1].into(), 0), End, End],
            vec![Loop(Empty), Instruction::BrOnNull(0), Br(0), End, End],
            vec![Loop(Empty), Instruction::BrOnNonNull(0), Br(0), End, End],
            vec![Loop(Empty), catch, LocalGet(0), BrIf(1), End, End, End],
            vec![LocalGet(0), Loop(FunctionType(0)), LocalGet(0), BrIf(0), End, End],
        ] {
            let begins = instructions.iter().position(|it| matches!(it, Loop(_))).unwrap();
            assert_eq!(places_in(Safepoints::Loops, &instructions), [(begins, Place::Head)], "{instructions:?}");
        }
    }

    /// Counts a local down from the parameter in loops within each other, each repeated in one of three ways, and
    /// returns the number of iterations.
    fn counting(ways: &[u8]) -> Function {
        let rounds = u32::try_from(ways.len()).unwrap() + 1;
        let mut body = Function::new([(rounds, ValType::I32)]);
        for local in 1..rounds {
            push(&mut body, &[LocalGet(0), Instruction::LocalSet(local), Loop(Empty)]);
        }
        let add = |body: &mut Function, local: u32, by: i32| {
            push(
                body,
                &[LocalGet(local), Instruction::I32Const(by), Instruction::I32Add, Instruction::LocalSet(local)],
            );
        };
        add(&mut body, rounds, 1);
        for (local, way) in (1..rounds).zip(ways).collect::<Vec<_>>().into_iter().rev() {
            add(&mut body, local, -1);
            let is_last = [LocalGet(local), Instruction::I32Eqz];
            let way: Vec<Instruction> = match way {
                0 => vec![LocalGet(local), BrIf(0)],
                1 => [&is_last[..], &[If(Empty), Else, Br(1), End]].concat(),
                _ => [&[Block(Empty)], &is_last[..], &[BrTable(vec![1].into(), 0), End]].concat(),
            };
            push(&mut body, &way);
            body.instruction(&End);
        }
        body.instruction(&LocalGet(rounds)).instruction(&End);
        body
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn loops_do_what_they_did(ways in prop::collection::vec(0_u8..3, 1..4), parameter in 1_i32..5) {
            let wasm = module(&counting(&ways));
            for code in [instrument_side_module(&wasm).unwrap(), instrument_foreign_side_module(&wasm).unwrap()] {
                let engine = Engine::default();
                let mut store = Store::new(&engine, ());
                let compiled = wasmtime::Module::new(&engine, code).unwrap();
                let instance = Instance::new(&mut store, &compiled, &[]).unwrap();
                let counted = instance.get_typed_func::<i32, i32>(&mut store, "f").unwrap();
                let depth = u32::try_from(ways.len()).unwrap();
                prop_assert_eq!(counted.call(&mut store, parameter).unwrap(), parameter.pow(depth));
            }
        }
    }

    #[test]
    fn no_two_safepoints_of_a_function_store_the_same_value_at_the_same_address() {
        let (mut body, mut number) = (Function::new([]), 0);
        (0..1000).for_each(|_| add(&mut body, &mut number));
        body.instruction(&End);
        let wasm = module(&body);
        let operators = Module::parse(&wasm).unwrap().operators(0).unwrap();
        let stored: BTreeSet<(i32, u64)> = operators
            .windows(2)
            .filter_map(|window| match *window {
                [Operator::I32Const { value }, Operator::I32Store { memarg }] => Some((value, memarg.offset)),
                _ => None,
            })
            .collect();
        assert_eq!(stored.len(), 1000);
        assert!(stored.iter().all(|(_, offset)| offset % SIZE == 0 && *offset < ADDRESSES * SIZE));
    }
}
