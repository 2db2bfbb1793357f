//! A module with `invoke_*` functions, for side modules that use signatures that the main module lacks.

use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection, RefType, TableType, TagKind,
    TagType, TypeSection, ValType,
};

use super::longjmp::{TAG, lower_longjmp};

/// A module with only the functions `names`, each an `invoke_*` of a signature that the main module does not have:
/// `invoke_` and then the result and the parameters of the called function, each as `v` (none), `i`, `j`, `f` or `d`. Its
/// imports are exports of the main module.
///
/// Returns `None` when a name does not have this form.
#[must_use]
pub fn invoke_module(names: &[&str]) -> Option<Vec<u8>> {
    let mut types = TypeSection::new();
    types.ty().function([], [ValType::I32]);
    types.ty().function([ValType::I32], []);
    types.ty().function([ValType::I32, ValType::I32], []);
    types.ty().function([], []);
    let mut imports = ImportSection::new();
    let table = TableType { element_type: RefType::FUNCREF, minimum: 0, maximum: None, table64: false, shared: false };
    imports
        .import("env", "emscripten_stack_get_current", EntityType::Function(0))
        .import("env", "_emscripten_stack_restore", EntityType::Function(1))
        .import("env", "setThrew", EntityType::Function(2))
        .import("env", "__indirect_function_table", table)
        .import("env", TAG, TagType { kind: TagKind::Exception, func_type_idx: 3 });
    for name in names {
        let (parameters, results) = signature(name)?;
        imports.import("env", name, EntityType::Function(types.len()));
        types.ty().function(parameters, results);
    }
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

/// Whether [`invoke_module`] makes a function of this name.
#[must_use]
pub fn is_invoke(name: &str) -> bool {
    signature(name).is_some()
}

/// The parameters and the results of the function `name`.
fn signature(name: &str) -> Option<(Vec<ValType>, Vec<ValType>)> {
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
    Some((parameters, results))
}

#[cfg(test)]
mod tests {
    use wasmtime::{
        AsContextMut, Caller, Engine, ExnRef, ExnRefPre, ExnType, Func, FuncType, Linker, Module, Ref, Store, Table,
        Tag,
    };

    use super::*;

    #[test]
    fn an_invoke_function_can_be_made_for_any_signature() {
        let engine = Engine::default();
        let signatures =
            [("invoke_v", 1, 0), ("invoke_vijiiidjiiiiii", 14, 0), ("invoke_d", 1, 1), ("invoke_fjd", 3, 1)];
        let all = Module::new(&engine, invoke_module(&signatures.map(|(name, ..)| name)).unwrap()).unwrap();
        for (name, parameters, results) in signatures {
            let alone = Module::new(&engine, invoke_module(&[name]).unwrap()).unwrap();
            for module in [&all, &alone] {
                let ty = module.get_export(name).unwrap().unwrap_func().clone();
                assert_eq!((ty.params().len(), ty.results().len()), (parameters, results), "{name}");
            }
        }
        for name in ["invoke_", "invoke_x", "invoke_iv", "dynCall_ii"] {
            assert_eq!(invoke_module(&["invoke_v", name]), None, "{name}");
            assert!(!is_invoke(name) && is_invoke("invoke_v"), "{name}");
        }
    }

    #[test]
    fn an_invoke_function_calls_through_the_table_and_answers_zero_after_a_longjmp() {
        let engine = Engine::default();
        let mut store: Store<Vec<String>> = Store::new(&engine, Vec::new());
        let tag_type = wasmtime::TagType::new(FuncType::new(&engine, [], []));
        let tag = Tag::new(&mut store, &tag_type).unwrap();
        let callee = move |mut caller: Caller<'_, Vec<String>>, a: i32, b: f64| -> wasmtime::Result<i64> {
            caller.data_mut().push(format!("call with {a} and {b}"));
            if a > 0 {
                return Ok(7);
            }
            let allocator = ExnRefPre::new(&mut caller, ExnType::from_tag_type(&tag_type)?);
            let longjmp = ExnRef::new(&mut caller, &allocator, &tag, &[])?;
            caller.as_context_mut().throw(longjmp)
        };
        let callee = Func::wrap(&mut store, callee);
        let table = wasmtime::TableType::new(wasmtime::RefType::FUNCREF, 3, None);
        let table = Table::new(&mut store, table, Ref::Func(None)).unwrap();
        table.set(&mut store, 2, Ref::Func(Some(callee))).unwrap();
        let mut linker = Linker::new(&engine);
        linker.func_wrap("env", "emscripten_stack_get_current", || 4711).unwrap();
        let restore =
            |mut caller: Caller<'_, Vec<String>>, stack: i32| caller.data_mut().push(format!("restore {stack}"));
        linker.func_wrap("env", "_emscripten_stack_restore", restore).unwrap();
        let threw =
            |mut caller: Caller<'_, Vec<String>>, a: i32, b: i32| caller.data_mut().push(format!("threw {a} {b}"));
        linker.func_wrap("env", "setThrew", threw).unwrap();
        linker.define(&store, "env", "__indirect_function_table", table).unwrap();
        linker.define(&store, "env", TAG, tag).unwrap();
        let module = Module::new(&engine, invoke_module(&["invoke_jid"]).unwrap()).unwrap();
        let instance = linker.instantiate(&mut store, &module).unwrap();
        let invoke = instance.get_typed_func::<(i32, i32, f64), i64>(&mut store, "invoke_jid").unwrap();

        assert_eq!(invoke.call(&mut store, (2, 1, 0.5)).unwrap(), 7);
        assert_eq!(std::mem::take(store.data_mut()), ["call with 1 and 0.5"]);
        assert_eq!(invoke.call(&mut store, (2, -1, 0.5)).unwrap(), 0);
        assert_eq!(*store.data(), ["call with -1 and 0.5", "restore 4711", "threw 1 0"]);
    }
}
