//! Restores the libraries of one guest in another that has a copy of its memory.

use std::sync::Arc;

use anyhow::Context;
use wasmtime::{AsContext, AsContextMut, Ref, Val};

use super::{
    LibrariesImage, Library, Owner,
    link::{instantiate, reserve},
};
use crate::guest::Guest;

impl LibrariesImage {
    /// The path and the hash of each library.
    pub(crate) fn libraries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.places.iter().map(|place| (place.path.as_str(), place.hash.as_str()))
    }
}

/// Restores the libraries of `image` in a guest whose memory already contains their data.
///
/// # Errors
/// When a library differs from the one that `image` was made with.
pub(crate) fn restore(
    store: &mut impl AsContextMut<Data = Guest>,
    image: &LibrariesImage,
    libraries: &[Arc<Library>],
) -> anyhow::Result<()> {
    let table = store.as_context().data().exports()?.table;
    let used = store.as_context().data().libraries.free_slot;
    reserve(store, image.free_slot.checked_sub(used).context("the table is larger than in the image")?)?;
    let mut context = store.as_context_mut();
    let state = &mut context.data_mut().libraries;
    state.set(image);
    for (place, library) in image.places.iter().zip(libraries) {
        let number = instantiate(store, library.clone(), place.clone()).with_context(|| place.path.clone())?;
        let instance = store.as_context().data().libraries.loaded[number].instance;
        for (name, value) in &place.globals {
            let global = instance.get_global(&mut *store, name).with_context(|| format!("it has no global {name}"))?;
            global.set(&mut *store, Val::I32(*value))?;
        }
    }
    for claim in &image.claims {
        let instance = match claim.owner {
            Owner::Main => Some(store.as_context().data().exports()?.instance),
            Owner::Library(number) => store.as_context().data().libraries.loaded.get(number).map(|it| it.instance),
        };
        let function =
            instance.and_then(|instance| instance.get_func(&mut *store, &claim.name)).with_context(|| {
                format!("the function {} of table slot {} is not defined any more", claim.name, claim.slot)
            })?;
        table.set(&mut *store, claim.slot.into(), Ref::Func(Some(function)))?;
    }
    Ok(())
}
