//! The command line of `pglite-port`.
//!
//! Exit status: 0 after an orderly end, 1 after an error (in the command line, the environment or a request), 2 after
//! a malformed frame, 3 if the shared cluster has crashed and does not start again.

use std::{
    backtrace::Backtrace,
    fs,
    io::{self, IsTerminal, Write},
    panic,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use crossbeam_channel::{Receiver, never};
use options::{
    AccessOptions, ClusterLimits, LimitOptions, MetricsOptions, SharedOptions, TestOptions, TlsOptions, interval,
    permissions, seconds,
};
use pglite_port::{
    administration::Administration,
    backup,
    databases::{Databases, Paths, Settings, SharedSettings},
    engine::{
        artefact::{Artefact, PGLITE_WASM},
        cache::Cache,
    },
    instrument::instrument,
    log::{LogSink, OwnLog},
    port::{self, Ending, ParentWatch},
    pruning::{self, Limits, Pruned, Stock},
    serve::{self, Listener},
    session::Mode,
    template::{Recipe, Script, Shelf, Templates},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::signal::{SIGINT, SIGTERM},
    flag,
};
use stop::Stop;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

mod list;
mod options;
mod start;
mod stop;
mod top;

/// The environment variable with the filter for the program's own log.
const LOG_VARIABLE: &str = "PGLITE_PORT_LOG";

/// How long `port` waits for a data directory that another process has open.
const PATIENCE_OF_A_CHILD: Duration = Duration::from_secs(3);

/// Real PostgreSQL (the official PGlite build) in Wasmtime, for clients on a socket or in frames over stdin and
/// stdout.
///
/// The program's log goes to stderr; `PGLITE_PORT_LOG` filters it (error, warn, info, debug, trace, or
/// target=level,...; info by default).
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    engine: EngineOptions,
    /// What each connection gets: `shared` (a session of one cluster) or `isolated` (its own cluster, removed when the
    /// connection closes)
    #[arg(long, global = true, default_value_t)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Command {
    /// Serve connections in frames on stdin and stdout, as a child of the program that owns the connections
    Port {
        #[command(flatten)]
        clones: CloneOptions,
        #[command(flatten)]
        shared: SharedOptions,
        #[command(flatten)]
        limits: LimitOptions,
        #[command(flatten)]
        access: AccessOptions,
        #[command(flatten)]
        tests: TestOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
        /// How long the program may take to stop after a request or a signal: its sessions end, and the shared cluster
        /// is shut down. Then it ends anyway, and a cluster in a directory recovers at its next start
        #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
        shutdown_timeout: Duration,
    },
    /// Listen on a socket for psql and all other clients, and print the URL when they can connect
    Serve {
        /// Where to listen: HOST:PORT (all addresses of the host; port 0 for any free port) or unix:PATH (in a
        /// directory, `.s.PGSQL.5432`)
        #[arg(long, value_name = "ADDRESS", default_value = serve::DEFAULT_LISTEN)]
        listen: String,
        /// The permissions of a unix socket's file, such as 0660; who can write it can connect [default: those that the
        /// umask leaves]
        #[arg(long, value_name = "MODE", value_parser = permissions)]
        socket_mode: Option<u32>,
        #[command(flatten)]
        clones: CloneOptions,
        #[command(flatten)]
        shared: SharedOptions,
        #[command(flatten)]
        limits: LimitOptions,
        #[command(flatten)]
        access: AccessOptions,
        #[command(flatten)]
        tls: TlsOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
        /// Listen on an address that other machines can reach although every client is let in as the role that it names,
        /// also as the superuser
        #[arg(long)]
        trust_everyone_who_can_connect: bool,
        /// How long the program may take to stop after a signal: its sessions end, and the shared cluster is shut
        /// down. Then, or at a second signal, it ends anyway, and a cluster in a directory recovers at its next start
        #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
        shutdown_timeout: Duration,
    },
    /// Prepare a template with SQL files; connections in mode `isolated` get clones of templates
    Prepare {
        /// The template's name: a client that asks for a database of this name gets a clone of the template
        name: String,
        /// An SQL file to run in the database, as one transaction unless it contains its own; files run in the given
        /// order
        #[arg(long, value_name = "FILE")]
        sql: Vec<PathBuf>,
        /// The name of the database in the template; clients can ask for it by this name as well [default: NAME]
        #[arg(long)]
        database: Option<String>,
        /// The role that owns the database and runs the SQL, a superuser; created unless it is postgres
        #[arg(long, value_name = "ROLE", default_value = "postgres")]
        user: String,
        #[command(flatten)]
        limits: ClusterLimits,
    },
    /// List the templates, or remove one
    Templates {
        /// Remove this template; connections that have a clone of it keep the clone
        #[arg(long, value_name = "NAME")]
        remove: Option<String>,
    },
    /// Back a cluster up into one file, also while it runs
    ///
    /// The file is a tar archive of the data directory, which `restore` and PGlite's `loadDataDir` take. The checksums
    /// of all pages are verified on the way.
    Backup {
        /// The URL of a server that runs, with a superuser's name; or the data directory of one that is stopped
        #[arg(value_name = "URL|DIRECTORY")]
        from: String,
        /// The file; compressed if its name ends in gz. An existing file is replaced when the backup is complete. `-`
        /// is stdout
        file: PathBuf,
        /// Make the backup even if pages have a wrong checksum
        #[arg(long)]
        no_verify_checksums: bool,
    },
    /// Restore a backup into a new data directory
    ///
    /// The backup may be one of PGlite's `dumpDataDir`. All checksums are verified. When the command is done,
    /// everything is on the disk; if it fails or is killed, the directory has no cluster.
    Restore {
        /// The file, compressed or not; `-` is stdin
        file: PathBuf,
        /// The directory, empty or not there yet
        directory: PathBuf,
        /// Restore the backup even if pages have a wrong checksum
        #[arg(long)]
        no_verify_checksums: bool,
    },
    /// Print the facts that the rewriter finds in `pglite.wasm`, one on each line, to compare versions with diff
    Evidence {
        /// The file, of any version of PGlite [default: the supported one, found as by the other commands]
        file: Option<PathBuf>,
    },
    /// Show the metrics of a running program in a terminal
    ///
    /// Sessions and rates of each cluster, the busiest first. q quits. Without a terminal, they are printed once.
    Top {
        /// Where the program answers, which it was told by --metrics
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9187")]
        address: String,
        /// The time between two looks, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
        interval: Duration,
        /// Print the metrics once, of one interval
        #[arg(long)]
        once: bool,
    },
    /// List the cache, or remove entries that have not been used for long
    ///
    /// `port` and `serve` remove entries that have not been used for 30 days by themselves, once a day.
    Cache {
        /// Remove entries that no process uses and that can be made again: compiled code, new clusters, and what other
        /// versions of the program have built of templates; templates themselves stay
        #[arg(long)]
        prune: bool,
        /// Remove entries that have not been used for this many days
        #[arg(long, value_name = "DAYS", requires = "prune", default_value_t = pruning::UNUSED_FOR_DAYS)]
        older_than: u32,
        /// Also remove the entries that have not been used for the longest time, until at most this size remains
        #[arg(long, value_name = "MB", requires = "prune")]
        max_size: Option<u32>,
    },
}

