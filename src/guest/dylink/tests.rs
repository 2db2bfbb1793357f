//! Modules that may be wrong in any way.

use bolero::check;
use wasm_smith::Config;
use wasmparser::{Parser, Payload, validate};

use super::{
    dylink_section::{Description, tests::side_module},
    user,
};
use crate::{
    fuzz::{Corpus, Input, fuzz},
    instrument::{instrument_foreign_side_module, instrument_side_module},
};

/// What is described is in the file; what is described as another's library is valid and within limits; what is
/// rewritten stays valid and has no data.
fn check(input: &Input) {
    let wasm = &input.bytes;
    let is_valid = validate(wasm).is_ok();
    let described = Description::parse(wasm);
    if let Ok(description) = &described {
        let bytes = description.data.iter().map(|(_, data)| data.len()).sum::<usize>();
        let names = description.symbols.keys().chain(&description.needed).chain(&description.weak);
        assert!(bytes + names.map(String::len).sum::<usize>() <= wasm.len());
    }
    if let Ok((description, _)) = user::describe(wasm) {
        assert!(is_valid && described.is_ok());
        assert!(description.memory_size <= 16 << 20 && description.table_size <= 64 << 10);
        let alignment = description.memory_alignment;
        assert!(description.memory_size == 0 || (alignment.is_power_of_two() && alignment <= 64 << 10));
    }
    for rewrite in [instrument_side_module, instrument_foreign_side_module] {
        if let (true, Ok(code)) = (is_valid, rewrite(wasm)) {
            validate(&code).expect("it was valid");
            if described.is_ok() {
                assert!(Description::parse(&code).expect("it was described").data.is_empty());
            }
        }
    }
}

#[test]
fn a_damaged_side_module_is_refused_or_described_as_it_is() {
    fuzz!(Corpus::made([side_module()]), check);
}

/// The number of functions that a module defines.
fn functions(wasm: &[u8]) -> usize {
    let is_body = |payload: &Payload<'_>| matches!(payload, Payload::CodeSectionEntry(_));
    Parser::new(0).parse_all(wasm).flatten().filter(is_body).count()
}

#[test]
fn any_module_stays_valid_when_it_is_rewritten() {
    check!().for_each(|bytes: &[u8]| {
        // What compilers for C use, as a side module has it.
        let config = Config {
            exceptions_enabled: false,
            gc_enabled: false,
            max_memories: 1,
            memory64_enabled: false,
            min_memories: 1,
            shared_everything_threads_enabled: false,
            threads_enabled: false,
            ..Config::default()
        };
        let Ok(module) = wasm_smith::Module::new(config, &mut arbitrary::Unstructured::new(bytes)) else { return };
        let wasm = module.to_bytes();
        for rewrite in [instrument_side_module, instrument_foreign_side_module] {
            match rewrite(&wasm) {
                Ok(code) => {
                    validate(&code).expect("it was valid");
                    // Large copies call two more.
                    let added = functions(&code) - functions(&wasm);
                    assert!(matches!(added, 0 | 2), "{added} more functions");
                }
                // Data of its own is the only thing in a valid module that is refused.
                Err(error) => assert!(error.to_string().contains("data segment"), "{error}"),
            }
        }
    });
}
