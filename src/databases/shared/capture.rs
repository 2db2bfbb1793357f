//! Starts a cluster, lets it recover and serve one session, and captures it, so that others start from there.

use std::sync::Arc;

use anyhow::{bail, ensure};
use parking_lot::Mutex;

use super::{
    SharedSettings,
    children::{Role, run_in_turn},
    server::{self, Event, Launch, Server, State},
};
use crate::{
    backend::{BOOTSTRAP_USER, Backend, ClusterSnapshot, Login, program::Program},
    client::{Endpoints, NoClient},
    cluster::{Priority, Seats},
    engine::on_wasm_stack,
    fs::{FrozenTree, Tree},
    guest::{ClientStream, Setup},
    log::{LineConsole, LogSink, Recent},
    protocol::startup::StartupMessage,
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
    let launch = Launch { program: program.clone(), files, settings, log };
    let captured = on_wasm_stack(|| {
        let (seats, recent) = (Arc::new(Seats::default()), Recent::default());
        let fork = server::boot(&launch, false, &seats, &recent)?;
        let mut server = Server::new(&launch, fork, seats, &recent, State::Starting);
        recover(&mut server)?;
        rehearse(&server, &launch, database)?;
        let postmaster = server.process.backend(&server.running)?;
        postmaster.take_turn()?;
        postmaster.announce_checkpointer()?;
        ClusterSnapshot::capture(&server.running.fork())
    });
    captured?.map(Arc::new)
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
            Event::Signal | Event::CheckpointerWanted => {}
            Event::Crashed | Event::ShutDown => bail!("the cluster ended while it started"),
        }
    }
}

/// Serves one session. It writes the files from which later ones load the system catalogs (`pg_internal.init`), and
/// its pages stay in shared buffers.
fn rehearse(server: &Server, launch: &Launch, database: &str) -> anyhow::Result<()> {
    // It must leave nothing of its own in the cluster.
    let parameters = [("user", BOOTSTRAP_USER), ("database", database), ("event_triggers", "off")];
    let packet = StartupMessage::packet(&parameters);
    let client = ClientStream::new(Box::new(NoClient::default()), &packet);
    let seat = server.running.seats.join(Priority::Client);
    let setup = |files| Setup { seat: Some(seat), ..Setup::backend(&launch.program, files) };
    let console = LineConsole::new(launch.log.clone(), "postgres");
    let mut backend = server.running.fork().start(&launch.program, console, setup)?;
    let (database, user) = (database.as_bytes(), BOOTSTRAP_USER.as_bytes());
    let login = Login { database, user, endpoints: Endpoints::default() };
    // A session that is refused has told its client so.
    run_in_turn(&mut backend, |backend: &mut Backend| backend.serve_forked(client, login)).map(drop)
}
