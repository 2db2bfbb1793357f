//! The programs that guests run, compiled and linked against the host functions: `PostgreSQL`'s backend and `initdb`.

use std::{fs, sync::Arc};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wasmtime::{Engine, Instance, InstancePre, Module, Store};

use crate::{
    artefact::{Artefact, INITDB_WASM, PGLITE_WASM, hex_digest},
    cache::{Cache, Lock},
    engine::Compiler,
    guest::{self, Guest, LibraryStore},
    image::{Image, Shape},
    instrument::{self, Facts},
    sources,
};

/// `PostgreSQL`'s backend, ready to be instantiated any number of times.
pub(crate) struct Program {
    backend: InstancePre<Guest>,
    pristine: Image,
    facts: Arc<Facts>,
    libraries: Arc<LibraryStore>,
    compiler: Compiler,
    key: String,
}

/// What the cache keeps of an instrumented backend besides its code.
#[derive(Serialize, Deserialize)]
struct Parts {
    facts: Facts,
    image: Shape,
}

impl Program {
    /// Loads the backend from the cache, or instruments and compiles it.
    ///
    /// # Errors
    /// When the artefact cannot be read or is refused by the rewriter, or the cache cannot be written.
    pub(crate) fn load(artefact: &Artefact, cache: &Cache) -> anyhow::Result<Self> {
        let compiler = Compiler::new(cache.clone())?;
        let key = hex_digest(&[PGLITE_WASM.sha256.as_bytes(), sources::CODE.as_bytes()]);
        let parts_name = format!("pglite-{}", &key[..32]);
        if !cache.path(&parts_name).exists() {
            let lock = cache.lock(&parts_name)?;
            if !cache.path(&parts_name).exists() {
                write_parts(artefact, cache, &lock)?;
            }
        }
        let directory = cache.path(&parts_name);
        let parts =
            fs::read(directory.join("parts")).with_context(|| format!("{} cannot be read", directory.display()))?;
        let parts: Parts =
            postcard::from_bytes(&parts).with_context(|| format!("{} is damaged; remove it", directory.display()))?;
        let pristine = Image::open(&directory.join("image"), parts.image)?;
        let module = compiler.module("pglite", &key, || Ok(fs::read(directory.join("code.wasm"))?))?;
        let linker = guest::linker(compiler.engine())?;
        let backend =
            linker.instantiate_pre(&module).map_err(anyhow::Error::from).context("PostgreSQL cannot be linked")?;
        let libraries = Arc::new(LibraryStore::new(compiler.clone(), linker));
        Ok(Self { backend, pristine, facts: Arc::new(parts.facts), libraries, compiler, key })
    }

    /// Everything that decides how a memory of this program looks: the artefact, the rewriter, the engine.
    pub(crate) fn key(&self) -> String {
        format!("{}-{}", self.key, self.compiler.fingerprint())
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

    pub(crate) fn instantiate(&self, store: &mut Store<Guest>) -> anyhow::Result<Instance> {
        Ok(self.backend.instantiate(store)?)
    }

    /// The compiled `initdb`.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub(crate) fn initdb(&self, artefact: &Artefact) -> anyhow::Result<InstancePre<Guest>> {
        let key = hex_digest(&[INITDB_WASM.sha256.as_bytes(), sources::CODE.as_bytes()]);
        let module: Module =
            self.compiler.module("initdb", &key, || Ok(instrument::instrument_plain(&artefact.read(INITDB_WASM)?)?))?;
        self.libraries.linker().instantiate_pre(&module).map_err(anyhow::Error::from).context("initdb cannot be linked")
    }
}

fn write_parts(artefact: &Artefact, cache: &Cache, lock: &Lock) -> anyhow::Result<()> {
    let instrumented = instrument::instrument(&artefact.read(PGLITE_WASM)?)?;
    cache.publish_directory(lock, |directory| {
        fs::write(directory.join("code.wasm"), &instrumented.code)?;
        let image = Image::write(&directory.join("image"), &instrumented.memory)?;
        let parts = Parts { facts: instrumented.facts, image };
        Ok(fs::write(directory.join("parts"), postcard::to_allocvec(&parts)?)?)
    })?;
    Ok(())
}
