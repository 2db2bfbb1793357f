//! Copies the bodies of small functions to the places that call them most.
//!
//! PGlite is linked without optimising across files, so that PostgreSQL's smallest functions (`palloc`, `lappend`,
//! `LockBuffer`) are called at every use, and Cranelift, which compiles one function at a time, keeps it that way. Such
//! a call costs more than what it calls: the check of the stack's limit, registers saved and restored, values spilled.
//!
//! Which calls are worth it has been counted ([`Calls`]): a few thousand of PGlite's 160,000 calls are nearly all that
//! a server makes. To copy every small function everywhere makes the code half as large again and is no faster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::ParseIntError;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{BlockType, CodeSection, Function, Instruction, ValType};
use wasmparser::{FunctionBody, Operator, Parser};

use super::InstrumentError;
use super::longjmp::{unsupported, zero};
use super::module::Module;

/// What `make calls` has counted.
const COUNTED: &str = include_str!("calls.txt");

/// How many functions may be copied into each other, the one that they are copied into included.
const MAX_DEPTH: usize = 7;

/// The calls that are worth a copy of what they call, as the numbers of the two functions among those that the module
/// defines. The rewriter adds functions only behind these, so that the numbers are those of the published file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Calls(BTreeSet<(u32, u32)>);

impl Calls {
    /// The calls that were counted in the file with this SHA-256; none if they were counted in another one.
    ///
    /// # Panics
    /// If `calls.txt` is damaged, which a test would show.
    pub(super) fn counted(sha256: &str) -> Self {
        let mut lines = COUNTED.lines().filter(|line| !line.starts_with('#'));
        if lines.next() != Some(sha256) {
            return Self::default();
        }
        Self::parse(lines).expect("numbers in calls.txt")
    }

    /// Reads lines of a caller and what it calls.
    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, ParseIntError> {
        let mut calls = BTreeSet::new();
        for line in lines {
            let functions = line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
            if let Some((&caller, callees)) = functions.split_first() {
                calls.extend(callees.iter().map(|&callee| (caller, callee)));
            }
        }
        Ok(Self(calls))
    }
}

/// Writes `wasm` again with copies of the called functions in place of `calls`.
///
/// # Errors
/// If `wasm` is not a module.
pub(super) fn inline(wasm: &[u8], calls: &Calls) -> Result<Vec<u8>, InstrumentError> {
    if calls.0.is_empty() {
        return Ok(wasm.to_vec());
    }
    let module = Module::parse(wasm)?;
    let mut inlining = Inlining { callees: callees(&module, calls)?, module: &module, calls, next: 0 };
    let mut output = wasm_encoder::Module::new();
    match inlining.parse_core_module(&mut output, Parser::new(0), wasm) {
        Ok(()) => Ok(output.finish()),
        Err(reencode::Error::UserError(error)) => Err(error),
        Err(error) => Err(InstrumentError::Unsupported(format!("it cannot be encoded again: {error}"))),
    }
}

/// A function that is copied.
struct Callee<'a> {
    parameters: Vec<ValType>,
    /// Its locals besides the parameters, with their values at its beginning.
    locals: Vec<(ValType, Instruction<'static>)>,
    block: BlockType,
    body: Vec<Operator<'a>>,
}

/// The functions that are called by `calls` and can be copied, by their numbers.
fn callees<'a>(module: &Module<'a>, calls: &Calls) -> Result<BTreeMap<u32, Callee<'a>>, InstrumentError> {
    let mut callees = BTreeMap::new();
    for &(_, number) in &calls.0 {
        if let Some(callee) = callee(module, module.imported_functions + number)? {
            callees.insert(number, callee);
        }
    }
    Ok(callees)
}

/// The function with this index, unless it cannot be copied: the safepoints of its loops could become the same as
/// those of its caller (see `safepoints`), and neither exceptions that it catches nor calls in place of its return are
/// worth a rule of their own.
///
/// To leave out the call is no risk for what several processes share: a process loses its turn only at a safepoint or
/// in a call of the host, and the compiler reuses no value across either.
fn callee<'a>(module: &Module<'a>, index: u32) -> Result<Option<Callee<'a>>, InstrumentError> {
    let (Some(ty), Some(body)) = (module.function_type(index), module.body(index)) else { return Ok(None) };
    let body_operators = module.operators(index)?;
    let is_unfit = |operator: &Operator| {
        matches!(
            operator,
            Operator::Loop { .. }
                | Operator::TryTable { .. }
                | Operator::Try { .. }
                | Operator::ReturnCallRef { .. }
                | Operator::ReturnCall { .. }
                | Operator::ReturnCallIndirect { .. }
        )
    };
    if body_operators.iter().any(is_unfit) {
        return Ok(None);
    }
    let Some(parameters) = ty.params().iter().map(|ty| value_type(*ty)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let block = match ty.results() {
        [] => BlockType::Empty,
        [result] => match value_type(*result) {
            Some(result) => BlockType::Result(result),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let mut locals = Vec::new();
    for group in body.get_locals_reader()? {
        let (count, ty) = group?;
        let (Some(ty), Some(zero)) = (value_type(ty), zero(ty)) else { return Ok(None) };
        locals.extend((0..count).map(|_| (ty, zero.clone())));
    }
    Ok(Some(Callee { parameters, locals, block, body: body_operators }))
}

/// A number's type; PGlite has no values of other types.
fn value_type(ty: wasmparser::ValType) -> Option<ValType> {
    match ty {
        wasmparser::ValType::I32 => Some(ValType::I32),
        wasmparser::ValType::I64 => Some(ValType::I64),
        wasmparser::ValType::F32 => Some(ValType::F32),
        wasmparser::ValType::F64 => Some(ValType::F64),
        _ => None,
    }
}

struct Inlining<'a> {
    module: &'a Module<'a>,
    calls: &'a Calls,
    callees: BTreeMap<u32, Callee<'a>>,
    /// The number of the function whose body is next.
    next: u32,
}

type Reencoded = Result<(), reencode::Error<InstrumentError>>;

impl Reencode for Inlining<'_> {
    type Error = InstrumentError;

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Reencoded {
        let number = self.next;
        self.next += 1;
        if self.calls.0.range((number, 0)..=(number, u32::MAX)).next().is_none() {
            return reencode::utils::parse_function_body(self, code, body);
        }
        let index = self.module.imported_functions + number;
        let missing = || unsupported(format!("function {index} has no type"));
        let parameters = self.module.function_type(index).ok_or_else(missing)?.params();
        let mut locals = Vec::new();
        for &parameter in parameters {
            locals.push(self.val_type(parameter)?);
        }
        for group in body.get_locals_reader()? {
            let (count, ty) = group?;
            let ty = self.val_type(ty)?;
            locals.extend((0..count).map(|_| ty));
        }
        let operators = body.get_operators_reader()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let own = (0..).take(locals.len()).collect();
        let mut expansion =
            Expansion { inlining: self, locals, unused: HashMap::new(), within: vec![number], output: Vec::new() };
        expansion.copy(&operators, own)?;
        let Expansion { locals, output, .. } = expansion;
        let mut function = Function::new_with_locals_types(locals.into_iter().skip(parameters.len()));
        output.iter().for_each(|instruction| {
            function.instruction(instruction);
        });
        code.function(&function);
        Ok(())
    }
}

