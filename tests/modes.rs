//! One list of behaviours that every session has, whichever mode its database is in.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::{
    peer::Peer,
    server::Server,
    session::{errors, kinds},
    wire,
};

/// What a session does, by the sentence that says so. A database may have seen the ones before.
const BEHAVIOURS: [(&str, fn(&Server)); 19] = [
    ("a transaction is committed or rolled back as a whole", |server| {
        let peer = Peer::connect(server);
        peer.run("create table whole (a int)");
        peer.run("begin; insert into whole values (1); rollback");
        assert_eq!(peer.fail("begin; insert into whole values (1); select 1 / 0"), "22012");
        assert_eq!(peer.fail("select 1"), "25P02");
        peer.run("rollback; begin; insert into whole values (2); savepoint s; insert into whole values (3); rollback to s; commit");
        assert_eq!(peer.run("select a from whole"), ["2"]);
        peer.run("drop table whole");
    }),
    ("every isolation level is what it says", |server| {
        let peer = Peer::connect(server);
        for level in ["read committed", "repeatable read", "serializable"] {
            assert_eq!(
                peer.run(&format!("begin isolation level {level}; show transaction_isolation; commit")),
                [level]
            );
        }
    }),
    ("prepared statements and portals are kept", |server| {
        let mut session = server.session(&[]);
        session.send(&wire::parse("q", "select $1::int + i from generate_series(1, 5) i"));
        for _ in 0..2 {
            session.send(&[wire::bind("p", "q", &[Some("10")]), wire::execute("p", 2), wire::execute("p", 0)].concat());
            session.send(&[wire::close(b'P', "p"), wire::sync()].concat());
        }
        assert_eq!(session.kinds(), "12DDsDDDC3Z");
        assert_eq!(session.kinds(), "2DDsDDDC3Z");
    }),
    ("a cursor outlives its transaction if it is declared so", |server| {
        let peer = Peer::connect(server);
        peer.run("begin; declare c cursor with hold for select generate_series(1, 3); commit");
        assert_eq!(peer.run("fetch 2 from c"), ["1", "2"]);
        assert_eq!(peer.run("fetch all from c; close c"), ["3"]);
    }),
    ("settings last for the transaction or the session", |server| {
        let peer = Peer::connect(server);
        assert_eq!(peer.run("begin; set local work_mem = '5MB'; show work_mem; commit; show work_mem"), ["5MB", "4MB"]);
        peer.run("set work_mem = '6MB'");
        assert_eq!(peer.value("show work_mem"), "6MB");
        peer.run("reset all");
        assert_eq!(peer.value("show work_mem"), "4MB");
    }),
    ("a session starts with what its startup packet says", |server| {
        let mut config = server.config();
        let peer = Peer::with(config.application_name("me").options("-c work_mem=7MB")).unwrap();
        assert_eq!(peer.run("show application_name; show work_mem"), ["me", "7MB"]);
    }),
    ("an unknown database or role is refused", |server| {
        assert_eq!(Peer::refused(server.config().dbname("unknown")), "3D000");
        assert_eq!(Peer::refused(server.config().user("unknown")), "28000");
    }),
    ("rows are copied in and out", |server| {
        let mut client = server.connect();
        client.batch_execute("create temp table t (a int, b text)").unwrap();
        let mut copy = client.copy_in("copy t from stdin").unwrap();
        for row in 0..1000 {
            std::io::Write::write_all(&mut copy, format!("{row}\t{}\n", "x".repeat(row)).as_bytes()).unwrap();
        }
        assert_eq!(copy.finish().unwrap(), 1000);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut client.copy_out("copy t to stdout").unwrap(), &mut text).unwrap();
        assert_eq!((text.lines().count(), text.len()), (1000, 499_500 + 2890 + 2000));
    }),
    ("a computation, a loop and a sleep are cancelled by the session's key", |server| {
        let mut session = server.session(&[]);
        let (process_id, key) = session.key();
        for sql in [
            "select count(*) from generate_series(1, 100000) a, generate_series(1, 100000) b",
            "do $$ begin loop end loop; end $$",
            "select pg_sleep(1000)",
        ] {
            // The notice comes before what goes on forever, in the same query.
            session.query(&format!("do $$ begin raise notice 'started'; end $$; {sql}"));
            assert_eq!(kinds(&session.until(b'N')), "N");
            server.cancel(process_id, &key);
            assert_eq!(errors(&session.until_ready()), ["57014"], "{sql}");
        }
        assert_eq!(session.values("select 1"), ["1"]);
    }),
    ("a cancel request that comes when nothing runs, or with a wrong key, does nothing", |server| {
        let mut session = server.session(&[]);
        let (process_id, mut key) = session.key();
        server.cancel(process_id, &key);
        assert_eq!(session.values("select 1"), ["1"]);
        key[0] ^= 1;
        session.query("do $$ begin raise notice 'started'; end $$; select pg_sleep(0.2)");
        session.until(b'N');
        server.cancel(process_id, &key);
        assert_eq!(errors(&session.until_ready()), [""; 0]);
    }),
    ("a statement that takes too long is ended", |server| {
        let peer = Peer::connect(server);
        peer.run("set statement_timeout = '30ms'");
        assert_eq!(peer.fail("select pg_sleep(1000)"), "57014");
        assert_eq!(peer.fail("do $$ begin loop end loop; end $$"), "57014");
    }),
    ("a session that is idle too long is ended", |server| {
        let mut session = server.session(&[("options", "-c idle_session_timeout=30ms")]);
        session.query("select 1");
        assert_eq!(errors(&session.until_closed()), ["57P05"]);
        let mut session = server.session(&[("options", "-c idle_in_transaction_session_timeout=30ms")]);
        session.query("begin");
        assert_eq!(errors(&session.until_closed()), ["25P03"]);
        let mut session = server.session(&[("options", "-c transaction_timeout=30ms")]);
        session.query("begin");
        assert_eq!(errors(&session.until_closed()), ["25P04"]);
    }),
    ("a session can cancel and end itself", |server| {
        let peer = Peer::connect(server);
        assert_eq!(peer.fail("select pg_cancel_backend(pg_backend_pid())"), "57014");
        peer.send("select pg_terminate_backend(pg_backend_pid())");
        peer.assert_ended("57P01");
    }),
    ("a session notifies itself", |server| {
        let mut session = server.session(&[]);
        session.query("listen news; notify news, 'payload'");
        let messages = session.until_ready();
        let notification = messages.iter().find(|message| message.kind == b'A').expect("a notification");
        assert!(notification.body.ends_with(b"news\0payload\0"), "{notification:?}");
    }),
    ("a role that is no superuser is none", |server| {
        // In one session, since in isolated mode nobody else sees the role.
        let peer = Peer::connect(server);
        peer.run("create role few; create table kept (a int); set role few");
        assert_eq!(peer.fail("select * from kept"), "42501");
        assert_eq!(peer.fail("create database d"), "42501");
        peer.run("reset role; drop table kept; drop role few");
        assert_eq!(peer.fail("create table pg_catalog.mine (a int)"), "42501");
    }),
    ("its entry in pg_stat_activity is that of a client", |server| {
        let mut config = server.config();
        let peer = Peer::with(config.application_name("me")).expect("a session");
        let entry = peer.run(
            "select datname, usename, application_name, client_addr is not null, client_port is not null, backend_type, state, ssl, gss_authenticated
             from pg_stat_activity join pg_stat_ssl using (pid) join pg_stat_gssapi using (pid) where pid = pg_backend_pid()",
        );
        assert_eq!(entry, ["postgres|postgres|me|t|t|client backend|active|f|f"]);
        let started = "select backend_start between now() - interval '1 minute' and now() from pg_stat_activity where pid = pg_backend_pid()";
        assert_eq!(peer.value(started), "t");
    }),
    ("a plan with a Gather runs without workers, of which there are none", |server| {
        let peer = Peer::connect(server);
        peer.run("set max_parallel_workers_per_gather = 2; set debug_parallel_query = on");
        assert_eq!(peer.run("explain (costs off) select 1")[0], "Gather");
        assert_eq!(peer.value("select count(*) from pg_class where relname = 'pg_class'"), "1");
        let launched = peer.run("explain (analyze, costs off, timing off, summary off, buffers off) select 1");
        assert!(launched.iter().any(|line| line.trim() == "Workers Launched: 0"), "{launched:?}");
    }),
    ("options that a text search dictionary or its template do not know are refused", |server| {
        let peer = Peer::connect(server);
        assert_eq!(peer.fail("create text search dictionary d (template = simple, nonsense = 1)"), "22023");
        assert_eq!(peer.fail("create text search template t (nonsense = 1)"), "42601");
    }),
    ("what is wrong in the protocol ends the session with a word", |server| {
        let mut session = server.session(&[]);
        session.send(&wire::message(b'!', b""));
        assert_eq!(errors(&session.until_closed()), ["08P01"]);
        assert_eq!(Peer::connect(server).value("select 1"), "1");
    }),
];

fn all_behaviours_in(mode: &str) {
    let server = Server::with(&["--mode", mode]);
    let failed =
        BEHAVIOURS.iter().filter(|(_, behaviour)| catch_unwind(AssertUnwindSafe(|| behaviour(&server))).is_err());
    let failed: Vec<_> = failed.map(|(sentence, _)| sentence).collect();
    assert!(failed.is_empty(), "in {mode} mode it is not so that {failed:#?}");
}

#[test]
fn sessions_of_one_cluster_do_all_of_this() {
    all_behaviours_in("shared");
}

#[test]
fn sessions_with_a_cluster_of_their_own_do_all_of_this() {
    all_behaviours_in("isolated");
}
