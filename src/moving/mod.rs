//! Moves a database to another server while it is in use, by logical replication.
//!
//! * `mod`: the move from its checks to its end, and what is undone if it is broken off
//! * `checks`: what has to be so before anything is changed
//! * `schema`: the database in the target, which is created, and dropped again if the move is broken off
//! * `configuration`: the rows that users have added to tables of extensions
//! * `switch`: stops the writes when nearly nothing is left to apply
//! * `compare`: whether both have the same rows
//! * `sql`: a session, and texts in SQL
//!
//! The source has a publication, the target a subscription, which copies the tables and follows the changes. At the end
//! a session of the source holds locks with which nobody can write, until the target has everything. Up to the switch
//! the source is as it was: the locks end with their session, and a publication changes no table.

mod checks;
mod compare;
mod configuration;
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

use crate::{
    dial::{Report, Server},
    protocol::error_response::sqlstate,
    template::Tools,
};
pub use compare::Compared;
use compare::Snapshot;
use configuration::Configuration;
use schema::Target;
use sql::{Sql, literal};

/// The name of the publication, and of the subscription with its slot.
const NAME: &str = "pglite_port_move";

/// How often the progress is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// How long one attempt to subscribe waits for transactions of the source.
const SUBSCRIBE_TIMEOUT: &str = "3s";

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
    /// Whether the database is dropped that an earlier move has left unfinished.
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

/// The database has moved, and something that had still to be done has failed.
#[derive(Debug, thiserror::Error)]
#[error("the database has moved and the target is in use, but {0}")]
pub struct Unfinished(&'static str);

/// Who looks on: is told how far the move has come, and may break it off.
pub struct Watch<'a> {
    /// Told how far it has come.
    pub tell: &'a dyn Fn(&Progress),
    /// Ends it before the switch.
    pub is_broken_off: &'a AtomicBool,
}

impl Watch<'_> {
    fn tell(&self, progress: &Progress) {
        (self.tell)(progress);
    }

    /// Waits a moment.
    ///
    /// # Errors
    /// [`BrokenOff`]
    fn pause(&self) -> anyhow::Result<()> {
        if self.is_broken_off.load(Ordering::Relaxed) {
            bail!(BrokenOff);
        }
        thread::sleep(PAUSE);
        Ok(())
    }
}

/// What the switch has left to be compared.
struct Switched {
    snapshot: Snapshot,
    /// The tables of extensions, which were compared when they were copied.
    configuration: Vec<Compared>,
}

/// What a move has changed in the source.
#[derive(Default)]
struct Changed {
    has_publication: bool,
    is_read_only: bool,
}

impl Move {
    /// Moves the database. Returns how the tables compare, as they were in the moment of the switch.
    ///
    /// # Errors
    /// When something is not as it has to be, a server cannot be reached, or a statement fails; [`BrokenOff`]. The source
    /// is then as it was, and the target's database is dropped, if they can be reached. [`Unfinished`] after the switch.
    pub fn run(&self, tools: &Tools, watch: &Watch<'_>) -> anyhow::Result<Vec<Compared>> {
        let mut source = Sql::begin(&self.source).context("the source cannot be reached")?;
        checks::check_source(&mut source)?;
        switch::check_slot(&mut source)?;
        let encoding = source.value("show server_encoding")?;
        let mut target = Target::create(&self.target, &encoding, self.starts_over).context("the target")?;
        let mut changed = Changed::default();
        let switched = self.move_to(&mut source, &mut target, tools, watch, &mut changed);
        let (Switched { snapshot, configuration }, tables) = match switched {
            Ok(switched) => switched,
            Err(error) => {
                // The sessions may be in a transaction, or lost.
                drop(source);
                if let Err(failure) = self.undo(target, &changed) {
                    tracing::error!("the move cannot be undone completely: {failure:#}");
                }
                return Err(error);
            }
        };
        let finished = target.finish(&self.target);
        let dropped = source.run(&format!("drop publication if exists {NAME}"));
        let compared = compare::compare(snapshot, &self.target, &tables);
        finished.context(Unfinished("the comment on its database cannot be removed"))?;
        dropped.context(Unfinished("the publication of the source cannot be dropped"))?;
        let mut compared =
            compared.context(Unfinished("the tables cannot be compared, or a materialized view not be refreshed"))?;
        compared.extend(configuration);
        Ok(compared)
    }

