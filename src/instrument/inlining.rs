//! Copies the bodies of small functions to the places that call them most.
//!
//! PGlite is linked without optimising across files, so that PostgreSQL's smallest functions (`palloc`, `lappend`,
//! `LockBuffer`) are called at every use, and Cranelift, which compiles one function at a time, keeps it that way. Such
//! a call costs more than what it calls: the check of the stack's limit, registers saved and restored, values spilled.
//!
//! Which calls are worth it has been counted ([`Calls`]): a few thousand of PGlite's 160,000 calls are nearly all that
//! a server makes. To copy every small function everywhere makes the code half as large again and is no faster.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::ParseIntError;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{BlockType, CodeSection, Function, Instruction, ValType};
use wasmparser::{FunctionBody, Operator};

use super::InstrumentError;
use super::longjmp::{encode_again, unsupported, zero};
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
    let callees = callees(&module, calls)?;
    encode_again(&mut Inlining { module: &module, calls, callees: &callees, next: 0 }, wasm)
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
    callees: &'a BTreeMap<u32, Callee<'a>>,
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
        let own: Vec<u32> = (0..).take(locals.len()).collect();
        let mut expansion =
            Expansion { inlining: self, locals, unused: HashMap::new(), within: vec![number], output: Vec::new() };
        expansion.copy(&operators, &own)?;
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
    fn copy(&mut self, operators: &[Operator<'o>], locals: &[u32]) -> Reencoded {
        let is_copy = self.within.len() > 1;
        let local = |index: u32| {
            let missing = || unsupported(format!("it uses local {index}, which does not exist"));
            locals.get(index as usize).copied().ok_or_else(missing)
        };
        // The number of blocks around the instruction within the function.
        let mut blocks: u32 = 0;
        for operator in operators {
            if let &Operator::Call { function_index } = operator
                && let Some((number, callee)) = self.copied(function_index)
            {
                self.call(number, callee)?;
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

    /// The function with this index and its number, if its body is to replace the call of it.
    fn copied(&self, index: u32) -> Option<(u32, &'a Callee<'a>)> {
        let number = index.checked_sub(self.inlining.module.imported_functions)?;
        let caller = *self.within.last()?;
        let callee = self.inlining.callees.get(&number)?;
        let is_copied = self.inlining.calls.0.contains(&(caller, number))
            && self.within.len() < MAX_DEPTH
            && !self.within.contains(&number);
        is_copied.then_some((number, callee))
    }

    /// Writes a copy of that function: its arguments and zeros into locals, then its body in a block.
    fn call(&mut self, number: u32, callee: &'a Callee<'a>) -> Reencoded {
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
        self.copy(&callee.body, &locals)?;
        self.within.pop();
        for local in locals {
            self.unused.entry(self.locals[local as usize]).or_default().push(local);
        }
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
