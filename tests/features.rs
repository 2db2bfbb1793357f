//! Parts of PostgreSQL that stand on something of their own in the host: side modules, files, several databases.

mod support;

use support::server::{Server, rows, sqlstate};

#[test]
fn full_text_search_stems_in_many_languages() {
    let server = Server::start();
    let mut client = server.connect();
    for (language, text, vector) in [
        ("english", "The quick foxes were jumping", "'fox':3 'jump':5 'quick':2"),
        ("german", "Die Häuser der schönen Städte", "'haus':2 'schon':4 'stadt':5"),
        ("russian", "красивые дома", "'дом':2 'красив':1"),
        ("french", "les chevaux galopaient", "'cheval':2 'galop':3 'le':1"),
        ("simple", "The Foxes", "'foxes':2 'the':1"),
    ] {
        assert_eq!(rows(&mut client, &format!("select to_tsvector('{language}', '{text}')")), [vector]);
    }
    client
        .batch_execute(
            "create table doc (id int, body text, words tsvector generated always as (to_tsvector('english', body)) stored);
             create index on doc using gin (words);
             insert into doc select i, 'document ' || i || case when i % 100 = 0 then ' about databases' else '' end
               from generate_series(1, 5000) i;
             analyze doc; set enable_seqscan = off",
        )
        .expect("documents");
    let found = "select count(*), min(ts_headline('english', body, q)) from doc, websearch_to_tsquery('english', 'database -sql') q where words @@ q";
    assert_eq!(rows(&mut client, found), ["50|document 100 about <b>databases</b>"]);
}

#[test]
fn databases_and_schemas_are_made_and_dropped() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("create database made strategy wal_log").expect("a database");
    client.batch_execute("create database copied template made strategy file_copy").expect("a database");
    let names = "select string_agg(datname, ' ' order by datname) from pg_database";
    assert_eq!(rows(&mut client, names), ["copied made postgres template0 template1"]);
    client.batch_execute("alter database made rename to renamed").expect("renamed");
    client.batch_execute("drop database copied").expect("dropped");
    assert_eq!(rows(&mut client, names), ["postgres renamed template0 template1"]);
    assert_eq!(sqlstate(client.simple_query("drop database postgres")), "55006");
    client.batch_execute("create schema s create table t (a int); drop schema s cascade").expect("a schema");
}

#[test]
fn large_objects_are_written_read_truncated_and_kept_in_transactions() {
    let server = Server::start();
    let mut client = server.connect();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let object: u32 = client.query_one("select lo_from_bytea(0, $1)", &[&bytes]).expect("an object").get(0);
    let part: Vec<u8> = client.query_one("select lo_get($1, 999990, 100)", &[&object]).expect("a part").get(0);
    assert_eq!(part, bytes[999_990..]);
    let mut transaction = client.transaction().expect("a transaction");
    let open = "select lo_open($1, x'60000'::int)";
    let descriptor: i32 = transaction.query_one(open, &[&object]).expect("a descriptor").get(0);
    transaction.execute("select lo_lseek64($1, 10, 0)", &[&descriptor]).expect("sought");
    transaction.execute("select lowrite($1, 'written')", &[&descriptor]).expect("written");
    transaction.execute("select lo_truncate64($1, 20)", &[&descriptor]).expect("truncated");
    transaction.commit().expect("committed");
    let whole: Vec<u8> = client.query_one("select lo_get($1)", &[&object]).expect("the object").get(0);
    assert_eq!((&whole[..10], &whole[10..17], whole.len()), (&bytes[..10], &b"written"[..], 20));
    client.execute("select lo_unlink($1)", &[&object]).expect("gone");
    assert_eq!(sqlstate(client.query("select lo_get($1)", &[&object])), "42704");
}

