//! A new cluster: `initdb` runs in one guest, and each backend that it starts runs in another, on the same files.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use wasmtime::{InstancePre, Ref, Store};

use crate::{
    backend::{Backend, EXECUTABLE, program::Program},
    engine::artefact::{Artefact, EXTENSIONS},
    extensions::PREFIX,
    fs::{At, Errno, Files, FrozenTree, OpenFlags, Silent, Tree, put_file, unpack_extension},
    guest::{Commands, Exports, Guest, LOCALES, LOCALES_FILE, Setup, call},
    icu::IcuData,
    log::{LineConsole, LogSink},
};

/// PGlite's arguments (`initdb.ts`), and WAL segments of a size that suits clusters in memory.
const ARGUMENTS: &[&str] = &[
    "--allow-group-access",
    "--encoding=UTF8",
    "--locale=C.UTF-8",
    "--locale-provider=libc",
    "--auth=trust",
    "--username=postgres",
    "--wal-segsize=1",
    "--no-sync",
    "--no-instructions",
];

/// What a new cluster's `pg_hba.conf` has besides the lines that initdb writes for the loopback addresses.
const ANY_ADDRESS: &str = "\
# Whoever can connect to the program is let in; see --listen.\n\
host    all             all             all                     trust\n";

/// The configuration that `initdb` writes, and the settings in it that the command line of every cluster sets.
const CONFIGURATION: &str = "/pglite/data/postgresql.conf";
const BY_OPTION: [&str; 2] = ["max_connections =", "shared_buffers ="];
/// The rules for connections to the cluster.
const HBA_FILE: &str = "/pglite/data/pg_hba.conf";

/// Files that stand in for the pipes of `popen`, which PGlite's bundle has for this purpose.
const FROM_BACKEND: &str = "/pglite/pgstdout";
const TO_BACKEND: &str = "/pglite/pgstdin";

/// Makes a new cluster in the files of `bundle`, to which the extensions and ICU's data are added, and returns the
/// resulting files.
///
/// # Errors
/// When an extension's bundle is missing, or `initdb` or a backend that it runs fails; their messages are in the log.
pub(super) fn make_cluster(
    program: &Arc<Program>,
    artefact: &Artefact,
    icu: &IcuData,
    bundle: Arc<FrozenTree>,
    log: &LogSink,
) -> anyhow::Result<Arc<FrozenTree>> {
    let mut tree = Tree::from_frozen(bundle);
    for extension in EXTENSIONS {
        let archive = artefact.read(extension)?;
        unpack_extension(&mut tree, archive.as_slice(), PREFIX).with_context(|| extension.name)?;
    }
    for (path, content) in icu.files() {
        put_file(&mut tree, &path, content.to_vec())?;
    }
    put_file(&mut tree, LOCALES_FILE, LOCALES.into())?;
    let tree = Arc::new(Mutex::new(tree));
    let commands =
        BackendRunner { program: program.clone(), tree: tree.clone(), log: log.clone(), on_close: Pending::Nothing };
    let files = Files::new(tree.clone(), Box::new(LineConsole::new(log.clone(), "initdb")))?;
    let setup = Setup { commands: Box::new(commands), ..Setup::backend(program, files) };
    let initdb = program.initdb(artefact)?;
    let status = run(&initdb, setup).context("initdb did not run to its end")?;
    ensure!(status == 0, "initdb ended with exit status {status}; the log has its output");
    for file in [FROM_BACKEND, TO_BACKEND] {
        rewrite(&tree, file, |_| String::new())?;
    }
    rewrite(&tree, CONFIGURATION, leave_to_options)?;
    rewrite(&tree, HBA_FILE, |rules| format!("{rules}{ANY_ADDRESS}"))?;
    Ok(tree.lock().freeze())
}

/// Runs `initdb` until it exits.
fn run(initdb: &InstancePre<Guest>, setup: Setup) -> anyhow::Result<i32> {
    let mut store = Store::new(initdb.module().engine(), Guest::new(setup)?);
    let instance = initdb.instantiate(&mut store)?;
    let exports = Exports::find(&mut store, instance)?;
    let table = exports.table;
    store.data_mut().exports = Some(exports);
    instance.get_typed_func::<(), ()>(&mut store, "__wasm_call_ctors")?.call(&mut store, ())?;
    for name in ["system", "popen", "pclose"] {
        let function = store.data().library_store.clone().host_function(&mut store, name)?;
        let slot = u32::try_from(table.grow(&mut store, 1, Ref::Func(Some(function)))?)?;
        let set = instance.get_typed_func::<u32, ()>(&mut store, &format!("pgl_set_{name}_fn"))?;
        set.call(&mut store, slot)?;
    }
    let status = call::main(&mut store, "/pglite/bin/initdb", ARGUMENTS)?;
    call::flush(&mut store)?;
    store.data_mut().files.close_all();
    Ok(status)
}

