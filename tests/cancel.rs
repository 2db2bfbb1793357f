//! Cancel requests: `57014`, and the session goes on.

mod support;

use support::{
    server::{Server, rows},
    session::{Session, errors},
    wire,
};

/// A function that says so when the query has begun, at once and not only with its result.
const SAY: &str =
    "create function say() returns int language plpgsql as $$ begin raise notice 'begun'; return 1; end $$";

/// Runs `sql`, which has no end, and cancels it once it has begun.
fn assert_cancelled(server: &Server, session: &mut Session, sql: &str) {
    session.query(&format!("select say(); {sql}"));
    session.until(b'N');
    let (process_id, secret) = session.key();
    server.cancel(process_id, &secret);
    let messages = session.until_ready();
    assert_eq!(errors(&messages), ["57014"], "{sql}");
    assert_eq!(messages[messages.len() - 2].fields()[&'M'], "canceling statement due to user request", "{sql}");
    assert_eq!(session.values("select 'alive'"), ["alive"], "{sql}");
}

#[test]
fn a_query_is_cancelled_whatever_it_does() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values(SAY);
    session.values("create table t (a int)");
    for sql in [
        "select count(*) from generate_series(1, 1000000000)",
        "select pg_sleep(1000000)",
        "do $$ begin loop null; end loop; end $$",
        "do $$ begin loop begin perform 1 / 0; exception when division_by_zero then null; end; end loop; end $$",
        "do $$ begin loop perform pg_sleep(0.001); end loop; end $$",
        "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r",
        "insert into t select generate_series(1, 1000000000)",
        "select bool_or(repeat(md5(i::text), 1000) ~ '(x+x+)+y') from generate_series(1, 1000000) i",
        "copy (select generate_series(1, 1000000000)) to '/dev/null'",
        "select sum(a.i * b.i) from (select generate_series(1, 100000) i) a, (select generate_series(1, 100000) i) b",
    ] {
        assert_cancelled(&server, &mut session, sql);
    }
    assert_eq!(session.values("select count(*) from t"), ["0"]);
}

#[test]
fn a_transaction_in_which_a_query_was_cancelled_is_aborted_and_can_be_rolled_back() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values(SAY);
    session.values("begin; create table t (a int)");
    session.query("select say(), pg_sleep(1000000)");
    session.until(b'N');
    let (process_id, secret) = session.key();
    server.cancel(process_id, &secret);
    assert_eq!(session.until_ready().last().expect("ReadyForQuery").body, b"E");
    session.values("rollback");
    assert_eq!(session.values("select to_regclass('t') is null"), ["t"]);
}

#[test]
fn a_copy_in_is_cancelled_as_soon_as_there_are_rows_again() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("create table t (a int)");
    session.query("copy t from stdin");
    session.until(b'G');
    let (process_id, secret) = session.key();
    server.cancel(process_id, &secret);
    // PostgreSQL does not look at a cancel request while it waits for the client of a COPY
    // (`ProcessClientReadInterrupt`).
    session.send(&[wire::message(b'd', b"1\n"), wire::message(b'c', b"")].concat());
    assert_eq!(errors(&session.until_ready()), ["57014"]);
    assert_eq!(session.values("select count(*) from t"), ["0"]);
}

#[test]
fn a_result_that_nobody_reads_is_cancelled() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.query("select repeat('x', 1000), generate_series(1, 1000000000)");
    session.until(b'D');
    let (process_id, secret) = session.key();
    server.cancel(process_id, &secret);
    assert_eq!(errors(&session.until_ready()), ["57014"]);
    assert_eq!(session.values("select 'alive'"), ["alive"]);
}

#[test]
fn a_cancel_request_when_nothing_runs_does_not_hit_the_next_query() {
    let server = Server::start();
    let mut session = server.session(&[]);
    for _ in 0..20 {
        let (process_id, secret) = session.key();
        server.cancel(process_id, &secret);
        assert_eq!(session.values("select count(*) from generate_series(1, 1000)"), ["1000"]);
    }
}

#[test]
fn a_wrong_key_cancels_nothing_and_the_right_one_only_its_own_session() {
    let server = Server::start();
    let (mut first, mut second) = (server.session(&[]), server.session(&[]));
    let ((process_id, secret), other) = (first.key(), second.key());
    assert_ne!((process_id, &secret), (other.0, &other.1));
    for session in [&mut first, &mut second] {
        session.values(SAY);
        session.query("select say(), pg_sleep(1000000)");
        session.until(b'N');
    }
    let flipped: Vec<u8> = secret.iter().map(|byte| !byte).collect();
    for (process_id, secret) in [(process_id, &flipped), (process_id + 1, &secret), (0, &secret)] {
        server.cancel(process_id, secret);
    }
    server.cancel(process_id, &secret);
    assert_eq!(errors(&first.until_ready()), ["57014"]);
    // Had the second been cancelled by one of the others, its answer would be there before that of its own cancel
    // request.
    server.cancel(other.0, &other.1);
    assert_eq!(errors(&second.until_ready()), ["57014"]);
    assert_eq!(second.values("select 'alive'"), ["alive"]);
}

#[test]
fn the_drivers_cancel_token_works() {
    let server = Server::start();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let mut client = server
        .config()
        // The test may not be interested any more.
        .notice_callback(move |_| begun.send(()).unwrap_or_default())
        .connect(postgres::NoTls)
        .expect("a session");
    client.batch_execute(SAY).expect("a function");
    let token = client.cancel_token();
    let canceller = std::thread::spawn(move || {
        has_begun.recv().expect("it begins");
        token.cancel_query(postgres::NoTls).expect("it listens");
    });
    assert_eq!(support::server::sqlstate(client.simple_query("select say(), pg_sleep(1000000)")), "57014");
    canceller.join().expect("no panic");
    assert_eq!(rows(&mut client, "select 'alive'"), ["alive"]);
}
