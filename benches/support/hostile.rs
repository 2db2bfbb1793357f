//! Statements of an unprivileged role that compute for long without a check for interrupts, move a lot of memory at
//! once, or hold locks that other sessions may want.

// Few of them are short.
#![allow(missing_docs, unreachable_pub)]

/// A statement that is measured.
pub struct Hostile {
    /// What it does.
    pub what: &'static str,
    /// What is run before it, without being measured.
    pub setup: String,
    /// The statement, or several of them.
    pub sql: String,
}

fn of(what: &'static str, sql: impl Into<String>) -> Hostile {
    after("", what, sql)
}

fn after(setup: impl Into<String>, what: &'static str, sql: impl Into<String>) -> Hostile {
    Hostile { what, setup: setup.into(), sql: sql.into() }
}

/// `part` so many times, each with its number instead of `#`.
fn each(count: u32, separator: &str, part: &str) -> String {
    (1..=count).map(|number| part.replace('#', &number.to_string())).collect::<Vec<_>>().join(separator)
}

/// A table with so many rows of random numbers and words.
fn table(rows: u32) -> String {
    format!(
        "drop table if exists big; create unlogged table big as select n, random() as x, md5(n::text) as word, \
         to_tsvector('simple', md5(n::text) || ' w' || n % 100) as document, array[n % 7, n % 100, n] as numbers, \
         point(random(), random()) as place, jsonb_build_object('a', n, 'b', array[n, n + 1]) as json \
         from generate_series(1, {rows}) n"
    )
}

/// Many tables in a schema.
fn tables(count: u32) -> String {
    format!(
        "drop schema if exists many cascade; create schema many; do $$ begin \
         for n in 1..{count} loop execute format('create table many.t%s (a int primary key, b text)', n); \
         end loop; end $$"
    )
}

/// All of them.
pub fn statements() -> Vec<Hostile> {
    [commands(), planning(), texts(), values(), numbers(), extensions(), tables_and_files()]
        .into_iter()
        .flatten()
        .collect()
}

/// What creates, drops, locks and tells.
fn commands() -> Vec<Hostile> {
    vec![
        after(
            "set statement_timeout = 0",
            "first CREATE EXTENSION pgcrypto",
            "drop extension if exists pgcrypto; create extension pgcrypto",
        ),
        after(
            format!("set statement_timeout = 0; {}", tables(1000)),
            "LOCK of 1,000 tables",
            format!("begin; lock table {} in access exclusive mode; commit", each(1000, ", ", "many.t#")),
        ),
        of("TRUNCATE of 1,000 tables", format!("truncate {}", each(1000, ", ", "many.t#"))),
        of("ANALYZE of 1,000 tables", format!("analyze {}", each(1000, ", ", "many.t#"))),
        of("VACUUM of 1,000 tables", format!("vacuum {}", each(1000, ", ", "many.t#"))),
        of(
            "sizes of all relations",
            "select sum(pg_total_relation_size(c.oid)) from pg_class c, generate_series(1, 20)",
        ),
        of("300 tables that come and go", format!("{}; drop schema many cascade", tables(300))),
        of(
            "5,000 prepared statements",
            each(5000, "; ", "prepare p# as select # from pg_class, pg_attribute") + "; deallocate all",
        ),
        of(
            "100,000 advisory locks",
            "select count(pg_advisory_lock(1, n)) from generate_series(1, 8000) n; select pg_advisory_unlock_all()",
        ),
        of(
            "notifications of 7 MB",
            "listen c; select count(pg_notify('c', n || repeat('x', 7000))) from generate_series(1, 1000) n",
        ),
        of(
            "100,000 subtransactions",
            "do $$ declare n int := 0; begin for i in 1..100000 loop begin n := 1 / (i % 2); exception when others then null; end; end loop; end $$",
        ),
        of(
            "unwinding of a deep stack",
            "create or replace function deep(n int) returns int language plpgsql as $$ begin begin return deep(n + 1); exception when division_by_zero then return 0; end; end $$; select deep(1)",
        ),
        of(
            "a loop of plpgsql",
            "do $$ declare n bigint := 0; begin for i in 1..100000000 loop n := n + i; end loop; end $$",
        ),
        of(
            "plpgsql that builds an array",
            "do $$ declare a int[]; begin for i in 1..30000 loop a := a || array[i, i]; a := array_remove(a, -1); end loop; end $$",
        ),
        of("a large object of 200 MB", "select lo_unlink(lo_from_bytea(0, repeat('x', 200000000)::bytea))"),
    ]
}

