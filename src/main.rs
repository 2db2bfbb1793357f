//! The command line of `pglite-port`.
//!
//! Exit status: 0 after an orderly end, 1 if the command line or the environment does not do, 2 after a malformed frame.

use std::{
    backtrace::Backtrace,
    io::{self, Write},
    panic,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use crossbeam_channel::{Receiver, unbounded};
use pglite_port::{
    connection::{Mode, SessionEnd, SessionRequest, Sessions},
    error_response::{ErrorResponse, sqlstate},
    guest::client::Client,
    port::{self, Ending},
    serve,
};
use signal_hook::{
    consts::signal::{SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};
use tracing_subscriber::EnvFilter;

/// The environment variable with the filter of the program's own log.
const LOG_VARIABLE: &str = "PGLITE_PORT_LOG";

/// Real PostgreSQL (the official PGlite file) in Wasmtime, spoken to in frames over stdio or over a socket.
///
/// The program's own log goes to stderr; `PGLITE_PORT_LOG` filters it (error, warn, info, debug, trace, or target=level,...; info by default).
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    engine: EngineOptions,
    /// Which kind of database connections get: `shared` (all are sessions of one cluster) or `isolated` (a cluster of its own for each, gone when it closes)
    #[arg(long, global = true, default_value_t)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Command {
    /// Speak frames on stdin and stdout, as a child of the program that owns the connections
    Port,
    /// Listen on a socket for psql and every other client, and print the URL when ready
    Serve {
        /// Where to listen: HOST:PORT (port 0 for any free one) or unix:PATH (in a directory, `.s.PGSQL.5432`)
        #[arg(long, value_name = "ADDRESS", default_value = serve::DEFAULT_LISTEN)]
        listen: String,
    },
}

/// Where the engine finds and keeps its files.
#[derive(Args)]
struct EngineOptions {
    /// Directory with the files of the PGlite package (its `dist`) [default: found in `pglite/node_modules` or `priv`]
    #[arg(long, global = true, value_name = "DIRECTORY", env = "PGLITE_DIR")]
    pglite_dir: Option<PathBuf>,
    /// Directory for compiled code and prepared clusters [default: $XDG_CACHE_HOME/pglite-port]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Nothing is left to do about a terminal that cannot be written to.
            let _ = error.print();
            // clap's own status for a usage error is 2, which means a malformed frame here.
            return if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    start_log();
    match run(&command_line) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("pglite-port: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: &CommandLine) -> anyhow::Result<ExitCode> {
    let sessions = Arc::new(NotAvailable);
    let mode = command_line.mode;
    match &command_line.command {
        Command::Port => {
            // A terminal's Ctrl-C reaches the whole job; whether it is over is the parent's decision.
            flag::register(SIGINT, Arc::new(AtomicBool::new(false)))
                .context("cannot handle SIGINT")?;
            let signals = receive_signals(&[SIGTERM])?;
            let (input, output) = port::take_stdio().context("stdin and stdout have to be open")?;
            let ending = port::run(input, output, sessions, mode, &signals)
                .context("cannot start the port")?;
            if let Ending::Malformed { offset, error } = ending {
                eprintln!("pglite-port: malformed frame at byte {offset} of stdin: {error}");
                return Ok(ExitCode::from(2));
            }
        }
        Command::Serve { listen } => {
            let signals = receive_signals(&[SIGINT, SIGTERM])?;
            serve::run(listen, sessions, mode, &signals, print_url)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_url(url: &str) {
    let mut stdout = io::stdout();
    if let Err(error) = writeln!(stdout, "{url}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, url, "ready, but stdout does not take the URL");
    }
}

/// The program's own log: to stderr, panics included.
fn start_log() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .init();
    panic::set_hook(Box::new(|info| {
        tracing::error!("{info}\n{}", Backtrace::capture());
    }));
}

/// A channel with a message for every one of these signals.
fn receive_signals(signals: &[i32]) -> anyhow::Result<Receiver<()>> {
    let mut signals = Signals::new(signals).context("cannot handle signals")?;
    let (sender, receiver) = unbounded();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().try_for_each(|_| sender.send(())))
        .context("no thread to handle signals")?;
    Ok(receiver)
}

/// Sessions for a build without an engine: there are none.
struct NotAvailable;

impl Sessions for NotAvailable {
    fn serve(&self, _: SessionRequest<'_>, _: Box<dyn Client>) -> SessionEnd {
        let message = "the database system is not available in this build";
        SessionEnd::Refused(ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, message))
    }
}
