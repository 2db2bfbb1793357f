//! A backend's state, captured between two messages, and backends that go on from it.
//!
//! Captured are
//! * linear memory, by page, as an image that clones map copy-on-write ([`Image`]);
//! * every mutable global of the module, also those that the published file does not export, `__stack_pointer` among them;
//! * the table: the side modules that were loaded, their bases, and the slots that `GOT.func` and `dlsym` claimed. The slots of the
//!   modules' own elements and of the callbacks are filled alike in every instance;
//! * the files, and what the process had of them: descriptors with their positions, working directory, file mode mask, mappings.
//!
//! Not captured, because it is the same in every guest: the environment, which `PostgreSQL` has read into its memory by then.
//! Not captured, because it must not be: the client, signals and timers. A snapshot is only taken where no client is connected and no timer is of use.
//!
//! What clones must not share is made anew in each: see [`Snapshot::start`].

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, Registers},
    fs::{Console, Files, FrozenTree, ProcessState, Tree},
    guest::{Library, Setup},
    image::{Image, Shape},
    program::Program,
};

/// Microseconds between the epochs of Unix and of `PostgreSQL` (2000-01-01; `src/include/datatype/timestamp.h`).
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

const MEMORY: &str = "memory";
const FILES: &str = "files";
const STATE: &str = "state";

/// A captured backend.
pub(crate) struct Snapshot {
    state: State,
    image: Image,
    files: Arc<FrozenTree>,
    libraries: Vec<Arc<Library>>,
}

/// Everything of it but memory and files.
#[derive(Serialize, Deserialize)]
struct State {
    memory: Shape,
    registers: Registers,
    process: ProcessState,
    /// Where in memory the backend's start time stands: `MyStartTimestamp` and its copies in shared memory.
    start_timestamps: Vec<u32>,
}

impl Snapshot {
    /// Captures `backend` into the directory `directory`, which [`Snapshot::open`] can open.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn capture(backend: &mut Backend, directory: &Path) -> anyhow::Result<()> {
        let registers = backend.registers()?;
        let start_timestamps = find_start_timestamps(backend)?;
        let memory = Image::write(&directory.join(MEMORY), backend.memory()?)?;
        let guest = backend.guest();
        let state = State { memory, registers, process: guest.files.state(), start_timestamps };
        let files = guest.files.tree().lock().freeze();
        files.write_to(&directory.join(FILES)).with_context(|| format!("{} cannot be written", directory.display()))?;
        Ok(fs::write(directory.join(STATE), postcard::to_allocvec(&state)?)?)
    }

    /// Opens what [`Snapshot::capture`] has written: maps files, compiles nothing that the cache has.
    ///
    /// # Errors
    /// When anything of it is missing or damaged.
    pub(crate) fn open(program: &Program, directory: &Path) -> anyhow::Result<Self> {
        let state: State = postcard::from_bytes(&fs::read(directory.join(STATE))?).context("its state is damaged")?;
        let image = Image::open(&directory.join(MEMORY), state.memory.clone())?;
        let files = FrozenTree::open(&directory.join(FILES))?;
        let mut reader = Files::resume(tree(&files), &state.process, Box::new(Silent));
        let mut libraries = Vec::new();
        for (path, hash) in state.registers.libraries() {
            let wasm = reader.read_file(path.as_bytes()).with_context(|| path.to_owned())?;
            let library = program.libraries().library(path, &wasm)?;
            ensure!(library.hash() == hash, "{path} is not the library that was loaded");
            libraries.push(library);
        }
        reader.close_all();
        Ok(Self { state, image, files, libraries })
    }

    /// A backend that goes on from here, in files of its own.
    ///
    /// It differs from every other clone in what must not be shared: the state of `random()` (`pg_global_prng_state`; what needs
    /// unpredictable bytes reads `/dev/urandom`) and its start time. Its cancel key is made when a client connects.
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn start(&self, program: &Program, console: Box<dyn Console>) -> anyhow::Result<Backend> {
        let files = Files::resume(tree(&self.files), &self.state.process, console);
        let setup = Setup::backend(program, files);
        let mut backend = Backend::resume(program, setup, &self.image, &self.state.registers, &self.libraries)?;
        self.make_distinct(program, &mut backend)?;
        Ok(backend)
    }

    fn make_distinct(&self, program: &Program, backend: &mut Backend) -> anyhow::Result<()> {
        let facts = program.facts();
        let mut seed = [0; 16];
        crate::random::fill(&mut seed)?;
        // xoroshiro128** must not start from zero (src/common/pg_prng.c).
        seed[0] |= 1;
        backend.write(facts.address("pg_global_prng_state")?, &seed)?;
        let now = jiff::Timestamp::now();
        let timestamp = now.as_microsecond() - POSTGRES_EPOCH;
        backend.write(facts.address("MyStartTime")?, &now.as_second().to_le_bytes())?;
        for &address in &self.state.start_timestamps {
            backend.write(address, &timestamp.to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts a backend that was started from here back to the beginning: memory, files, registers.
    ///
    /// # Errors
    /// As [`Snapshot::start`].
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }
}

fn tree(files: &Arc<FrozenTree>) -> Arc<Mutex<Tree>> {
    Arc::new(Mutex::new(Tree::from_frozen(files.clone())))
}

/// Where the start time of the backend stands. `MyStartTimestamp` follows `MyStartTime` in `src/backend/utils/init/globals.c`, and is the same
/// moment in microseconds; `pgstat_bestart` copies it into the backend's status entry, which is found by its value.
fn find_start_timestamps(backend: &Backend) -> anyhow::Result<Vec<u32>> {
    let memory = backend.memory()?;
    let word = |address: usize| {
        let bytes = memory.get(address..)?.first_chunk()?;
        Some(i64::from_le_bytes(*bytes))
    };
    let seconds_at = backend.facts().address("MyStartTime")? as usize;
    let (seconds, timestamp) =
        word(seconds_at).zip(word(seconds_at + 8)).context("MyStartTime is outside the memory")?;
    ensure!(
        (timestamp + POSTGRES_EPOCH).div_euclid(1_000_000) == seconds,
        "MyStartTimestamp ({timestamp}) does not follow MyStartTime ({seconds}) in this version of PGlite"
    );
    let words = memory.as_chunks::<8>().0;
    let found = (0_u32..).step_by(8).zip(words).filter(|(_, word)| i64::from_le_bytes(**word) == timestamp);
    Ok(found.map(|(address, _)| address).collect())
}

/// The console of a process that only reads files.
struct Silent;

impl Console for Silent {
    fn write(&mut self, _stream: crate::fs::Stream, _bytes: &[u8]) {}
}
