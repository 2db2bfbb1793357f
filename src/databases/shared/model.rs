//! Makes the model of a cluster's sessions: a process that has planned statements about each table of its database.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::{children::run_in_turn, own_session, running::Running};
use crate::{
    backend::{BOOTSTRAP_USER, Backend, Login, Model, footprint::PageMap, program::Program},
    client::{Client, Interest, NoClient, Readiness, Waker},
    cluster::{Priority, Signal, processor_time},
    fs::Silent,
    guest::{ClientStream, Setup},
    log::LogSink,
    postgres::process,
    protocol::{
        messages::{SqlError, first_value, message, rows, simple_query},
        startup::StartupMessage,
    },
};

/// How many tables statements are planned for. Each takes some ten kilobytes.
const TABLES: u32 = 100;

/// Statements that a client has planned for a table, and their plans' parts in caches: one row for each table, those with
/// most rows first. The parameters have no values, so that nothing is computed with them.
const STATEMENTS: &str = "
select concat_ws(';',
  format('explain (generic_plan) select %s from %s where %s order by %s limit 1', names, name, keys, keys_alone),
  format('explain (generic_plan) insert into %s (%s) values (%s) returning *', name, names, numbers),
  format('explain (generic_plan) update %s set %s = $1 where %s', name, first, keys),
  format('explain (generic_plan) delete from %s where %s', name, keys))
from pg_class c
join pg_namespace n on n.oid = relnamespace
cross join lateral (select format('%I.%I', nspname, relname) as name) as named
cross join lateral (
  select string_agg(quote_ident(attname), ', ' order by attnum) as names,
    string_agg('$' || attnum, ', ' order by attnum) as numbers,
    quote_ident(min(attname)) as first
  from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = ''
    and attidentity <> 'a') as columns
cross join lateral (
  select coalesce(string_agg(format('%I = $%s', attname, attnum), ' and '), 'true') as keys,
    coalesce(string_agg(quote_ident(attname), ', '), '1') as keys_alone
  from pg_index join pg_attribute on attrelid = c.oid and attnum = any (indkey)
  where indrelid = c.oid and indisprimary) as primary_key
where relkind in ('r', 'p') and relpersistence <> 't' and names is not null
  and nspname <> 'information_schema' and nspname !~ '^pg_'
  -- Planning may run functions, which are run as the superuser here.
  and (select rolsuper from pg_roles r where r.oid = relowner)
order by reltuples desc, c.oid limit ";

/// Statements of every client, among them those that look names up.
const COMMON: [&str; 2] = [
    "select t.oid, t.typname, t.typsend, t.typreceive, t.typoutput, t.typinput, t.typelem, coalesce(r.rngsubtype, 0), \
     array (select a.atttypid from pg_attribute as a where a.attrelid = t.typrelid and a.attnum > 0 and \
     not a.attisdropped order by a.attnum) from pg_type as t left join pg_range as r on r.rngtypid = t.oid \
     where t.typname = 'int4'",
    "select current_schema(), to_regclass('pg_class'), 'a' || 'b' like 'a%', now() > '2000-01-01', 1.5 + 1 < 3::float8",
];

/// The longest that one of these may take: what plans call is the user's.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processor time after which no more are begun, in nanoseconds.
const BUDGET: u64 = 1_000_000_000;

/// When a model ends that does not hear that its statement takes too long.
const END: Duration = Duration::from_secs(10);

/// How often a model is made until one has written no WAL: who reads a row first writes down that it is committed.
const ATTEMPTS: usize = 2;

/// What moves when a transaction identifier is assigned, and when WAL is written to its files.
const POSITION: &str = "select pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_flush_lsn()";

/// The client of a model: sends one statement after the other, as long as there is time.
struct Reader {
    unsent: VecDeque<Vec<u8>>,
    /// What is sent at last.
    last: VecDeque<Vec<u8>>,
    /// The processor time of its thread when no more are begun, once it has begun.
    until: Option<u64>,
    rest: Vec<u8>,
    client: NoClient,
}