/// What is long to parse, to analyse and to plan.
fn planning() -> Vec<Hostile> {
    let chain = |links: u32| {
        format!(
            "with c0 as (select 1 as x){} select x from c{links}",
            (1..=links).map(|n| format!(", c{n} as (select x from c{})", n - 1)).collect::<String>()
        )
    };
    let join = |tables| {
        format!(
            "explain select from {} where {}",
            each(tables, ", ", "pg_class c#"),
            (2..=tables).map(|n| format!("c{}.oid = c{n}.relnamespace", n - 1)).collect::<Vec<_>>().join(" and ")
        )
    };
    vec![
        of("1,000 chained CTEs", chain(1000)),
        of("2,000 chained CTEs", chain(2000)),
        of(
            "a join of 13 tables without GEQO",
            format!("set geqo = off; set join_collapse_limit = 20; set from_collapse_limit = 20; {}", join(13)),
        ),
        of(
            "a join of 60 tables with GEQO",
            format!(
                "set geqo = on; set geqo_effort = 10; set join_collapse_limit = 100; set from_collapse_limit = 100; {}",
                join(60)
            ),
        ),
        of(
            "IN with a million numbers",
            format!("select count(*) from pg_class where oid in ({})", each(1_000_000, ",", "#")),
        ),
        of("VALUES with 300,000 rows", format!("select count(*) from (values {}) v", each(300_000, ",", "(#,'#')"))),
        of(
            "OR of 100,000 comparisons",
            format!("select count(*) from pg_class where {}", each(100_000, " or ", "relpages = #")),
        ),
        of(
            "a sum of 4,000 terms",
            format!("explain verbose select {} from pg_class", each(4000, " + ", "relpages * #")),
        ),
        of("UNION of 3,000 queries", each(3000, " union ", "select # as x")),
        of(
            "EXPLAIN of 1,600 columns, 100 times",
            each(100, "; ", &format!("explain verbose select {} from pg_class", each(1600, ", ", "relpages + 1"))),
        ),
        of("a string of 100 MB", format!("select length('{}')", "x".repeat(100_000_000))),
        of("a parse error after 50 MB", format!("select {} from", each(5_000_000, ",", "#"))),
    ]
}

