//! One `PostgreSQL` backend: a wasm instance from its start to its end.
//!
//! * `mod`: making one, fresh or as the copy of another, and calling it
//! * `boot`: starting `PostgreSQL` in it
//! * `session`: one client's session in it

mod boot;
mod session;

use std::sync::Arc;

use anyhow::{Context, ensure};
use wasmtime::{Global, Ref, Store, TypedFunc, Val, ValType, WasmParams, WasmResults};
use wasmtime_wasi::I32Exit;

use crate::{
    guest::{
        CALLBACKS, ClientStream, Exports, Guest, LibrariesImage, Library, Setup, Signals, memory, restore_libraries,
    },
    image::Image,
    instrument::Facts,
    program::Program,
};

pub(crate) use boot::{EXECUTABLE, START_PARAMETERS};
pub(crate) use session::{BOOTSTRAP_USER, BackendKey, Ended};

/// A running backend, on whatever thread has it.
pub(crate) struct Backend {
    store: Store<Guest>,
    hot: Hot,
}

/// What is used for every message.
struct Hot {
    pending_input: TypedFunc<(), i32>,
    main_loop_once: TypedFunc<(), ()>,
    stack_pointer: Global,
}

/// The state of a backend outside its linear memory and its files.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Registers {
    /// Every mutable global by its export's name; an `i32` is kept as an `i64`.
    globals: Vec<(String, i64)>,
    libraries: LibrariesImage,
}

impl Registers {
    /// The side modules that the backend had loaded: path in the guest's files, and hash.
    pub(crate) fn libraries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.libraries.libraries()
    }
}

