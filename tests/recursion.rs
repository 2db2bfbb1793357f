//! Recursion without end, or far too deep: an SQL error, after which the session goes on.

mod support;

use support::server::{Server, rows, sqlstate};

/// Runs `sql`, in which recursion is too deep, and asserts that the session is none the worse for it.
fn assert_too_deep(client: &mut postgres::Client, sql: &str) {
    let shown = &sql[..sql.len().min(80)];
    assert_eq!(sqlstate(client.simple_query(sql)), "54001", "{shown}");
    assert_eq!(rows(client, "select 'alive'"), ["alive"], "{shown}");
}

#[test]
fn functions_that_call_themselves_without_end_exceed_the_stack_depth_limit() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create function in_sql(n int) returns int language sql as
               'select case when n < 0 then 0 else in_sql(n + 1) end';
             create function in_plpgsql(n int) returns int language plpgsql as
               $$ begin return in_plpgsql(n + 1); end $$;
             create function catching(n int) returns int language plpgsql as
               $$ begin
                 begin return catching(n + 1); exception when division_by_zero then return 1; end;
               end $$;
             create function one(n int) returns int language plpgsql as $$ begin return n; end $$;
             create function other(n int) returns int language sql as 'select one(n)';
             create or replace function one(n int) returns int language plpgsql as
               $$ begin return other(n + 1); end $$;
             create table t (a int);
             create function again() returns trigger language plpgsql as
               $$ begin insert into t values (1); return new; end $$;
             create trigger again before insert on t for each row execute function again()",
        )
        .expect("functions");
    for sql in [
        "select in_sql(1)",
        "select in_plpgsql(1)",
        "select catching(1)",
        "select one(1)",
        "insert into t values (1)",
        // A second time, on the stack that the first has left.
        "select in_sql(1)",
    ] {
        assert_too_deep(&mut client, sql);
    }
}

#[test]
fn expressions_and_values_nested_too_deep_exceed_the_stack_depth_limit() {
    let server = Server::start();
    let mut client = server.connect();
    let n = 100_000;
    for sql in [
        format!("select {}1", "1+".repeat(n)),
        format!("select (repeat('[', {n}) || repeat(']', {n}))::jsonb"),
        format!("select (repeat('[', {n}) || repeat(']', {n}))::json"),
        format!("select (repeat('{{\"a\":', {n}) || '1' || repeat('}}', {n}))::jsonb"),
        format!("select (repeat('(', {n}) || 'a' || repeat(')', {n}))::tsquery"),
        format!("select 1 {}", "union all select 1 ".repeat(20_000)),
    ] {
        assert_too_deep(&mut client, &sql);
    }
}

#[test]
fn other_limits_are_reached_before_the_stacks_without_harm() {
    let server = Server::start();
    let mut client = server.connect();
    let n = 100_000;
    // The parser's own stack, and that of regular expressions (REG_ETOOBIG).
    let parentheses = format!("select {}1{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(sqlstate(client.simple_query(&parentheses)), "42601");
    let regex = format!("select 'x' ~ (repeat('(', {n}) || 'x' || repeat(')', {n}))");
    assert_eq!(sqlstate(client.simple_query(&regex)), "2201B");
    assert_eq!(rows(&mut client, "select 'alive'"), ["alive"]);
}

#[test]
fn a_view_that_came_to_select_from_itself_is_refused() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create view v as select 1 as a; create or replace view v as select a from v").expect("views");
    assert_eq!(sqlstate(client.simple_query("select * from v")), "42P17");
    let endless = "with recursive t(n) as (select 1 union all select n + 1 from t) select n from t limit 10000";
    assert_eq!(rows(&mut client, endless).len(), 10_000);
}

#[test]
fn depth_that_postgresql_on_the_machine_itself_has_room_for_is_allowed() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create function down(n int) returns int language plpgsql as
               $$ begin if n = 0 then return 0; end if; return 1 + down(n - 1); end $$",
        )
        .expect("a function");
    // PostgreSQL 15 on x86-64 manages 834 such levels, 14,404 of arrays in jsonb, 4,052 of a sum.
    assert_eq!(rows(&mut client, "select down(800)"), ["800"]);
    let nested = "select jsonb_typeof((repeat('[', 14000) || repeat(']', 14000))::jsonb)";
    assert_eq!(rows(&mut client, nested), ["array"]);
    assert_eq!(rows(&mut client, &format!("select {}1", "1+".repeat(4_000))), ["4001"]);
}

#[test]
fn no_setting_of_max_stack_depth_lets_recursion_run_into_anything_else() {
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(sqlstate(client.simple_query("set max_stack_depth = '7681kB'")), "22023");
    client
        .batch_execute(
            "set max_stack_depth = '7680kB';
             create function endless(n int) returns int language plpgsql as $$ begin return endless(n + 1); end $$",
        )
        .expect("a function");
    assert_too_deep(&mut client, "select endless(1)");
    assert_too_deep(&mut client, "select (repeat('[', 1000000) || repeat(']', 1000000))::jsonb");
    client.batch_execute("set max_stack_depth = '100kB'").expect("a setting");
    assert_too_deep(&mut client, "select endless(1)");
}