/// Functions on long texts.
fn texts() -> Vec<Hostile> {
    vec![
        of("normalize() of 20 M characters", "select length(normalize(repeat('e' || chr(769), 10000000), NFC))"),
        of(
            "upper(), lower(), initcap() of 100 MB",
            "select length(upper(x)), length(lower(x)), length(initcap(x)) from (select repeat('aB ', 33000000) x) t",
        ),
        of("upper() by ICU of 50 MB", "select length(upper(repeat('aé', 15000000) collate \"und-x-icu\"))"),
        of(
            "replace(), translate(), reverse() of 100 MB",
            "select length(replace(x, 'a', 'bc')), length(translate(x, 'a', 'b')), length(reverse(x)) from (select repeat('aé', 30000000) x) t",
        ),
        of(
            "overlay() and position() of 200 MB",
            "select length(overlay(x placing 'y' from 100000000)), position('xy' in x) from (select repeat('x', 200000000) x) t",
        ),
        of(
            "concatenations of 400 MB",
            "select length(x || x), length(x || 'y' || x) from (select repeat('x', 400000000) x) t",
        ),
        of(
            "a comparison of 400 MB",
            "select count(*) from (select repeat('x', 400000000) x, repeat('x', 400000000) y) t where x = y or x < y",
        ),
        of("string_to_array() of 50 MB", "select cardinality(string_to_array(repeat('a,', 25000000), ','))"),
        of(
            "string_agg() of 300 MB",
            "select length(string_agg(repeat('x', 1000), ',')) from generate_series(1, 300000)",
        ),
        of(
            "format() and quote of 100 MB",
            "select length(format('%L %I %s', x, left(x, 60), x)) from (select repeat('a''', 50000000) x) t",
        ),
        of("regexp_replace() of 30 MB", "select length(regexp_replace(repeat('ab1', 10000000), '[0-9]+', 'xx', 'g'))"),
        of(
            "regexp_split_to_array() of 5 MB",
            "select cardinality(regexp_split_to_array(repeat('ab1', 1500000), '[0-9]'))",
        ),
        of(
            "a regular expression with 300 branches",
            "select 'x' ~ ('^(' || string_agg(md5(n::text), '|') || ')*$') from generate_series(1, 300) n",
        ),
        of("a regular expression that backtracks", r"select repeat('ab', 3000) ~ '^((a|b)*)(\1)(\2)*c$'"),
        of("a regular expression with repetitions", "select repeat('a', 100000) ~ '(a{1,30}){1,30}b'"),
        of("SIMILAR TO that backtracks", "select repeat('a', 200000) similar to '(a|aa)*(a|aaa)*b'"),
        of("LIKE with many %", "select repeat('a', 30000) like '%a%a%a%a%a%b%'"),
        of("LIKE without case", "select repeat('a', 100000) ilike '%a%a%a%b'"),
        of("md5() of 500 MB", "select md5(repeat('x', 500000000))"),
        of("sha512() of 200 MB", "select sha512(repeat('x', 200000000)::bytea)"),
        of(
            "encode() and decode() of 100 MB",
            "select length(decode(encode(x, 'hex'), 'hex')), length(decode(encode(x, 'base64'), 'base64')), length(encode(x, 'escape')) from (select repeat('x', 100000000)::bytea x) t",
        ),
        of("bytea as text of 100 MB", "select length(repeat('x', 100000000)::bytea::text)"),
        of(
            "convert_to() and convert_from() of 50 MB",
            "select length(convert_from(convert_to(repeat('é', 25000000), 'LATIN1'), 'LATIN1'))",
        ),
        of(
            "convert() to GB18030 and EUC_JP of 50 MB",
            "select length(convert_to(repeat('語', 16000000), 'GB18030')), length(convert_to(repeat('語', 16000000), 'EUC_JP'))",
        ),
        of(
            "to_tsvector() of 900 kB",
            "select length(to_tsvector('english', string_agg('running' || n, ' '))) from generate_series(1, 60000) n",
        ),
        of(
            "ts_headline() of 5 MB",
            "select length(ts_headline('english', repeat('the cats are running far ', 200000), to_tsquery('cat & far')))",
        ),
        of(
            "a tsquery of 10,000 terms",
            "select numnode(string_agg(md5(n::text), '|')::tsquery) from generate_series(1, 10000) n; select to_tsvector('simple', string_agg(n::text, ' ')) @@ string_agg(n::text, '<->')::tsquery from generate_series(1, 3000) n",
        ),
        of(
            "a sort by ICU",
            "select count(*) from (select md5(n::text) collate \"und-x-icu\" x from generate_series(1, 300000) n order by 1) t",
        ),
        of(
            "a sort of long equal texts",
            "select count(*) from (select (repeat('x', 1000000) || n) collate \"C\" x from generate_series(1, 200) n order by 1 desc offset 0) t",
        ),
        of(
            "compression of 300 MB",
            "create temp table if not exists toasted (x text); truncate toasted; insert into toasted values (repeat('abcdefgh' || md5('x'), 7000000))",
        ),
        of("decompression of 300 MB", "select length(x || ''), md5(x) from toasted"),
    ]
}

