//! A backend with its pages ready, replaced by another one, or copied as it stands: all between two messages, where
//! the guest is not on the stack.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Backend;
use crate::{
    backend::program::Program,
    fs::{Console, Files, Silent, Tree},
    guest::Setup,
    image::{Image, TouchedPages},
};

impl Backend {
    /// Has those of `pages` ready that it is about to write.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn copy_written(&mut self, pages: &TouchedPages) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        pages.copy_written(&mut self.store, memory);
        Ok(())
    }

    /// Has those of `pages` ready that it is about to look at, which takes as long now as then.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn look_at_read(&self, pages: &TouchedPages) -> anyhow::Result<()> {
        pages.look_at_read(&self.store, self.exports()?.memory);
        Ok(())
    }

    /// Becomes `successor`, which takes over its client, its console and its signals; returns what it was, which is
    /// of no more use.
    ///
    /// # Errors
    /// None between backends of one program.
    pub(crate) fn succeed_to(&mut self, successor: Self) -> anyhow::Result<Self> {
        let guest = self.store.data_mut();
        let client = std::mem::take(&mut guest.client);
        let console = guest.files.set_console(Box::new(Silent));
        let signals = guest.signals.clone();
        // At its end it would detach signals that are attached to its successor by then.
        signals.detach();
        guest.set_signals(Arc::default());
        let replaced = std::mem::replace(self, successor);
        let guest = self.store.data_mut();
        guest.client = client;
        guest.files.set_console(console);
        self.attach(signals)?;
        Ok(replaced)
    }

    /// Another backend that is as this one now, with files of its own that are as these are now, and no client.
    ///
    /// # Errors
    /// When the system has no more memory to give.
    pub(crate) fn copy(&mut self, program: &Program, console: Box<dyn Console>) -> anyhow::Result<Self> {
        let registers = self.registers()?;
        let libraries = self.store.data().libraries.loaded();
        let image = Image::in_memory(self.memory()?, &[])?;
        let files = &self.store.data().files;
        let tree = Tree::from_frozen(files.tree().lock().freeze());
        let files = Files::resume(Arc::new(Mutex::new(tree)), &files.state(), console);
        Self::resume(program, Setup::backend(program, files), &image, &registers, &libraries)
    }
}
