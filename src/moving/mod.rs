//! Moves a database to another server while it is in use, by logical replication.
//!
//! * `mod`: the move from its checks to its end, and what is undone if it is broken off
//! * `checks`: what has to be so before anything is changed
//! * `schema`: the schema in the target, and how the target becomes empty again
//! * `switch`: stops the writes when nearly nothing is left to apply
//! * `compare`: whether both have the same rows
//! * `sql`: a session, and texts in SQL
//!
//! The source has a publication, the target a subscription, which copies the tables and follows the changes. At the end
//! a session of the source holds locks with which nobody can write, until the target has everything. Up to the switch
//! the source is as it was: the locks end with their session, and a publication changes no table.

mod checks;
mod compare;
mod schema;
mod sql;
mod switch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{dial::Server, template::Tools};
pub use compare::Compared;
use schema::Target;
use sql::{Sql, literal};

/// The name of the publication, and of the subscription with its slot.
const NAME: &str = "pglite_port_move";

/// How often the progress is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// The writes are stopped when so many bytes of WAL are left to apply: a fraction of a second.
const NEARLY_THERE: u64 = 1 << 20;

/// A move.
pub struct Move {
    /// The database that is moved.
    pub source: Arc<Server>,
    /// Where to.
    pub target: Arc<Server>,
    /// How the target's server connects to the source: a connection string or a URL.
    pub source_for_target: String,
    /// Whether what an earlier move has left in the target is removed.
    pub starts_over: bool,
}

/// How far a move has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Source and target can be used.
    Checked {
        /// How many tables there are to copy.
        tables: usize,
    },
    /// The target has the tables, without their rows.
    SchemaCopied,
    /// The rows are copied that were there at the beginning.
    Copying {
        /// How many tables are complete.
        done: usize,
        /// How many there are.
        tables: usize,
    },
    /// The changes since then are applied.
    CatchingUp {
        /// How many bytes of WAL the target has still to apply.
        bytes: u64,
    },
    /// Nobody can write to the source any more.
    WritesStopped,
    /// The target has everything, and can be written to.
    Switched {
        /// For how long nobody could write to either.
        stopped: Duration,
    },
}

/// Somebody has broken the move off.
#[derive(Debug, thiserror::Error)]
#[error("the move was broken off: the source is as it was before")]
pub struct BrokenOff;

/// Told how far it has come.
type Tell<'a> = &'a dyn Fn(&Progress);

impl Move {
    /// Moves the database. `tell` is told how far it has come; `is_broken_off` ends it before the switch. Returns how the
    /// tables compare, as they were in the moment of the switch.
    ///
    /// # Errors
    /// When something is not as it has to be, a server cannot be reached, or a statement fails; [`BrokenOff`]. Before
    /// the switch, the source is then as it was and the target empty, if they can be reached.
    pub fn run(&self, tools: &Tools, tell: Tell<'_>, is_broken_off: &AtomicBool) -> anyhow::Result<Vec<Compared>> {
        let mut source = Sql::begin(&self.source).context("the source cannot be reached")?;
        let mut target = Target::open(&self.target, self.starts_over)?;
        let tables = checks::check(&mut source, &mut target.sql)?;
        tell(&Progress::Checked { tables: tables.len() });
        let replicated = self.replicate(&mut source, &mut target, tools, &tables, tell, is_broken_off);
        let switched =
            replicated.and_then(|()| switch::switch(self, &mut source, &mut target.sql, &tables, tell, is_broken_off));
        match switched {
            Ok(at_the_switch) => {
                source.run(&format!("drop publication if exists {NAME}"))?;
                compare::compare(at_the_switch, &self.target, &tables)
            }
            Err(error) => {
                // The sessions may be in a transaction, or lost.
                drop(source);
                if let Err(failure) = self.undo(target) {
                    tracing::error!("the move cannot be undone completely: {failure:#}");
                }
                Err(error)
            }
        }
    }

    /// Makes publication and subscription, and waits until the target has nearly everything.
    fn replicate(
        &self,
        source: &mut Sql,
        target: &mut Target,
        tools: &Tools,
        tables: &[String],
        tell: Tell<'_>,
        is_broken_off: &AtomicBool,
    ) -> anyhow::Result<()> {
        target.copy_schema(tools, &self.source, &self.target)?;
        tell(&Progress::SchemaCopied);
        switch::drop_slot(source)?;
        source.run(&format!("drop publication if exists {NAME}"))?;
        let list =
            if tables.is_empty() { String::new() } else { format!(" for table only {}", tables.join(", only ")) };
        source.run(&format!("create publication {NAME}{list}"))?;
        let address = literal(&self.source_for_target);
        let subscribe =
            format!("create subscription {NAME} connection {address} publication {NAME} with (streaming = on)");
        target.sql.run(&subscribe).context(
            "the target cannot subscribe to the source. It connects to the source itself; if it needs another address \
             than this command, give it with --source-for-target",
        )?;
        let mut has_statistics = false;
        loop {
            let states = target.sql.column("select srsubstate from pg_catalog.pg_subscription_rel")?;
            let done = states.iter().filter(|state| *state == "r").count();
            if done < states.len() {
                tell(&Progress::Copying { done, tables: states.len() });
            } else if !has_statistics {
                // What the planner has to know, while nobody waits for it.
                target.sql.run("analyze")?;
                has_statistics = true;
            } else {
                let bytes = switch::lag(source)?;
                tell(&Progress::CatchingUp { bytes });
                if bytes <= NEARLY_THERE {
                    return Ok(());
                }
            }
            pause(is_broken_off)?;
        }
    }

    /// Removes the publication, the subscription with its slot, and what was made in the target.
    fn undo(&self, target: Target) -> anyhow::Result<()> {
        let emptied = target.undo(&self.target);
        let mut source = Sql::begin(&self.source)?;
        source.run(&format!("drop publication if exists {NAME}"))?;
        switch::drop_slot(&mut source)?;
        emptied
    }
}

/// Waits a moment.
///
/// # Errors
/// [`BrokenOff`]
fn pause(is_broken_off: &AtomicBool) -> anyhow::Result<()> {
    if is_broken_off.load(Ordering::Relaxed) {
        bail!(BrokenOff);
    }
    thread::sleep(PAUSE);
    Ok(())
}
