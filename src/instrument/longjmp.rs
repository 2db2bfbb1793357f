//! Replaces Emscripten's `longjmp`, which unwinds through JavaScript, with WebAssembly exceptions.
//!
//! Emscripten compiles a call under `setjmp` to `invoke_X(index, arguments…)`, an import that calls the table entry
//! and catches what `_emscripten_throw_longjmp`, another import, throws (Emscripten, `src/lib/libcore.js` and
//! `libdylink.js`, `createInvokeFunction`). Every statement passes several such calls (`PG_TRY`). Here both imports
//! become functions of the module:
//!
//! ```wat
//! (func $invoke_iii (param $index i32) (param $a i32) (param $b i32) (result i32) (local $stack i32)
//!   (local.set $stack (call $emscripten_stack_get_current))
//!   (block $caught
//!     (try_table (catch $longjmp $caught)
//!       (return (call_indirect (type …) (local.get $a) (local.get $b) (local.get $index)))))
//!   (call $_emscripten_stack_restore (local.get $stack))
//!   (call $setThrew (i32.const 1) (i32.const 0))
//!   (i32.const 0))
//! (func $_emscripten_throw_longjmp (throw $longjmp))
//! ```
//!
//! No host call is left, entering such a call costs nothing, and the native stack holds only wasm at any depth of
//! calls. The functions are exported under their names, so that side modules, which import them, share one tag with
//! the main module.

use std::collections::HashMap;

use wasm_encoder::{
    BlockType, Catch, CodeSection, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Instruction,
    SectionId, TagKind, TagSection, TagType, TypeSection, ValType,
    reencode::{self, Reencode, utils},
};
use wasmparser::{CompositeInnerType, ExternalKind, FuncType, Import, Parser, Payload, TypeRef};

use super::InstrumentError;

const THROW: &str = "_emscripten_throw_longjmp";

/// The export name of the exception's tag; Emscripten's own wasm longjmp uses the same.
pub(super) const TAG: &str = "__c_longjmp";

/// Replaces every import `env.invoke_*` and `env._emscripten_throw_longjmp` of `wasm` with a function of the module.
///
/// A module without such imports is returned unchanged.
///
/// # Errors
/// When `wasm` is not a valid module, or lacks an export that these functions are built on.
pub(super) fn lower_longjmp(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    let plan = Plan::read(wasm)?;
    if plan.lowered.is_empty() {
        return Ok(wasm.to_vec());
    }
    encode_again(&mut Lowering { plan }, wasm)
}

/// Writes `wasm` again as `encoder` wants it.
///
/// # Errors
/// Those of `encoder`; if `wasm` is not a module.
pub(super) fn encode_again(
    encoder: &mut impl Reencode<Error = InstrumentError>,
    wasm: &[u8],
) -> Result<Vec<u8>, InstrumentError> {
    let mut output = wasm_encoder::Module::new();
    match encoder.parse_core_module(&mut output, Parser::new(0), wasm) {
        Ok(()) => Ok(output.finish()),
        Err(reencode::Error::UserError(error)) => Err(error),
        Err(error) => Err(InstrumentError::Unsupported(format!("it cannot be encoded again: {error}"))),
    }
}

/// Whether an import becomes a function of the module.
fn is_lowered(import: &Import) -> bool {
    let is_function = matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_));
    is_function && import.module == "env" && (import.name.starts_with("invoke_") || import.name == THROW)
}

/// One import that becomes a function.
struct Lowered {
    name: String,
    type_index: u32,
}

/// The facts about a module that are needed to rewrite it.
struct Plan {
    types: Vec<FuncType>,
    /// The new index of every function, by its old index.
    functions: Vec<u32>,
    /// The imports that become functions, which get the last indices in this order.
    lowered: Vec<Lowered>,
    /// The first index of those functions.
    first_lowered: u32,
    /// The functions that the new functions call; 0 if there are no new ones.
    stack_get_current: u32,
    stack_restore: u32,
    set_threw: u32,
    /// The index of the tag, and whether this module defines it: an imported tag belongs to the main module.
    tag: u32,
    tag_is_own: bool,
}

