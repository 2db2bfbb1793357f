//! The programs that guests run, compiled and linked against the host functions: `PostgreSQL`'s backend, `initdb` and
//! `pg_dump`.

use std::{collections::HashSet, fs, sync::Arc};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wasmtime::{Engine, Instance, InstancePre, Module, Store};

use crate::{
    engine::{
        Compiler,
        artefact::{Artefact, INITDB_WASM, PG_DUMP_WASM, PGLITE_WASM},
        cache::{Cache, InUse, Lock},
    },
    guest::{self, Guest, Library, LibraryStore},
    image::{Image, Layout},
    instrument::{self, Facts},
    sources,
};

/// The names of the programs in the cache and in messages.
pub(crate) const PGLITE: &str = "pglite";
pub(crate) const INITDB: &str = "initdb";
pub(crate) const PG_DUMP: &str = "pg_dump";

/// `PostgreSQL`'s backend, ready to be instantiated any number of times.
pub(crate) struct Program {
    backend: InstancePre<Guest>,
    pristine: Image,
    facts: Arc<Facts>,
    libraries: Arc<LibraryStore>,
    compiler: Compiler,
    _in_use: InUse,
}

/// What the cache keeps of an instrumented backend besides its code.
#[derive(Serialize, Deserialize)]
struct Parts {
    facts: Facts,
    image: Layout,
}

impl Program {
    /// Loads the backend from the cache, or instruments and compiles it. `user_libraries`: it also loads libraries that
    /// did not come with the program.
    ///
    /// # Errors
    /// When the artefact cannot be read or is refused by the rewriter, or the cache cannot be written.
    pub(crate) fn load(artefact: &Artefact, cache: &Cache, user_libraries: bool) -> anyhow::Result<Self> {
        let compiler = Compiler::new(cache.clone())?;
        let key = sources::code_key(PGLITE_WASM.sha256);
        let parts_name = format!("pglite-{}", &key[..32]);
        let (in_use, code) = hold_parts(artefact, cache, &parts_name)?;
        let directory = cache.path(&parts_name);
        let parts =
            fs::read(directory.join("parts")).with_context(|| format!("{} cannot be read", directory.display()))?;
        let parts: Parts =
            postcard::from_bytes(&parts).with_context(|| format!("{} is damaged; remove it", directory.display()))?;
        let pristine = Image::open(&directory.join("image"), parts.image)?;
        let module =
            compiler.module(PGLITE, &key, || code.map_or_else(|| backend_wasm(artefact), |code| inlined(&code)))?;
        let linker = guest::linker(compiler.engine())?;
        let backend =
            linker.instantiate_pre(&module).map_err(anyhow::Error::from).context("PostgreSQL cannot be linked")?;
        let libraries = Arc::new(LibraryStore::new(compiler.clone(), linker, user_libraries));
        let facts = Arc::new(parts.facts);
        Ok(Self { backend, pristine, facts, libraries, compiler, _in_use: in_use })
    }

    /// Everything that decides how a memory of this program looks: the artefact, the rewriter, Wasmtime's version and
    /// configuration. The processor does not, because no machine code is in a memory: a cache that was filled on one
    /// machine, such as that in an image of a container, has its clusters and templates on another one.
    pub(crate) fn key() -> String {
        sources::code_key(PGLITE_WASM.sha256)
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.compiler.engine()
    }

    /// The memory of the program just loaded.
    pub(crate) fn pristine(&self) -> &Image {
        &self.pristine
    }

    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    pub(crate) fn libraries(&self) -> &Arc<LibraryStore> {
        &self.libraries
    }