/// A function with copies of others in it, as it is written.
struct Expansion<'e, 'a, 'o> {
    inlining: &'e mut Inlining<'a>,
    /// The types of its locals, parameters included.
    locals: Vec<ValType>,
    /// Locals of copies that end before the next instruction.
    unused: HashMap<ValType, Vec<u32>>,
    /// The function and the copies around the next instruction, the innermost last.
    within: Vec<u32>,
    output: Vec<Instruction<'o>>,
}

impl<'o, 'a: 'o> Expansion<'_, 'a, 'o> {
    /// Writes the instructions of a function, or of a copy in its block, whose locals have become `locals`.
    fn copy(&mut self, operators: &[Operator<'o>], locals: Vec<u32>) -> Reencoded {
        let is_copy = self.within.len() > 1;
        let local = |index: u32| {
            let missing = || unsupported(format!("it uses local {index}, which does not exist"));
            locals.get(index as usize).copied().ok_or_else(missing)
        };
        // The number of blocks around the instruction within the function.
        let mut blocks: u32 = 0;
        for operator in operators {
            if let &Operator::Call { function_index } = operator
                && let Some(callee) = self.copied(function_index)
            {
                self.call(callee)?;
                continue;
            }
            match operator {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                    blocks += 1;
                }
                // The last one ends the function.
                Operator::End => blocks = blocks.saturating_sub(1),
                _ => {}
            }
            let instruction = match self.inlining.instruction(operator.clone())? {
                Instruction::LocalGet(index) => Instruction::LocalGet(local(index)?),
                Instruction::LocalSet(index) => Instruction::LocalSet(local(index)?),
                Instruction::LocalTee(index) => Instruction::LocalTee(local(index)?),
                Instruction::Return if is_copy => Instruction::Br(blocks),
                other => other,
            };
            self.output.push(instruction);
        }
        Ok(())
    }

    /// The number of the function with this index, if its body is to replace the call of it.
    fn copied(&self, index: u32) -> Option<u32> {
        let callee = index.checked_sub(self.inlining.module.imported_functions)?;
        let caller = *self.within.last()?;
        let is_copied = self.inlining.calls.0.contains(&(caller, callee))
            && self.inlining.callees.contains_key(&callee)
            && self.within.len() < MAX_DEPTH
            && !self.within.contains(&callee);
        is_copied.then_some(callee)
    }

    /// Writes a copy of that function: its arguments and zeros into locals, then its body in a block.
    fn call(&mut self, number: u32) -> Reencoded {
        let Some(callee) = self.inlining.callees.remove(&number) else { return Ok(()) };
        let parameters: Vec<u32> = callee.parameters.iter().map(|&ty| self.local(ty)).collect();
        self.output.extend(parameters.iter().rev().map(|&local| Instruction::LocalSet(local)));
        let mut locals = parameters;
        for (ty, zero) in &callee.locals {
            let local = self.local(*ty);
            self.output.extend([zero.clone(), Instruction::LocalSet(local)]);
            locals.push(local);
        }
        self.output.push(Instruction::Block(callee.block));
        self.within.push(number);
        self.copy(&callee.body, locals.clone())?;
        self.within.pop();
        let types = callee.parameters.iter().copied().chain(callee.locals.iter().map(|(ty, _)| *ty));
        for (local, ty) in locals.into_iter().zip(types) {
            self.unused.entry(ty).or_default().push(local);
        }
        self.inlining.callees.insert(number, callee);
        Ok(())
    }

    /// A local that no copy around the next instruction uses.
    fn local(&mut self, ty: ValType) -> u32 {
        if let Some(local) = self.unused.get_mut(&ty).and_then(Vec::pop) {
            return local;
        }
        self.locals.push(ty);
        u32::try_from(self.locals.len() - 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
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
            Block, Br, BrIf, Call, Else, I32Add, I32Const, I32Eq, I32Mul, I32Sub, If, LocalGet, LocalSet, LocalTee,
            Loop, Return,
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
}
