//! Sessions of the program itself in a cluster that takes several: as the bootstrap superuser, without a client that
//! would have to authenticate.

use std::sync::{Arc, mpsc};

use anyhow::{Context, bail};

use super::{
    super::Password,
    DATABASE,
    children::run_in_turn,
    running::{Event, Running},
};
use crate::{
    backend::{BOOTSTRAP_USER, Backend, Fork, Login, Served, UNLOGGED, program::Program},
    client::NoClient,
    cluster::{Crashed, Priority},
    guest::{ClientStream, Setup},
    log::{LineConsole, LogSink},
    protocol::{
        error_response::sqlstate,
        messages::{Rows, SqlError, message, result, simple_query},
        startup::StartupMessage,
    },
};

/// Settings with which, and with [`UNLOGGED`], such a session leaves nothing of its own in the cluster or in the log,
/// whatever is set for the role and the database, and finds no operator or function of a user.
const SETTINGS: [(&str, &str); 3] =
    [("event_triggers", "off"), ("default_transaction_read_only", "off"), ("search_path", "pg_catalog")];

/// The database that new ones are copies of.
const TEMPLATE_DATABASE: &str = "template1";

/// Stores the program's password in the cluster.
///
/// # Errors
/// As [`run`].
pub(super) fn set_password(
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    password: &Password,
) -> anyhow::Result<()> {
    let set = |database| run(running, program, log, database, Some(&password.statement())).map(drop);
    let is_missing = |error: &anyhow::Error| {
        error.downcast_ref::<SqlError>().is_some_and(|error| error.code == sqlstate::INVALID_CATALOG_NAME)
    };
    let set = match set(DATABASE) {
        // Somebody has dropped it.
        Err(error) if is_missing(&error) => set(TEMPLATE_DATABASE),
        result => result,
    };
    password.stored(set)
}

/// Runs a session in `database`, and `sql` in it, on this thread, which has a stack for wasm; returns the rows.
///
/// # Errors
/// A [`SqlError`] when the session is refused or the SQL fails; others when it
/// cannot be made, or traps.
pub(super) fn run(
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
    sql: Option<&str>,
) -> anyhow::Result<Rows> {
    run_from(&running.fork().without_model(), running, program, log, database, sql, |_| ())
}

/// As [`run`], from the state in `fork`; `look` looks at what the session has left before it is gone.
///
/// # Errors
/// As [`run`].
pub(super) fn run_from(
    fork: &Fork,
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
    sql: Option<&str>,
    look: impl FnOnce(&Backend),
) -> anyhow::Result<Rows> {
    let parameters = [("user", BOOTSTRAP_USER), ("database", database)].into_iter().chain(SETTINGS).chain(UNLOGGED);
    let parameters: Vec<_> = parameters.collect();
    let mut input = StartupMessage::packet(&parameters);
    input.extend(sql.map(simple_query).transpose()?.unwrap_or_default());
    input.extend(message(b'X', &[])?);
    let (record, answers) = mpsc::channel();
    let client = ClientStream::new(Box::new(NoClient::recorded(record)), &input).trusted(true);
    let seat = running.seats.join(Priority::Client);
    let setup = |files| Setup { seat: Some(seat), ..Setup::backend(program, files) };
    let console = LineConsole::new(log.clone(), "postgres");
    let mut backend = fork.start_session(database.as_bytes(), program, console, setup)?;
    let login = Login::of_program(database);
    let ran = run_in_turn(&mut backend, |backend: &mut Backend| backend.serve_forked(client, login));
    if ran.as_ref().is_err_and(|error| !error.is::<Crashed>()) {
        running.tell(Event::Crashed);
    }
    if let Served::Outdated(_) = ran.context("a session of the program itself has crashed")? {
        bail!("catalogs have changed while a session of the program itself began");
    }
    look(&backend);
    let answer: Vec<u8> = answers.try_iter().flatten().collect();
    Ok(result(&answer)?)
}
