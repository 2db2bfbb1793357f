//! Compiled code that comes with the program, so that its first start compiles nothing.
//!
//! It lies in `code/` beside the program, and was made for the oldest processors of the architecture on which it is to
//! run ([`Precompiler`]). Wasmtime refuses it on a processor that lacks an instruction, and when it was made by another
//! version or with another configuration; then the program compiles as without it, and says so.
//!
//! Loading code is running it. So it is only loaded if nobody can have written it who could not have written the
//! program itself: directory and files must belong to root or to the owner of the program, and to no group or others
//! may be allowed to write them. Its digests notice damage.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::OFlags;
use wasmtime::{Engine, Module};

use super::{
    cache::Cache,
    configuration,
    verified::{VerifyError, verify},
};
use crate::sources::hex_digest;

/// The directory beside the program.
const DIRECTORY: &str = "code";

/// The digests of the files, in the format of `sha256sum`.
const SUMS: &str = "SHA256SUMS";

/// The user that stands for all users which a user namespace does not know (`kernel.overflowuid` of Linux).
const OVERFLOW: u32 = 65_534;

/// Instructions that all processors of `x86-64-v2` have, by Cranelift's names: those of the last ten years and more. Code
/// for the processor itself, with AVX-512, took 3 percent less processor time for aggregates over 60,000 rows, and as
/// much for `SELECT 1`.
const X86_64: [&str; 6] = ["has_cmpxchg16b", "has_popcnt", "has_sse3", "has_sse41", "has_sse42", "has_ssse3"];

/// Why compiled code is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Others than the owner of the program can have written it.
    #[error("{} {problem}, and compiled code is trusted", path.display())]
    Distrusted {
        /// The file or the directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It was made by another version of the program, or for another version of PGlite.
    #[error("{} has no code for this version of it", _0.display())]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// A file is not as it was when it was made.
    #[error("{} is damaged: {error}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: VerifyError,
    },
    /// Wasmtime does not load it on this processor.
    #[error("{} is not for this processor: {error:#}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Wasmtime's error.
        error: wasmtime::Error,
    },
}

/// Compiled code beside the program.
#[derive(Clone, Debug)]
pub(super) struct Precompiled {
    directory: PathBuf,
    /// The owner of the program.
    owner: u32,
}

impl Precompiled {
    /// That beside the program that runs, if there is some.
    pub(super) fn beside_program() -> Option<Self> {
        let program = std::env::current_exe().ok()?;
        let (directory, owner) = (program.parent()?.join(DIRECTORY), fs::metadata(&program).ok()?.uid());
        directory.is_dir().then_some(Self { directory, owner })
    }

    /// The module that was made of `name` with `key`.
    ///
    /// # Errors
    /// [`Unusable`]
    pub(super) fn module(&self, engine: &Engine, cache: &Cache, name: &str, key: &str) -> Result<Module, Unusable> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |error| Unusable::Unreadable { path, error }
        };
        let metadata = fs::symlink_metadata(&self.directory).map_err(unreadable(&self.directory))?;
        self.check(&self.directory, &metadata, metadata.is_dir())?;
        let sums = io::read_to_string(self.open(&self.directory.join(SUMS))?).map_err(unreadable(&self.directory))?;
        let sums: HashMap<&str, &str> =
            sums.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
        let file_name = file_name(name, key);
        let Some(sum) = sums.get(&file_name[..]) else { return Err(Unusable::Missing(self.directory.clone())) };
        let path = self.directory.join(&file_name);
        let file = self.open(&path)?;
        verify(&path, sum, cache).map_err(|error| Unusable::Damaged { path: path.clone(), error })?;
        // SAFETY: `open` has checked that only root or the owner of the program can write the file, who can as well
        // write the program itself; its digest is that which was written down when Wasmtime had made it.
        unsafe { Module::deserialize_open_file(engine, file) }.map_err(|error| Unusable::Refused { path, error })
    }

    /// Opens a file that can be trusted, which is no symbolic link.
    fn open(&self, path: &Path) -> Result<File, Unusable> {
        let open = || {
            // What is no regular file must not make this wait.
            let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        };
        let (file, metadata) = open().map_err(|error| Unusable::Unreadable { path: path.to_owned(), error })?;
        self.check(path, &metadata, metadata.is_file())?;
        Ok(file)
    }

    fn check(&self, path: &Path, metadata: &Metadata, is_of_right_kind: bool) -> Result<(), Unusable> {
        let problem = if !is_of_right_kind {
            "is no file or directory"
        } else if ![0, self.owner].contains(&metadata.uid()) {
            "belongs to another user than the program"
        } else if metadata.uid() == OVERFLOW {
            "belongs to a user that this user namespace does not know"
        } else if metadata.mode() & 0o022 != 0 {
            "can be written by others"
        } else {
            return Ok(());
        };
        Err(Unusable::Distrusted { path: path.to_owned(), problem })
    }
}

/// Compiles in advance, for processors that need not be this machine's.
pub(crate) struct Precompiler {
    engine: Engine,
    directory: PathBuf,
    sums: Vec<String>,
}

