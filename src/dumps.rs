//! The commands `dump` and `run`: the session that they need, what a terminal shows, and how they end.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{ArgAction, Args};
use crossbeam_channel::{RecvTimeoutError, bounded, never};
use indicatif::ProgressBar;
use parking_lot::Mutex;
use pglite_port::{
    backup::bar,
    connection::Connections,
    databases::{DataDirectory, PG_VERSION, Settings, SharedSettings},
    dial::{Address, AskForPassword, Cancel, Server, show_typing},
    dump::{self, HangUp},
    log::{LogSink, OwnLog},
    script::{self, Choices, ScriptError, Told},
    session::Mode,
    template::Tools,
};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use super::{command_line::CommandLine, options::MetricsOptions, start::unless_stopped, stop::Stop};

/// How long a command has to end by itself after a request to stop.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// How long the server has to take the request to cancel a statement.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// The exit status when statements of a file have failed, as of `psql` (`EXIT_USER` in `src/bin/psql/settings.h`).
const STATEMENTS_FAILED: u8 = 3;

/// How much of a file is read at once.
const PIECE: usize = 1 << 20;

/// Where the server is, as `psql` takes it.
#[derive(Args)]
pub(crate) struct AddressOptions {
    /// The server's URL, or a connection string [default: the options and variables of psql, such as PGHOST]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Start the cluster in this directory for the time of the command, instead of connecting to a server
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// The host of the server, or the directory of its unix socket
    #[arg(long, value_name = "HOST", conflicts_with = "data")]
    host: Option<String>,
    /// The port of the server
    #[arg(short, long, value_name = "PORT", conflicts_with = "data")]
    port: Option<String>,
    /// The user
    #[arg(short = 'U', long, value_name = "ROLE")]
    username: Option<String>,
    /// The database, or what can be given as URL
    #[arg(short, long, value_name = "DATABASE", conflicts_with = "url")]
    dbname: Option<String>,
    /// Never ask for a password; it is in the URL, in PGPASSWORD or in ~/.pgpass
    #[arg(short = 'w', long, action = ArgAction::SetTrue, conflicts_with = "password")]
    no_password: bool,
    /// Ask for the password before connecting
    #[arg(short = 'W', long, action = ArgAction::SetTrue)]
    password: bool,
}

impl AddressOptions {
    fn address(&self) -> Address {
        let ask = match (self.no_password, self.password) {
            (true, _) => AskForPassword::Never,
            (_, true) => AskForPassword::Always,
            _ => AskForPassword::IfNeeded,
        };
        let database = self.url.clone().or_else(|| self.dbname.clone());
        let (host, port, user) = (self.host.clone(), self.port.clone(), self.username.clone());
        Address { database, host, port, user, ask }
    }
}

/// How a file is run.
#[derive(Args)]
pub(crate) struct RunOptions {
    /// The SQL file; `-` is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    address: AddressOptions,
    /// Run all statements in one transaction: all of them take effect, or none
    #[arg(short = '1', long)]
    single_transaction: bool,
    /// What to do when a statement fails: stop, or report it and run the following ones
    #[arg(long, value_name = "stop|continue", default_value = "stop", value_parser = ["stop", "continue"])]
    on_error: String,
    /// Print the rows that statements return, their values separated by |
    #[arg(long)]
    rows: bool,
    /// Do not report notices
    #[arg(short, long)]
    quiet: bool,
}

