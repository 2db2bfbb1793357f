//! Preparing a backend's pages, replacing a backend by another one, and copying it: all between two messages, without
//! guest frames on the stack.

use std::{slice, sync::Arc};

use parking_lot::Mutex;

use super::Backend;
use crate::{
    backend::program::Program,
    fs::{Console, Files, Silent, Tree},
    guest::Setup,
    image::{Image, TouchedPages},
};

impl Backend {
    /// Copies those of `pages` that a session writes, so that the session has no page faults for them.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn copy_written(&mut self, pages: &TouchedPages) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        pages.copy_written(&mut self.store, memory);
        Ok(())
    }

    /// Reads those of `pages` that a session reads, so that the session has no page faults for them. This takes as
    /// long as the page faults would.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn look_at_read(&self, pages: &TouchedPages) -> anyhow::Result<()> {
        pages.look_at_read(&self.store, self.exports()?.memory);
        Ok(())
    }

    /// Replaces this backend by `successor`, which takes over its client, its console, its signals, its tally, and its
    /// cluster's clock and random bytes. Returns the replaced backend, which must not run again.
    ///
    /// # Errors
    /// None between backends of one program.
    pub(crate) fn succeed_to(&mut self, successor: Self) -> anyhow::Result<Self> {
        let guest = self.store.data_mut();
        let client = std::mem::take(&mut guest.client);
        let (clock, entropy, tally) = (guest.clock.clone(), guest.entropy.clone(), guest.tally.clone());
        let console = guest.files.set_console(Box::new(Silent));
        let signals = guest.signals.clone();
        // Otherwise the drop of the replaced backend would detach the signals from its successor.
        signals.detach();
        guest.set_signals(Arc::default());
        let replaced = std::mem::replace(self, successor);
        let guest = self.store.data_mut();
        guest.client = client;
        guest.clock = clock;
        guest.entropy = entropy;
        guest.tally = tally;
        guest.files.set_console(console);
        self.attach(signals)?;
        Ok(replaced)
    }

    /// A copy of this backend in its current state, with a copy of its files, and without a client.
    ///
    /// # Errors
    /// When the system has no more memory to give.
    pub(crate) fn copy(&mut self, program: &Program, console: Box<dyn Console>) -> anyhow::Result<Self> {
        let registers = self.registers()?;
        let libraries = self.store.data().libraries.loaded();
        let memory = self.memory()?;
        let image = Image::in_memory(memory, slice::from_ref(&(0..memory.len() as u64)), &[])?;
        let files = &self.store.data().files;
        let tree = Tree::from_frozen(files.tree().lock().freeze());
        let files = Files::resume(Arc::new(Mutex::new(tree)), &files.state(), console);
        Self::resume(program, Setup::backend(program, files), &image, &registers, &libraries)
    }
}
