//! Several databases of one cluster, and what roles may do.

mod support;

use support::{peer::Peer, server::Server};

fn admin() -> (Server, Peer) {
    let server = Server::shared();
    let admin = Peer::connect(&server);
    (server, admin)
}

#[test]
fn sessions_in_different_databases_share_roles_and_nothing_else() {
    let (server, admin) = admin();
    admin.run("create table t as select 'postgres' as database");
    admin.run("create database other");
    let other = Peer::of(&server, "postgres", "other");
    assert_eq!(other.fail("select * from t"), "42P01");
    other.run("create table t as select 'other' as database; create role somebody");
    assert_eq!((admin.value("select * from t"), other.value("select * from t")), ("postgres".into(), "other".into()));
    assert_eq!(admin.value("select count(*) from pg_roles where rolname = 'somebody'"), "1");
    // Advisory locks are of a database.
    assert_eq!(admin.value("select pg_try_advisory_lock(1)"), "t");
    assert_eq!(other.value("select pg_try_advisory_lock(1)"), "t");
    let databases = "select datname from pg_stat_activity where backend_type = 'client backend' order by 1";
    assert_eq!(admin.run(databases), ["other", "postgres"]);
}

#[test]
fn a_database_is_created_from_another_with_everything_in_it() {
    let (server, admin) = admin();
    for strategy in ["wal_log", "file_copy"] {
        admin.run(&format!("create database source_{strategy}"));
        let source = Peer::of(&server, "postgres", &format!("source_{strategy}"));
        source.run("create table t (id serial primary key, x text); insert into t (x) select repeat('x', i) from generate_series(1, 500) i");
        assert_eq!(
            admin.fail(&format!(
                "set statement_timeout = '100ms'; create database copy_{strategy} template source_{strategy}"
            )),
            "25001",
            "a database is not created in a transaction"
        );
        assert_eq!(
            admin.fail(&format!("create database copy_{strategy} template source_{strategy} strategy {strategy}")),
            "55006"
        );
        drop(source);
        admin.until_sessions(1);
        admin.run(&format!("create database copy_{strategy} template source_{strategy} strategy {strategy}"));
        let copy = Peer::of(&server, "postgres", &format!("copy_{strategy}"));
        assert_eq!(copy.value("select concat(count(*), ' ', sum(length(x))) from t"), "500 125250");
        copy.run("insert into t (x) values ('more')");
    }
}

#[test]
fn a_database_in_use_is_only_dropped_by_force() {
    let (server, admin) = admin();
    admin.run("create database busy");
    let users: Vec<Peer> = (0..3).map(|_| Peer::of(&server, "postgres", "busy")).collect();
    users[0].run("create table t as select generate_series(1, 1000)");
    users[1].run("begin; select * from t limit 1");
    assert_eq!(admin.fail("drop database busy"), "55006");
    assert_eq!(users[2].value("select count(*) from t"), "1000");
    admin.run("drop database busy with (force)");
    for user in &users {
        user.send("select 1");
        user.assert_ended("57P01");
    }
    assert_eq!(Peer::refused(server.config().dbname("busy")), "3D000");
    assert_eq!(admin.value("select count(*) from pg_database where datname = 'busy'"), "0");
    assert_eq!(
        admin.value(
            "select count(*) from pg_database d join pg_stat_activity a on a.datid = d.oid where d.datname = 'busy'"
        ),
        "0"
    );
}

#[test]
fn databases_come_and_go_while_others_work() {
    let (server, admin) = admin();
    admin.run("create table t (a int)");
    let worker = Peer::connect(&server);
    for round in 0..5 {
        worker.send("insert into t select generate_series(1, 10000); select pg_sleep(0.01); select count(*) from t");
        admin.run(&format!("create database d{round}"));
        let visitor = Peer::of(&server, "postgres", &format!("d{round}"));
        visitor.run("create table t as select generate_series(1, 100)");
        drop(visitor);
        admin.run(&format!("drop database d{round} with (force)"));
        assert_eq!(worker.rows().last().unwrap(), &((round + 1) * 10000).to_string());
    }
    admin.run("create database renamed");
    admin.run("alter database renamed rename to kept");
    assert_eq!(Peer::of(&server, "postgres", "kept").value("select current_database()"), "kept");
}

