//! `system` and `popen`. The guest has no other programs, but `initdb` runs the backend, and the backend reads the
//! list of locales.

use wasmtime::{Caller, Linker};

use super::{Guest, call, memory};
use crate::{fs::Errno, instrument::HOOK_MODULE};

/// Runs the commands of one guest. Files in the guest take the place of pipes.
pub(crate) trait Commands: Send {
    /// Runs `command` and returns its status as `wait` does.
    fn system(&mut self, command: &str) -> i32;

    /// Runs `command` and returns the path of the file with its standard output.
    ///
    /// # Errors
    /// When it cannot be run.
    fn read_from(&mut self, command: &str) -> Result<String, Errno>;

    /// Returns the path of the file for the standard input of `command`, which runs in [`Commands::wait`].
    ///
    /// # Errors
    /// When it cannot be run.
    fn write_to(&mut self, command: &str) -> Result<String, Errno>;

    /// Called after the file of [`Commands::read_from`] or [`Commands::write_to`] is closed; returns the exit status
    /// of the command.
    fn wait(&mut self) -> i32;
}

/// The result of `system` without a shell: the status of a shell that ended with `exit(127)`, as in POSIX.
const NO_SHELL: i32 = 127 << 8;

/// The path of the output of `locale -a` in the guest's files.
pub(crate) const LOCALES_FILE: &str = "/pglite/locale-a";
/// Its content, the available locales, which replaces that in PGlite's bundle.
pub(crate) const LOCALES: &str = "C\nC.utf8\nPOSIX\n";

/// The backend's own commands. Other commands fail as on a system without a shell.
pub(crate) struct BackendCommands;

impl Commands for BackendCommands {
    fn system(&mut self, command: &str) -> i32 {
        tracing::warn!("PostgreSQL tried to run {command:?}, but there are no programs to run");
        NO_SHELL
    }

    fn read_from(&mut self, command: &str) -> Result<String, Errno> {
        // pg_import_system_collations (src/backend/commands/collationcmds.c)
        if command.starts_with("locale -a") {
            return Ok(LOCALES_FILE.to_owned());
        }
        tracing::warn!("PostgreSQL tried to read from {command:?}, but there are no programs to run");
        Err(Errno::ENOENT)
    }

    fn write_to(&mut self, command: &str) -> Result<String, Errno> {
        tracing::warn!("PostgreSQL tried to write to {command:?}, but there are no programs to run");
        Err(Errno::ENOENT)
    }

    fn wait(&mut self) -> i32 {
        0
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        "system",
        |mut caller: Caller<'_, Guest>, command: u32| -> wasmtime::Result<i32> {
            let (memory, guest) = memory::of(&mut caller)?;
            let command = memory::read_text(memory, command)?;
            Ok(guest.commands.system(&command))
        },
    )?;
    linker.func_wrap(
        HOOK_MODULE,
        "popen",
        |mut caller: Caller<'_, Guest>, command: u32, mode: u32| -> wasmtime::Result<u32> {
            let (memory, guest) = memory::of(&mut caller)?;
            let command = memory::read_text(memory, command)?;
            let reads = memory::read_c_string(memory, mode)?.starts_with(b"r");
            let path = if reads { guest.commands.read_from(&command) } else { guest.commands.write_to(&command) };
            match path {
                Ok(path) => open_stream(&mut caller, &path, if reads { "r" } else { "w" }),
                Err(errno) => set_errno(&mut caller, errno).map(|()| 0),
            }
        },
    )?;
    linker.func_wrap(HOOK_MODULE, "pclose", |mut caller: Caller<'_, Guest>, stream: u32| -> wasmtime::Result<i32> {
        let instance = caller.data().exports()?.instance;
        let close = instance.get_typed_func::<u32, i32>(&mut caller, "fclose")?;
        close.call(&mut caller, stream)?;
        Ok(caller.data_mut().commands.wait())
    })?;
    Ok(())
}

/// Sets the guest's `errno`.
///
/// # Errors
/// When the guest traps.
pub(crate) fn set_errno(caller: &mut Caller<'_, Guest>, errno: Errno) -> wasmtime::Result<()> {
    let instance = caller.data().exports()?.instance;
    let location = instance.get_typed_func::<(), u32>(&mut *caller, "__errno_location")?;
    let address = location.call(&mut *caller, ())?;
    Ok(memory::write_u32(memory::of(caller)?.0, address, errno.number().cast_unsigned())?)
}

/// `fopen` in the guest: a `FILE *`, null when the file cannot be opened.
fn open_stream(caller: &mut Caller<'_, Guest>, path: &str, mode: &str) -> wasmtime::Result<u32> {
    let instance = caller.data().exports()?.instance;
    let current = instance.get_typed_func::<(), u32>(&mut *caller, "emscripten_stack_get_current")?;
    let restore = instance.get_typed_func::<u32, ()>(&mut *caller, "_emscripten_stack_restore")?;
    let open = instance.get_typed_func::<(u32, u32), u32>(&mut *caller, "fopen")?;
    let stack = current.call(&mut *caller, ())?;
    let (path, mode) = (call::push_string(caller, path.as_bytes())?, call::push_string(caller, mode.as_bytes())?);
    let stream = open.call(&mut *caller, (path, mode))?;
    restore.call(&mut *caller, stack)?;
    Ok(stream)
}