/// Replaces the content of the file at `path` with the result of `edit`.
fn rewrite(tree: &Arc<Mutex<Tree>>, path: &str, edit: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
    let rewrite = || -> anyhow::Result<()> {
        let mut files = Files::new(tree.clone(), Box::new(Silent))?;
        let edited = edit(&String::from_utf8(files.read_file(path.as_bytes())?)?);
        let flags = OpenFlags::WRITE_ONLY.with(OpenFlags::TRUNCATE);
        let file = files.open(At::WorkingDirectory, path.as_bytes(), flags, 0)?;
        files.write(file, None, edited.as_bytes())?;
        Ok(())
    };
    rewrite().with_context(|| format!("{path} cannot be rewritten"))
}

/// `configuration` with the settings in `BY_OPTION` commented out, because the command line of every cluster sets
/// them. Otherwise each reload of the file would be an attempt to change them.
fn leave_to_options(configuration: &str) -> String {
    let is_option = |line: &str| BY_OPTION.iter().any(|name| line.starts_with(name));
    let lines =
        configuration.lines().map(|line| if is_option(line) { format!("#{line}\n") } else { format!("{line}\n") });
    lines.collect()
}

/// Runs the backend for `initdb`'s `system` and `popen`.
struct BackendRunner {
    program: Arc<Program>,
    tree: Arc<Mutex<Tree>>,
    log: LogSink,
    on_close: Pending,
}

/// What happens when the open pipe is closed.
enum Pending {
    Nothing,
    /// The command has run already, with this status.
    Status(i32),
    /// The command runs now, with everything that was written to the pipe as its input.
    Run(Vec<String>),
}

impl BackendRunner {
    /// Runs the backend with these arguments in a new guest, and returns its exit status.
    fn run(&self, arguments: &[String]) -> anyhow::Result<i32> {
        let Some((executable, arguments)) = arguments.split_first() else { bail!("the command is empty") };
        ensure!(executable == EXECUTABLE, "there is no program {executable}");
        let console = Box::new(LineConsole::new(self.log.clone(), "postgres"));
        let mut files = Files::new(self.tree.clone(), console)?;
        for (path, flags, descriptor) in
            [(TO_BACKEND, OpenFlags::READ_ONLY, 0), (FROM_BACKEND, OpenFlags::WRITE_ONLY.with(OpenFlags::TRUNCATE), 1)]
        {
            let opened = files.open(At::WorkingDirectory, path.as_bytes(), flags, 0)?;
            files.dup_to(opened, descriptor)?;
            files.close(opened)?;
        }
        let backend = Backend::new(&self.program, Setup::backend(&self.program, files))?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        backend.run(&arguments)
    }

    fn run_or_log(&self, arguments: &[String]) -> i32 {
        self.run(arguments).unwrap_or_else(|error| {
            tracing::error!("{arguments:?}, run by initdb, failed: {error:#}");
            1
        })
    }
}

impl Commands for BackendRunner {
    fn system(&mut self, command: &str) -> i32 {
        match words(command) {
            Some(words) => self.run_or_log(&words),
            None => 1,
        }
    }

    fn read_from(&mut self, command: &str) -> Result<String, Errno> {
        let words = words(command).ok_or(Errno::EINVAL)?;
        self.on_close = Pending::Status(self.run_or_log(&words));
        Ok(FROM_BACKEND.to_owned())
    }

    fn write_to(&mut self, command: &str) -> Result<String, Errno> {
        self.on_close = Pending::Run(words(command).ok_or(Errno::EINVAL)?);
        Ok(TO_BACKEND.to_owned())
    }

    fn wait(&mut self) -> i32 {
        match std::mem::replace(&mut self.on_close, Pending::Nothing) {
            Pending::Nothing => 0,
            Pending::Status(status) => status,
            Pending::Run(words) => self.run_or_log(&words),
        }
    }
}

/// The words of a shell command up to its redirections, which all lead to `/dev/null` or join stderr to stdout.
fn words(command: &str) -> Option<Vec<String>> {
    let words = shell_words::split(command).ok()?;
    Some(
        words
            .into_iter()
            .take_while(|word| !word.starts_with(['<', '>', '|', '&', ';']) && !word.starts_with("2>"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_up_to_its_redirections() {
        let command =
            r#""/pglite/bin/postgres" --check -c max_connections=100 -c name='a b' < "/dev/null" > "/dev/null" 2>&1"#;
        let expected = ["/pglite/bin/postgres", "--check", "-c", "max_connections=100", "-c", "name=a b"];
        assert_eq!(words(command).unwrap(), expected);
        for redirected in ["a b 2>/dev/null c", "a b >/dev/null", "a b | c", "a b & c", "a b ; c"] {
            assert_eq!(words(redirected).unwrap(), ["a", "b"], "{redirected}");
        }
        assert_eq!(words("a 'b"), None, "a quotation that does not end");
    }
}
