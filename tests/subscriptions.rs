//! Subscriptions: a cluster answers as a native PostgreSQL 18 to everything for which no other server is needed, and
//! says so where one is.

mod support;

#[path = "../benches/support/native.rs"]
mod native;

use native::Native;
use postgres::{Client, NoTls, SimpleQueryMessage};
use support::server::{Server, rows};

/// Statements that need no other server. Those of one role follow each other, and some are errors.
const STATEMENTS: &str = "
create role owner_of_all superuser; create role newcomer; create role helper in role pg_create_subscription
set session authorization owner_of_all
create subscription s connection 'dbname=nowhere'
create subscription s connection 'not a connection string' publication p
create subscription s connection 'no_such_option=1' publication p with (connect = false)
create subscription s connection 'postgresql://[host/x' publication p with (connect = false)
create subscription s connection 'dbname=nowhere' publication p, q, p with (connect = false)
begin; create subscription s connection 'dbname=nowhere' publication p with (create_slot = true)
rollback
create subscription s connection 'dbname=nowhere' publication p with (connect = false, enabled = true)
create subscription s connection 'dbname=nowhere' publication p with (connect = false, copy_data = true)
create subscription s connection 'dbname=nowhere' publication p with (slot_name = none)
create subscription s connection 'dbname=nowhere' publication p with (connect = false, streaming = perhaps)
create subscription s connection 'dbname=nowhere' publication p with (connect = false, origin = elsewhere)
create subscription s connection 'dbname=nowhere' publication p with (connect = false, unknown_option)
create subscription s connection 'dbname=nowhere' publication p, q with (connect = false)
create subscription s connection 'dbname=nowhere' publication p with (connect = false)
comment on subscription s is 'one that waits'
select obj_description(oid, 'pg_subscription') from pg_subscription
select pg_stat_reset_subscription_stats(oid) from pg_subscription
select subname, apply_error_count, stats_reset is null from pg_stat_subscription_stats
alter subscription s connection 'not a connection string'
alter subscription s connection 'host=somewhere dbname=nowhere'
alter subscription s set publication a, b with (refresh = false)
alter subscription s add publication a with (refresh = false)
alter subscription s add publication c with (refresh = false)
alter subscription s drop publication c, b with (refresh = false)
alter subscription s drop publication a with (refresh = false)
alter subscription s set (slot_name = 'another', streaming = off, binary = true, disable_on_error = true, run_as_owner = true)
alter subscription s set (origin = none, synchronous_commit = 'local')
alter subscription s set (slot_name = '')
alter subscription s set (create_slot = true)
alter subscription s set (synchronous_commit = sometimes)
alter subscription s skip (lsn = '0/ABC')
alter subscription s skip (lsn = '0/0')
alter subscription s refresh publication
alter subscription unknown enable
begin; alter subscription s enable; alter subscription s disable; commit
begin; alter subscription s refresh publication
rollback
begin; drop subscription s
rollback
set role newcomer
alter subscription s rename to mine
reset role
alter subscription s rename to renamed
alter subscription renamed owner to helper
alter subscription renamed owner to newcomer
set session authorization newcomer
create subscription other connection 'dbname=nowhere' publication p with (connect = false)
set session authorization helper
create subscription other connection 'dbname=nowhere password=secret' publication p with (connect = false)
reset session authorization
do $$begin execute format('grant create on database %I to helper', current_database()); end$$
set session authorization helper
create subscription other connection 'dbname=nowhere' publication p with (connect = false)
create subscription other connection 'dbname=nowhere' publication p with (connect = false, password_required = false)
create subscription other connection 'dbname=nowhere password=secret' publication p with (connect = false, two_phase = true)
alter subscription other connection 'dbname=nowhere'
alter subscription other set (password_required = false)
alter subscription other owner to owner_of_all
select subname, subenabled, subtwophasestate from pg_subscription order by 1
alter subscription other set (slot_name = none)
drop subscription other
reset session authorization
alter subscription renamed set (slot_name = none)
drop subscription renamed
drop subscription if exists renamed
drop subscription renamed
";

/// The catalog's row of each subscription, but for its object identifiers.
const CATALOG: &str =
    "select subname, subskiplsn, subowner::regrole, subenabled, subbinary, substream, subtwophasestate,
    subdisableonerr, subpasswordrequired, subrunasowner, subfailover, subconninfo, subslotname, subsynccommit,
    subpublications, suborigin from pg_subscription order by 1";

/// What a session answers to a statement: its rows and tags, or SQLSTATE, message, detail and hint of its error.
fn answer_of(client: &mut Client, sql: &str) -> Vec<String> {
    match client.simple_query(sql) {
        Ok(messages) => messages
            .into_iter()
            .map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    (0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|")
                }
                SimpleQueryMessage::CommandComplete(count) => format!("{count} rows"),
                _ => String::new(),
            })
            .collect(),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
            let texts = [Some(error.code().code()), Some(error.message()), error.detail(), error.hint()];
            texts.into_iter().flatten().map(str::to_owned).collect()
        }
    }
}

#[test]
fn what_needs_no_other_server_is_answered_as_by_a_native_postgresql_18() {
    let (native, server) = (Native::start_18(&["max_logical_replication_workers=0"]), Server::shared());
    let mut clients = [native.config(), server.config()].map(|config| config.connect(NoTls).expect("a session"));
    let mut errors = 0;
    for sql in STATEMENTS.lines().filter(|line| !line.is_empty()) {
        let [theirs, ours] = clients.each_mut().map(|client| answer_of(client, sql));
        assert_eq!(ours, theirs, "{sql}");
        errors += usize::from(theirs.first().is_some_and(|first| first.len() == 5 && first != "0 rows"));
        // A transaction that has failed answers nothing before its end.
        if !sql.starts_with("begin") {
            let [theirs, ours] = clients.each_mut().map(|client| answer_of(client, CATALOG));
            assert_eq!(ours, theirs, "after {sql}");
        }
    }
    assert!(errors > 20, "{errors} errors");
}

#[test]
fn what_needs_another_server_is_refused_and_leaves_nothing_behind() {
    for server in [Server::shared(), Server::start()] {
        let mut client = server.connect();
        let mut refused = |sql: &str| {
            let error = client.batch_execute(sql).expect_err(sql);
            let error = error.as_db_error().expect("an error of PostgreSQL's");
            assert_eq!(error.code().code(), "0A000", "{sql}: {error}");
            assert_eq!(error.message(), "a cluster of this program cannot subscribe to another server");
            assert!(error.hint().is_some_and(|hint| hint.contains("slot_name = NONE")), "{error:?}");
        };
        refused("create subscription s connection 'dbname=x' publication p");
        refused("create subscription s connection 'port=-1' publication p with (create_slot = false)");
        client
            .batch_execute("create subscription s connection 'dbname=x' publication p with (connect = false)")
            .expect("it");
        client.batch_execute("alter subscription s enable").expect("it");
        let mut refused = |sql: &str| {
            let error = client.batch_execute(sql).expect_err(sql);
            assert_eq!(error.code().expect("an SQLSTATE").code(), "0A000", "{sql}: {error}");
        };
        refused("alter subscription s refresh publication");
        refused("alter subscription s set publication q");
        refused("drop subscription s");
        let alone =
            ["alter subscription s disable", "alter subscription s set (slot_name = none)", "drop subscription s"];
        alone.iter().for_each(|sql| client.batch_execute(sql).expect(sql));
        assert_eq!(rows(&mut client, "select count(*) from pg_subscription"), ["0"]);
    }
}