/// Functions on large arrays, documents, shapes and ranges.
fn values() -> Vec<Hostile> {
    vec![
        of("array_fill() of 100 M", "select cardinality(array_fill(0, array[100000000]))"),
        of("array_cat() of 400 MB", "select cardinality(x || x) from (select array_fill(0, array[50000000]) x) t"),
        of(
            "array_agg(), unnest() and sort of 5 M",
            "select cardinality(array_agg(n order by n desc)) from unnest((select array_agg(n) from generate_series(1, 3000000) n)) n",
        ),
        of(
            "array comparisons of 20 M",
            "select x = x, x @> array[-1], array_position(x, -1) from (select array_fill(1, array[20000000]) x) t",
        ),
        of("an array as text of 20 M", "select length(array_fill(1, array[20000000])::text)"),
        of("a text as array of 10 M", "select cardinality(('{' || repeat('1,', 10000000) || '1}')::int[])"),
        of("jsonb of 20 M elements", "select jsonb_array_length(('[' || repeat('1,', 5000000) || '1]')::jsonb)"),
        of("jsonb of many keys", "select length(jsonb_object_agg(n::text, n)::text) from generate_series(1, 500000) n"),
        of(
            "jsonb that is deep",
            "select length((repeat('[', 2000) || repeat(']', 2000))::jsonb::text) from generate_series(1, 200)",
        ),
        of("json of 200 MB", "select json_typeof(('[' || repeat('1234567,', 25000000) || '1]')::json)"),
        of(
            "jsonb_pretty() and a path of 3 M elements",
            "select length(jsonb_pretty(x)), jsonb_path_exists(x, '$[*] ? (@ == 2)') from (select ('[' || repeat('1,', 3000000) || '1]')::jsonb x) t",
        ),
        of(
            "concatenations of jsonb",
            "do $$ declare x jsonb := '[]'; begin for i in 1..3000 loop x := x || jsonb_build_array(i, repeat('x', 100)); end loop; end $$",
        ),
        of("rows as json", "select length(json_agg(c)::text) from pg_class c, generate_series(1, 200)"),
        of(
            "xmlagg() of 20 MB",
            "select length(xmlagg(xmlelement(name a, repeat('x', 1000)))::text) from generate_series(1, 20000)",
        ),
        of(
            "polygons of 10,000 points",
            "select x && x, x @> x, x <-> x from (select polygon(10000, circle '<(0,0),1>') x) t",
        ),
        of(
            "a polygon of 1 M points",
            "select area(path(x)), npoints(x), length(x::text) from (select polygon(1000000, circle '<(0,0),1>') x) t",
        ),
        of(
            "a multirange of 300,000 ranges",
            "select length(range_agg(int4range(n * 2, n * 2 + 1) order by random())::text) from generate_series(1, 300000) n",
        ),
        of(
            "bit strings of 50 MB",
            "select bit_count(x), length(x << 3), length(~x), position(B'1111' in x) from (select repeat('10', 25000000)::varbit x) t",
        ),
        of(
            "bytea bits of 200 MB",
            "select bit_count(set_byte(x, 5, 1)), x = set_bit(x, 7, 1) from (select repeat('x', 200000000)::bytea x) t",
        ),
    ]
}

/// Long numbers, and queries that only compute.
fn numbers() -> Vec<Hostile> {
    vec![
        of("factorial(20000)", "select length(factorial(20000)::text)"),
        of(
            "numeric multiplication of 130,000 digits",
            "select length((repeat('9', 60000)::numeric * repeat('8', 60000)::numeric)::text)",
        ),
        of(
            "numeric division of 130,000 digits",
            "select length(div(repeat('9', 130000)::numeric, repeat('8', 60000)::numeric)::text)",
        ),
        of(
            "numeric power and exp",
            "select length((2.0000000001::numeric(1000,500) ^ 9999)::text), length(exp(4999.5::numeric(1000,900))::text)",
        ),
        of(
            "numeric sqrt and ln",
            "select length(sqrt(repeat('7', 100000)::numeric)::text), length(ln(repeat('7', 400)::numeric(900,400))::text)",
        ),
        of("numeric gcd", "select gcd(repeat('7', 30000)::numeric, repeat('9', 29999)::numeric)"),
        of(
            "window functions",
            "select sum(r) from (select rank() over (order by n % 1000) + count(*) over (order by n rows between 1000 preceding and current row) r from generate_series(1, 1000000) n) t",
        ),
        of(
            "a recursive query",
            "with recursive r as (select 1::bigint n union all select n + 1 from r where n < 3000000) select sum(n) from r",
        ),
        of(
            "lateral joins",
            "select count(*) from generate_series(1, 3000) a, lateral (select a * b from generate_series(1, 3000) b) t",
        ),
        of("a cross join", "select count(*) from generate_series(1, 100000) a, generate_series(1, 100000) b"),
        of("generate_series() of 100 M", "select count(*) from (select generate_series(1, 100000000) offset 0) t"),
    ]
}