#[test]
fn an_idle_session_does_not_hold_up_a_barrier() {
    let (server, admin) = admin();
    let idle: Vec<Peer> = (0..10).map(|_| Peer::connect(&server)).collect();
    admin.run("create database gone");
    drop(Peer::of(&server, "postgres", "gone"));
    admin.until_sessions(11);
    admin.run("set statement_timeout = '30s'");
    admin.run("drop database gone");
    idle.iter().for_each(|peer| assert_eq!(peer.value("select 1"), "1"));
}

#[test]
fn a_role_can_do_what_it_was_granted_and_nothing_else() {
    let (server, admin) = admin();
    admin.run("create role app login; create table t (a int, secret int); insert into t values (1, 2)");
    let app = Peer::of(&server, "app", "postgres");
    assert_eq!(
        app.value("select concat_ws(' ', current_user, session_user, current_setting('is_superuser'))"),
        "app app off"
    );
    for forbidden in [
        "select * from t",
        "create table public.mine (a int)",
        "create role other",
        "create database other",
        "alter system set work_mem = '5MB'",
        "set session_replication_role = replica",
        "copy (select 1) to '/tmp/file'",
        "copy (select 1) to program 'true'",
        "select pg_read_file('/pglite/data/PG_VERSION')",
        "select * from pg_authid",
        "create function f() returns void language internal as 'int4pl'",
        "load 'plpgsql'; create function f(text) returns int language c as 'x', 'y'",
        "alter role app superuser",
        "set role postgres",
        "set session authorization postgres",
        "checkpoint",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
        "select pg_stat_reset()",
        "update pg_class set relname = 'x'",
    ] {
        assert_eq!(app.fail(forbidden), "42501", "{forbidden}");
    }
    admin.run("grant select (a), insert on t to app; grant create on schema public to app");
    assert_eq!(app.run("select a from t"), ["1"]);
    assert_eq!(app.fail("select secret from t"), "42501");
    app.run("insert into t values (5, 6); create table public.mine (a int)");
    admin.run("revoke all on t from app");
    assert_eq!(app.fail("select a from t"), "42501");
    let others = format!("select query from pg_stat_activity where pid = {}", admin.process_id);
    assert_eq!(app.value(&others), "<insufficient privilege>");
}

#[test]
fn a_policy_hides_rows_from_a_role() {
    let (server, admin) = admin();
    admin.run(
        "create role ann login; create role bob login; create table note (owner name default current_user, text text)",
    );
    admin.run("grant all on note to public; alter table note enable row level security; create policy own on note using (owner = current_user)");
    let (ann, bob) = (Peer::of(&server, "ann", "postgres"), Peer::of(&server, "bob", "postgres"));
    ann.run("insert into note (text) values ('of ann')");
    bob.run("insert into note (text) values ('of bob')");
    assert_eq!(ann.run("select text from note"), ["of ann"]);
    assert_eq!(bob.run("select text from note"), ["of bob"]);
    assert_eq!(admin.value("select count(*) from note"), "2");
    assert_eq!(bob.fail("insert into note values ('ann', 'forged')"), "42501");
}

#[test]
fn system_tables_are_protected_even_from_superusers_unless_a_setting_lets_them() {
    let (server, admin) = admin();
    for forbidden in [
        "create table pg_catalog.mine (a int)",
        "drop table pg_catalog.pg_class",
        "alter table pg_class add column a int",
    ] {
        assert_eq!(admin.fail(forbidden), "42501", "{forbidden}");
    }
    let mut config = server.config();
    let modifier = Peer::with(config.options("-c allow_system_table_mods=on")).unwrap();
    modifier.run("create table pg_catalog.mine (a int)");
    assert_eq!(admin.value("select count(*) from mine"), "0");
}
