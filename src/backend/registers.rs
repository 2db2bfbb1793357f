//! The state of a backend outside its linear memory and its files.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use wasmtime::{AsContextMut, Val, ValType};

use crate::guest::{Guest, LibrariesImage};

/// Mutable globals and what was added to the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Registers {
    /// Every mutable global by its export's name; an `i32` is kept as an `i64`.
    globals: Vec<(String, i64)>,
    pub(super) libraries: LibrariesImage,
}

impl Registers {
    /// The side modules that the backend had loaded: path in the guest's files, and hash.
    pub(crate) fn libraries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.libraries.libraries()
    }

    /// Reads the state of the guest in `store`.
    ///
    /// # Errors
    /// When it is not a backend of the instrumented program.
    pub(super) fn capture(store: &mut impl AsContextMut<Data = Guest>) -> anyhow::Result<Self> {
        let guest = store.as_context().data();
        let (instance, facts) = (guest.exports()?.instance, guest.facts.clone());
        let mut globals = Vec::new();
        for name in &facts.mutable_globals {
            let global =
                instance.get_global(&mut *store, name).with_context(|| format!("there is no global {name}"))?;
            let value = match global.get(&mut *store) {
                Val::I32(value) => value.into(),
                Val::I64(value) => value,
                other => bail!("the global {name} is a {other:?}"),
            };
            globals.push((name.clone(), value));
        }
        Ok(Self { globals, libraries: store.as_context().data().libraries.image() })
    }

    /// Sets the globals of the guest in `store` to what they were.
    ///
    /// # Errors
    /// When it has others.
    pub(super) fn set_globals(&self, store: &mut impl AsContextMut<Data = Guest>) -> anyhow::Result<()> {
        let instance = store.as_context().data().exports()?.instance;
        for (name, value) in &self.globals {
            let global =
                instance.get_global(&mut *store, name).with_context(|| format!("there is no global {name}"))?;
            let value = match global.ty(&*store).content() {
                ValType::I64 => Val::I64(*value),
                _ => Val::I32(i32::try_from(*value)?),
            };
            global.set(&mut *store, value)?;
        }
        Ok(())
    }
}
