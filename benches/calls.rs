//! Counts the calls between PGlite's functions while a server does what applications do, and writes those that are
//! worth a copy of what they call to `src/instrument/calls.txt` (see `src/instrument/inlining.rs`).
//!
//! Every part of the work counts alike, however many calls it makes.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    sync::Arc,
};

use pglite_port::{
    databases::{Databases, Paths, Settings},
    engine::artefact::{Artefact, PGLITE_WASM},
    engine::cache::Cache,
    guest::calls::take_calls,
    log::LogSink,
    session::Mode,
};
use postgres::{Client, Error, NoTls};
use support::serving::Serving;

/// What is written, from the root of the package.
const FILE: &str = "src/instrument/calls.txt";

/// How many of a million calls in a part of the work a call has to be to be worth a copy. With a tenth of that, the
/// code is a tenth larger and no faster.
const LEAST_SHARE: u64 = 10;

/// The size of the largest function that is copied, in bytes of wasm.
const LARGEST: usize = 800;

/// The tables of the work.
const TABLES: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, branch int NOT NULL, balance int NOT NULL DEFAULT 0, filler char(84));
    INSERT INTO accounts (id, branch) SELECT n, n % 10 FROM generate_series(1, 20000) n;
    CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, name text NOT NULL,
      settings jsonb NOT NULL DEFAULT '{}', tags text[] NOT NULL DEFAULT '{}', born date, made timestamptz DEFAULT now());
    INSERT INTO users (email, name, settings, tags, born)
      SELECT 'user' || n || '@example.org', 'User ' || n, jsonb_build_object('theme', n % 3, 'list', jsonb_build_array(n, n + 1)),
        ARRAY['a' || n % 5, 'b' || n % 7], date '1960-01-01' + n FROM generate_series(1, 5000) n;
    CREATE TABLE items (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), author bigint NOT NULL REFERENCES users,
      title text NOT NULL, price numeric(10, 2) NOT NULL, quantity int NOT NULL, made timestamptz NOT NULL);
    INSERT INTO items (author, title, price, quantity, made)
      SELECT 1 + n % 5000, md5(n::text), n % 977 / 7.0, n % 13, timestamptz '2026-01-01' + n * interval '1 minute'
      FROM generate_series(1, 20000) n;
    CREATE INDEX ON items (author, made);
    CREATE TABLE numbers (a int, b int, c text);
    CREATE INDEX ON numbers (b);
    CREATE TABLE log (id bigserial PRIMARY KEY, account int, delta int, made timestamptz DEFAULT now());
    CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO log (account, delta) VALUES (new.id, new.balance - old.balance); RETURN new; END $$;
    CREATE FUNCTION fibonacci(n int) RETURNS bigint LANGUAGE plpgsql AS $$
      DECLARE a bigint := 0; b bigint := 1; BEGIN FOR i IN 1..n LOOP SELECT b, a + b INTO a, b; END LOOP; RETURN a; END $$;
    ANALYZE;
";

