//! A clone answers as a backend that has just been booted on the same files: byte for byte, whatever it is asked.
//!
//! What must differ is not asked for (random numbers, times) or made equal before comparing: process id and cancel
//! key, and the numbers that PostgreSQL gives to new objects, of which a booted backend skips some, as after a crash.

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use pglite_port::{
    connection::Connections,
    databases::{Settings, Start},
};
use proptest::{prelude::*, sample::select};
use support::{
    cache,
    local::{Connect, Local},
    wire::{self, Message},
};

/// The first number that PostgreSQL gives to an object of a user (`FirstNormalObjectId` in
/// `src/include/access/transam.h`).
const FIRST_NORMAL_OBJECT: u32 = 16384;

static CLONED: LazyLock<Arc<Connections>> = LazyLock::new(|| with(Start::Clone));
static BOOTED: LazyLock<Arc<Connections>> = LazyLock::new(|| with(Start::Boot));

/// A template whose clones have PL/pgSQL's library loaded, because it has a function in it.
static WITH_PLPGSQL: LazyLock<&str> = LazyLock::new(|| {
    const NAME: &str = "clone_same_result";
    let mut local = Local::connect(&CLONED, Connect::default()).0;
    local.values("CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$");
    local.freeze(NAME);
    NAME
});

fn with(start: Start) -> Arc<Connections> {
    cache::connections(Settings { start, ..Settings::default() })
}

/// Something that a client does, up to the next `ReadyForQuery`.
#[derive(Clone, Debug)]
struct Step(Vec<u8>);

fn sql(statement: impl AsRef<str>) -> Step {
    Step(wire::query(statement.as_ref()))
}

fn extended(statement: &str, parameters: &[Option<&str>]) -> Step {
    let messages = [
        wire::parse("", statement),
        wire::bind("", "", parameters),
        wire::describe(b'P', ""),
        wire::execute("", 0),
        wire::sync(),
    ];
    Step(messages.concat())
}

fn copy_in(table: &str, rows: &str) -> Step {
    let data = wire::message(b'd', rows.as_bytes());
    // Where there is nothing to copy to, PostgreSQL skips the rows.
    Step([wire::query(&format!("COPY {table} FROM STDIN")), data, wire::message(b'c', b"")].concat())
}

fn table() -> impl Strategy<Value = &'static str> {
    select(vec!["t", "u", "v"])
}

fn number() -> impl Strategy<Value = i32> {
    prop_oneof![0..20, any::<i32>()]
}

