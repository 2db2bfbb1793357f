//! Starts a cluster, lets it recover and serve one session, and captures it, so that others start from there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use anyhow::{anyhow, bail, ensure};
use parking_lot::Mutex;

use super::{
    SharedSettings,
    children::Role,
    model, own_session,
    running::Event,
    server::{self, Launch, Server, State},
};
use crate::{
    backend::{ClusterSnapshot, program::Program},
    cluster::Seats,
    engine::on_wasm_stack,
    fs::{FrozenTree, Tree},
    log::{LogSink, Recent},
    protocol::messages::SqlError,
    session::panic_text,
};

/// A snapshot of a cluster with those settings, in memory, that has the files in `files`, which were shut down. A
/// session in `database` has filled its caches.
///
/// # Errors
/// When the cluster does not start.
pub(crate) fn capture(
    program: &Arc<Program>,
    files: Arc<FrozenTree>,
    settings: SharedSettings,
    database: &str,
    log: LogSink,
) -> anyhow::Result<Arc<ClusterSnapshot>> {
    let files = Arc::new(Mutex::new(Tree::from_frozen(files)));
    let launch = Launch { program: program.clone(), files, settings, tally: Arc::default(), log };
    let captured = on_wasm_stack(|| {
        let (seats, recent) = (Arc::new(Seats::default()), Recent::default());
        let fork = server::boot(&launch, false, &seats, &recent)?;
        let mut server = Server::new(&launch, fork, seats, &recent, State::Starting);
        recover(&mut server)?;
        // It writes the files from which later sessions load the system catalogs (`pg_internal.init`), and its pages stay
        // in shared buffers.
        match own_session::run(&server.running, &launch.program, &launch.log, database, None) {
            Err(error) if error.is::<SqlError>() => tracing::info!("a first session was not let in: {error}"),
            result => drop(result?),
        }
        if let Some(password) = &launch.settings.access.password {
            own_session::set_password(&server.running, &launch.program, &launch.log, password)?;
        }
        let postmaster = server.process.backend(&server.running)?;
        postmaster.take_turn()?;
        postmaster.announce_checkpointer()?;
        ClusterSnapshot::capture(&server.running.fork())
    });
    captured?.map(Arc::new)
}

/// Makes the model of the sessions in `database` of copies of `snapshot`, in a copy of its own. Without one, they make
/// their caches themselves.
pub(crate) fn add_model(
    program: &Arc<Program>,
    snapshot: &ClusterSnapshot,
    settings: SharedSettings,
    database: &str,
    log: LogSink,
) {
    let make = || make_model(program, snapshot, settings, database, log);
    let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| Err(anyhow!("{}", panic_text(&*panic))));
    if let Err(error) = made {
        tracing::warn!("sessions of copies make their caches themselves: {error:#}");
    }
}

fn make_model(
    program: &Arc<Program>,
    snapshot: &ClusterSnapshot,
    settings: SharedSettings,
    database: &str,
    log: LogSink,
) -> anyhow::Result<()> {
    let copy = snapshot.start()?;
    let launch = Launch { program: program.clone(), files: copy.tree().clone(), settings, tally: Arc::default(), log };
    on_wasm_stack(|| {
        let (seats, recent) = (Arc::new(Seats::default()), Recent::default());
        let server = Server::new(&launch, copy, seats, &recent, State::Running);
        let (running, program, log) = (&server.running, &launch.program, &launch.log);
        let Some(model) = model::model(running, program, log, database)?.map(Arc::new) else { return Ok(()) };
        // It is tried before others have it.
        model::try_out(&model, running, program, log, database)?;
        snapshot.set_model(model);
        Ok(())
    })?
}

/// Runs the startup process alone: after an orderly shutdown it needs no other.
fn recover(server: &mut Server) -> anyhow::Result<()> {
    server.children.start(Role::Startup)?;
    loop {
        match server.events.recv()? {
            Event::Ended { process_id, ended } => {
                server.children.forget(process_id);
                let status = ended?;
                ensure!(status == 0, "the startup process exited with status {status}");
                return Ok(());
            }
            Event::Signal | Event::CheckpointerWanted | Event::SenderEnded => {}
            Event::Crashed | Event::ShutDown => bail!("the cluster ended while it started"),
        }
    }
}