/// Carries `dump` out.
pub(crate) fn dump(command_line: &CommandLine, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let options = dump::Options::read(arguments)?;
    if options.only_tells {
        let tools = command_line.engine.open_templates()?.tools();
        return dump_with(&tools, None, &options, |_| {});
    }
    if let Some(data) = &options.data {
        let is_cluster = data.join(PG_VERSION).is_file();
        ensure!(is_cluster, "{} is no data directory: it has no file {PG_VERSION}", data.display());
    }
    let Some(opened) = Opened::new(command_line, options.data.as_deref(), &options.address)? else {
        return Ok(ExitCode::FAILURE);
    };
    let tools = match opened.tools {
        Some(tools) => tools,
        None => command_line.engine.open_templates()?.tools(),
    };
    let (connections, hang_up) = (opened.connections.clone(), Arc::<Mutex<Option<HangUp>>>::default());
    let begun = hang_up.clone();
    let end = move || match &*begun.lock() {
        Some(hang_up) => hang_up.hang_up(),
        // Nothing is written before the server has answered.
        None => process::exit(1),
    };
    on_stop(opened.stop, opened.connections.clone(), end);
    let server = Some(Arc::new(opened.server));
    let dumped = dump_with(&tools, server, &options, |begun| *hang_up.lock() = Some(begun));
    if let Some(connections) = connections {
        connections.shut_down();
    }
    dumped
}

fn dump_with(
    tools: &Tools,
    server: Option<Arc<Server>>,
    options: &dump::Options,
    on_begin: impl FnOnce(HangUp),
) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(dump::dump(tools, server, options, true, on_begin)?.status))
}

/// Carries `run` out. If statements fail, the exit status is [`STATEMENTS_FAILED`].
pub(crate) fn run(command_line: &CommandLine, options: &RunOptions, own_log: &OwnLog) -> anyhow::Result<ExitCode> {
    let RunOptions { file, address, single_transaction, on_error, rows, quiet } = options;
    let name = file.display().to_string();
    let (input, progress) = open(file).with_context(|| format!("{name} cannot be read"))?;
    let Some(opened) = Opened::new(command_line, address.data.as_deref(), &address.address())? else {
        return Ok(ExitCode::FAILURE);
    };
    let cancel = Arc::<Mutex<Option<Cancel>>>::default();
    let (begun, is_stopped) = (cancel.clone(), Arc::<AtomicBool>::default());
    let (stop, connections) = (is_stopped.clone(), opened.connections.clone());
    let end = move || {
        stop.store(true, Ordering::Relaxed);
        match &connections {
            Some(connections) => {
                connections.terminate_all();
                connections.shut_down();
            }
            // A server that only loses its client may run a statement to its end, and commit it.
            None => {
                if let Some(cancel) = cancel.lock().take() {
                    cancel_within(CANCEL_PATIENCE, cancel);
                }
            }
        }
        // The file may be one that nobody writes to, and the rows may go where nobody reads.
        process::exit(1);
    };
    on_stop(opened.stop, None, end);
    let choices =
        Choices { in_one_transaction: *single_transaction, continues: on_error == "continue", tells_rows: *rows };
    let (log, quiet, shown) = (own_log.clone(), *quiet, progress.clone());
    let tell = move |told: Told<'_>| match told {
        Told::Notice(_) if quiet => {}
        Told::Notice(text) | Told::Error(text) => shown.suspend(|| log.line(text)),
        // Without stdout the rows cannot be told.
        Told::Row(row) if shown.is_hidden() => drop(writeln!(io::stdout(), "{row}")),
        Told::Row(row) => shown.suspend(|| drop(writeln!(io::stdout(), "{row}"))),
    };
    let server = Arc::new(opened.server);
    let ran = script::run(&server, input, &name, choices, Arc::new(tell), |cancel| *begun.lock() = Some(cancel));
    progress.finish_and_clear();
    if let Some(connections) = opened.connections {
        connections.shut_down();
    }
    if is_stopped.load(Ordering::Relaxed) {
        // A statement that was cancelled for it has not failed by itself.
        return Ok(ExitCode::FAILURE);
    }
    let said = match ran {
        Ok(ran) if ran.failed == 0 => return Ok(ExitCode::SUCCESS),
        Ok(ran) if ran.failed == 1 => format!("a statement of {name} has failed"),
        Ok(ran) => format!("{} statements of {name} have failed", ran.failed),
        // Where the others run all the same, an error is one that has ended them.
        Err(error) if !choices.continues && error.is::<ScriptError>() => format!("{error:#}"),
        Err(error) => return Err(error),
    };
    own_log.line(&said);
    Ok(ExitCode::from(STATEMENTS_FAILED))
}

