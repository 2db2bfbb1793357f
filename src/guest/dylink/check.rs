//! Whether a side module that is to be a part of the program can be linked, before anything loads it.

use std::collections::HashSet;

use anyhow::Context;
use wasmparser::{Parser, Payload, Validator};
use wasmtime::Module;

use super::{compiled::LibraryStore, dylink_section::Description, link::main_name, user::FEATURES};
use crate::{
    guest::{cxx, libc, libdeflate, pgoutput},
    instrument::{self, Facts},
};

impl LibraryStore {
    /// The names that the side module `wasm` defines.
    ///
    /// # Errors
    /// When it is no valid side module, or cannot be rewritten.
    pub(crate) fn symbols(&self, wasm: &[u8]) -> anyhow::Result<Vec<String>> {
        let description = Description::parse(wasm)?;
        Validator::new_with_features(FEATURES).validate_all(wasm).context("it is no valid WebAssembly")?;
        instrument::instrument_foreign_side_module(wasm).context("it cannot be rewritten")?;
        Ok(description.symbols.into_keys().collect())
    }

    /// What the side module `wasm` imports and neither the program `main` nor anything in `others` defines, without
    /// what may be undefined.
    ///
    /// # Errors
    /// When it is no side module.
    pub(crate) fn unresolved(
        &self,
        wasm: &[u8],
        main: &Module,
        facts: &Facts,
        others: &HashSet<String>,
    ) -> anyhow::Result<Vec<String>> {
        let description = Description::parse(wasm)?;
        // What the program imports is what the host has.
        let of_host: HashSet<&str> = main.imports().map(|import| import.name()).collect();
        let is_defined = |space: &str, name: &str| {
            let main_name = main_name("env", name).unwrap_or(name);
            facts.symbol(name).is_some()
                || main.get_export(main_name).is_some()
                || others.contains(name)
                || description.weak.contains(name)
                || ["__memory_base", "__table_base"].contains(&name)
                || (!space.starts_with("GOT.") && of_host.contains(name))
                || cxx::SYMBOLS.contains(name)
                || (!space.starts_with("GOT.") && is_for_libraries(name))
                || instrument::is_invoke(name)
        };
        let mut unresolved = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            let Payload::ImportSection(section) = payload? else { continue };
            for import in section.into_imports() {
                let import = import?;
                if !is_defined(import.module, import.name) && !unresolved.iter().any(|known| known == import.name) {
                    unresolved.push(import.name.to_owned());
                }
            }
        }
        Ok(unresolved)
    }
}

/// Whether the host has this function for libraries, besides those for the program.
fn is_for_libraries(name: &str) -> bool {
    let lists = [&cxx::FUNCTIONS[..], &libc::FUNCTIONS, &libdeflate::FUNCTIONS].into_iter().chain(pgoutput::FUNCTIONS);
    lists.into_iter().any(|list| list.contains(&name))
}
