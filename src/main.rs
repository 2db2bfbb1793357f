//! The program `pglite-port`: runs what the command line asks for.
//!
//! Exit status: 0 after an orderly end, 1 after an error (in the command line, the environment or a request), 2 after
//! a malformed frame, 3 if the shared cluster has crashed and does not start again. `ready` has its own (`ready.rs`).

use std::{
    backtrace::Backtrace,
    fs::{self, File},
    io::{self, IsTerminal, Read, Write},
    panic,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Parser;
use command_line::{ClusterOptions, Command, CommandLine, EngineOptions};
use crossbeam_channel::{Receiver, never};
use options::{MetricsOptions, TestOptions};
use pglite_port::{
    administration::Administration,
    backup,
    databases::{Databases, Paths, Settings},
    engine::{
        artefact::{Artefact, PGLITE_WASM},
        cache::Cache,
    },
    instrument::instrument,
    log::{LogSink, OwnLog, escaped_fields},
    port::{self, Ending, ParentWatch},
    precompile,
    pruning::{self, Limits, Pruned, Stock},
    serve::{self, Listener},
    template::{Imported, Recipe, Script, Shelf, Templates},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::signal::{SIGINT, SIGTERM},
    flag,
};
use stop::Stop;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

mod command_line;
mod dumps;
mod list;
mod moves;
mod options;
mod ready;
mod start;
mod stop;
mod top;

/// musl's allocator has one lock for all threads, and a program with many of them waits for it.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The environment variable with the filter for the program's own log.
const LOG_VARIABLE: &str = "PGLITE_PORT_LOG";

/// How long `port` waits for a data directory that another process has open.
const PATIENCE_OF_A_CHILD: Duration = Duration::from_secs(3);

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
    let is_short = matches!(command_line.command, Command::Dump { .. } | Command::Run(_) | Command::Ready { .. });
    start_log(&log.0, if is_short { LevelFilter::WARN } else { LevelFilter::INFO });
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
        Command::Port { clusters, tests, metrics, shutdown_timeout } => {
            return command_line.serve_parent(clusters, tests, metrics, *shutdown_timeout, log);
        }
        Command::Serve {
            listen,
            socket_mode,
            clusters,
            tls,
            metrics,
            trust_everyone_who_can_connect,
            shutdown_timeout,
        } => {
            clusters.shared.check(mode)?;
            clusters.access.check_password(mode, &clusters.shared)?;
            let trust_everyone = clusters.access.trust_everyone();
            let settings = clusters.settings(mode, Duration::ZERO)?;
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
            let serving = serve::start(listener, mode, tls, clusters.shared.startup_timeout())?;
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
        Command::Export { name, file } => export(&command_line.engine.open_templates()?, name, file)?,
        Command::Import { file } => import(&command_line.engine.open_templates()?, file)?,
        Command::Backup { from, file, no_verify_checksums } => {
            let summary = backup::back_up(from, file, !no_verify_checksums)?;
            tracing::info!("backed up to {}: {}", file.display(), list::backup(summary));
        }
        Command::Restore { file, directory, no_verify_checksums } => {
            let summary = backup::restore(file, directory, !no_verify_checksums)?;
            tracing::info!("restored {}: {}", directory.display(), list::backup(summary));
        }
        Command::Dump { arguments, .. } => return dumps::dump(command_line, arguments),
        Command::Ready { url, timeout } => return Ok(ready::ready(url, *timeout)),
        Command::Run(options) => return dumps::run(command_line, options, log),
        Command::Move(options) => return moves::run(command_line, options, log),
        Command::Evidence { file } => {
            let wasm = match file {
                Some(file) => fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?,
                None => command_line.engine.read_backend()?,
            };
            list::print_evidence(&instrument(&wasm)?).context("the evidence cannot be written")?;
        }
        Command::Compile { target, into } => {
            let EngineOptions { pglite_dir, cache_dir, .. } = &command_line.engine;
            let size = precompile::precompile(pglite_dir.as_deref(), cache_dir.as_deref(), target, into)?;
            tracing::info!("compiled for {target} into {}: {}", into.display(), list::size(size));
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

impl CommandLine {
    /// Serves the parent at the other end of stdin and stdout; the exit status.
    fn serve_parent(
        &self,
        clusters: &ClusterOptions,
        tests: &TestOptions,
        metrics: &MetricsOptions,
        grace: Duration,
        log: &OwnLog,
    ) -> anyhow::Result<ExitCode> {
        clusters.shared.check(self.mode)?;
        // A parent that has been started again may find its last child on its way down.
        let settings = Settings { leave: tests.leave(), ..clusters.settings(self.mode, PATIENCE_OF_A_CHILD)? };
        let stop = Stop::on(&[SIGTERM])?;
        let (input, output) = port::take_stdio().context("stdin and stdout must be open")?;
        let parent = ParentWatch::start().context("the end of stdin cannot be detected")?;
        let opened = self.open_databases(settings, metrics, &stop, parent.gone())?;
        drop(parent);
        let Some(sessions) = opened else { return Ok(stop.status(log)) };
        // Ctrl-C in a terminal signals the whole process group; the parent decides whether the program stops.
        flag::register(SIGINT, Arc::new(AtomicBool::new(false))).context("cannot handle SIGINT")?;
        let ending =
            port::run(input, output, sessions, self.mode, clusters.shared.startup_timeout(), grace, stop.asked())
                .context("cannot start the port")?;
        if let Ending::Malformed { offset, error } = ending {
            log.line(&format!("malformed frame at byte {offset} of stdin: {error}"));
            return Ok(ExitCode::from(2));
        }
        Ok(stop.status(log))
    }

    /// Opens the clusters, which can be watched as `metrics` says; `None` if `stop` or `parent_gone` has a message
    /// before that. If a cluster cannot be kept running, `stop` is told.
    pub(crate) fn open_databases(
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
            extensions: engine.extensions.clone(),
        };
        let on_failure = Some(stop.on_failure());
        let settings = Settings { user_libraries: engine.allow_user_libraries, on_failure, ..settings };
        let mode = self.mode;
        let open = move || Databases::open(&paths, mode, settings, LogSink::to_own_log());
        let opened = start::unless_stopped(stop.asked(), parent_gone, open)?.map(Arc::new);
        if opened.is_none() {
            tracing::warn!(
                "the program ends before it has started: a cluster in a directory recovers at its next start"
            );
        }
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
    pub(crate) fn open_templates(&self) -> anyhow::Result<Templates> {
        let (pglite, cache, icu) = (self.pglite_dir.as_deref(), self.cache_dir.as_deref(), self.icu_data.as_deref());
        Templates::open(pglite, cache, icu, 0, self.allow_user_libraries, &self.extensions, LogSink::to_own_log())
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

/// Writes the template `name` into `file`; `-` is stdout.
fn export(templates: &Templates, name: &str, file: &Path) -> anyhow::Result<()> {
    let exported = backup::into_file(file, |out| templates.export(name, out))?;
    tracing::info!("exported {name:?} to {}: {}", file.display(), list::size(exported.bytes));
    Ok(())
}

/// Puts the template in `file` into the cache; `-` is stdin.
fn import(templates: &Templates, file: &Path) -> anyhow::Result<()> {
    let mut input: Box<dyn Read> = match file {
        file if file.as_os_str() == "-" => Box::new(io::stdin().lock()),
        file => Box::new(File::open(file).with_context(|| format!("{} cannot be read", file.display()))?),
    };
    let imported = templates.import(&mut input).map_err(|error| {
        let advice = error.advice().map(|advice| format!(". {advice}")).unwrap_or_default();
        anyhow::anyhow!("{}: {:#}{advice}", file.display(), anyhow::Error::from(error))
    });
    let Imported { name, is_new, .. } = imported?;
    tracing::info!("the template {name:?} {}", if is_new { "was imported" } else { "was there already" });
    Ok(())
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
fn start_log(log: &OwnLog, level: LevelFilter) {
    // Reports on stderr which part of the variable cannot be parsed.
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var(LOG_VARIABLE).from_env_lossy();
    let log = log.clone();
    tracing_subscriber::fmt()
        .with_writer(move || log.clone())
        .with_ansi(io::stderr().is_terminal())
        .fmt_fields(escaped_fields())
        .with_env_filter(filter)
        .init();
    panic::set_hook(Box::new(|info| {
        tracing::error!("{info}\n{}", Backtrace::capture());
    }));
}