/// Functions of extensions.
fn extensions() -> Vec<Hostile> {
    let made = "create extension if not exists";
    vec![
        after(format!("{made} pg_trgm"), "similarity() of 100 MB", "select similarity(repeat('abc', 33000000), 'xyz')"),
        of(
            "word_similarity() of 300 kB",
            "select word_similarity(repeat('abcdef ', 3000), repeat('fedcba abc ', 30000))",
        ),
        of("crypt() with 2^12 rounds", "select crypt('secret', gen_salt('bf', 12))"),
        of(
            "digest() and hmac() of 300 MB",
            "select digest(x, 'sha256'), hmac(x, 'key', 'md5') from (select repeat('x', 300000000)::bytea x) t",
        ),
        of("encryption of 100 MB", "select length(encrypt(repeat('x', 100000000)::bytea, 'key', 'aes'))"),
        of(
            "PGP with a slow key",
            "select length(pgp_sym_encrypt(repeat('x', 20000000), 'key', 's2k-count=65000000, compress-algo=0'))",
        ),
        after(
            format!("{made} fuzzystrmatch"),
            "levenshtein()",
            "select sum(levenshtein(repeat('ab', 127), repeat('ba', 127))) from generate_series(1, 3000)",
        ),
        after(
            format!("{made} hstore"),
            "hstore of 300,000 pairs",
            "select length(hstore(array_agg(n::text), array_agg(n::text))::text) from generate_series(1, 300000) n",
        ),
        after(
            format!("{made} intarray"),
            "intarray of 10 M",
            "select icount(sort(uniq(array_fill(1, array[10000000])))), icount(sort_desc((select array_agg((random() * 1e9)::int) from generate_series(1, 1000000))))",
        ),
        after(
            format!("{made} ltree"),
            "ltree of 60,000 labels",
            "select nlevel(string_agg('a', '.')::ltree), string_agg('a', '.')::ltree ~ '*.a.*.a.*.a.*.b' from generate_series(1, 3000)",
        ),
        after(format!("{made} unaccent"), "unaccent() of 50 MB", "select length(unaccent(repeat('é', 25000000)))"),
        after(
            format!("{made} cube"),
            "cubes",
            "select sum(cube_distance(cube(array_fill(1.0, array[100])), cube(array_fill(2.0, array[100])))) from generate_series(1, 300000)",
        ),
    ]
}

/// Indexes, sorts, joins and copies of tables.
fn tables_and_files() -> Vec<Hostile> {
    vec![
        after(
            format!("set statement_timeout = 0; {}", table(300_000)),
            "CREATE INDEX gin of documents",
            "create index on big using gin (document)",
        ),
        of("CREATE INDEX gin of jsonb", "create index on big using gin (json)"),
        of("CREATE INDEX gin of trigrams", "create index on big using gin (word gin_trgm_ops)"),
        of("CREATE INDEX gist", "create index on big using gist (place)"),
        of("CREATE INDEX spgist", "create index on big using spgist (place)"),
        of("CREATE INDEX brin", "create index on big using brin (n)"),
        of("CREATE INDEX hash", "create index on big using hash (word)"),
        after("create index word on big (word)", "CLUSTER", "cluster big using word"),
        of("REINDEX", "reindex table big"),
        of("VACUUM FULL", "vacuum full big"),
        of("UPDATE of everything", "update big set n = n + 1"),
        after("delete from big where n % 2 = 0", "VACUUM of half a table", "vacuum big"),
        of("ANALYZE", "set default_statistics_target = 10000; analyze big; reset default_statistics_target"),
        of("a hash join in files", "set work_mem = '64kB'; select count(*) from big a join big b using (word)"),
        of("a sort in files", "set work_mem = '64kB'; select count(*) from (select * from big order by word) t"),
        of(
            "a sort in memory",
            "set work_mem = '1GB'; select count(*) from (select * from big, generate_series(1, 3) order by word, x) t",
        ),
        of(
            "CREATE TABLE AS of 300 MB",
            "create table copied as select repeat(md5(n::text), 30) from generate_series(1, 300000) n; drop table copied",
        ),
        of("COPY of 50 MB to the client", "copy (select repeat('x', 50000000)) to stdout"),
        of(
            "a hash table of 3 M groups",
            "set work_mem = '1GB'; select count(*) from (select n from generate_series(1, 3000000) n group by n) t",
        ),
        of(
            "TABLESAMPLE and percentiles",
            "select percentile_disc(array(select n / 1000.0 from generate_series(0, 1000) n)) within group (order by x), mode() within group (order by word) from big tablesample bernoulli (90)",
        ),
    ]
}
