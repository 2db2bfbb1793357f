//! PL/pgSQL: control flow that is `longjmp` inside the guest.

mod support;

use support::server::{Server, rows, sqlstate};

#[test]
fn exceptions_in_nested_loops_are_caught_where_they_should_be() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table log (entry text);
             create function nested() returns int language plpgsql as $$
             declare caught int := 0;
             begin
               for i in 1..30 loop
                 begin
                   for j in 1..30 loop
                     begin
                       insert into log values (i || '.' || j);
                       if j % 3 = 0 then perform 1 / (j % 3); end if;
                       if j % 5 = 0 then perform ('x' || i)::int; end if;
                     exception when division_by_zero then
                       caught := caught + 1;
                     end;
                   end loop;
                 exception when invalid_text_representation then
                   caught := caught + 1000;
                 end;
               end loop;
               return caught;
             end $$",
        )
        .expect("a function");
    // In each of the 30 outer rounds: 3 is caught inside, then 5 leaves the inner loop and undoes it.
    assert_eq!(rows(&mut client, "select nested()"), ["30030"]);
    assert_eq!(rows(&mut client, "select count(*) from log"), ["0"]);
}

#[test]
fn a_block_with_an_exception_undoes_what_it_did_and_keeps_what_was_before() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table t (a int);
             do $$ begin
               for i in 1..10 loop
                 insert into t values (i);
                 begin
                   insert into t values (-i);
                   raise exception 'undo %', i using errcode = 'P9999';
                 exception when sqlstate 'P9999' then
                   insert into t values (100 + i);
                 end;
               end loop;
             end $$",
        )
        .expect("a block");
    assert_eq!(rows(&mut client, "select count(*), sum(a), min(a) from t"), ["20|1110|1"]);
}

#[test]
fn an_exception_is_raised_again_through_several_functions_with_its_context() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create function innermost() returns int language plpgsql as $$ begin return 1 / 0; end $$;
             create function middle() returns int language plpgsql as
               $$ begin return innermost(); exception when division_by_zero then raise; end $$;
             create function outermost() returns text language plpgsql as $$
             declare state text; message text; context text;
             begin
               return middle();
             exception when others then
               get stacked diagnostics
                 state = returned_sqlstate, message = message_text, context = pg_exception_context;
               return state || ' ' || message || ' ' || (context like '%innermost()%middle()%outermost()%');
             end $$",
        )
        .expect("functions");
    assert_eq!(rows(&mut client, "select outermost()"), ["22012 division by zero true"]);
    assert_eq!(sqlstate(client.simple_query("select middle()")), "22012");
}

#[test]
fn a_hundred_thousand_exceptions_take_no_memory() {
    let server = Server::start();
    let mut client = server.connect();
    let sql = "do $$ declare caught int := 0; begin
                 for i in 1..100000 loop
                   begin perform 1 / 0; exception when division_by_zero then caught := caught + 1; end;
                 end loop;
                 raise exception using errcode = 'P0' || caught / 1000 , message = 'caught';
               end $$";
    assert_eq!(sqlstate(client.simple_query(sql)), "P0100");
    let used = "select sum(used_bytes) < 10000000 from pg_backend_memory_contexts";
    assert_eq!(rows(&mut client, used), ["t"]);
}

#[test]
fn procedures_commit_in_between() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table t (a int primary key);
             create procedure fill(n int) language plpgsql as $$ begin
               for i in 1..n loop
                 insert into t values (i);
                 if i % 2 = 0 then commit; else rollback; end if;
               end loop;
             end $$",
        )
        .expect("a procedure");
    client.batch_execute("call fill(10)").expect("called");
    assert_eq!(rows(&mut client, "select array_agg(a order by a) from t"), ["{2,4,6,8,10}"]);
}

#[test]
fn triggers_cursors_dynamic_sql_and_set_returning_functions_work_together() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table account (id int primary key, balance int not null);
             create table audit (id int, was int, is_now int);
             create function audit() returns trigger language plpgsql as
               $$ begin insert into audit values (new.id, old.balance, new.balance); return new; end $$;
             create trigger audit after update on account for each row execute function audit();
             insert into account select i, i * 10 from generate_series(1, 5) i;
             create function raise_all(percent int) returns setof account language plpgsql as $$
             declare c cursor for select * from account order by id for update; r account;
             begin
               for r in c loop
                 execute format('update %I set balance = balance * $1 / 100 where id = $2', 'account')
                   using 100 + percent, r.id;
               end loop;
               return query select * from account order by id;
             end $$",
        )
        .expect("functions");
    assert_eq!(rows(&mut client, "select string_agg(balance::text, ' ') from raise_all(10)"), ["11 22 33 44 55"]);
    assert_eq!(rows(&mut client, "select sum(was), sum(is_now) from audit"), ["150|165"]);
}

#[test]
fn an_assertion_that_fails_and_an_exception_in_a_trigger_abort_their_statement() {
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(sqlstate(client.simple_query("do $$ begin assert 1 = 2, 'never'; end $$")), "P0004");
    client
        .batch_execute(
            "create table t (a int);
             create function refuse() returns trigger language plpgsql as
               $$ begin if new.a < 0 then raise check_violation; end if; return new; end $$;
             create trigger refuse before insert on t for each row execute function refuse()",
        )
        .expect("a trigger");
    assert_eq!(sqlstate(client.simple_query("insert into t values (1), (-1)")), "23514");
    assert_eq!(rows(&mut client, "select count(*) from t"), ["0"]);
}
