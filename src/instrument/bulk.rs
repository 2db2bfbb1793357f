//! `memory.copy` and `memory.fill` in pieces.
//!
//! A single instruction can copy a gigabyte, which takes hundreds of milliseconds, and nothing stops a process within
//! it. Where the length is not known to be small, the rewriter therefore has it looked at. If it is large, a function
//! is called in place of the instruction, which does the same in pieces, in a loop with a
//! [safepoint](super::safepoints).

use wasm_encoder::{BlockType, Function, Instruction, ValType};
use wasmparser::Operator;

use super::module::Module;
use super::safepoints;

/// The largest piece: it takes less than a millisecond, also if every page has to be mapped.
pub(super) const PIECE: i32 = 1 << 20;

/// The parameters of both functions, as the instructions have them: the destination, then the source or the value of
/// each byte, then the length. They have no results. A function with such an instruction gets locals for them.
pub(super) const PARAMETERS: [ValType; 3] = [ValType::I32; 3];

const DESTINATION: u32 = 0;
/// In `memory.fill` the value.
const SOURCE: u32 = 1;
const LENGTH: u32 = 2;

/// The instructions that are replaced, in the order of their functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bulk {
    Copy,
    Fill,
}

impl Bulk {
    pub(super) const ALL: [Self; 2] = [Self::Copy, Self::Fill];

    /// Which of them `operator` is, if its length may be large. `before` is the constant that was pushed just before it.
    pub(super) fn of(operator: &Operator<'_>, before: Option<i32>) -> Option<Self> {
        let bulk = match operator {
            Operator::MemoryCopy { .. } => Self::Copy,
            Operator::MemoryFill { .. } => Self::Fill,
            _ => return None,
        };
        // A negative number is a large one.
        before.is_none_or(|length| !(0..=PIECE).contains(&length)).then_some(bulk)
    }

    /// Whether a function of `module` has one of the instructions.
    pub(super) fn is_in(module: &Module<'_>) -> bool {
        module.bodies.iter().any(|body| {
            let operators = body.get_operators_reader().into_iter().flatten().flatten();
            operators.into_iter().any(|operator| Self::of(&operator, None).is_some())
        })
    }

    /// Writes what replaces the instruction to `body`: a call of the function with the index `in_pieces` if the length
    /// is large, and the instruction if it is not. A call for any length would cost a percent of the processor time of
    /// queries. Three locals, from `local` on, are used for nothing else.
    pub(super) fn write(self, body: &mut Function, in_pieces: u32, local: u32) {
        use Instruction::{Call, Else, End, I32Const, I32GtU, If, LocalGet, LocalSet};
        let [destination, source, length] = [DESTINATION, SOURCE, LENGTH].map(|parameter| local + parameter);
        let operands = [LocalGet(destination), LocalGet(source), LocalGet(length)];
        add(body, &[LocalSet(length), LocalSet(source), LocalSet(destination)]);
        add(body, &[LocalGet(length), I32Const(PIECE), I32GtU, If(BlockType::Empty)]);
        add(body, &operands);
        add(body, &[Call(in_pieces), Else]);
        add(body, &operands);
        add(body, &[self.instruction(), End]);
    }

    /// Its name in backtraces.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy_in_pieces",
            Self::Fill => "fill_in_pieces",
        }
    }

    /// The function.
    pub(super) fn function(self) -> Function {
        use Instruction::{Br, End, I32Add, I32Const, I32GtU, I32LtU, If, LocalGet, Loop, Unreachable};
        let mut body = Function::new([]);
        let mut safepoints = 0;
        self.finish_if_small(&mut body);
        if self == Self::Copy {
            // From the end, because what is still to be copied may be where the destination begins. The end of the
            // destination must not be an address beyond the largest one.
            add(&mut body, &[LocalGet(DESTINATION), LocalGet(SOURCE), I32GtU, If(BlockType::Empty)]);
            add(&mut body, &[LocalGet(DESTINATION), LocalGet(LENGTH), I32Add, LocalGet(DESTINATION), I32LtU]);
            add(&mut body, &[If(BlockType::Empty), Unreachable, End, Loop(BlockType::Empty)]);
            safepoints::add(&mut body, &mut safepoints);
            self.finish_if_small(&mut body);
            step(&mut body, LENGTH, -PIECE);
            for pointer in [DESTINATION, SOURCE] {
                add(&mut body, &[LocalGet(pointer), LocalGet(LENGTH), I32Add]);
            }
            add(&mut body, &[I32Const(PIECE), self.instruction(), Br(0), End, End]);
        }
        add(&mut body, &[Loop(BlockType::Empty)]);
        safepoints::add(&mut body, &mut safepoints);
        self.finish_if_small(&mut body);
        add(&mut body, &[LocalGet(DESTINATION), LocalGet(SOURCE), I32Const(PIECE), self.instruction()]);
        step(&mut body, DESTINATION, PIECE);
        if self == Self::Copy {
            step(&mut body, SOURCE, PIECE);
        }
        step(&mut body, LENGTH, -PIECE);
        add(&mut body, &[Br(0), End, End]);
        body
    }

    /// Does what is left if it is no more than a piece, and returns then.
    fn finish_if_small(self, body: &mut Function) {
        use Instruction::{End, I32Const, I32LeU, If, LocalGet, Return};
        add(body, &[LocalGet(LENGTH), I32Const(PIECE), I32LeU, If(BlockType::Empty)]);
        add(body, &[LocalGet(DESTINATION), LocalGet(SOURCE), LocalGet(LENGTH), self.instruction(), Return, End]);
    }

    fn instruction(self) -> Instruction<'static> {
        match self {
            Self::Copy => Instruction::MemoryCopy { src_mem: 0, dst_mem: 0 },
            Self::Fill => Instruction::MemoryFill(0),
        }
    }
}