impl Reader {
    fn new(statements: &[&str], client: NoClient) -> anyhow::Result<Self> {
        // No operator of a user is found that fits better than PostgreSQL's own.
        let begin = "begin read only; set local search_path = pg_catalog; set local statement_timeout =";
        let begin = format!("{begin} {}; ", PATIENCE.as_millis());
        let mut unsent = VecDeque::new();
        for statement in COMMON.iter().chain(statements) {
            // What fails is left out; a transaction that has failed ends as well.
            unsent.push_back(simple_query(&format!("{begin}{statement}"))?);
            unsent.push_back(simple_query("rollback")?);
        }
        // Nothing that functions of users have set or prepared is left.
        let last = [simple_query("discard all")?, simple_query(POSITION)?, message(b'X', &[])?].into();
        Ok(Self { unsent, last, until: None, rest: Vec::new(), client })
    }
}

impl Client for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let now = processor_time();
            let until = *self.until.get_or_insert(now + BUDGET);
            let next = self.unsent.pop_front().filter(|_| now < until);
            if next.is_none() {
                self.unsent.clear();
            }
            self.rest = next.or_else(|| self.last.pop_front()).unwrap_or_default();
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest[..length]);
        self.rest.drain(..length);
        Ok(length)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.client.write(bytes)
    }

    fn wait(&mut self, interest: Interest, deadline: Option<Instant>) -> Readiness {
        self.client.wait(interest, deadline)
    }

    fn waker(&self) -> Waker {
        self.client.waker()
    }
}

/// A model of sessions in `database`; none if there can be none. No other process of the cluster has run, and none runs.
///
/// # Errors
/// When the process cannot be made, or traps.
pub(super) fn model(
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
) -> anyhow::Result<Option<Model>> {
    let begin = || {
        let seat = running.seats.join_as(process::MODEL, Priority::Client);
        let signals = seat.signals().clone();
        let setup = |files| Setup { seat: Some(seat), ..Setup::backend(program, files) };
        Ok::<_, anyhow::Error>((running.fork().start(program, Silent, setup)?, signals))
    };
    let untouched = begin()?.0.catalogs()?;
    let ask = |sql: &str| own_session::run(running, program, log, database, Some(sql));
    let position = match ask(POSITION) {
        Err(error) if error.is::<SqlError>() => {
            tracing::info!("a first session was not let in: {error:#}");
            return Ok(None);
        }
        position => position?,
    };
    let statements = ask(&format!("{STATEMENTS}{TABLES}"))?;
    let statements: Vec<&str> = statements.iter().flatten().flatten().map(String::as_str).collect();
    let packet = StartupMessage::packet(&[("user", BOOTSTRAP_USER), ("database", database)]);
    let login = Login::of_program(database);
    for _ in 0..ATTEMPTS {
        let (record, answers) = mpsc::channel();
        let client = Reader::new(&statements, NoClient::recorded(record))?;
        let client = ClientStream::new(Box::new(client), &packet).trusted(true);
        let (mut backend, signals) = begin()?;
        let (ended, end) = mpsc::channel::<()>();
        let model = thread::scope(|scope| {
            scope.spawn(move || {
                if end.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
                    signals.send_until_heard(Signal::TERM);
                }
            });
            let become_model = |backend: &mut Backend| backend.become_model(&running.fork(), untouched, client, login);
            let model = run_in_turn(&mut backend, become_model);
            drop(ended);
            model
        })?;
        let answer: Vec<u8> = answers.try_iter().flatten().collect();
        if rows(&answer).last() != position.last() {
            tracing::debug!("no model of sessions: what was planned has changed something");
            return Ok(None);
        }
        if model.is_some() {
            return Ok(model);
        }
    }
    Ok(None)
}

/// Runs a short session that begins with `model`, and sees which pages it writes.
///
/// # Errors
/// When the session cannot be made, is not served as any other, or traps.
pub(super) fn try_out(
    model: &Arc<Model>,
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
) -> anyhow::Result<()> {
    let fork = running.fork().with_model(model.clone());
    let mut pages = None;
    let rows = own_session::run_from(&fork, running, program, log, database, Some("select 1"), |backend| {
        pages = Some(PageMap::touched(backend));
    })?;
    ensure!(first_value(&rows) == Some("1"), "a session that began with a model does not answer");
    match pages.transpose() {
        Ok(pages) => pages.into_iter().for_each(|pages| model.set_first_pages(pages)),
        Err(error) => tracing::debug!("sessions will get their first pages one by one: {error:#}"),
    }
    Ok(())
}