impl Backend {
    /// A backend as a program just loaded.
    ///
    /// # Errors
    /// When it cannot be linked or its constructors trap.
    pub(crate) fn new(program: &Program, setup: Setup) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, program.pristine())?;
        backend.call::<(), ()>("__wasm_call_ctors", ())?;
        backend.announce_callbacks()?;
        Ok(backend)
    }

    /// A backend that goes on where the one stood of which `image` and `registers` were taken.
    /// `libraries` are those of `registers`, in its order.
    ///
    /// # Errors
    /// When the image cannot be mapped, or does not fit to the program.
    pub(crate) fn resume(
        program: &Program,
        setup: Setup,
        image: &Image,
        registers: &Registers,
        libraries: &[Arc<Library>],
    ) -> anyhow::Result<Self> {
        let mut backend = Self::instantiate(program, setup, image)?;
        backend.set_registers(registers)?;
        restore_libraries(&mut backend.store, &registers.libraries, libraries)?;
        Ok(backend)
    }

    fn instantiate(program: &Program, setup: Setup, image: &Image) -> anyhow::Result<Self> {
        let mut store = Store::new(program.engine(), Guest::new(setup)?);
        let instance = program.instantiate(&mut store)?;
        let exports = Exports::find(&mut store, instance)?;
        let table = exports.table;
        image.map_over(&mut store, exports.memory)?;
        let flag: *mut i32 =
            exports.memory.data_ptr(&store).wrapping_add(program.facts().address("InterruptPending")? as usize).cast();
        ensure!(flag.is_aligned(), "InterruptPending is not aligned");
        // SAFETY: the address is aligned and inside a memory that does not move; `Drop` detaches it before the memory goes.
        unsafe { store.data().signals.attach(flag) };
        let hot = Hot {
            pending_input: instance.get_typed_func(&mut store, "pq_buffer_remaining_data")?,
            main_loop_once: instance.get_typed_func(&mut store, "PostgresMainLoopOnce")?,
            stack_pointer: instance.get_global(&mut store, "__stack_pointer").context("there is no __stack_pointer")?,
        };
        store.data_mut().exports = Some(exports);
        let callbacks = CALLBACKS.iter().flat_map(|(_, names)| *names);
        for (slot, name) in (program.facts().table_elements..).zip(callbacks) {
            let function = program.libraries().host_function(&mut store, name)?;
            table.set(&mut store, slot, Ref::Func(Some(function)))?;
        }
        Ok(Self { store, hot })
    }

    /// Tells PGlite where in the table its callbacks are.
    fn announce_callbacks(&mut self) -> anyhow::Result<()> {
        let mut slot = u32::try_from(self.facts().table_elements)?;
        for (setter, names) in CALLBACKS {
            match names {
                [_] => self.call::<u32, ()>(setter, slot)?,
                _ => self.call::<(u32, u32), ()>(setter, (slot, slot + 1))?,
            }
            slot += u32::try_from(names.len())?;
        }
        Ok(())
    }

    /// What is to be kept of this backend besides its memory and its files.
    ///
    /// # Errors
    /// When it is not a backend of the instrumented program.
    pub(crate) fn registers(&mut self) -> anyhow::Result<Registers> {
        let instance = self.exports()?.instance;
        let facts = self.facts().clone();
        let mut globals = Vec::new();
        for name in &facts.mutable_globals {
            let global =
                instance.get_global(&mut self.store, name).with_context(|| format!("there is no global {name}"))?;
            let value = match global.get(&mut self.store) {
                Val::I32(value) => value.into(),
                Val::I64(value) => value,
                other => anyhow::bail!("the global {name} is a {other:?}"),
            };
            globals.push((name.clone(), value));
        }
        let guest = self.store.data();
        Ok(Registers { globals, libraries: guest.libraries.image() })
    }

    fn set_registers(&mut self, registers: &Registers) -> anyhow::Result<()> {
        let instance = self.exports()?.instance;
        for (name, value) in &registers.globals {
            let global =
                instance.get_global(&mut self.store, name).with_context(|| format!("there is no global {name}"))?;
            let value = match global.ty(&self.store).content() {
                ValType::I64 => Val::I64(*value),
                _ => Val::I32(i32::try_from(*value)?),
            };
            global.set(&mut self.store, value)?;
        }
        Ok(())
    }

    /// The linear memory.
    ///
    /// # Errors
    /// None in a backend that was made.
    pub(crate) fn memory(&self) -> anyhow::Result<&[u8]> {
        Ok(self.exports()?.memory.data(&self.store))
    }

    /// The guest's files and the rest of its state.
    pub(crate) fn guest(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    /// How other threads interrupt it.
    pub(crate) fn signals(&self) -> Arc<Signals> {
        self.store.data().signals.clone()
    }

    /// From now on the backend talks to that client.
    fn set_client(&mut self, client: ClientStream) {
        let guest = self.store.data_mut();
        guest.signals.set_waker(client.waker());
        guest.client = client;
    }

    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.store.data().facts
    }

    fn exports(&self) -> anyhow::Result<&Exports> {
        Ok(self.store.data().exports()?)
    }

    /// Calls the export `name`.
    fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, parameters: P) -> anyhow::Result<R> {
        let instance = self.exports()?.instance;
        let function = instance.get_typed_func::<P, R>(&mut self.store, name)?;
        self.store.data_mut().native_stack.begin();
        Ok(function.call(&mut self.store, parameters)?)
    }

    pub(crate) fn read_u32(&self, address: u32) -> anyhow::Result<u32> {
        Ok(memory::read_u32(self.memory()?, address)?)
    }

    pub(crate) fn write_u32(&mut self, address: u32, value: u32) -> anyhow::Result<()> {
        self.write(address, &value.to_le_bytes())
    }

    pub(crate) fn write(&mut self, address: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let memory = self.exports()?.memory;
        Ok(memory::write_bytes(memory.data_mut(&mut self.store), address, bytes)?)
    }

    /// Runs `main` with these arguments until it returns or exits, and returns the exit status.
    ///
    /// # Errors
    /// When it traps.
    pub(crate) fn main(&mut self, executable: &str, arguments: &[&str]) -> anyhow::Result<i32> {
        let mut argv = Vec::new();
        for argument in std::iter::once(&executable).chain(arguments) {
            argv.extend(self.push(&[argument.as_bytes(), b"\0"].concat())?.to_le_bytes());
        }
        let argc = i32::try_from(argv.len() / size_of::<u32>())?;
        argv.extend([0; size_of::<u32>()]);
        let argv = self.push(&argv)?;
        self.call::<(i32, u32), i32>("__main_argc_argv", (argc, argv)).or_else(exit_status)
    }

    /// Writes out what the C library holds in its streams' buffers, as the end of a process does.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        self.call::<u32, i32>("fflush", 0).map(drop)
    }

    /// Puts bytes on the guest's stack, where they stay.
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<u32> {
        let address = self.call("_emscripten_stack_alloc", u32::try_from(bytes.len())?)?;
        self.write(address, bytes)?;
        Ok(address)
    }
}

/// The status of an exit; any other error is passed on.
fn exit_status(error: anyhow::Error) -> anyhow::Result<i32> {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(status)) => Ok(*status),
        None => Err(error),
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.store.data().signals.detach();
        self.store.data_mut().files.close_all();
    }
}