impl Plan {
    fn read(wasm: &[u8]) -> Result<Self, InstrumentError> {
        let mut types = Vec::new();
        let mut lowered = Vec::new();
        // For every function import, in order, whether it remains.
        let mut imports: Vec<bool> = Vec::new();
        let mut defined = 0;
        let (mut tags, mut imported_tag) = (0, None);
        let mut exports = HashMap::new();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        for ty in group?.into_types() {
                            match ty.composite_type.inner {
                                CompositeInnerType::Func(ty) => types.push(ty),
                                _ => types.push(FuncType::new([], [])),
                            }
                        }
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        match import.ty {
                            TypeRef::Func(type_index) | TypeRef::FuncExact(type_index) => {
                                let stays = !is_lowered(&import);
                                if !stays {
                                    lowered.push(Lowered { name: import.name.to_owned(), type_index });
                                }
                                imports.push(stays);
                            }
                            TypeRef::Tag(_) => {
                                if import.name == TAG {
                                    imported_tag = Some(tags);
                                }
                                tags += 1;
                            }
                            _ => {}
                        }
                    }
                }
                Payload::FunctionSection(section) => defined = section.count(),
                Payload::TagSection(section) => tags += section.count(),
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        if export.kind == ExternalKind::Func {
                            exports.insert(export.name, export.index);
                        }
                    }
                }
                _ => {}
            }
        }
        let kept = u32::try_from(imports.iter().filter(|stays| **stays).count()).unwrap_or(u32::MAX);
        let first_lowered = kept + defined;
        let (mut next_kept, mut next_lowered) = (0, first_lowered);
        let mut functions: Vec<u32> = imports
            .iter()
            .map(|stays| {
                let next = if *stays { &mut next_kept } else { &mut next_lowered };
                *next += 1;
                *next - 1
            })
            .collect();
        functions.extend(kept..first_lowered);
        let needed = !lowered.is_empty();
        let index = |name: &str| {
            if !needed {
                return Ok(0);
            }
            let index = exports.get(name).and_then(|&index| functions.get(index as usize));
            index.copied().ok_or_else(|| InstrumentError::Evidence {
                function: name.to_owned(),
                expected: "an exported function".to_owned(),
                found: "none of this name".to_owned(),
            })
        };
        Ok(Self {
            stack_get_current: index("emscripten_stack_get_current")?,
            stack_restore: index("_emscripten_stack_restore")?,
            set_threw: index("setThrew")?,
            types,
            functions,
            lowered,
            first_lowered,
            tag: imported_tag.unwrap_or(tags),
            tag_is_own: imported_tag.is_none(),
        })
    }

    /// The index of the type of a function without parameters and results, the first type that is added to the
    /// module's.
    fn tag_type(&self) -> u32 {
        u32::try_from(self.types.len()).unwrap_or(u32::MAX)
    }

    /// The type of the table entry that the `n`th new function calls; these follow the tag's type.
    fn callee_type(&self, n: usize) -> u32 {
        self.tag_type() + 1 + u32::try_from(n).unwrap_or(u32::MAX)
    }

    fn body(&self, n: usize) -> Result<Function, reencode::Error<InstrumentError>> {
        let lowered = &self.lowered[n];
        if lowered.name == THROW {
            let mut body = Function::new([]);
            body.instruction(&Instruction::Throw(self.tag)).instruction(&Instruction::End);
            return Ok(body);
        }
        let ty = self.type_of(lowered)?;
        let parameters = u32::try_from(ty.params().len()).unwrap_or(u32::MAX);
        let stack = parameters;
        let mut body = Function::new([(1, ValType::I32)]);
        body.instruction(&Instruction::Call(self.stack_get_current))
            .instruction(&Instruction::LocalSet(stack))
            .instruction(&Instruction::Block(BlockType::Empty))
            .instruction(&Instruction::TryTable(
                BlockType::Empty,
                // The label is relative to the try_table's surroundings: 0 is the block around it.
                vec![Catch::One { tag: self.tag, label: 0 }].into(),
            ));
        for parameter in 1..parameters {
            body.instruction(&Instruction::LocalGet(parameter));
        }
        body.instruction(&Instruction::LocalGet(0))
            .instruction(&Instruction::CallIndirect { type_index: self.callee_type(n), table_index: 0 })
            .instruction(&Instruction::Return)
            .instruction(&Instruction::End)
            .instruction(&Instruction::End)
            .instruction(&Instruction::LocalGet(stack))
            .instruction(&Instruction::Call(self.stack_restore))
            .instruction(&Instruction::I32Const(1))
            .instruction(&Instruction::I32Const(0))
            .instruction(&Instruction::Call(self.set_threw));
        for result in ty.results() {
            let missing = || unsupported(format!("an invoke_* function returns {result}, which has no zero value"));
            body.instruction(&zero(*result).ok_or_else(missing)?);
        }
        body.instruction(&Instruction::End);
        Ok(body)
    }

    fn type_of(&self, lowered: &Lowered) -> Result<&FuncType, reencode::Error<InstrumentError>> {
        let ty = self.types.get(lowered.type_index as usize);
        ty.filter(|ty| ty.params().first() == Some(&wasmparser::ValType::I32) || lowered.name == THROW)
            .ok_or_else(|| unsupported(format!("the first parameter of {} is not a table index (i32)", lowered.name)))
    }
}

