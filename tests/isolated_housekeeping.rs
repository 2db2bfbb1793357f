//! What a cluster of one connection does without being asked: checkpoints, which remove old WAL.

mod support;

use pglite_port::databases::Settings;
use support::{
    cache,
    local::{Connect, Local},
    session::errors,
};

const WAL: &str = "SELECT sum(size) <= 48 * 1024 * 1024 FROM pg_ls_waldir()";
const WRITTEN: &str = "SELECT pg_current_wal_lsn() - '0/0' > 100 * 1024 * 1024";
const INSERT: &str = "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 8000) n";

fn connect() -> Local {
    let connections = cache::connections(Settings::default());
    let (mut session, _) = Local::connect(&connections, Connect::default());
    session.values("CREATE TABLE t (n int, filler text)");
    session
}

#[test]
fn wal_does_not_grow_with_what_was_written() {
    let mut session = connect();
    for _ in 0..15 {
        session.values(INSERT);
        assert_eq!(session.values(WAL), ["t"]);
    }
    assert_eq!(session.values(WRITTEN), ["t"]);
    assert_eq!(session.values("SELECT count(*), sum(length(filler)) FROM t"), ["120000", "120000000"]);
    assert_eq!(session.values("SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"), ["1"]);
}

#[test]
fn it_does_not_grow_in_a_transaction_either_which_goes_on() {
    let mut session = connect();
    session.values("BEGIN");
    for _ in 0..15 {
        session.values(INSERT);
        assert_eq!(session.values(WAL), ["t"]);
    }
    session.values("SAVEPOINT s");
    session.values(INSERT);
    session.values("ROLLBACK TO s");
    session.values("COMMIT");
    assert_eq!(session.values("SELECT count(*) FROM t"), ["120000"]);
}

#[test]
fn a_checkpoint_that_is_due_in_a_failed_transaction_waits_for_its_end() {
    let mut session = connect();
    session.values("BEGIN");
    for _ in 0..4 {
        session.values(INSERT);
    }
    let failing = format!("{INSERT}; SELECT 1 / 0");
    assert_eq!(errors(&session.query(&failing)), ["22012"]);
    assert_eq!(errors(&session.query("SELECT 1")), ["25P02"]);
    session.values("ROLLBACK");
    for _ in 0..8 {
        session.values(INSERT);
        assert_eq!(session.values(WAL), ["t"]);
    }
    assert_eq!(session.values("SELECT count(*) FROM t"), ["64000"]);
}