#[test]
fn types_and_functions_of_every_kind_answer() {
    let server = Server::start();
    let mut client = server.connect();
    for (sql, answer) in [
        ("select jsonb_path_query_first('{\"a\": [1, {\"b\": 2}]}', '$.a[*].b')", "2"),
        ("select jsonb '{\"a\": 1}' || '{\"b\": null}'", "{\"a\": 1, \"b\": null}"),
        ("select 'größer' ~* '^GRÖ.*r$', regexp_replace('aaa', 'a(?=a)', 'b', 'g')", "t|bba"),
        ("select upper('straße'), lower('ÄÖÜ'), initcap('élan vital')", "STRAßE|äöü|Élan Vital"),
        ("select numeric '1e100' / 3 > 0, round(2.5::numeric), sqrt(2::numeric)", "t|3|1.414213562373095"),
        ("select 0.1::float8 + 0.2::float8, 'nan'::float8, 2::float8 ^ 10", "0.30000000000000004|NaN|1024"),
        (
            "select age(date '2026-03-01', date '2024-02-29'), date_trunc('week', timestamp '2026-02-14 12:00')",
            "2 years 1 day|2026-02-09 00:00:00",
        ),
        ("select timestamptz '2026-03-29 02:30 Europe/Vienna' at time zone 'UTC'", "2026-03-29 01:30:00"),
        ("select int4range(1, 5) * int4range(3, 9), '{[1,3],[5,7]}'::int4multirange @> 6", "[3,5)|t"),
        ("select '192.168.1.0/24'::inet >> '192.168.1.7', macaddr '08:00:2b:01:02:03'", "t|08:00:2b:01:02:03"),
        (
            "select encode(sha256('abc'), 'hex'), md5('abc')",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad|900150983cd24fb0d6963f7d28e17f72",
        ),
        ("select uuid_extract_version(uuidv7()), gen_random_uuid() <> gen_random_uuid()", "7|t"),
        ("select array_agg(x order by x desc) from unnest(array[1, 3, 2]) x", "{3,2,1}"),
        ("select percentile_cont(0.5) within group (order by x) from generate_series(1, 4) x", "2.5"),
        ("select point(1, 2) <-> point(4, 6), box '(0,0),(2,2)' && box '(1,1),(3,3)'", "5|t"),
        ("select 'ß' collate \"C\" < 'z', 'a' < 'B' collate \"C\"", "f|f"),
    ] {
        assert_eq!(rows(&mut client, sql), [answer], "{sql}");
    }
    assert_eq!(sqlstate(client.simple_query("select 1e308::float8 * 10")), "22003");
}

#[test]
fn every_kind_of_index_is_built_used_and_rebuilt() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create table t (id int, name text, tags int[], place point, span int4range, day int);
             insert into t select i, 'name ' || i, array[i % 10, i % 7], point(i, i), int4range(i, i + 5), i / 100
               from generate_series(1, 20000) i;
             create unique index on t (id); create index on t using hash (name); create index on t using gin (tags);
             create index on t using gist (place); create index on t using spgist (span); create index on t using brin (day);
             analyze t; set enable_seqscan = off",
        )
        .expect("indexes");
    client.batch_execute("create index concurrently on t (lower(name)) where id > 10").expect("an index");
    for statement in ["select", "reindex table t", "vacuum (full, analyze) t", "cluster t using t_id_idx"] {
        client.batch_execute(statement).expect("rebuilt");
        for (condition, index, count) in [
            ("id between 5 and 14", "t_id_idx", "10"),
            ("name = 'name 77'", "t_name_idx", "1"),
            ("tags @> array[3, 5]", "t_tags_idx", "572"),
            ("place <@ box '(10,10),(19,19)'", "t_place_idx", "10"),
            ("span @> 100", "t_span_idx", "5"),
            ("day = 7", "t_day_idx", "100"),
            ("lower(name) = 'name 99' and id > 10", "t_lower_idx", "1"),
        ] {
            let plan = rows(&mut client, &format!("explain select * from t where {condition}")).join("\n");
            assert!(plan.contains(&format!(" {index} ")), "{condition} after {statement}: {plan}");
            let found = rows(&mut client, &format!("select count(*) from t where {condition}"));
            assert_eq!(found, [count], "{condition} after {statement}");
        }
    }
}