/// The constant 0 of a type of numbers.
pub(super) fn zero(ty: wasmparser::ValType) -> Option<Instruction<'static>> {
    Some(match ty {
        wasmparser::ValType::I32 => Instruction::I32Const(0),
        wasmparser::ValType::I64 => Instruction::I64Const(0),
        wasmparser::ValType::F32 => Instruction::F32Const(0.0.into()),
        wasmparser::ValType::F64 => Instruction::F64Const(0.0.into()),
        _ => return None,
    })
}

pub(super) fn unsupported(problem: String) -> reencode::Error<InstrumentError> {
    reencode::Error::UserError(InstrumentError::Unsupported(problem))
}

struct Lowering {
    plan: Plan,
}

type Reencoded = Result<(), reencode::Error<InstrumentError>>;

impl Reencode for Lowering {
    type Error = InstrumentError;

    fn function_index(&mut self, function: u32) -> Result<u32, reencode::Error<InstrumentError>> {
        // The parser does not validate, so an index may be anything.
        let index = self.plan.functions.get(function as usize);
        index.copied().ok_or_else(|| unsupported(format!("it refers to function {function}, which does not exist")))
    }

    fn parse_type_section(&mut self, types: &mut TypeSection, section: wasmparser::TypeSectionReader<'_>) -> Reencoded {
        utils::parse_type_section(self, types, section)?;
        types.ty().function([], []);
        for lowered in &self.plan.lowered {
            let ty = self.plan.type_of(lowered)?;
            let parameters = ty.params().iter().skip(1).map(|ty| reencode::RoundtripReencoder.val_type(*ty));
            let results = ty.results().iter().map(|ty| reencode::RoundtripReencoder.val_type(*ty));
            let convert = |_| unsupported(format!("the type of {} uses types beyond WebAssembly 1.0", lowered.name));
            types.ty().function(
                parameters.collect::<Result<Vec<_>, _>>().map_err(convert)?,
                results.collect::<Result<Vec<_>, _>>().map_err(convert)?,
            );
        }
        Ok(())
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: wasmparser::ImportSectionReader<'_>,
    ) -> Reencoded {
        for import in section.into_imports() {
            let import = import?;
            if !is_lowered(&import) {
                utils::parse_import(self, imports, import)?;
            }
        }
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_function_section(self, functions, section)?;
        for lowered in &self.plan.lowered {
            functions.function(lowered.type_index);
        }
        Ok(())
    }

    fn parse_tag_section(&mut self, tags: &mut TagSection, section: wasmparser::TagSectionReader<'_>) -> Reencoded {
        utils::parse_tag_section(self, tags, section)?;
        tags.tag(self.own_tag());
        Ok(())
    }

    fn intersperse_section_hook(
        &mut self,
        module: &mut wasm_encoder::Module,
        _after: Option<SectionId>,
        before: Option<SectionId>,
    ) -> Reencoded {
        // The tag section comes between memories and globals. Emscripten's modules have no tags yet, and all have
        // globals.
        if self.plan.tag_is_own && matches!(before, Some(SectionId::Global)) {
            let mut tags = TagSection::new();
            tags.tag(self.own_tag());
            module.section(&tags);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_export_section(self, exports, section)?;
        for (n, lowered) in (0..).zip(&self.plan.lowered) {
            exports.export(&lowered.name, ExportKind::Func, self.plan.first_lowered + n);
        }
        if self.plan.tag_is_own {
            exports.export(TAG, ExportKind::Tag, self.plan.tag);
        }
        Ok(())
    }

    fn parse_code_section(&mut self, code: &mut CodeSection, section: wasmparser::CodeSectionReader<'_>) -> Reencoded {
        utils::parse_code_section(self, code, section)?;
        for n in 0..self.plan.lowered.len() {
            code.function(&self.plan.body(n)?);
        }
        Ok(())
    }
}

impl Lowering {
    fn own_tag(&self) -> TagType {
        TagType { kind: TagKind::Exception, func_type_idx: self.plan.tag_type() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_longjmp_stays_as_it_is() {
        let empty = wasm_encoder::Module::new().finish();
        assert_eq!(lower_longjmp(&empty).unwrap(), empty);
    }

    #[test]
    fn bytes_that_are_no_module_are_refused() {
        assert!(lower_longjmp(b"longjmp").is_err());
    }
}