    /// The library that an image of a guest has under `path`, whose file `read` reads.
    ///
    /// # Errors
    /// Those of `read`; when it may not be loaded or cannot be compiled.
    pub(crate) fn captured_library(
        &self,
        path: &str,
        read: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Arc<Library>> {
        self.libraries.captured(path, self.backend.module(), read)
    }

    /// The names that the side module `wasm` imports and neither this program nor anything in `others` defines.
    ///
    /// # Errors
    /// When it is no side module.
    pub(crate) fn unresolved(&self, wasm: &[u8], others: &HashSet<String>) -> anyhow::Result<Vec<String>> {
        self.libraries.unresolved(wasm, self.backend.module(), &self.facts, others)
    }

    pub(crate) fn instantiate(&self, store: &mut Store<Guest>) -> anyhow::Result<Instance> {
        Ok(self.backend.instantiate(store)?)
    }

    /// The compiled `initdb`.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub(crate) fn initdb(&self, artefact: &Artefact) -> anyhow::Result<InstancePre<Guest>> {
        let key = sources::code_key(INITDB_WASM.sha256);
        let module = self.compiler.module(INITDB, &key, || initdb_wasm(artefact))?;
        self.libraries.linker().instantiate_pre(&module).map_err(anyhow::Error::from).context("initdb cannot be linked")
    }

    /// The compiled `pg_dump`, which imports its memory.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub(crate) fn pg_dump(&self, artefact: &Artefact) -> anyhow::Result<Module> {
        let key = sources::code_key(PG_DUMP_WASM.sha256);
        self.compiler.module(PG_DUMP, &key, || pg_dump_wasm(artefact))
    }
}

/// The backend as it is compiled.
///
/// # Errors
/// When it cannot be read or is refused by the rewriter.
pub(crate) fn backend_wasm(artefact: &Artefact) -> anyhow::Result<Vec<u8>> {
    inlined(&instrument::instrument(&artefact.read(PGLITE_WASM)?)?.code)
}

/// The instrumented backend with copies of its smallest functions.
fn inlined(code: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(instrument::inline_calls(code, PGLITE_WASM.sha256)?)
}

/// `initdb` as it is compiled.
///
/// # Errors
/// As [`backend_wasm`].
pub(crate) fn initdb_wasm(artefact: &Artefact) -> anyhow::Result<Vec<u8>> {
    Ok(instrument::instrument_plain(&artefact.read(INITDB_WASM)?)?)
}

/// `pg_dump` as it is compiled.
///
/// # Errors
/// As [`backend_wasm`].
pub(crate) fn pg_dump_wasm(artefact: &Artefact) -> anyhow::Result<Vec<u8>> {
    Ok(instrument::instrument_importing(&artefact.read_tool(PG_DUMP_WASM)?)?)
}

/// The entry `name` with the parts of the backend, made if need be, and its instrumented code if it was made now. The
/// code is not kept: when it is compiled it is not needed any more, and an archive has it compiled.
fn hold_parts(artefact: &Artefact, cache: &Cache, name: &str) -> anyhow::Result<(InUse, Option<Vec<u8>>)> {
    if let Ok(Some(in_use)) = cache.hold_intact(name) {
        return Ok((in_use, None));
    }
    let lock = cache.lock(name)?;
    // Another process may have made it while this one waited for the lock.
    match cache.hold_intact(name) {
        Ok(Some(in_use)) => return Ok((in_use, None)),
        Ok(None) => {}
        Err(error) => tracing::warn!("preparing PostgreSQL again, because {error:#}"),
    }
    let code = write_parts(artefact, cache, &lock)?;
    let in_use = cache.hold(name)?.with_context(|| format!("{} is gone again", cache.path(name).display()))?;
    Ok((in_use, Some(code)))
}

/// Writes the parts, and returns the code.
fn write_parts(artefact: &Artefact, cache: &Cache, lock: &Lock) -> anyhow::Result<Vec<u8>> {
    let instrumented = instrument::instrument(&artefact.read(PGLITE_WASM)?)?;
    cache.publish_directory(lock, |directory| {
        let image = Image::write(&directory.join("image"), &instrumented.memory)?;
        let parts = Parts { facts: instrumented.facts, image };
        Ok(fs::write(directory.join("parts"), postcard::to_allocvec(&parts)?)?)
    })?;
    Ok(instrumented.code)
}