/// Definitions.
fn definition() -> impl Strategy<Value = Step> {
    prop_oneof![
        table().prop_map(|t| sql(format!("CREATE TABLE {t} (a int PRIMARY KEY, b text DEFAULT 'none', c numeric)"))),
        table().prop_map(|t| sql(format!("DROP TABLE IF EXISTS {t} CASCADE"))),
        (table(), table()).prop_map(|(t, u)| sql(format!(
            "CREATE OR REPLACE VIEW w AS SELECT {t}.a, {u}.b FROM {t} JOIN {u} USING (a)"
        ))),
        table().prop_map(|t| sql(format!("CREATE INDEX ON {t} (b)"))),
        table().prop_map(|t| sql(format!("ALTER TABLE {t} ADD CHECK (a < 1000000)"))),
        table().prop_map(|t| sql(format!("ALTER TABLE {t} ADD COLUMN d int GENERATED ALWAYS AS (a * 2) STORED"))),
        Just(sql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")),
        Just(sql("SELECT 'happy'::mood > 'sad'::mood, 'happy'::mood")),
        Just(sql("CREATE SEQUENCE s START 5; SELECT nextval('s'), currval('s')")),
        Just(sql("DROP EXTENSION IF EXISTS plpgsql CASCADE")),
        Just(sql("CREATE EXTENSION IF NOT EXISTS plpgsql")),
        Just(sql(
            "SELECT relname, relkind, relnatts FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        )),
    ]
}

/// Reading and writing rows.
fn rows() -> impl Strategy<Value = Step> {
    prop_oneof![
        (table(), number())
            .prop_map(|(t, n)| sql(format!("INSERT INTO {t} (a, c) VALUES ({n}, {n} / 7.0) RETURNING *"))),
        (table(), number()).prop_map(|(t, n)| sql(format!(
            "INSERT INTO {t} (a) SELECT {n}::bigint + i FROM generate_series(1, 50) i ON CONFLICT DO NOTHING"
        ))),
        (table(), number())
            .prop_map(|(t, n)| sql(format!("UPDATE {t} SET b = b || '{n}', c = c + 1 WHERE a % 3 = {n} % 3"))),
        (table(), number()).prop_map(|(t, n)| sql(format!("DELETE FROM {t} WHERE a > {n}"))),
        table().prop_map(|t| sql(format!("SELECT * FROM {t} ORDER BY a LIMIT 20"))),
        table().prop_map(|t| sql(format!("SELECT count(*), sum(c), string_agg(b, ',' ORDER BY a) FROM {t}"))),
        Just(sql("SELECT * FROM w ORDER BY 1, 2")),
        table().prop_map(|t| sql(format!("VACUUM FULL {t}"))),
        table().prop_map(|t| sql(format!("ANALYZE {t}; SELECT reltuples FROM pg_class WHERE relname = '{t}'"))),
        table().prop_map(|t| sql(format!("EXPLAIN (COSTS OFF) SELECT * FROM {t} WHERE a = 1"))),
        table().prop_map(|t| sql(format!("COPY (SELECT a, b FROM {t} ORDER BY a) TO STDOUT"))),
        (table(), number(), number()).prop_map(|(t, m, n)| copy_in(t, &format!("{m}\tcopied\t\\N\n{n}\t\\\\\t1.5\n"))),
        (table(), number()).prop_map(|(t, n)| extended(
            &format!("SELECT a, b FROM {t} WHERE a <= $1 ORDER BY a"),
            &[Some(&n.to_string())]
        )),
        (table(), number())
            .prop_map(|(t, n)| extended(&format!("INSERT INTO {t} VALUES ($1, $2)"), &[Some(&n.to_string()), None])),
    ]
}

/// Transactions, sessions, functions, errors.
fn control() -> impl Strategy<Value = Step> {
    let recurse = "DO $$ DECLARE n int := 0; BEGIN
        FOR i IN 1..5 LOOP BEGIN n := n + 10 / (i - 3); EXCEPTION WHEN division_by_zero THEN RAISE NOTICE 'caught at %', i; END; END LOOP;
        RAISE NOTICE 'n = %', n; END $$";
    prop_oneof![
        Just(sql("BEGIN")),
        Just(sql("COMMIT")),
        Just(sql("ROLLBACK")),
        Just(sql("SAVEPOINT a")),
        Just(sql("ROLLBACK TO a")),
        Just(sql("SELECT 1 / 0")),
        Just(sql("SELEC 1")),
        Just(sql("")),
        Just(sql("VACUUM")),
        Just(sql("CHECKPOINT")),
        Just(sql(recurse)),
        Just(sql(
            "CREATE OR REPLACE FUNCTION f(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF n < 2 THEN RETURN n; END IF; RETURN f(n - 1) + f(n - 2); END $$"
        )),
        (0..12).prop_map(|n| sql(format!("SELECT f({n})"))),
        Just(sql("PREPARE p (int) AS SELECT $1 + 1")),
        number().prop_map(|n| sql(format!("EXECUTE p ({n})"))),
        Just(sql("DEALLOCATE ALL")),
        Just(sql("DISCARD ALL")),
        Just(sql("SET client_encoding = 'LATIN1'; SELECT 'ä'; RESET client_encoding")),
        Just(sql("SELECT to_tsvector('english', 'The quick foxes jumped'), to_tsquery('german', 'Häuser')")),
        Just(sql("SHOW work_mem; SET work_mem = '8MB'; SHOW work_mem")),
        Just(sql(
            "SELECT name, setting FROM pg_settings WHERE name IN ('shared_buffers', 'fsync', 'max_connections') ORDER BY 1"
        )),
        Just(sql("SELECT current_user, current_database(), version()")),
        Just(sql("LISTEN l; NOTIFY l, 'hello'")),
        Just(sql(
            "SELECT jsonb_path_query('{\"a\": [1, 2]}', '$.a[*]'), '{1,2}'::int[] || 3, interval '1 day' * 2, 'x'::xml"
        )),
        Just(extended("SELECT $1::int / $2::int", &[Some("7"), Some("0")])),
    ]
}

/// Makes equal what must differ.
#[derive(Default)]
struct Names(HashMap<u32, u32>);

impl Names {
    fn normalize(&mut self, message: &mut Message) {
        match message.kind {
            b'K' => message.body.clear(),
            // A notification names the process that sent it, which is 42 in both.
            b'T' => {
                let mut at = 2;
                while at < message.body.len() {
                    at += message.body[at..].iter().position(|byte| *byte == 0).expect("a name") + 1;
                    // Table at 0, type at 6, of a field of 18 bytes (PostgreSQL manual, "Message Formats",
                    // RowDescription).
                    for place in [at, at + 6] {
                        let number: &mut [u8; 4] =
                            (&mut message.body[place..place + 4]).try_into().expect("four bytes");
                        *number = self.name(u32::from_be_bytes(*number)).to_be_bytes();
                    }
                    at += 18;
                }
            }
            _ => {}
        }
    }

    /// The same number for the same object, by order of appearance.
    fn name(&mut self, number: u32) -> u32 {
        if number < FIRST_NORMAL_OBJECT {
            return number;
        }
        let next = FIRST_NORMAL_OBJECT + u32::try_from(self.0.len()).expect("few");
        *self.0.entry(number).or_insert(next)
    }
}

fn answers(connections: &Arc<Connections>, template: Option<&str>, steps: &[Step]) -> Vec<Vec<Message>> {
    let (mut local, startup) = Local::connect(connections, Connect { template, ..Connect::default() });
    let mut answers = vec![startup];
    for Step(bytes) in steps {
        local.send(bytes);
        answers.push(local.until_ready());
    }
    let mut names = Names::default();
    answers.iter_mut().flatten().for_each(|message| names.normalize(message));
    answers
}

fn cases() -> ProptestConfig {
    // A booted backend takes a tenth of a second.
    ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_clone_answers_byte_for_byte_as_a_backend_that_was_just_booted(
        with_plpgsql: bool,
        steps in prop::collection::vec(prop_oneof![2 => definition(), 4 => rows(), 3 => control()], 1..60),
    ) {
        let template = with_plpgsql.then(|| *WITH_PLPGSQL);
        let (cloned, booted) = (answers(&CLONED, template, &steps), answers(&BOOTED, template, &steps));
        for (index, (cloned, booted)) in cloned.iter().zip(&booted).enumerate() {
            let step = index.checked_sub(1).map(|index| String::from_utf8_lossy(&steps[index].0).into_owned());
            prop_assert_eq!(cloned, booted, "{:?}", step);
        }
    }
}
