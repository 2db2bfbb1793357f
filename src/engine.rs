//! Wasmtime's configuration, and compiled code in the cache and beside the program.

use std::{
    fs,
    io::{self, IsTerminal},
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use wasmtime::{Config, Engine, Module, OptLevel};

use crate::{
    engine::cache::{Cache, InUse},
    sources::hex_digest,
};

pub mod artefact;
pub mod cache;
mod precompiled;
mod verified;

use precompiled::Precompiled;
pub(crate) use precompiled::Precompiler;

/// The machine code in its entry of the cache.
const CODE: &str = "code";

/// The number of bytes of native stack that wasm may use in one thread before it traps.
///
/// `PostgreSQL` stops recursion before that: see `guest::stack`.
pub const WASM_STACK: usize = 34 << 20;

/// The stack of a thread that runs wasm: [`WASM_STACK`] and room for host functions. Untouched pages use no memory.
pub const THREAD_STACK: usize = WASM_STACK + (4 << 20);

/// Runs `work`, which runs wasm, on a thread with a stack of [`THREAD_STACK`], and waits for it.
///
/// # Errors
/// When the operating system cannot start a thread.
///
/// # Panics
/// If `work` does.
pub(crate) fn on_wasm_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name("wasm".to_owned()).stack_size(THREAD_STACK).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Compiles wasm and keeps the result in the cache.
#[derive(Clone)]
pub struct Compiler {
    engine: Engine,
    cache: Cache,
    precompiled: Option<Precompiled>,
    /// The entries of the loaded modules, which are in use as long as the program runs.
    in_use: Arc<Mutex<Vec<InUse>>>,
}

impl Compiler {
    /// An engine with the program's configuration.
    ///
    /// # Errors
    /// When Wasmtime does not support this machine.
    pub fn new(cache: Cache) -> anyhow::Result<Self> {
        let engine = Engine::new(&configuration()).map_err(anyhow::Error::from)?;
        Ok(Self { engine, cache, precompiled: Precompiled::beside_program(), in_use: Arc::default() })
    }

    /// The engine itself.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The inputs of compilation besides the wasm: Wasmtime's version and its configuration.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&self.engine.precompile_compatibility_hash(), &mut hasher);
        format!("{:016x}", std::hash::Hasher::finish(&hasher))
    }

    /// Loads a compiled wasm module from the cache or from beside the program, or compiles the module that `wasm` returns
    /// and stores the result in the cache.
    ///
    /// `name` is for messages; `key` must identify everything that decides the result of `wasm`. Loading takes
    /// milliseconds. Compiling the backend takes seconds, during which a terminal on stderr shows a spinner. If the cache
    /// cannot be written, the module is there for this run of the program only.
    ///
    /// # Errors
    /// Those of `wasm` and of the compilation.
    pub fn module(
        &self,
        name: &str,
        key: &str,
        wasm: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Module> {
        let entry = format!("{name}-{}.cwasm", &hex_digest(&[key.as_bytes(), self.fingerprint().as_bytes()])[..32]);
        if let Some(module) = self.load(&entry).or_else(|| self.load_precompiled(name, key)) {
            return Ok(module);
        }
        let lock = self.cache.lock(&entry);
        // Another process may have compiled the module while this one waited for the lock.
        if let Some(module) = self.load(&entry) {
            return Ok(module);
        }
        let wasm = wasm()?;
        let progress = spinner(&format!("compiling {name} (once)"));
        let compiled = self
            .engine
            .precompile_module(&wasm)
            .map_err(anyhow::Error::from)
            .with_context(|| format!("{name} cannot be compiled"))?;
        progress.finish_and_clear();
        let published = lock.and_then(|lock| {
            self.cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join(CODE), &compiled)?))
        });
        let module = match &published {
            // SAFETY: this process wrote the file from Wasmtime's own output, into a directory that only this user can
            // write.
            Ok(path) => unsafe { Module::deserialize_file(&self.engine, path.join(CODE)) },
            Err(error) => {
                tracing::warn!("{name} was compiled for this run of the program only: {error:#}");
                // SAFETY: this is Wasmtime's own output.
                unsafe { Module::deserialize(&self.engine, &compiled) }
            }
        };
        let module = module.map_err(anyhow::Error::from).with_context(|| format!("{name} cannot be loaded"))?;
        if published.is_ok() {
            self.in_use.lock().extend(self.cache.hold(&entry)?);
        }
        Ok(module)
    }

    /// The module beside the program, unless there is none or it cannot be used, which is logged.
    fn load_precompiled(&self, name: &str, key: &str) -> Option<Module> {
        let loaded = self.precompiled.as_ref()?.module(&self.engine, &self.cache, name, key);
        loaded.inspect_err(|error| tracing::info!("{name} is compiled here: {error}")).ok()
    }

    /// Compiles a module that the cache does not keep.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub(crate) fn passing_module(&self, wasm: &[u8]) -> anyhow::Result<Module> {
        Ok(Module::new(&self.engine, wasm)?)
    }

    fn load(&self, entry: &str) -> Option<Module> {
        let path = self.cache.path(entry).join(CODE);
        let in_use = match self.cache.hold_intact(entry) {
            Ok(held) => held?,
            Err(error) => {
                tracing::warn!("compiling again, because {error:#}");
                return None;
            }
        };
        // SAFETY: `Cache` has checked that only this user can write to the directory and the file, that the entry was
        // renamed into it when it was complete, and that the file has not changed since.
        match unsafe { Module::deserialize_file(&self.engine, &path) } {
            Ok(module) => {
                self.in_use.lock().push(in_use);
                Some(module)
            }
            Err(error) => {
                tracing::warn!("compiling again, because {} cannot be loaded: {error:#}", path.display());
                None
            }
        }
    }
}

fn configuration() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .max_wasm_stack(WASM_STACK)
        // Nothing here is async, but Wasmtime requires that this is not smaller than the wasm stack.
        .async_stack_size(WASM_STACK + (1 << 20))
        // Memory images are mapped copy-on-write, whatever their size.
        .memory_init_cow(true)
        .memory_guaranteed_dense_image_size(u64::MAX)
        // A memory has its whole address space, also beyond its maximum (`cluster/preemption.rs`).
        .memory_reservation(1 << 32)
        // Other threads use the address of a memory to interrupt its backend.
        .memory_may_move(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(32))
        // Only external profilers and debuggers use it, and it is a fifth of the compiled file.
        .native_unwind_info(false);
    config
}

/// A spinner on stderr, invisible when that is not a terminal.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        tracing::info!("{message}");
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
