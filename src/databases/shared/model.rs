//! Makes the model of a cluster's sessions: a process that has planned statements about each table of its database.

use std::sync::Arc;

use super::{children::run_in_turn, own_session, running::Running};
use crate::{
    backend::{BOOTSTRAP_USER, Login, Model, footprint::PageMap, program::Program},
    client::{Endpoints, NoClient},
    cluster::Priority,
    fs::Silent,
    guest::{ClientStream, Setup},
    image::TouchedPages,
    log::LogSink,
    protocol::{
        messages::{SqlError, message, simple_query},
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
order by reltuples desc, c.oid limit ";

/// Statements of every client, among them those that look names up.
const COMMON: [&str; 3] = [
    "select 1",
    "select t.oid, t.typname, t.typsend, t.typreceive, t.typoutput, t.typinput, t.typelem, coalesce(r.rngsubtype, 0), \
     array (select a.atttypid from pg_attribute as a where a.attrelid = t.typrelid and a.attnum > 0 and \
     not a.attisdropped order by a.attnum) from pg_type as t left join pg_range as r on r.rngtypid = t.oid \
     where t.typname = 'int4'",
    "select current_schema(), to_regclass('pg_class'), 'a' || 'b' like 'a%', now() > '2000-01-01', 1.5 + 1 < 3::float8",
];

/// The longest that planning these may take: what plans call is the user's.
const PATIENCE: &str = "begin; set local statement_timeout = '1s'; ";

/// A model of sessions in `database`; none if there can be none. No other process of the cluster runs.
///
/// # Errors
/// When the process cannot be made, or traps.
pub(super) fn model(
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
) -> anyhow::Result<Option<Model>> {
    let statements = match own_session::run(running, program, log, database, Some(&format!("{STATEMENTS}{TABLES}"))) {
        Err(error) if error.is::<SqlError>() => {
            tracing::info!("a first session was not let in: {error:#}");
            return Ok(None);
        }
        statements => statements?,
    };
    let mut input = StartupMessage::packet(&[("user", BOOTSTRAP_USER), ("database", database)]);
    for statement in COMMON.into_iter().chain(statements.iter().flatten().flatten().map(String::as_str)) {
        // What fails is left out; a transaction that has failed ends as well.
        input.extend(simple_query(&format!("{PATIENCE}{statement}"))?);
        input.extend(simple_query("commit")?);
    }
    input.extend(message(b'X', &[])?);
    let client = ClientStream::new(Box::new(NoClient::default()), &input).trusted(true);
    let seat = running.seats.join(Priority::Client);
    let setup = |files| Setup { seat: Some(seat), ..Setup::backend(program, files) };
    let fork = running.fork();
    let mut backend = fork.start(program, Silent, setup)?;
    let (database, user) = (database.as_bytes(), BOOTSTRAP_USER.as_bytes());
    let login = Login { database, user, endpoints: Endpoints::default() };
    run_in_turn(&mut backend, |backend| backend.become_model(&fork, client, login))
}

/// The pages that a short session writes which begins with the model; none if the system does not tell.
///
/// # Errors
/// When the session cannot be made, or traps.
pub(super) fn first_pages(
    running: &Running,
    program: &Arc<Program>,
    log: &LogSink,
    database: &str,
) -> anyhow::Result<Option<TouchedPages>> {
    let mut pages = Ok(None);
    let [first, ..] = COMMON;
    own_session::run_and(running, program, log, database, Some(first), |backend| {
        pages = PageMap::open().map_err(anyhow::Error::from).and_then(|map| map.touched(backend)).map(Some);
    })?;
    Ok(pages.unwrap_or_else(|error| {
        tracing::debug!("sessions will get their first pages one by one: {error:#}");
        None
    }))
}
