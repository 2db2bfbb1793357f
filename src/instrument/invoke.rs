//! A module with one `invoke_*` function, for side modules that use a signature that the main module lacks.

use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection, RefType, TableType, TagKind,
    TagType, TypeSection, ValType,
};

use super::longjmp::{TAG, lower_longjmp};

/// A module with only the function `name`, an `invoke_*` of a signature that the main module does not have: `invoke_`
/// and then the result and the parameters of the called function, each as `v` (none), `i`, `j`, `f` or `d`. Its
/// imports are exports of the main module.
///
/// Returns `None` when `name` does not have this form.
#[must_use]
pub fn invoke_module(name: &str) -> Option<Vec<u8>> {
    let value = |letter| match letter {
        'i' => Some(ValType::I32),
        'j' => Some(ValType::I64),
        'f' => Some(ValType::F32),
        'd' => Some(ValType::F64),
        _ => None,
    };
    let mut letters = name.strip_prefix("invoke_")?.chars();
    let results: Vec<ValType> = match letters.next()? {
        'v' => Vec::new(),
        letter => vec![value(letter)?],
    };
    let parameters = std::iter::once(Some(ValType::I32)).chain(letters.map(value)).collect::<Option<Vec<_>>>()?;
    let mut types = TypeSection::new();
    types.ty().function(parameters, results);
    types.ty().function([], [ValType::I32]);
    types.ty().function([ValType::I32], []);
    types.ty().function([ValType::I32, ValType::I32], []);
    types.ty().function([], []);
    let mut imports = ImportSection::new();
    let table = TableType { element_type: RefType::FUNCREF, minimum: 0, maximum: None, table64: false, shared: false };
    imports
        .import("env", "emscripten_stack_get_current", EntityType::Function(1))
        .import("env", "_emscripten_stack_restore", EntityType::Function(2))
        .import("env", "setThrew", EntityType::Function(3))
        .import("env", name, EntityType::Function(0))
        .import("env", "__indirect_function_table", table)
        .import("env", TAG, TagType { kind: TagKind::Exception, func_type_idx: 4 });
    // The exports that `lower_longjmp` needs, and a function section, to which it adds.
    let mut exports = ExportSection::new();
    exports
        .export("emscripten_stack_get_current", ExportKind::Func, 0)
        .export("_emscripten_stack_restore", ExportKind::Func, 1)
        .export("setThrew", ExportKind::Func, 2);
    let mut module = wasm_encoder::Module::new();
    module
        .section(&types)
        .section(&imports)
        .section(&FunctionSection::new())
        .section(&exports)
        .section(&CodeSection::new());
    lower_longjmp(&module.finish()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoke_function_can_be_made_for_any_signature() {
        for name in ["invoke_v", "invoke_vijiiidjiiiiii", "invoke_d", "invoke_fjd"] {
            wasmparser::validate(&invoke_module(name).unwrap()).unwrap();
        }
        for name in ["invoke_", "invoke_x", "invoke_iv", "dynCall_ii"] {
            assert_eq!(invoke_module(name), None, "{name}");
        }
    }
}
