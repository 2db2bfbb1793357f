//! A backend's state, captured between two messages, and backends that start from it.
//!
//! Captured are
//! * linear memory, by page, as an image that clones map copy-on-write ([`Image`]);
//! * every mutable global of the module, also those that the published file does not export, `__stack_pointer` among
//!   them;
//! * the table: the side modules that were loaded, their bases, and the slots that `GOT.func` and `dlsym` claimed.
//!   The slots of the modules' own elements and of the callbacks are filled alike in every instance;
//! * the files, and the process' state that belongs to them: descriptors with their positions, working directory,
//!   file mode mask, mappings.
//!
//! Not captured, because it is the same in every guest: the environment, which `PostgreSQL` has read into its memory
//! by then. Not captured, because it must not be: the client, and signals. A snapshot is only taken where no client
//! is connected. Of the timers, only the list of armed ones is captured, without their times. In a clone they expire
//! at once: `PostgreSQL` has its own list of timeouts in memory, handles those that are due, and arms the timers again
//! for the others.
//!
//! State that clones must not share is set anew in each: see [`Snapshot::make_distinct`].

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::record;
use crate::{
    backend::{Admission, Backend, Registers, footprint::PageMap, program::Program, timestamp},
    fs::{AddedFiles, Files, FrozenTree, ProcessState, Silent, Tree},
    guest::{Library, Setup},
    image::{Image, Layout, TouchedPages},
    protocol::messages::first_value,
};

/// The start time of the server, in microseconds since the epoch of `PostgreSQL`.
const SERVER_START: &str =
    "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time() - '2000-01-01 00:00:00+00') * 1000000)::bigint";

/// Makes the backend write all its pending statistics.
const WRITE_STATISTICS: &str = "SELECT pg_catalog.pg_stat_force_next_flush()";

const MEMORY: &str = "memory";
const FILES: &str = "files";
const STATE: &str = "state";
const FIRST_PAGES: &str = "first-pages";

/// The parts of a snapshot that can be made again from its other part, the cluster's files.
pub(super) const BUILT: [&str; 3] = [STATE, MEMORY, FIRST_PAGES];
/// All of a snapshot.
pub(super) const ALL: [&str; 4] = [STATE, MEMORY, FIRST_PAGES, FILES];

/// The files of a snapshot, by their paths in its directory.
pub(super) const PARTS: [&str; 5] = [STATE, MEMORY, FIRST_PAGES, "files/index", "files/data"];

/// A captured backend.
pub(crate) struct Snapshot {
    state: State,
    image: Image,
    files: Arc<FrozenTree>,
    libraries: Vec<Arc<Library>>,
    /// The pages that a session touches before its first answer.
    first_pages: TouchedPages,
}

/// Whether the file at this path in a snapshot's directory is one of [`Snapshot::files`].
pub(super) fn is_of_files(path: &str) -> bool {
    path.strip_prefix(FILES).is_some_and(|rest| rest.starts_with('/'))
}

/// Everything that is captured except for memory and files.
#[derive(Serialize, Deserialize)]
struct State {
    memory: Layout,
    registers: Registers,
    process: ProcessState,
    /// The addresses of times that each clone sets anew, in microseconds since the epoch of `PostgreSQL`.
    times: Vec<u32>,
    /// What sessions have to know of the database.
    admission: Admission,
    /// The timers that were armed.
    timers: Vec<usize>,
}