impl Precompiler {
    /// One for the architecture and system of `triple`, such as `aarch64-unknown-linux-gnu`, that writes into
    /// `directory`, which is made.
    ///
    /// # Errors
    /// When this program was built without a compiler for it, and when the directory is there.
    pub(crate) fn new(triple: &str, directory: &Path) -> anyhow::Result<Self> {
        let mut configuration = configuration();
        configuration.target(triple).map_err(anyhow::Error::from)?;
        if triple.starts_with("x86_64-") {
            for flag in X86_64 {
                // SAFETY: the flags say what processors have, and code is loaded only where they have it.
                unsafe { configuration.cranelift_flag_enable(flag) };
            }
        }
        let engine = Engine::new(&configuration).map_err(anyhow::Error::from).with_context(|| {
            format!("nothing can be compiled for {triple}: build this program with --features cross for other machines")
        })?;
        fs::create_dir(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
        Ok(Self { engine, directory: directory.to_owned(), sums: Vec::new() })
    }

    /// Compiles `wasm`, which [`Precompiled::module`] finds by `name` and `key`. Returns the size of the code in bytes.
    ///
    /// # Errors
    /// When it cannot be compiled or written.
    pub(crate) fn add(&mut self, name: &str, key: &str, wasm: &[u8]) -> anyhow::Result<u64> {
        let compiled = self.engine.precompile_module(wasm).map_err(anyhow::Error::from);
        let compiled = compiled.with_context(|| format!("{name} cannot be compiled"))?;
        let file_name = file_name(name, key);
        self.write(&file_name, &compiled)?;
        self.sums.push(format!("{}  {file_name}\n", hex_digest(&[&compiled])));
        Ok(compiled.len() as u64)
    }

    /// Writes the digests.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.write(SUMS, self.sums.concat().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))
    }
}

fn file_name(name: &str, key: &str) -> String {
    format!("{name}-{}.cwasm", &hex_digest(&[key.as_bytes()])[..32])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wasm_encoder::{CodeSection, Function, FunctionSection, TypeSection, ValType};

    use super::*;

    /// A module with one function.
    fn wasm() -> Vec<u8> {
        let (mut types, mut functions, mut code) = (TypeSection::new(), FunctionSection::new(), CodeSection::new());
        types.ty().function([], [ValType::F64]);
        functions.function(0);
        let mut body = Function::new([]);
        // An instruction that needs SSE 4.1.
        body.instructions().f64_const(1.5.into()).f64_ceil().end();
        code.function(&body);
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&functions).section(&code);
        module.finish()
    }

    struct Place {
        outer: tempfile::TempDir,
        cache: Cache,
        engine: Engine,
    }

    impl Place {
        /// With the module `name` and the key `key`, compiled for processors of this machine's architecture.
        fn new() -> Self {
            let outer = tempfile::tempdir().unwrap();
            let cache = Cache::open(Some(&outer.path().join("cache"))).unwrap();
            let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            let mut precompiler = Precompiler::new(&triple, &outer.path().join(DIRECTORY)).unwrap();
            assert!(precompiler.add("name", "key", &wasm()).unwrap() > 0);
            precompiler.finish().unwrap();
            Self { outer, cache, engine: Engine::new(&configuration()).unwrap() }
        }

        fn directory(&self) -> PathBuf {
            self.outer.path().join(DIRECTORY)
        }

        fn file(&self) -> PathBuf {
            self.directory().join(file_name("name", "key"))
        }

        fn load(&self, name: &str, key: &str) -> Result<Module, Unusable> {
            let owner = rustix::process::geteuid().as_raw();
            Precompiled { directory: self.directory(), owner }.module(&self.engine, &self.cache, name, key)
        }
    }

    #[test]
    fn code_is_found_by_name_and_key() {
        let place = Place::new();
        place.load("name", "key").unwrap();
        place.load("name", "key").unwrap();
        assert!(matches!(place.load("name", "other"), Err(Unusable::Missing(_))));
        assert!(matches!(place.load("other", "key"), Err(Unusable::Missing(_))));
    }

    #[test]
    fn code_that_others_can_have_written_is_refused() {
        for path in [Place::directory, Place::file, |place: &Place| place.directory().join(SUMS)] {
            for mode in [0o777, 0o720] {
                let place = Place::new();
                fs::set_permissions(path(&place), fs::Permissions::from_mode(mode)).unwrap();
                let error = place.load("name", "key").unwrap_err();
                assert!(matches!(error, Unusable::Distrusted { .. }), "{error}");
            }
        }
        let place = Place::new();
        let owned_by_another = Precompiled { directory: place.directory(), owner: u32::MAX - 1 };
        let loaded = owned_by_another.module(&place.engine, &place.cache, "name", "key");
        // Root's code is trusted whoever has the program.
        assert_eq!(loaded.is_ok(), rustix::process::geteuid().is_root(), "{loaded:?}");
    }

    #[test]
    fn a_symbolic_link_is_no_code() {
        let place = Place::new();
        let elsewhere = place.outer.path().join("elsewhere");
        fs::rename(place.file(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(elsewhere, place.file()).unwrap();
        assert!(matches!(place.load("name", "key"), Err(Unusable::Unreadable { .. })));
    }

    #[test]
    fn damaged_code_is_refused() {
        let place = Place::new();
        let mut bytes = fs::read(place.file()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(place.file(), bytes).unwrap();
        assert!(matches!(place.load("name", "key"), Err(Unusable::Damaged { .. })));
    }

    #[test]
    fn code_with_another_configuration_is_refused() {
        let mut place = Place::new();
        place.engine = Engine::new(configuration().consume_fuel(true)).unwrap();
        let error = place.load("name", "key").unwrap_err();
        assert!(matches!(error, Unusable::Refused { .. }), "{error}");
    }

    #[test]
    fn a_machine_that_is_not_known_is_named() {
        let outer = tempfile::tempdir().unwrap();
        let Err(error) = Precompiler::new("s390x-unknown-linux-gnu", &outer.path().join("code")) else {
            panic!("the program was built with a compiler for it")
        };
        assert!(format!("{error:#}").contains("s390x-unknown-linux-gnu"), "{error:#}");
    }
}
