//! Writes the bodies of functions again: edits, safepoints and copies in pieces.

use std::convert::Infallible;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{BlockType, Function, Instruction};
use wasmparser::{FunctionBody, Operator};

use super::super::InstrumentError;
use super::super::bulk::{self, Bulk};
use super::super::changes::Edit;
use super::super::hooks::Hook;
use super::super::outline::{Frame, Outline};
use super::super::safepoints::{self, Place, Safepoints};
use super::Writer;

/// What is before an instruction in its function.
#[derive(Default)]
struct Before {
    /// The number of safepoints.
    safepoints: u64,
    /// The constant that was pushed just before.
    constant: Option<i32>,
    /// The first of the locals for [`Bulk::write`], if the function has them.
    bulk_locals: Option<u32>,
}

impl Writer<'_> {
    /// The body of `function` with these changes.
    pub(super) fn rewritten(
        &mut self,
        function: u32,
        body: &FunctionBody<'_>,
        edits: &[Edit],
    ) -> Result<Function, reencode::Error<Infallible>> {
        let mut edits = edits.iter().peekable();
        let operators = body.get_operators_reader()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (mut locals, mut number) = (Vec::new(), self.parameters(function));
        for group in body.get_locals_reader()? {
            let (count, ty) = group?;
            locals.push((count, self.val_type(ty)?));
            number = number.saturating_add(count);
        }
        let mut before = Before::default();
        if self.first_bulk.is_some() && operators.iter().any(|operator| Bulk::of(operator, None).is_some()) {
            locals.extend(bulk::PARAMETERS.map(|ty| (1, ty)));
            before.bulk_locals = Some(number);
        }
        let mut output = Function::new(locals);
        let mut skipped_until = 0;
        let places = safepoints::places(self.rewrite.safepoints, &operators);
        if self.rewrite.safepoints == Safepoints::LoopsAndEntries {
            safepoints::add(&mut output, &mut before.safepoints);
        }
        for (at, operator) in operators.into_iter().enumerate() {
            while let Some(edit) = edits.next_if(|edit| edit.at.start == at) {
                edit.with.iter().for_each(|instruction| {
                    output.instruction(instruction);
                });
                skipped_until = edit.at.end;
            }
            if at >= skipped_until {
                self.copy(operator, places.get(&at).copied(), &mut output, &mut before)?;
            }
        }
        Ok(output)
    }

    /// Writes an instruction of the original with the safepoint at `place` to `output`.
    fn copy(
        &mut self,
        operator: Operator<'_>,
        place: Option<Place>,
        output: &mut Function,
        before: &mut Before,
    ) -> Result<(), reencode::Error<Infallible>> {
        let constant = match operator {
            Operator::I32Const { value } => Some(value),
            _ => None,
        };
        let pushed = std::mem::replace(&mut before.constant, constant);
        if let (Some(first), Some(bulk)) = (self.first_bulk, Bulk::of(&operator, pushed)) {
            let in_pieces = first + bulk as u32;
            match before.bulk_locals {
                Some(local) => bulk.write(output, in_pieces, local),
                None => {
                    output.instruction(&Instruction::Call(in_pieces));
                }
            }
            return Ok(());
        }
        let instruction = self.instruction(operator)?;
        let mut safepoint = |output: &mut Function| safepoints::add(output, &mut before.safepoints);
        match place {
            Some(Place::Head) => {
                output.instruction(&instruction);
                safepoint(output);
            }
            Some(Place::Jump) => {
                safepoint(output);
                output.instruction(&instruction);
            }
            Some(Place::Branch(label)) => {
                output.instruction(&Instruction::If(BlockType::Empty));
                safepoint(output);
                // There is one more block around it.
                output.instruction(&Instruction::Br(label + 1)).instruction(&Instruction::End);
            }
            None => {
                output.instruction(&instruction);
            }
        }
        Ok(())
    }

    /// The function that is made of a part of another one.
    pub(super) fn outlined(&mut self, outline: &Outline) -> Result<Function, InstrumentError> {
        let Outline { function, region, frame: Frame { stack_pointer, local, size } } = outline;
        let missing = || InstrumentError::Unsupported("what becomes a function of its own is not there".into());
        let body = self.original.body(*function).ok_or_else(missing)?;
        let parameters = self.original.function_type(*function).ok_or_else(missing)?.params();
        let mut locals = Vec::new();
        for parameter in parameters {
            locals.push((1, self.val_type(*parameter)?));
        }
        for group in body.get_locals_reader()? {
            let (count, ty) = group?;
            locals.push((count, self.val_type(ty)?));
        }
        let call = |hook: Hook| Instruction::Call(self.original.imported_functions + hook.position());
        let (is_trusted, authenticated) = (call(Hook::ClientIsTrusted), call(Hook::ClientAuthenticated));
        let mut output = Function::new(locals);
        output
            .instruction(&Instruction::GlobalGet(*stack_pointer))
            .instruction(&Instruction::I32Const(*size))
            .instruction(&Instruction::I32Sub)
            .instruction(&Instruction::LocalTee(*local))
            .instruction(&Instruction::GlobalSet(*stack_pointer))
            .instruction(&is_trusted)
            .instruction(&Instruction::I32Eqz)
            .instruction(&Instruction::If(BlockType::Empty));
        let mut before = Before::default();
        let operators = body.get_operators_reader()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let places = safepoints::places(self.rewrite.safepoints, &operators);
        for (at, operator) in operators.into_iter().enumerate().skip(region.start).take(region.len()) {
            self.copy(operator, places.get(&at).copied(), &mut output, &mut before)?;
        }
        output
            .instruction(&authenticated)
            .instruction(&Instruction::End)
            .instruction(&Instruction::LocalGet(*local))
            .instruction(&Instruction::I32Const(*size))
            .instruction(&Instruction::I32Add)
            .instruction(&Instruction::GlobalSet(*stack_pointer))
            .instruction(&Instruction::End);
        Ok(output)
    }

    /// The number of parameters of the function with this index in the original.
    fn parameters(&self, function: u32) -> u32 {
        let parameters = self.original.function_type(function).map_or(0, |ty| ty.params().len());
        u32::try_from(parameters).unwrap_or(u32::MAX)
    }
}