    /// Everything up to the switch.
    fn move_to(
        &self,
        source: &mut Sql,
        target: &mut Target,
        tools: &Tools,
        watch: &Watch<'_>,
        changed: &mut Changed,
    ) -> anyhow::Result<(Switched, Vec<String>)> {
        checks::check_target(source, target)?;
        let (tables, definitions) = (checks::tables(source)?, checks::definitions(source)?);
        watch.tell(&Progress::Checked { tables: tables.len() });
        target.copy_schema(tools, &self.source, &self.target)?;
        let configuration = Configuration::of(source)?;
        for table in &configuration {
            table.check(source, &mut target.sql)?;
        }
        watch.tell(&Progress::SchemaCopied);
        self.replicate(source, target, &tables, watch, changed)?;
        let moved = switch::Moved { tables: &tables, configuration: &configuration, definitions: &definitions };
        let switched = switch::switch(self, source, target, &moved, watch, changed)?;
        Ok((switched, tables))
    }

    /// Makes publication and subscription, and waits until the target has nearly everything.
    fn replicate(
        &self,
        source: &mut Sql,
        target: &mut Target,
        tables: &[String],
        watch: &Watch<'_>,
        changed: &mut Changed,
    ) -> anyhow::Result<()> {
        switch::drop_slot(source)?;
        source.run(&format!("drop publication if exists {NAME}"))?;
        let list =
            if tables.is_empty() { String::new() } else { format!(" for table only {}", tables.join(", only ")) };
        changed.has_publication = true;
        source.run(&format!("create publication {NAME}{list}"))?;
        self.subscribe(source, &mut target.sql, watch)?;
        let mut has_statistics = false;
        loop {
            let states = target.sql.column("select srsubstate from pg_catalog.pg_subscription_rel")?;
            let done = states.iter().filter(|state| *state == "r").count();
            if done < states.len() {
                watch.tell(&Progress::Copying { done, tables: states.len() });
            } else if !has_statistics {
                // What the planner has to know, while nobody waits for it.
                target.sql.run("analyze")?;
                has_statistics = true;
            } else {
                let bytes = switch::lag(source)?;
                watch.tell(&Progress::CatchingUp { bytes });
                if bytes <= NEARLY_THERE {
                    return Ok(());
                }
            }
            switch::check_progress(source, target)?;
            watch.pause()?;
        }
    }

    /// Makes the subscription. Its slot begins when all transactions have ended that are open in the source, so that this
    /// may take long.
    fn subscribe(&self, source: &mut Sql, target: &mut Sql, watch: &Watch<'_>) -> anyhow::Result<()> {
        let address = literal(&self.source_for_target);
        let subscribe =
            format!("create subscription {NAME} connection {address} publication {NAME} with (streaming = on)");
        target.run(&format!("set statement_timeout = '{SUBSCRIBE_TIMEOUT}'"))?;
        while let Err(error) = target.run(&subscribe) {
            if error.downcast_ref::<Report>().is_none_or(|report| report.code != sqlstate::QUERY_CANCELED) {
                return Err(error).context(
                    "the target cannot subscribe to the source. It connects to the source itself; if it needs another \
                     address than this command, give it with --source-for-target",
                );
            }
            watch.pause()?;
            switch::drop_slot(source)?;
        }
        target.run("set statement_timeout = 0")
    }

    /// Drops the target's database with its subscription, and the publication and the slot of the source, which can be
    /// written to again.
    fn undo(&self, target: Target, changed: &Changed) -> anyhow::Result<()> {
        let dropped = target.undo(&self.target);
        let mut source = Sql::begin(&self.source)?;
        if changed.is_read_only {
            switch::allow_writes(&mut source)?;
        }
        if changed.has_publication {
            source.run(&format!("drop publication if exists {NAME}"))?;
            switch::drop_slot(&mut source)?;
        }
        dropped
    }
}