/// Clones for connections in mode `isolated`.
#[derive(Args)]
struct CloneOptions {
    /// Keep this many clones ready of each template in use, and replace them in the background
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm: usize,
}

/// The places of the engine's files.
#[derive(Args)]
struct EngineOptions {
    /// Directory with the files of the PGlite package (its `dist`) [default: found in
    /// `pglite/node_modules` or `priv`]
    #[arg(long, global = true, value_name = "DIRECTORY", env = "PGLITE_DIR")]
    pglite_dir: Option<PathBuf>,
    /// Directory for compiled code and prepared clusters [default: $XDG_CACHE_HOME/pglite-port]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// Data of ICU 76 for languages with their own collation: a directory or a package (`icudt76l.dat`)
    #[arg(long, global = true, value_name = "PATH")]
    icu_data: Option<PathBuf>,
    /// Let superusers load libraries from files that SQL has written (`LOAD`, `CREATE FUNCTION ... LANGUAGE C`); their
    /// code runs in the sandbox of WebAssembly, but may run for ever. Without this, only PGlite's libraries are loaded
    #[arg(long, global = true)]
    allow_user_libraries: bool,
}

fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // If the terminal cannot be written to, nothing more can be done.
            let _ = error.print();
            // clap's status for a usage error is 2, which means a malformed frame here.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let log = match OwnLog::start() {
        Ok(log) => LastLines(log),
        Err(error) => {
            eprintln!("pglite-port: the log on stderr cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    start_log(&log.0);
    allow_open_files();
    match run(&command_line, &log.0) {
        Ok(status) => status,
        Err(error) => {
            log.0.line(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes the last lines of the log before the program ends, also when it panics.
struct LastLines(OwnLog);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.drain();
    }
}

/// A cluster in a directory has a file open for every table and index in use, and a program may open few at first.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn run(command_line: &CommandLine, log: &OwnLog) -> anyhow::Result<ExitCode> {
    let mode = command_line.mode;
    match &command_line.command {
        Command::Port { clones, shared, limits, access, tests, metrics, shutdown_timeout } => {
            shared.check(mode)?;
            let access = access.open()?;
            let stop = Stop::on(&[SIGTERM])?;
            let (input, output) = port::take_stdio().context("stdin and stdout must be open")?;
            let parent = ParentWatch::start().context("the end of stdin cannot be detected")?;
            // A parent that has been started again may find its last child on its way down.
            let leave = tests.leave();
            let shared_settings = shared.settings(PATIENCE_OF_A_CHILD, access);
            let settings = Settings { leave, ..settings(clones, shared, limits, mode, shared_settings)? };
            let opened = command_line.open_databases(settings, metrics, &stop, parent.gone())?;
            drop(parent);
            let Some(sessions) = opened else { return Ok(stop.status(log)) };
            // Ctrl-C in a terminal signals the whole process group; the parent decides whether the program stops.
            flag::register(SIGINT, Arc::new(AtomicBool::new(false))).context("cannot handle SIGINT")?;
            let ending = port::run(input, output, sessions, mode, *shutdown_timeout, stop.asked())
                .context("cannot start the port")?;
            if let Ending::Malformed { offset, error } = ending {
                log.line(&format!("malformed frame at byte {offset} of stdin: {error}"));
                return Ok(ExitCode::from(2));
            }
            return Ok(stop.status(log));
        }
        Command::Serve {
            listen,
            socket_mode,
            clones,
            shared,
            limits,
            access,
            tls,
            metrics,
            trust_everyone_who_can_connect,
            shutdown_timeout,
        } => {
            shared.check(mode)?;
            access.check_password(mode, shared)?;
            let trust_everyone = access.trust_everyone();
            let access = access.open()?;
            let tls = tls.open()?;
            let stop = Stop::on(&[SIGINT, SIGTERM])?;
            // Before a cluster is opened, which would not be shut down if this failed.
            let listener = Listener::bind(listen, *socket_mode)?;
            if trust_everyone && !trust_everyone_who_can_connect {
                listener.refuse_open_addresses()?;
            }
            if let Some(tls) = tls.clone() {
                stop.on_hangup(move || tls.reload());
            }
            let serving = serve::start(listener, mode, tls)?;
            let shared_settings = shared.settings(Duration::ZERO, access);
            let settings = settings(clones, shared, limits, mode, shared_settings)?;
            let opened = command_line.open_databases(settings, metrics, &stop, &never())?;
            let Some(sessions) = opened else { return Ok(stop.status(log)) };
            serving.run(sessions, *shutdown_timeout, stop.asked(), print_url)?;
            return Ok(stop.status(log));
        }
        Command::Prepare { name, sql, database, user, limits } => {
            let database = database.clone().unwrap_or_else(|| name.clone());
            // Read first, because the rest takes time.
            let recipe = Recipe { database, user: user.clone(), scripts: Script::read_all(sql)? };
            let limits = limits.limits()?;
            command_line.engine.open_templates()?.prepare(name, &recipe, limits)?;
        }
        Command::Templates { remove: Some(name) } => {
            let removed = command_line.engine.open_shelf()?.remove(name)?;
            ensure!(removed, "there is no template {name:?}; run pglite-port templates for a list");
        }
        Command::Backup { from, file, no_verify_checksums } => {
            let summary = backup::back_up(from, file, !no_verify_checksums)?;
            tracing::info!("backed up to {}: {}", file.display(), list::backup(summary));
        }
        Command::Restore { file, directory, no_verify_checksums } => {
            let summary = backup::restore(file, directory, !no_verify_checksums)?;
            tracing::info!("restored {}: {}", directory.display(), list::backup(summary));
        }
        Command::Evidence { file } => {
            let wasm = match file {
                Some(file) => fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?,
                None => command_line.engine.read_backend()?,
            };
            list::print_evidence(&instrument(&wasm)?).context("the evidence cannot be written")?;
        }
        Command::Templates { remove: None } => {
            list::print_templates(&command_line.engine.open_shelf()?.list()?).context("the list cannot be written")?;
        }
        Command::Top { address, interval, once } => top::run(address, *interval, *once)?,
        Command::Cache { prune: false, .. } => {
            list::print_entries(&command_line.engine.open_stock()?.entries()?).context("the list cannot be written")?;
        }
        Command::Cache { prune: true, older_than, max_size } => {
            return print_pruned(command_line.engine.open_stock()?.prune(limits(*older_than, *max_size))?, log);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How clusters are made. Sets the limit of the program's memory.
fn settings(
    clones: &CloneOptions,
    options: &SharedOptions,
    limits: &LimitOptions,
    mode: Mode,
    shared: SharedSettings,
) -> anyhow::Result<Settings> {
    let (max_isolated, limits) = (options.max_isolated(mode), limits.apply()?);
    Ok(Settings { warm: clones.warm, max_isolated, limits, shared, ..Settings::default() })
}

impl CommandLine {
    /// Opens the clusters, which can be watched as `metrics` says; `None` if `stop` or `parent_gone` has a message
    /// before that. If a cluster cannot be kept running, `stop` is told.
    fn open_databases(
        &self,
        settings: Settings,
        metrics: &MetricsOptions,
        stop: &Stop,
        parent_gone: &Receiver<()>,
    ) -> anyhow::Result<Option<Arc<Databases>>> {
        let engine = &self.engine;
        let endpoint = metrics.start(engine.cache_dir.clone())?;
        let paths = Paths {
            pglite: engine.pglite_dir.clone(),
            cache: engine.cache_dir.clone(),
            icu_data: engine.icu_data.clone(),
        };
        let on_failure = Some(stop.on_failure());
        let settings = Settings { user_libraries: engine.allow_user_libraries, on_failure, ..settings };
        let mode = self.mode;
        let open = move || Databases::open(&paths, mode, settings, LogSink::to_own_log());
        let opened = start::unless_stopped(stop.asked(), parent_gone, open)?.map(Arc::new);
        if let Some(databases) = &opened {
            if let Some(endpoint) = endpoint {
                endpoint.watch(databases.clone());
            }
            let databases = databases.clone();
            stop.on_hangup(move || databases.reload());
            pruning::prune_in_background(engine.cache_dir.as_deref());
        }
        Ok(opened)
    }
}

impl EngineOptions {
    fn open_templates(&self) -> anyhow::Result<Templates> {
        let (pglite, cache, icu) = (self.pglite_dir.as_deref(), self.cache_dir.as_deref(), self.icu_data.as_deref());
        Templates::open(pglite, cache, icu, 0, self.allow_user_libraries, LogSink::to_own_log())
    }

    /// PGlite's backend.
    fn read_backend(&self) -> anyhow::Result<Vec<u8>> {
        let cache = Cache::open(self.cache_dir.as_deref())?;
        Ok(Artefact::find(self.pglite_dir.as_deref(), &cache)?.read(PGLITE_WASM)?)
    }

    fn open_stock(&self) -> anyhow::Result<Stock> {
        Stock::open(self.cache_dir.as_deref())
    }

    fn open_shelf(&self) -> anyhow::Result<Shelf> {
        Shelf::open(self.cache_dir.as_deref())
    }
}

/// The limits of what is kept in the cache, by the options in days and MB.
fn limits(older_than: u32, max_size: Option<u32>) -> Limits {
    let unused_for = Duration::from_hours(24 * u64::from(older_than));
    Limits { unused_for, size: max_size.map(|size| u64::from(size) * 1_000_000) }
}

/// Prints how much was removed from the cache, and logs the errors.
fn print_pruned(pruned: Pruned, log: &OwnLog) -> anyhow::Result<ExitCode> {
    let Pruned { entries, bytes, remaining, failures } = pruned;
    let (bytes, remaining) = (list::size(bytes), list::size(remaining));
    writeln!(io::stdout(), "{entries} removed, {bytes}; {remaining} remain").context("stdout cannot be written")?;
    failures.iter().for_each(|error| log.line(&format!("{error:#}")));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_url(url: &str) {
    let mut stdout = io::stdout();
    if let Err(error) = writeln!(stdout, "{url}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, url, "clients can connect, but the URL cannot be written to stdout");
    }
}

/// Starts the program's log on stderr, which includes panics.
fn start_log(log: &OwnLog) {
    // Reports on stderr which part of the variable cannot be parsed.
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var(LOG_VARIABLE)
        .from_env_lossy();
    let log = log.clone();
    tracing_subscriber::fmt()
        .with_writer(move || log.clone())
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    panic::set_hook(Box::new(|info| {
        tracing::error!("{info}\n{}", Backtrace::capture());
    }));
}