impl Snapshot {
    /// Captures `backend` into the directory `directory`, which [`Snapshot::open`] can open.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn capture(backend: &mut Backend, directory: &Path) -> anyhow::Result<()> {
        let admission = backend.admission()?;
        let times = find_times(backend)?;
        backend.run_timers()?;
        let timers = backend.guest().timers.armed();
        let registers = backend.registers()?;
        let memory = Image::write(&directory.join(MEMORY), backend.memory()?)?;
        let guest = backend.guest();
        let state = State { memory, registers, process: guest.files.state(), times, admission, timers };
        let files = guest.files.tree().lock().freeze();
        files.write_to(&directory.join(FILES)).with_context(|| format!("{} cannot be written", directory.display()))?;
        record::write(&directory.join(STATE), &state)
    }

    /// Opens a snapshot that [`Snapshot::capture`] has written: maps its files, to which `added` are added, and
    /// compiles only libraries that are not in the cache.
    ///
    /// # Errors
    /// When anything of it is missing or damaged.
    pub(crate) fn open(program: &Program, directory: &Path, added: &Arc<AddedFiles>) -> anyhow::Result<Self> {
        let first_pages = record::read(&directory.join(FIRST_PAGES)).unwrap_or_else(|error| {
            tracing::info!("clones will get their first pages one by one: {error:#}");
            TouchedPages::default()
        });
        Self::open_with(program, directory, added, first_pages)
    }

    fn open_with(
        program: &Program,
        directory: &Path,
        added: &Arc<AddedFiles>,
        first_pages: TouchedPages,
    ) -> anyhow::Result<Self> {
        let state: State = record::read(&directory.join(STATE))?;
        let image = Image::open(&directory.join(MEMORY), state.memory.clone())?;
        let files = Self::open_files(directory)?.with(added)?;
        let mut reader = Files::resume(tree(&files), &state.process, Box::new(Silent));
        let mut libraries = Vec::new();
        for (path, hash) in state.registers.libraries() {
            let read = || Ok(reader.read_file(path.as_bytes())?);
            let library = program.captured_library(path, read).with_context(|| path.to_owned())?;
            ensure!(library.hash() == hash, "{path} is not the library that was loaded");
            libraries.push(library);
        }
        reader.close_all();
        Ok(Self { state, image, files, libraries, first_pages })
    }

    /// Finds out which pages of the snapshot in `directory` a session touches before its first answer, so that clones
    /// get these pages when they are made.
    ///
    /// # Errors
    /// When a clone cannot answer, or the directory cannot be written.
    pub(super) fn rehearse(
        program: &Program,
        directory: &Path,
        added: &Arc<AddedFiles>,
        database: &str,
    ) -> anyhow::Result<()> {
        let snapshot = Self::open_with(program, directory, added, TouchedPages::default())?;
        let mut backend = snapshot.make(program)?;
        snapshot.make_distinct(&mut backend)?;
        if !backend.rehearse(database, snapshot.admission()).context("a first clone does not answer")? {
            tracing::info!("clones will get their first pages one by one, because a first session was not let in");
            return Ok(());
        }
        match PageMap::touched(&backend) {
            Ok(pages) => record::write(&directory.join(FIRST_PAGES), &pages),
            Err(error) => {
                tracing::info!(
                    "clones will get their first pages one by one, because /proc/self/pagemap cannot be read: {error:#}"
                );
                Ok(())
            }
        }
    }

    /// The files in `directory` alone: those of a cluster that has made a checkpoint and runs.
    ///
    /// # Errors
    /// When they are missing or damaged.
    pub(super) fn open_files(directory: &Path) -> anyhow::Result<Arc<FrozenTree>> {
        Ok(FrozenTree::open(&directory.join(FILES))?)
    }

    /// What sessions have to know of the database.
    pub(crate) fn admission(&self) -> Admission {
        self.state.admission
    }

    /// The files with which clones start.
    pub(crate) fn files(&self) -> &Arc<FrozenTree> {
        &self.files
    }

    /// The files of a clone that was shut down. [`Snapshot::files`] are those of a cluster that runs: another one that
    /// starts from them recovers, and its unlogged tables are empty then.
    ///
    /// # Errors
    /// When the clone cannot be made, or does not shut down.
    pub(super) fn shut_down_files(&self, program: &Program) -> anyhow::Result<Arc<FrozenTree>> {
        let mut backend = self.make(program)?;
        let tree = backend.guest().files.tree().clone();
        backend.shut_down()?;
        Ok(tree.lock().freeze())
    }

    /// A backend that starts from this snapshot, with its own files. It is identical to every other clone until
    /// [`Snapshot::make_distinct`].
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(super) fn make(&self, program: &Program) -> anyhow::Result<Backend> {
        let files = Files::resume(tree(&self.files), &self.state.process, Box::new(Silent));
        let setup = Setup::backend(program, files);
        let mut backend = Backend::resume(program, setup, &self.image, &self.state.registers, &self.libraries)?;
        // PostgreSQL then handles the timeouts that are due, and arms the timers again for the others.
        backend.guest().timers.make_due(&self.state.timers);
        backend.copy_written(&self.first_pages)?;
        Ok(backend)
    }

    /// As [`Snapshot::make`], before there is a client: does everything that can be done in advance.
    ///
    /// # Errors
    /// As [`Snapshot::make`].
    pub(super) fn make_ready(&self, program: &Program) -> anyhow::Result<Backend> {
        let backend = self.make(program)?;
        backend.look_at_read(&self.first_pages)?;
        Ok(backend)
    }

    /// Sets the state of `backend`, a clone of this snapshot, that clones must not share: the state of `random()`, and
    /// the start times, which become the current time. Its cancel key is made when a client connects.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn make_distinct(&self, backend: &mut Backend) -> anyhow::Result<()> {
        backend.reseed()?;
        let now = backend.set_start_time()?;
        for &address in &self.state.times {
            backend.write(address, &now.to_le_bytes())?;
        }
        Ok(())
    }
}

fn tree(files: &Arc<FrozenTree>) -> Arc<Mutex<Tree>> {
    Arc::new(Mutex::new(Tree::from_frozen(files.clone())))
}

/// The addresses of times that each clone sets anew: the start of backend and server (`MyStartTimestamp`, its copy
/// by `pgstat_bestart` in the backend's status entry, and `PgStartTime`), and the last time at which statistics were
/// written (`last_flush` in `PostgreSQL`'s `src/backend/utils/activity/pgstat.c`). All are found by their values.
///
/// A backend writes its statistics if its last write is more than a second ago. A clone would therefore write the
/// template's statistics after its first query, and get private pages by that. To avoid this, the statistics are
/// written here, and `last_flush` of a clone is the time at which it is made.
fn find_times(backend: &mut Backend) -> anyhow::Result<Vec<u32>> {
    let rows = backend.query(SERVER_START).context("PostgreSQL's start time cannot be queried")?;
    let server_start = first_value(&rows).and_then(|microseconds| microseconds.parse::<i64>().ok());
    let starts = [backend.start_timestamp()?, server_start.context("pg_postmaster_start_time is no time")?];
    let before = timestamp(jiff::Timestamp::now());
    backend.execute(WRITE_STATISTICS).context("statistics cannot be written")?;
    let last_statement = before..=timestamp(jiff::Timestamp::now());
    // Variables and the stack lie below the stack's beginning, the heap above.
    let variables = 0..backend.facts().stack_pointer;
    let is_wanted =
        |address, time| starts.contains(&time) || (variables.contains(&address) && last_statement.contains(&time));
    let words = (0_u32..).step_by(8).zip(backend.memory()?.as_chunks::<8>().0);
    Ok(words
        .filter(|(address, word)| is_wanted(*address, i64::from_le_bytes(**word)))
        .map(|(address, _)| address)
        .collect())
}