/// A part of the work.
type Part = (&'static str, fn(&mut Client) -> Result<(), Error>);

const PARTS: [Part; 9] = [
    ("simple transactions", simple),
    ("prepared transactions", prepared),
    ("requests of a web application", requests),
    ("many statements in one message", batches),
    ("COPY", copies),
    ("scans, joins, sorts", queries),
    ("types", types),
    ("functions and triggers", functions),
    ("migrations", migrations),
];

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    // Programs that do not count have other code under the same keys.
    let cache = tempfile::tempdir().expect("a directory");
    let paths = Paths { cache: Some(cache.path().to_path_buf()), ..Paths::default() };
    let databases = Databases::open(&paths, Mode::Shared, Settings::default(), LogSink::new(|_, _, _, _| {}));
    let server = Serving::start(Arc::new(databases.expect("databases")));
    let mut client = server.config.connect(NoTls).expect("a session");
    client.batch_execute(TABLES).expect("the tables");
    let mut shares: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for (name, work) in PARTS {
        drop(take_calls());
        work(&mut client).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let calls = take_calls();
        let all: u64 = calls.values().sum();
        println!("{name}: {all} calls of {} kinds", calls.len());
        for (call, count) in calls {
            let most = shares.entry(call).or_default();
            *most = count.saturating_mul(1_000_000).div_euclid(all).max(*most);
        }
    }
    drop(client);
    server.stop();

    let artefact = Artefact::find(None, &Cache::open(Some(cache.path())).expect("a cache")).expect("PGlite");
    let sizes = sizes(&artefact.read(PGLITE_WASM).expect("PGlite's wasm"));
    let mut chosen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for ((caller, callee), share) in shares {
        if sizes.contains_key(&caller)
            && sizes.get(&callee).is_some_and(|&size| size <= LARGEST && share >= LEAST_SHARE)
        {
            chosen.entry(caller).or_default().push(callee);
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let head = fs::read_to_string(&file).expect("the file of before");
    let mut text: String =
        head.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    writeln!(text, "{}", PGLITE_WASM.sha256).expect("memory");
    for (caller, callees) in &chosen {
        let callees: String = callees.iter().map(|callee| format!(" {callee}")).collect();
        writeln!(text, "{caller}{callees}").expect("memory");
    }
    fs::write(&file, text).expect("a disk");
    println!("{FILE}: {} calls of {} functions", chosen.values().map(Vec::len).sum::<usize>(), chosen.len());
}

/// The sizes of the functions that the module defines, by their numbers.
fn sizes(wasm: &[u8]) -> HashMap<u32, usize> {
    let bodies = wasmparser::Parser::new(0).parse_all(wasm).filter_map(|payload| match payload.expect("a module") {
        wasmparser::Payload::CodeSectionEntry(body) => Some(body.range().len()),
        _ => None,
    });
    (0..).zip(bodies).collect()
}

fn simple(client: &mut Client) -> Result<(), Error> {
    for n in 0..2000 {
        let id = 1 + n * 7919 % 20000;
        client.batch_execute(&format!("SELECT balance FROM accounts WHERE id = {id}"))?;
        client.batch_execute("BEGIN")?;
        client.batch_execute(&format!("UPDATE accounts SET balance = balance + {n} WHERE id = {id}"))?;
        client.batch_execute(&format!("SELECT balance, filler FROM accounts WHERE id = {id}"))?;
        client
            .batch_execute(&format!("INSERT INTO log (account, delta, made) VALUES ({id}, {n}, CURRENT_TIMESTAMP)"))?;
        client.batch_execute("END")?;
    }
    Ok(())
}

fn prepared(client: &mut Client) -> Result<(), Error> {
    let read = client.prepare("SELECT balance FROM accounts WHERE id = $1")?;
    let update = client.prepare("UPDATE accounts SET balance = balance + $2 WHERE id = $1")?;
    let insert = client.prepare("INSERT INTO log (account, delta) VALUES ($1, $2)")?;
    for n in 0..2000 {
        let id = 1 + n * 7919 % 20000;
        client.query_one(&read, &[&id])?;
        let mut transaction = client.transaction()?;
        transaction.execute(&update, &[&id, &n])?;
        transaction.query_one(&read, &[&id])?;
        transaction.execute(&insert, &[&id, &n])?;
        transaction.commit()?;
    }
    Ok(())
}

fn requests(client: &mut Client) -> Result<(), Error> {
    let user = client.prepare("SELECT * FROM users WHERE email = $1")?;
    let list = "SELECT i.id, i.title, i.price, u.name FROM items i JOIN users u ON u.id = i.author
      WHERE i.author = $1 ORDER BY i.made DESC LIMIT 20";
    for n in 0..500_i64 {
        let row = client.query_one(&user, &[&format!("user{}@example.org", 1 + n * 31 % 5000)])?;
        let id: i64 = row.get(0);
        // As drivers do that prepare each statement once only.
        client.query(list, &[&id])?;
        client.execute(
            "INSERT INTO items (author, title, price, quantity, made) VALUES ($1, $2, 9.99, 3, now())",
            &[&id, &format!("item {n}")],
        )?;
        client.execute("UPDATE users SET settings = settings || '{\"seen\": true}' WHERE id = $1", &[&id])?;
        client.query("SELECT count(*), sum(price * quantity) FROM items WHERE author = $1", &[&id])?;
    }
    Ok(())
}

fn batches(client: &mut Client) -> Result<(), Error> {
    for indexed in [true, false] {
        client.batch_execute(if indexed {
            "TRUNCATE numbers"
        } else {
            "DROP INDEX numbers_b_idx; TRUNCATE numbers"
        })?;
        let inserts: String =
            (0..5000).map(|n| format!("INSERT INTO numbers VALUES ({n}, {}, 'number {n}');", n * 31 % 5003)).collect();
        client.batch_execute(&format!("BEGIN; {inserts} COMMIT"))?;
        client.batch_execute("CREATE INDEX IF NOT EXISTS numbers_b_idx ON numbers (b)")?;
        let mut changes = String::new();
        for n in 0..2000 {
            let _ = write!(changes, "UPDATE numbers SET a = {n}, c = 'changed {n}' WHERE b = {n};");
            let _ = write!(changes, "SELECT count(*), avg(a) FROM numbers WHERE b >= {n} AND b < {};", n + 10);
            if n % 4 == 0 {
                let _ = write!(changes, "DELETE FROM numbers WHERE b = {};", n + 2500);
            }
        }
        client.batch_execute(&changes)?;
    }
    Ok(())
}

fn copies(client: &mut Client) -> Result<(), Error> {
    client.batch_execute("CREATE TEMP TABLE copied (a int, b bigint, c text, d float8, e timestamp)")?;
    let mut writer = client.copy_in("COPY copied FROM STDIN")?;
    for n in 0..20_000_i64 {
        writeln!(writer, "{n}\t{}\tline {n}\t{}\t2026-11-{:02} 10:11:12", n * n, n, 1 + n % 28).expect("a session");
    }
    writer.finish()?;
    std::io::copy(&mut client.copy_out("COPY copied TO STDOUT")?, &mut std::io::sink()).expect("a session");
    std::io::copy(&mut client.copy_out("COPY copied TO STDOUT (FORMAT csv)")?, &mut std::io::sink())
        .expect("a session");
    client.query("SELECT * FROM copied", &[])?;
    client.batch_execute("DROP TABLE copied")
}

fn queries(client: &mut Client) -> Result<(), Error> {
    client.batch_execute(
        "SELECT count(*), sum(balance), avg(branch) FROM accounts WHERE filler IS NULL;
         SELECT author, count(*), sum(price) FROM items GROUP BY author ORDER BY 3 DESC LIMIT 10;
         SELECT u.name, count(i.id) FROM users u LEFT JOIN items i ON i.author = u.id GROUP BY u.id HAVING count(i.id) > 2;
         SELECT * FROM items ORDER BY title;
         SELECT * FROM items ORDER BY price, made DESC OFFSET 15000;
         SELECT count(*) FROM users a JOIN users b ON a.id = b.id + 1;
         SELECT count(*) FROM items WHERE title LIKE '%abc%';
         SELECT count(*) FROM items WHERE title ~ 'a[0-9]+b';
         SELECT title, rank() OVER (PARTITION BY author ORDER BY made) FROM items;
         SELECT DISTINCT quantity, round(price) FROM items;
         WITH RECURSIVE tree (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM tree WHERE n < 20000) SELECT sum(n) FROM tree;
         SELECT count(*) FROM accounts a WHERE EXISTS (SELECT FROM accounts b WHERE b.id = a.balance + a.id);
         SELECT count(*) FROM users WHERE id IN (SELECT author FROM items WHERE quantity > 6);
         SELECT count(*) FROM numbers a, numbers b WHERE a.b < 100 AND b.b < 100;
         UPDATE accounts SET balance = balance + 1 WHERE branch = 3;
         DELETE FROM numbers WHERE b % 2 = 0;
         INSERT INTO numbers SELECT a + 10000, b + 10000, c FROM numbers;",
    )?;
    client.batch_execute("VACUUM numbers")
}

fn types(client: &mut Client) -> Result<(), Error> {
    client.batch_execute(
        "SELECT id, settings ->> 'theme', settings #> '{list,1}', jsonb_array_length(settings -> 'list') FROM users;
         SELECT count(*) FROM users WHERE settings @> '{\"theme\": 1}' OR 'a3' = ANY (tags);
         SELECT jsonb_agg(jsonb_build_object('id', id, 'name', name)) FROM users;
         SELECT unnest(tags), count(*) FROM users GROUP BY 1;
         SELECT upper(name), length(email), split_part(email, '@', 1), replace(name, 'User', 'U') || id FROM users;
         SELECT to_char(made, 'YYYY-MM-DD HH24:MI'), date_trunc('hour', made), extract(epoch FROM made) FROM items;
         SELECT age(born), born + interval '1 month', now() - made FROM users;
         SELECT sum(price), avg(price), round(stddev(price), 3), max(price * 1.19) FROM items GROUP BY quantity;
         SELECT md5(title), encode(sha256(title::bytea), 'hex'), substr(title, 3, 5) FROM items LIMIT 5000;
         SELECT n::float8 / 3, sqrt(n), n % 7, n::text, n::bigint * 100000, (n / 2)::numeric FROM generate_series(1, 20000) n;
         SELECT CASE WHEN quantity > 5 THEN 'many' ELSE 'few' END, coalesce(nullif(quantity, 0), -1) FROM items;
         SELECT to_tsvector('english', name) @@ to_tsquery('english', 'user') FROM users LIMIT 1000;",
    )
}

fn functions(client: &mut Client) -> Result<(), Error> {
    client.batch_execute(
        "CREATE TRIGGER logged AFTER UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION logged();
         UPDATE accounts SET balance = balance + 1 WHERE id <= 2000;
         DROP TRIGGER logged ON accounts;
         SELECT fibonacci(n % 60) FROM generate_series(1, 500) n;
         DO $$ DECLARE s bigint := 0; r record; BEGIN
           FOR i IN 1..50000 LOOP s := s + i % 7; IF s > 100000 THEN s := 0; END IF; END LOOP;
           FOR r IN SELECT * FROM users LOOP s := s + length(r.name); END LOOP;
           FOR i IN 1..500 LOOP
             BEGIN PERFORM 1 / (i % 2); EXCEPTION WHEN division_by_zero THEN s := s + 1; END;
           END LOOP;
         END $$;",
    )
}

fn migrations(client: &mut Client) -> Result<(), Error> {
    for n in 0..20 {
        client.batch_execute(&format!(
            "CREATE TABLE made_{n} (id bigserial PRIMARY KEY, name varchar(255) NOT NULL, at timestamp(0) NOT NULL);
             CREATE UNIQUE INDEX ON made_{n} (name);
             ALTER TABLE made_{n} ADD COLUMN owner bigint REFERENCES users ON DELETE CASCADE;
             CREATE INDEX ON made_{n} (owner);
             INSERT INTO made_{n} (name, at) VALUES ('a', now()), ('b', now());
             ALTER TABLE made_{n} ALTER COLUMN name TYPE text, ADD CHECK (name <> '');
             CREATE VIEW seen_{n} AS SELECT id, name FROM made_{n};"
        ))?;
        client.query(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c
             JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'public' AND a.attnum > 0 ORDER BY 1, a.attnum",
            &[],
        )?;
        client.query("SELECT table_name, column_name, data_type FROM information_schema.columns LIMIT 200", &[])?;
    }
    for n in 0..20 {
        client.batch_execute(&format!("DROP VIEW seen_{n}; DROP TABLE made_{n}"))?;
    }
    Ok(())
}