fn add(body: &mut Function, instructions: &[Instruction<'_>]) {
    for instruction in instructions {
        body.instruction(instruction);
    }
}

/// Adds `by` to a local.
fn step(body: &mut Function, local: u32, by: i32) {
    use Instruction::{I32Add, I32Const, LocalGet, LocalSet};
    add(body, &[LocalGet(local), I32Const(by), I32Add, LocalSet(local)]);
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{
        CodeSection, ExportKind, ExportSection, FunctionSection, MemorySection, MemoryType, TypeSection,
    };
    use wasmtime::{Engine, Instance, Memory, Store};

    use super::super::instrument_side_module;
    use super::*;

    const WHOLE: u32 = PIECE.cast_unsigned();

    /// A module whose functions `copy` and `fill` are the instructions, and have the length from `length`.
    fn module(length: &Instruction<'_>) -> Vec<u8> {
        let (mut types, mut functions) = (TypeSection::new(), FunctionSection::new());
        types.ty().function(PARAMETERS, []);
        let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
        for (index, bulk) in Bulk::ALL.into_iter().enumerate() {
            functions.function(0);
            exports.export(["copy", "fill"][index], ExportKind::Func, index.try_into().unwrap());
            let mut body = Function::new([]);
            add(&mut body, &[Instruction::LocalGet(DESTINATION), Instruction::LocalGet(SOURCE), length.clone()]);
            add(&mut body, &[bulk.instruction(), Instruction::End]);
            code.function(&body);
        }
        let mut memories = MemorySection::new();
        // Up to the page of the safepoints.
        let minimum = u64::from(safepoints::SAFEPOINT_PAGE >> 16) + 1;
        memories.memory(MemoryType { minimum, maximum: None, memory64: false, shared: false, page_size_log2: None });
        exports.export("memory", ExportKind::Memory, 0);
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&functions).section(&memories).section(&exports).section(&code);
        instrument_side_module(&module.finish()).unwrap()
    }

    struct Instantiated {
        store: Store<()>,
        instance: Instance,
        memory: Memory,
    }

    impl Instantiated {
        fn new(wasm: &[u8]) -> Self {
            let engine = Engine::default();
            let mut store = Store::new(&engine, ());
            let module = wasmtime::Module::new(&engine, wasm).unwrap();
            let instance = Instance::new(&mut store, &module, &[]).unwrap();
            let memory = instance.get_memory(&mut store, "memory").unwrap();
            Self { store, instance, memory }
        }

        fn call(&mut self, name: &str, arguments: (u32, u32, u32)) -> wasmtime::Result<()> {
            let function = self.instance.get_typed_func::<(u32, u32, u32), ()>(&mut self.store, name)?;
            function.call(&mut self.store, arguments)
        }
    }

    #[test]
    fn pieces_are_copied_and_filled_as_the_whole_is_also_where_it_overlaps() {
        let mut guest = Instantiated::new(&module(&Instruction::LocalGet(LENGTH)));
        let pattern: Vec<u8> = (0..8 * WHOLE).map(|at| (at % 251).try_into().unwrap()).collect();
        for length in [0, 1, WHOLE, WHOLE + 1, 3 * WHOLE + 7] {
            for (destination, source) in
                [(0, 1), (1, 0), (WHOLE / 2, WHOLE), (WHOLE, WHOLE / 2), (4 * WHOLE, 5), (9, 9)]
            {
                let mut expected = pattern.clone();
                guest.memory.write(&mut guest.store, 0, &pattern).unwrap();
                expected.copy_within(source as usize..(source + length) as usize, destination as usize);
                guest.call("copy", (destination, source, length)).unwrap();
                let copied = guest.memory.data(&guest.store)[..pattern.len()] == expected;
                assert!(copied, "{length} bytes from {source} to {destination}");

                expected[destination as usize..][..length as usize].fill(0xa5);
                guest.call("fill", (destination, 0x1a5, length)).unwrap();
                let filled = guest.memory.data(&guest.store)[..pattern.len()] == expected;
                assert!(filled, "{length} bytes at {destination}");
            }
        }
    }

    #[test]
    fn what_is_outside_of_the_memory_is_a_trap() {
        let mut guest = Instantiated::new(&module(&Instruction::LocalGet(LENGTH)));
        for (name, destination, source) in
            [("copy", 0, 0x7fff_fff0), ("copy", 0xffff_0000, 0), ("fill", 0x7fff_fff0, 0)]
        {
            assert!(guest.call(name, (destination, source, 2 * WHOLE)).is_err(), "{name}");
        }
        assert!(guest.call("copy", (16, 0, u32::MAX)).is_err(), "its end is no address");
        assert!(guest.memory.data(&guest.store)[..16].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_known_to_be_small_stays_as_it_is() {
        let stays = |length: i32| {
            let wasm = module(&Instruction::I32Const(length));
            let module = Module::parse(&wasm).unwrap();
            let calls = |operator: &Operator| matches!(operator, Operator::Call { .. });
            (0..2).all(|index| !module.operators(index).unwrap().iter().any(calls))
        };
        assert!(stays(0) && stays(PIECE));
        assert!(!stays(PIECE + 1) && !stays(-1));
    }
}
