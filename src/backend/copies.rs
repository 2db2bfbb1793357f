//! A backend put back to where it was made from, replaced by another one, or copied as it stands: all between two messages, where the guest
//! is not on the stack.

use std::{ops::Range, sync::Arc};

use parking_lot::Mutex;

use super::{Backend, Registers};
use crate::{
    fs::{Console, Files, ProcessState, Silent, Tree},
    guest::{Setup, rewind_libraries},
    image::Image,
    program::Program,
};

impl Backend {
    /// Whether it has loaded side modules that the backend of `registers` had not.
    pub(crate) fn has_loaded_more_than(&self, registers: &Registers) -> bool {
        self.store.data().libraries.count() > registers.libraries().count()
    }

    /// Gives it pages of its own where it is about to write.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn populate(&self, image: &Image, pages: &[Range<usize>]) -> anyhow::Result<()> {
        image.populate(&self.store, self.exports()?.memory, pages);
        Ok(())
    }

    /// Goes back to where it was resumed from, with the files of `tree`, which is as it was then. Client, console and signals that have arrived stay.
    /// It must not have loaded any side modules since.
    ///
    /// # Errors
    /// When the system does not let go of its memory.
    pub(crate) fn rewind(
        &mut self,
        image: &Image,
        registers: &Registers,
        tree: Arc<Mutex<Tree>>,
        process: &ProcessState,
    ) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        image.reset(&mut self.store, memory)?;
        registers.set_globals(&mut self.store)?;
        rewind_libraries(&mut self.store, &registers.libraries)?;
        let guest = self.store.data_mut();
        guest.files.restart(tree, process);
        guest.timers.disarm();
        // Whether an interrupt is pending stood in the memory.
        guest.signals.repeat();
        Ok(())
    }

    /// Becomes `successor`, which takes over its client, its console and its signals.
    ///
    /// # Errors
    /// None between backends of one program.
    pub(crate) fn succeed_to(&mut self, successor: Self) -> anyhow::Result<()> {
        let guest = self.store.data_mut();
        let client = std::mem::take(&mut guest.client);
        let console = guest.files.set_console(Box::new(Silent));
        let signals = guest.signals.clone();
        // The end of the old one detaches the signals from its memory.
        drop(std::mem::replace(self, successor));
        let guest = self.store.data_mut();
        guest.client = client;
        guest.files.set_console(console);
        self.attach(signals)
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
