//! The command `move`: its options, what a terminal shows, and how it ends.

use std::{
    io::{self, IsTerminal, Write},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Context;
use clap::{ArgAction, Args};
use crossbeam_channel::never;
use indicatif::{HumanBytes, ProgressBar};
use pglite_port::{
    dial::{Address, Server, show_typing},
    log::OwnLog,
    moving::{Compared, Move, Progress, Watch},
};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use super::{command_line::CommandLine, start::unless_stopped, stop::Stop};

/// What is moved, and where to.
#[derive(Args)]
pub(crate) struct MoveOptions {
    /// The URL of the database, which this program serves with `--set wal_level=logical`; with a superuser's name
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The URL of a database on an ordinary PostgreSQL, version 14 or later, which is created: it must not be there yet
    #[arg(long, value_name = "URL")]
    to: String,
    /// How the target's server connects to the source, if it is not by the same URL
    #[arg(long, value_name = "URL", env = "PGLITE_PORT_SOURCE_FOR_TARGET", hide_env_values = true)]
    source_for_target: Option<String>,
    /// Drop the target's database if an earlier move has left it unfinished
    #[arg(long, action = ArgAction::SetTrue)]
    start_over: bool,
}

/// Carries `move` out.
pub(crate) fn run(command_line: &CommandLine, options: &MoveOptions, log: &OwnLog) -> anyhow::Result<ExitCode> {
    let stop = Stop::on(&[SIGINT, SIGTERM])?;
    let at = |url: &str| Address { database: Some(url.to_owned()), ..Address::default() };
    let (source, target) = (at(&options.source), at(&options.to));
    let find = move || {
        let source = Server::at(&source).context("the source")?;
        Ok((source, Server::at(&target).context("the target")?))
    };
    let Some((source, target)) = unless_stopped(stop.asked(), &never(), find)? else {
        // It may have stopped while the user was asked for a password.
        show_typing();
        return Ok(ExitCode::FAILURE);
    };
    let moving = Move {
        source: Arc::new(source),
        target: Arc::new(target),
        source_for_target: options.source_for_target.clone().unwrap_or_else(|| options.source.clone()),
        starts_over: options.start_over,
    };
    let tools = command_line.engine.open_templates()?.tools();
    let is_broken_off = Arc::<AtomicBool>::default();
    let broken_off = is_broken_off.clone();
    let wait = move || {
        if stop.asked().recv().is_ok() {
            broken_off.store(true, Ordering::Relaxed);
            // What was begun is being undone, which a second signal does not wait for.
            if stop.asked().recv().is_ok() {
                process::exit(1);
            }
        }
    };
    thread::Builder::new().name("stop".to_owned()).spawn(wait).context("no thread can be started")?;
    let shown = Shown::new(log.clone());
    let moved = moving.run(&tools, &Watch { tell: &|progress| shown.show(progress), is_broken_off: &is_broken_off });
    shown.bar.finish_and_clear();
    let compared = moved?;
    print(&compared).context("stdout cannot be written")?;
    let different = compared.iter().filter(|table| !table.is_same).count();
    if different > 0 {
        log.line(&format!("{different} tables differ: the source has all rows, and can be read"));
        return Ok(ExitCode::FAILURE);
    }
    log.line(
        "The database has moved, and everything is there. Let your application connect to the target. The source can be \
         read and not written to; to go back to it: set default_transaction_read_only = off; alter database ... reset \
         default_transaction_read_only",
    );
    Ok(ExitCode::SUCCESS)
}

/// The table of what was compared, on stdout.
fn print(compared: &[Compared]) -> io::Result<()> {
    let width = compared.iter().map(|table| table.table.chars().count()).max().unwrap_or_default().max("table".len());
    let mut out = io::stdout().lock();
    writeln!(out, "{:width$}  {:>12}  {:>12}  same", "table", "source", "target")?;
    for Compared { table, rows, rows_in_target, is_same } in compared {
        let same = if *is_same { "yes" } else { "NO" };
        writeln!(out, "{table:width$}  {rows:>12}  {rows_in_target:>12}  {same}")?;
    }
    out.flush()
}

/// The progress: a bar on a terminal, lines elsewhere.
struct Shown {
    log: OwnLog,
    bar: ProgressBar,
    is_terminal: bool,
}

impl Shown {
    fn new(log: OwnLog) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self { log, bar, is_terminal }
    }

    fn show(&self, progress: &Progress) {
        let text = match progress {
            Progress::Checked { tables } => format!("{tables} tables to move"),
            Progress::SchemaCopied => "the target has the schema".to_owned(),
            Progress::Copying { done, tables } => {
                self.passing(format!("copying the rows: {done} of {tables} tables are complete"));
                return;
            }
            Progress::CatchingUp { bytes: u64::MAX } => return,
            Progress::CatchingUp { bytes } => {
                self.passing(format!("following the changes: {} are left", HumanBytes(*bytes)));
                return;
            }
            Progress::WritesStopped => "writes to the source are stopped".to_owned(),
            Progress::Switched { stopped } => {
                format!("switched: the target can be written to, after {:.2} s without writes", stopped.as_secs_f64())
            }
        };
        self.bar.suspend(|| self.log.line(&text));
    }

    /// Shows what is true for a moment only.
    fn passing(&self, text: String) {
        if self.is_terminal {
            self.bar.set_message(text);
        }
    }
}
