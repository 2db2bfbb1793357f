//! The contrib extensions that come with PGlite: each is there, and does what it is for.

mod support;

use std::{collections::BTreeSet, sync::Arc};

use pglite_port::{
    connection::Connections,
    databases::Settings,
    engine::artefact::{EXTENSIONS, PACKAGES},
};
use support::{
    cache,
    extension::{Use, extension, outcome},
    local::{Connect, Local},
    peer::Peer,
    server::Server,
    session::{Session, errors},
    wire::Message,
};

/// In the order of the bundles' names.
const USES: &[Use] = &[
    extension("create extension amcheck", "select bt_index_check('pg_class_oid_index')", &[""]),
    extension(
        "load 'auto_explain'",
        "set auto_explain.log_min_duration = 0; set auto_explain.log_level = notice; select 42",
        &["42", "Result  (cost=0.00..0.01 rows=1 width=4)"],
    ),
    extension(
        "create extension bloom",
        "create table t as select n a, n % 7 b from generate_series(1, 1000) n; create index on t using bloom (a, b); \
         set enable_seqscan = off; select count(*) from t where a = 500 and b = 3; \
         explain (costs off) select from t where a = 500 and b = 3",
        &["1", "Bitmap Heap Scan on t", "Recheck Cond: ((a = 500) AND (b = 3))", "->  Bitmap Index Scan on t_a_b_idx"],
    ),
    extension(
        "create extension btree_gin",
        "create table t as select n from generate_series(1, 1000) n; create index on t using gin (n); \
         set enable_seqscan = off; select count(*) from t where n between 10 and 19; \
         explain (costs off) select from t where n between 10 and 19",
        &["10", "Bitmap Heap Scan on t", "Recheck Cond: ((n >= 10) AND (n <= 19))", "->  Bitmap Index Scan on t_n_idx"],
    ),
    extension(
        "create extension btree_gist",
        "create table t (room int, during int4range, exclude using gist (room with =, during with &&)); \
         insert into t values (1, '[1,5)'), (2, '[1,5)') on conflict do nothing; \
         insert into t values (1, '[4,6)') on conflict do nothing; select count(*) from t",
        &["2"],
    ),
    extension("create extension citext", "select 'Jane@Example.org'::citext = 'jane@example.ORG'", &["t"]),
    extension("create extension cube", "select cube_distance('(0,0)', '(3,4)')", &["5"]),
    extension("create extension dict_int", "select ts_lexize('intdict', '12345678')", &["{123456}"]),
    extension(
        "create extension dict_xsyn",
        "alter text search dictionary xsyn (rules = 'xsyn_sample', keeporig = true); select ts_lexize('xsyn', 'supernova')",
        &["{supernova,sn,sne,1987a}"],
    ),
    extension("create extension earthdistance cascade", "select round(earth())", &["6378168"]),
    extension(
        "create extension file_fdw",
        "create server files foreign data wrapper file_fdw; \
         create foreign table version (v text) server files options (filename '/pglite/data/PG_VERSION'); select * from version",
        &["18"],
    ),
    extension(
        "create extension fuzzystrmatch",
        "select levenshtein('kitten', 'sitting'), soundex('Anne')",
        &["3", "A500"],
    ),
    extension("create extension hstore", "select ('a=>1, b=>2'::hstore || 'b=>3') -> 'b'", &["3"]),
    extension("create extension intarray", "select uniq(sort('{3,1,2,3}'::int[])) @> '{1,2}'", &["t"]),
    extension("create extension isn", "select isbn('978-0-393-04002-9')", &["0-393-04002-X"]),
    extension(
        "create extension lo",
        "create table t (image lo); create trigger manage before update or delete on t for each row execute function lo_manage(image); \
         insert into t values (lo_from_bytea(0, 'x')); delete from t; select count(*) from pg_largeobject_metadata",
        &["0"],
    ),
    extension("create extension ltree", "select 'top.science.astronomy'::ltree <@ 'top.science'", &["t"]),
    extension(
        "create extension pageinspect",
        "select pagesize from page_header(get_raw_page('pg_class', 0))",
        &["8192"],
    ),
    extension("load 'passwordcheck'", "create role r password 'short'", &["22023"]),
    extension("create extension pg_buffercache", "select count(*) > 0 from pg_buffercache", &["t"]),
    extension("create extension pg_freespacemap", "select count(*) > 0 from pg_freespace('pg_class')", &["t"]),
    // What it inspects is left behind by logical decoding, which there is none of here.
    extension(
        "create extension pg_logicalinspect",
        "select * from pg_get_logical_snapshot_meta('0-0.snap')",
        &["58P01"],
    ),
    extension("load 'pg_overexplain'", "explain (debug, costs off) select 1", &["Result"]),
    // It has to be loaded when the server starts.
    extension("create extension pg_stat_statements", "select count(*) from pg_stat_statements", &["55000"]),
    extension(
        "create extension pg_surgery",
        "create table t (a int); insert into t values (1); select heap_force_kill('t', array['(0,1)']::tid[]); \
         select count(*) from t",
        &["", "0"],
    ),
    extension(
        "create extension pg_trgm",
        "create table t as select 'word ' || n w from generate_series(1, 1000) n; create index on t using gin (w gin_trgm_ops); \
         set enable_seqscan = off; select count(*) from t where w like '%ord 50%'; \
         explain (costs off) select from t where w like '%ord 50%'",
        &["11", "Bitmap Heap Scan on t", "Recheck Cond: (w ~~ '%ord 50%'::text)", "->  Bitmap Index Scan on t_w_idx"],
    ),
    extension("create extension pg_visibility", "select count(*) > 0 from pg_visibility_map('pg_class')", &["t"]),
    extension("create extension pg_walinspect", "select pg_get_wal_record_info('0/0')", &["22023"]),
    extension(
        "create extension pgcrypto",
        "select encode(digest('abc', 'sha256'), 'hex'), crypt('secret', '$2a$04$abcdefghijklmnopqrstuu') = crypt('secret', \
         crypt('secret', '$2a$04$abcdefghijklmnopqrstuu')), pgp_sym_decrypt(pgp_sym_encrypt('data', 'key'), 'key')",
        &["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "t", "data"],
    ),
    extension("create extension seg", "select '1 .. 3'::seg @> '2'::seg", &["t"]),
    extension(
        "create extension moddatetime; create extension autoinc; create extension insert_username; create extension refint",
        "create table t (who text, changed timestamptz default '2000-01-01'); \
         create trigger a before insert on t for each row execute function insert_username(who); \
         create trigger b before update on t for each row execute function moddatetime(changed); \
         insert into t (who) values (null); update t set who = who; select who, changed > '2020-01-01' from t",
        &["postgres", "t"],
    ),
    extension(
        "create extension tablefunc",
        "select * from crosstab('values (1, 1, 10), (1, 2, 20)', 'values (1), (2)') as t (id int, a int, b int)",
        &["1", "10", "20"],
    ),
    extension(
        "create extension tcn",
        "create table t (a int primary key); \
         create trigger tell after insert on t for each row execute function triggered_change_notification('news'); \
         listen news; insert into t values (1)",
        &["news", "\"t\",I,\"a\"='1'"],
    ),
    extension(
        "create extension tsm_system_rows",
        "create table t as select generate_series(1, 1000); select count(*) from t tablesample system_rows(10)",
        &["10"],
    ),
    extension(
        "create extension tsm_system_time",
        "create table t as select generate_series(1, 1000); select count(*) from t tablesample system_time(60000)",
        &["1000"],
    ),
    extension("create extension unaccent", "select unaccent('Hôtel à Łódź')", &["Hotel a Lodz"]),
    extension(
        "create extension \"uuid-ossp\"",
        "select uuid_generate_v5(uuid_ns_dns(), 'example.org'), uuid_generate_v4() <> uuid_generate_v4()",
        &["aad03681-8b63-5304-89e0-8ca8f49461b5", "t"],
    ),
];

fn connect(connections: &Arc<Connections>) -> Local {
    Local::connect(connections, Connect::default()).0
}

/// Tries every extension with what runs SQL in a new session of its own.
fn try_all<S>(new_session: impl Fn() -> S, run: impl Fn(&mut S, &str) -> Vec<Message>) {
    assert_eq!(USES.len(), EXTENSIONS.len(), "one use for every bundle");
    for Use { load, sql, expected } in USES {
        let mut session = new_session();
        assert_eq!(errors(&run(&mut session, load)), [""; 0], "{load}");
        let mut found = outcome(&run(&mut session, sql));
        // A plan may have more lines.
        found.truncate(expected.len());
        assert_eq!(found, *expected, "{load}; {sql}");
    }
}

#[test]
fn every_extension_can_be_created_and_does_what_it_is_for() {
    let connections = cache::connections(Settings::default());
    try_all(|| connect(&connections), Local::query);
}

#[test]
fn every_extension_can_be_created_and_does_what_it_is_for_in_a_shared_cluster() {
    let server = Server::shared();
    let run = |session: &mut Session, sql: &str| {
        session.query(sql);
        session.until_ready()
    };
    let new_session = || {
        let mut session = server.session(&[]);
        // What the extension before has left.
        run(&mut session, "drop table if exists t");
        session
    };
    try_all(new_session, run);
}

#[test]
fn every_extension_that_postgresql_knows_of_has_been_tried() {
    let mut clone = connect(&cache::connections(Settings::default()));
    let known = clone.values("select name from pg_available_extensions where name <> 'plpgsql'");
    let is_of_package = |name: &String| PACKAGES.iter().any(|package| package.extensions.contains(&name.as_str()));
    let known: Vec<String> = known.into_iter().filter(|name| !is_of_package(name)).collect();
    let created =
        USES.iter().flat_map(|used| used.load.split("; ")).filter_map(|load| load.strip_prefix("create extension "));
    let tried = created.map(|name| name.trim_end_matches(" cascade").trim_matches('"').to_owned());
    assert_eq!(known.into_iter().collect::<BTreeSet<_>>(), tried.collect());
}

#[test]
fn an_extension_that_one_session_creates_all_sessions_of_its_cluster_have() {
    let (_server, creator, user) = Peer::two();
    creator.run("create extension citext; create table t (email citext unique); insert into t values ('A@b.org')");
    assert_eq!(user.value("select count(*) from t where email = 'a@B.ORG'"), "1");
    assert_eq!(user.fail("insert into t values ('a@b.org')"), "23505");
    user.run("create extension pg_trgm");
    assert_eq!(creator.value("select similarity('word', 'word')"), "1");
}

#[test]
fn a_library_that_is_loaded_when_the_server_starts_works_in_every_session() {
    let server = Server::with(&["--mode", "shared", "--set", "shared_preload_libraries=pg_stat_statements"]);
    let [one, other] = [(); 2].map(|()| Peer::connect(&server));
    one.run("create extension pg_stat_statements; create table t (a int)");
    for peer in [&one, &other, &one] {
        peer.run("insert into t values (1)");
    }
    let calls = "select calls, rows from pg_stat_statements where query = 'insert into t values ($1)'";
    assert_eq!(other.value(calls), "3|3");
}
