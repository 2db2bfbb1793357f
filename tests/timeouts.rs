//! PostgreSQL's timeouts, which stand on the guest's timers.

mod support;

use support::{
    server::{Server, rows, sqlstate},
    session::errors,
};

#[test]
fn statement_timeout_ends_a_statement_that_computes_and_one_that_sleeps() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("set statement_timeout = 20").expect("a setting");
    for sql in [
        "select count(*) from generate_series(1, 1000000000) a, generate_series(1, 1000000000) b",
        "select pg_sleep(1000000)",
        "do $$ begin loop null; end loop; end $$",
        "do $$ begin loop begin perform 1 / 0; exception when division_by_zero then null; end; end loop; end $$",
    ] {
        let error = client.simple_query(sql).expect_err("it has no end");
        let error = error.as_db_error().expect("an error of the server");
        assert_eq!((error.code().code(), error.message()), ("57014", "canceling statement due to statement timeout"));
    }
    client.batch_execute("set statement_timeout = 0").expect("in time");
    // A timeout that was withdrawn must not come after all.
    assert_eq!(rows(&mut client, "select pg_sleep(0.05), 'alive'"), ["|alive"]);
}

#[test]
fn a_timeout_inside_a_function_is_an_exception_that_others_does_not_catch() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("set statement_timeout = 20").expect("a setting");
    let caught = "do $$ begin perform pg_sleep(1000000); exception when others then raise notice 'caught'; end $$";
    assert_eq!(sqlstate(client.simple_query(caught)), "57014");
    let by_name = "do $$ begin perform pg_sleep(1000000); exception when query_canceled then null; end $$";
    client.simple_query(by_name).expect("caught by name");
}

#[test]
fn timeouts_end_sessions_that_do_nothing_and_say_why() {
    let server = Server::start();
    for (setting, sql, sqlstate) in [
        ("idle_session_timeout", "select 1", "57P05"),
        ("idle_in_transaction_session_timeout", "begin", "25P03"),
        ("transaction_timeout", "begin", "25P04"),
    ] {
        let mut session = server.session(&[]);
        session.values(&format!("set {setting} = 20"));
        session.values(sql);
        let messages = session.until_closed();
        assert_eq!(errors(&messages), [sqlstate], "{setting}");
        assert_eq!(messages[0].fields()[&'S'], "FATAL", "{setting}");
    }
    server.wait_for_connections(0);
}

#[test]
fn transaction_timeout_ends_a_transaction_that_computes() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("set transaction_timeout = 20");
    session.query("do $$ begin loop null; end loop; end $$");
    assert_eq!(errors(&session.until_closed()), ["25P04"]);
}

#[test]
fn a_session_that_goes_on_in_time_is_left_alone() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "set idle_in_transaction_session_timeout = 60000; set statement_timeout = 60000; set lock_timeout = 60000",
        )
        .expect("settings");
    client.batch_execute("begin; create table t (a int); lock t").expect("a transaction");
    for _ in 0..100 {
        client.batch_execute("insert into t values (1)").expect("in time");
    }
    client.batch_execute("commit").expect("in time");
    assert_eq!(rows(&mut client, "select count(*) from t"), ["100"]);
}

#[test]
fn sleeping_and_the_clock_keep_time() {
    let server = Server::start();
    let mut client = server.connect();
    let slept = "select clock_timestamp() - statement_timestamp() >= interval '50 ms' from pg_sleep(0.05)";
    assert_eq!(rows(&mut client, slept), ["t"]);
    let now = "select abs(extract(epoch from clock_timestamp()) - $1) < 5";
    let epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert_eq!(rows(&mut client, &now.replace("$1", &epoch.to_string())), ["t"]);
}
