//! Dumps of databases by PostgreSQL's `pg_dump`, which runs as a guest.
//!
//! * `mod`: a dump, from its options to the complete file
//! * `options`: the options of `pg_dump`, as far as the host has to know them
//! * `program`: `pg_dump` as a guest
//! * `wire`: its connection to the server
//! * `output`: where the dump goes, and `storage`: the same as files of the guest
//! * `terminal`: what it writes to stdout and stderr, and the progress

mod options;
mod output;
mod program;
mod storage;
mod terminal;
mod wire;

use std::sync::Arc;

use anyhow::{Context, ensure};
use parking_lot::Mutex;

use crate::{
    dial::Server,
    engine::on_wasm_stack,
    fs::{At, Files, Follow, Tree, put_file},
    template::Tools,
};

pub use options::Options;
use output::Output;
use terminal::Terminal;
pub use wire::HangUp;
use wire::Wire;

/// What became of a dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// The exit status of `pg_dump`. The dump is complete if it is 0; otherwise nothing was written, but to stdout.
    pub status: u8,
    /// The bytes that were written, those of temporary files included.
    pub bytes: u64,
    /// The last lines that `pg_dump` has written to stderr.
    pub messages: String,
}

/// Dumps a database of `server` as `options` say; without a server, `pg_dump` can only tell about itself. `is_shown`:
/// its messages go to stderr, as does the progress if that is a terminal. `on_begin` gets what ends the dump from other
/// threads.
///
/// # Errors
/// When `pg_dump` cannot be run, the server cannot be reached, or the output cannot be written. What `pg_dump` reports
/// is its exit status. A file appears when it is complete; what was there before stays until then.
pub fn dump(
    tools: &Tools,
    server: Option<Arc<Server>>,
    options: &Options,
    is_shown: bool,
    on_begin: impl FnOnce(HangUp),
) -> anyhow::Result<Dumped> {
    let wire = Arc::new(Wire::new(server)?);
    let output = Output::open(options)?;
    on_begin(wire.hang_up());
    let terminal = Terminal::new(&output, wire.clone(), is_shown)?;
    let (mut arguments, filters) = options.for_guest()?;
    arguments.extend(wire.arguments());
    arguments.extend(output.arguments());
    let storage = Arc::new(output.storage(terminal.progress())?);
    let mut tree = Tree::bare()?;
    let executable = (program::EXECUTABLE.to_owned(), Vec::new());
    for (path, content) in filters.into_iter().chain([executable]) {
        put_file(&mut tree, &path, content)?;
    }
    tree.mount(storage::DIRECTORY.as_bytes(), storage.clone())?;
    let mut files = Files::new(Arc::new(Mutex::new(tree)), Box::new(terminal.console()))?;
    files.chmod(At::WorkingDirectory, program::EXECUTABLE.as_bytes(), 0o755, Follow::Yes)?;
    let run = || program::run(tools, files, wire, &arguments);
    let ran = on_wasm_stack(run).context("no thread can be started for pg_dump")?;
    let (bytes, messages, stream_failure) = terminal.finish();
    // What the host could not write explains what the guest says about it.
    if let Some(failure) = stream_failure.or(storage.take_failure()) {
        return Err(failure).with_context(|| format!("{} cannot be written", output.name()));
    }
    let status = ran.context("pg_dump did not run to its end")?;
    ensure!((0..=255).contains(&status), "pg_dump ended with exit status {status}");
    drop(storage);
    if status == 0 {
        output.finish()?;
    }
    Ok(Dumped { status: u8::try_from(status)?, bytes, messages })
}
