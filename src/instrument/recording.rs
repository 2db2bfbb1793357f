//! Has PGlite's functions tell the host what they call, so that it can count their calls for
//! [`inlining`](super::inlining).

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{CodeSection, EntityType, ImportSection, Instruction, TypeSection, ValType};
use wasmparser::{FunctionBody, ImportSectionReader, Operator, Parser, TypeSectionReader};

use super::module::Module;
use super::{HOOK_MODULE, InstrumentError};

/// The name of the host function `called(caller, callee)`, which the module imports from [`HOOK_MODULE`]. It is called
/// before each direct call; functions have the numbers of `inlining`.
pub const CALLED: &str = "called";

/// Writes `wasm` again with a call of [`CALLED`] before each direct call of a function that it defines.
///
/// # Errors
/// If `wasm` is not a module.
pub(super) fn record(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    let module = Module::parse(wasm)?;
    let mut recording = Recording { module: &module, next: 0 };
    let mut output = wasm_encoder::Module::new();
    recording.parse_core_module(&mut output, Parser::new(0), wasm)?;
    Ok(output.finish())
}

struct Recording<'a> {
    module: &'a Module<'a>,
    /// The number of the function whose body is next.
    next: u32,
}

type Reencoded = Result<(), reencode::Error<std::convert::Infallible>>;

impl Reencode for Recording<'_> {
    type Error = std::convert::Infallible;

    fn function_index(&mut self, index: u32) -> Result<u32, reencode::Error<Self::Error>> {
        Ok(if index < self.module.imported_functions { index } else { index + 1 })
    }

    fn parse_type_section(&mut self, types: &mut TypeSection, section: TypeSectionReader<'_>) -> Reencoded {
        reencode::utils::parse_type_section(self, types, section)?;
        types.ty().function([ValType::I32, ValType::I32], []);
        Ok(())
    }

    fn parse_import_section(&mut self, imports: &mut ImportSection, section: ImportSectionReader<'_>) -> Reencoded {
        reencode::utils::parse_import_section(self, imports, section)?;
        let ty = u32::try_from(self.module.types.len()).unwrap_or(u32::MAX);
        imports.import(HOOK_MODULE, CALLED, EntityType::Function(ty));
        Ok(())
    }

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Reencoded {
        let caller = self.next;
        self.next += 1;
        let mut function = self.new_function_with_parsed_locals(&body)?;
        for operator in body.get_operators_reader()? {
            let operator = operator?;
            if let Operator::Call { function_index } = operator
                && let Some(callee) = function_index.checked_sub(self.module.imported_functions)
            {
                function
                    .instruction(&Instruction::I32Const(caller.cast_signed()))
                    .instruction(&Instruction::I32Const(callee.cast_signed()))
                    .instruction(&Instruction::Call(self.module.imported_functions));
            }
            function.instruction(&self.instruction(operator)?);
        }
        code.function(&function);
        Ok(())
    }
}
