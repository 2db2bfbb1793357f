//! Random statements that `SQLsmith` makes of everything in the catalogue: none of them ends the session or the program.

mod support;

use std::{fs, process::Command};

use support::{power, program::Program, server::Server};

/// Tables with all kinds of types and indexes, partitions, views and functions, and every extension but one that
/// damages tables on purpose.
const SCHEMA: &str = "
    DO $$ DECLARE extension text; BEGIN
      FOR extension IN SELECT name FROM pg_available_extensions WHERE name <> 'pg_surgery' ORDER BY name LOOP
        EXECUTE format('CREATE EXTENSION IF NOT EXISTS %I CASCADE', extension);
      END LOOP;
    END $$;
    CREATE TABLE part (a int, b text, c numeric) PARTITION BY RANGE (a);
    CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
    CREATE TABLE part2 PARTITION OF part DEFAULT PARTITION BY LIST (b);
    CREATE TABLE part2a PARTITION OF part2 FOR VALUES IN ('x', 'y');
    CREATE TABLE part2b PARTITION OF part2 DEFAULT;
    INSERT INTO part SELECT n, chr(97 + n % 26), n * 1.5 FROM generate_series(0, 500) n;
    CREATE TABLE docs (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, j jsonb, v tsvector, r int4range,
      m int4multirange, p point, n inet, x bit varying, u uuid DEFAULT gen_random_uuid(), t timestamptz DEFAULT now());
    INSERT INTO docs (j, v, r, m, p, n, x)
      SELECT jsonb_build_object('a', n, 'b', array[n, n + 1]), to_tsvector('english', 'cats and dogs ' || n),
        int4range(n, n + 10), int4multirange(int4range(n, n + 3), int4range(n + 5, n + 9)), point(n, -n),
        ('10.0.0.' || n % 256)::inet, n::bit(8)
      FROM generate_series(1, 300) n;
    CREATE INDEX ON docs USING gin (j);
    CREATE INDEX ON docs USING gin (v);
    CREATE INDEX ON docs USING gist (r);
    CREATE INDEX ON docs USING spgist (p);
    CREATE INDEX ON docs USING brin (t);
    CREATE VIEW joined AS SELECT a, b, j FROM part JOIN docs ON docs.id = part.a;
    CREATE MATERIALIZED VIEW stored AS SELECT * FROM joined;
    CREATE FUNCTION next(a int) RETURNS int LANGUAGE plpgsql
      AS 'BEGIN RETURN a + 1; EXCEPTION WHEN others THEN RETURN 0; END';
    CREATE FUNCTION series(a int) RETURNS SETOF int LANGUAGE sql AS 'SELECT generate_series(1, a % 10)';
    ANALYZE;
";

/// `PGLITE_PORT_SEED` repeats the statements, `PGLITE_PORT_STATEMENTS` says how many there are in each mode.
#[test]
#[ignore = "needs sqlsmith and minutes: make sqlsmith"]
fn no_statement_ends_its_session() {
    let directory = tempfile::tempdir().expect("a directory");
    let schema = directory.path().join("schema.sql");
    fs::write(&schema, SCHEMA).expect("a disk");
    Program::succeed(&["prepare", "smith", "--sql", schema.to_str().expect("text")]);
    let (seed, count) = (power::seed() & 0xffff_ffff, power::number("PGLITE_PORT_STATEMENTS", 1000));
    for arguments in [&["--mode", "shared", "--template", "smith"][..], &["--mode", "isolated"]] {
        let server = Server::with(arguments);
        // The session of the test has the first id, that of SQLsmith another, and every further one the next.
        let target = server.url.strip_suffix("/postgres").expect("a URL").to_owned() + "/smith";
        let output = Command::new("sqlsmith")
            .arg(format!("--target={target}"))
            .args([format!("--seed={seed}"), format!("--max-queries={count}"), "--verbose".to_owned()])
            .output()
            .expect("sqlsmith is installed");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains(&format!("queries: {count}")), "{arguments:?}: {told}");
        println!("{arguments:?}: {}", told.lines().rfind(|line| line.starts_with("error rate")).unwrap_or_default());
        // SQLsmith connects again when a statement has ended its session, and counts such statements as crashes.
        assert!(
            !told.lines().any(|line| line.contains("broken connection")
                || line.contains('C') && line.chars().all(|sign| ".eStC".contains(sign))),
            "{arguments:?}: {told}"
        );
        let log = server.stop();
        let fault =
            log.iter().find(|line| line.contains("ERROR") || line.contains("PANIC") || line.contains("panicked"));
        assert!(fault.is_none(), "{arguments:?}: {fault:?}");
    }
}