#[test]
fn sorts_and_hashes_that_do_not_fit_into_memory_go_to_files_which_are_removed() {
    let server = Server::start();
    let mut client = server.connect();
    let settings = "set work_mem = '64kB'; set log_temp_files = -1; set enable_mergejoin = off";
    client.batch_execute(settings).expect("settings");
    let explained = "explain (analyze, costs off, timing off, summary off, buffers off)";
    let sorted = "select count(*), min(t), max(t) from (select md5(i::text) t from generate_series(1, 200000) i order by 1 offset 10) x";
    let plan = rows(&mut client, &format!("{explained} {sorted}")).join("\n");
    assert!(plan.contains("Sort Method: external merge  Disk: "), "{plan}");
    assert_eq!(rows(&mut client, sorted)[0].split('|').next(), Some("199990"));
    let joined = "select count(*) from generate_series(1, 100000) a join generate_series(1, 100000) b on a = b";
    let plan = rows(&mut client, &format!("{explained} {joined}")).join("\n");
    assert!(plan.contains("  Batches: ") && !plan.contains("  Batches: 1  "), "{plan}");
    assert_eq!(rows(&mut client, joined), ["100000"]);
    assert_eq!(rows(&mut client, "select count(*) from pg_ls_tmpdir()"), ["0"]);
}

#[test]
fn sql_that_psql_reads_from_a_dump_makes_the_same_database_again() {
    let server = Server::start();
    let schema = "create table person (id serial primary key, name text not null, born date);
create view adult as select * from person where born < '2008-01-01';
create materialized view names as select array_agg(name) n from person;
copy person (id, name, born) from stdin;
1\tAda\t1815-12-10
2\tAlan\t1912-06-23
\\.
select setval('person_id_seq', 2);
insert into person (name) values ('Grace') returning id;
refresh materialized view names;
select n from names;
";
    let output = server.psql_with_input(&[], schema.as_bytes());
    assert_eq!(support::server::text(&output), "2\n3\n{Ada,Alan,Grace}");
}

#[test]
fn notifications_reach_the_session_that_listens() {
    let server = Server::start();
    let mut session = server.session(&[]);
    session.values("listen channel");
    session.query("notify channel, 'payload'");
    let messages = session.until_ready();
    let notification = messages.iter().find(|message| message.kind == b'A').expect("a notification");
    assert_eq!(notification.body[4..], *b"channel\0payload\0");
}

#[test]
fn roles_have_the_rights_that_they_were_given() {
    let server = Server::start();
    let mut client = server.connect();
    client
        .batch_execute(
            "create role reader; create table t (a int, secret int); insert into t values (1, 2);
             grant select (a) on t to reader; alter table t enable row level security;
             create policy few on t to reader using (a < 10); insert into t values (20, 3); set role reader",
        )
        .expect("a role");
    assert_eq!(rows(&mut client, "select a from t"), ["1"]);
    for denied in ["select secret from t", "insert into t values (3)", "create role other", "copy t to '/tmp/t'"] {
        assert_eq!(sqlstate(client.simple_query(denied)), "42501", "{denied}");
    }
    let catalogs = "reset role; update pg_class set relname = relname where relname = 't'";
    client.batch_execute(catalogs).expect("a superuser may update catalogs");
    assert_eq!(sqlstate(client.simple_query("drop table pg_class")), "42501");
}

#[test]
fn files_of_the_guest_are_read_and_written_through_large_objects() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("select lo_from_bytea(7, 'kept')").expect("an object");
    client.batch_execute("select lo_export(7, '/tmp/object')").expect("a file");
    assert_eq!(rows(&mut client, "select pg_read_file('/tmp/object')"), ["kept"]);
    assert_eq!(rows(&mut server.connect(), "select count(*) from pg_ls_dir('/tmp') f where f = 'object'"), ["0"]);
}