/// Opens a file, and shows on a terminal how far it was read.
fn open(file: &Path) -> io::Result<(Box<dyn BufRead>, ProgressBar)> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(BufReader::with_capacity(PIECE, io::stdin())), ProgressBar::hidden()));
    }
    let file = File::open(file)?;
    let metadata = file.metadata()?;
    ensure_no_directory(&metadata)?;
    let progress = if io::stderr().is_terminal() { bar("running", metadata.len()) } else { ProgressBar::hidden() };
    let input: Box<dyn Read> = Box::new(progress.wrap_read(file));
    Ok((Box::new(BufReader::with_capacity(PIECE, input)), progress))
}

fn ensure_no_directory(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
}

/// What a command has opened.
struct Opened {
    server: Server,
    /// The tools of a cluster that was started for the command.
    tools: Option<Tools>,
    /// The connections of a cluster that was started for the command.
    connections: Option<Arc<Connections>>,
    stop: Stop,
}

impl Opened {
    /// Starts the cluster in `data`, or finds the server at `address`. `None` if the command is to stop.
    fn new(command_line: &CommandLine, data: Option<&Path>, address: &Address) -> anyhow::Result<Option<Self>> {
        let stop = Stop::on(&[SIGINT, SIGTERM])?;
        let Some(data) = data else {
            let address = address.clone();
            let Some(server) = unless_stopped(stop.asked(), &never(), move || Server::at(&address))? else {
                // It may have stopped while the user was asked for a password.
                show_typing();
                return Ok(None);
            };
            return Ok(Some(Self { server, tools: None, connections: None, stop }));
        };
        ensure!(command_line.mode == Mode::Shared, "--data is for mode shared");
        address.check_for_own_cluster()?;
        let shared =
            SharedSettings { data_directory: Some(DataDirectory::Host(data.to_owned())), ..SharedSettings::default() };
        let settings = Settings { shared, ..Settings::default() };
        let databases = command_line.open_databases(settings, &MetricsOptions::default(), &stop, &never())?;
        let Some(databases) = databases else { return Ok(None) };
        let tools = Some(databases.templates().tools());
        let connections = Arc::new(Connections::new(databases));
        let server = Server::of(connections.clone(), None, LogSink::to_own_log());
        let server = server.with(address.database.as_deref(), address.user.as_deref());
        Ok(Some(Self { server, tools, connections: Some(connections), stop }))
    }
}

/// Has a statement cancelled, unless the server does not answer in time.
fn cancel_within(time: Duration, cancel: Cancel) {
    let (sender, cancelled) = bounded(1);
    let ask = move || drop(sender.send(cancel.cancel()));
    let started = thread::Builder::new().name("cancel".to_owned()).spawn(ask);
    let done = started.map_err(anyhow::Error::from).and_then(|_| cancelled.recv_timeout(time)?);
    if let Err(error) = done {
        tracing::warn!("the statement that runs may go on in the server: {error:#}");
    }
}

/// Calls `end` at a request to stop. The program exits when it has not ended in time, or at a second request, because
/// it waits for somebody to read what it writes; a cluster of its own is shut down before.
fn on_stop(stop: Stop, connections: Option<Arc<Connections>>, end: impl FnOnce() + Send + 'static) {
    let wait = move || {
        // An error says that the command has ended.
        let Ok(()) = stop.asked().recv() else { return };
        end();
        if stop.asked().recv_timeout(END_PATIENCE) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        if let Some(connections) = connections {
            connections.shut_down();
        }
        process::exit(1);
    };
    if let Err(error) = thread::Builder::new().name("stop".to_owned()).spawn(wait) {
        tracing::warn!(%error, "signals are not handled: no thread can be started");
    }
}
