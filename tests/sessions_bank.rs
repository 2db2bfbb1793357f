//! A bank under stress: sixteen sessions that move money and add it up, while sessions are cancelled and killed.

mod support;

use std::{
    iter,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use postgres::Config;
use support::{
    peer::{Failure, LOCKS_OF_OTHERS, Peer},
    server::Server,
};

const ACCOUNTS: u64 = 50;
const SUM: &str = "5000";
const SESSIONS: u64 = 16;
const LEVELS: [&str; 3] = ["serializable", "read committed", "repeatable read"];
const TRANSACTIONS: usize = 150;

const SCHEMA: &str = "\
    create table account (id int primary key, balance int not null check (balance >= 0), \
        owner text not null, tags text[] not null, changed timestamptz default clock_timestamp()); \
    insert into account select i, 100, 'owner ' || i, array['t' || i % 7, 'u' || i % 3] from generate_series(1, 50) i; \
    create index account_balance on account (balance); \
    create index account_owner on account using hash (owner); \
    create index account_tags on account using gin (tags); \
    create index account_changed on account using brin (changed); \
    create index account_rich on account ((balance / 10)) where balance > 100; \
    create table transfer (id bigserial primary key, source int references account, target int references account, \
        amount int not null, name text unique not null); \
    create index transfer_source on transfer (source); \
    create unique index transfer_key on transfer (source, id); \
    create view total as select sum(balance) as sum from account";

/// Errors after which a transaction may be tried again: serialization, deadlock, an overdrawn account, a cancel; and
/// the end of the session.
const EXPECTED: [&str; 5] = ["40001", "40P01", "23514", "57014", "57P01"];

/// A session that is replaced when it is killed.
struct Customer<'a> {
    config: &'a Config,
    peer: Peer,
    /// The state of its random numbers (xorshift64*), which are the same in every run.
    random: u64,
    /// What is recorded with each transfer, so that it is recognised.
    number: u64,
    /// The transfers that were acknowledged.
    acknowledged: Vec<String>,
}

/// A session; one that is ended while it begins is followed by another.
fn connect(config: &Config) -> Peer {
    loop {
        match Peer::with(config) {
            Ok(peer) => return peer,
            Err(failure) => assert_eq!(failure.sqlstate(), "57P01", "{failure:?}"),
        }
    }
}

/// The transactions that update one row at the same time, as PostgreSQL says when a row that others have locked is
/// updated while a transaction that updated it rolls back: the log of transactions has that one as aborted already
/// (`DoesMultiXactIdConflict`), and the list of running ones still has it (`MultiXactIdExpand` in `multixact.c`). A
/// native server says the same when the process that rolls back is stopped in `ProcArrayEndTransaction` by a debugger.
/// The other transaction fails and nothing is lost, as long as none of the two is committed.
fn updaters_of_one_row(failure: &Failure) -> Vec<String> {
    if failure.has_ended || failure.sqlstate() != "XX000" {
        return Vec::new();
    }
    let members = failure.field('M').split_once("more than one updating member: ");
    let (_, members) = members.unwrap_or_default();
    let members = members.split(['[', ',', ']']).filter_map(|member| member.trim().split_once(' '));
    members.filter(|(_, status)| ["(nokeyupd)", "(upd)"].contains(status)).map(|(id, _)| id.to_owned()).collect()
}

impl Customer<'_> {
    fn number(&mut self, below: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % below
    }

    /// Runs a transaction; its rows if it was committed.
    fn transaction(&mut self, level: &str, statements: &[String]) -> Option<Vec<String>> {
        let mut rows = Vec::new();
        let begin = format!("begin isolation level {level}");
        for sql in [&begin].into_iter().chain(statements).chain([&"commit".to_owned()]) {
            self.peer.send(sql);
            match self.peer.answer() {
                Ok(more) => rows.extend(more),
                Err(failure) => {
                    self.recover(failure);
                    return None;
                }
            }
        }
        Some(rows)
    }

    /// After an error: comes back if the session has ended, and rolls back, which may fail as well.
    fn recover(&mut self, mut failure: Failure) {
        let mut aborted = Vec::new();
        loop {
            let updaters = updaters_of_one_row(&failure);
            assert!(EXPECTED.contains(&failure.sqlstate()) || updaters.len() == 2, "{failure:?}");
            aborted.extend(updaters);
            if failure.has_ended {
                self.peer = connect(self.config);
                break;
            }
            self.peer.send("rollback");
            match self.peer.answer() {
                Ok(_) => break,
                Err(another) => failure = another,
            }
        }
        for transaction in aborted {
            // The session that asks may be ended as well, and one that was ended may still be rolling back.
            let status = || {
                let peer = connect(self.config);
                peer.send(&format!("select pg_xact_status('{transaction}')"));
                peer.answer().ok()
            };
            let status = iter::repeat_with(status).flatten().find(|status| status[0] != "in progress");
            assert_eq!(status.unwrap_or_default(), ["aborted"], "{transaction}");
        }
    }

    /// Moves money, in steps between which others have their turns.
    fn transfer(&mut self, level: &str) {
        let (source, target) = (self.number(ACCOUNTS) + 1, self.number(ACCOUNTS) + 1);
        let amount = self.number(20) + 1;
        let change = |id, amount: String| {
            format!(
                "update account set balance = balance + {amount}, changed = clock_timestamp(), \
                     tags = array['t' || balance % 7, 'u' || balance % 3] where id = {id}"
            )
        };
        let name = format!("{}-{}", self.number, self.acknowledged.len());
        let record = format!(
            "insert into transfer (source, target, amount, name) values ({source}, {target}, {amount}, '{name}')"
        );
        let statements = [change(source, format!("-{amount}")), record, change(target, amount.to_string())];
        if self.transaction(level, &statements).is_some() {
            self.acknowledged.push(name);
        }
    }

    /// Adds up all money, in one statement and, where one snapshot is promised, account by account.
    fn audit(&mut self, level: &str) {
        let mut statements = vec!["select sum from total".to_owned()];
        if level != "read committed" {
            statements.push("select sum(balance) from account where id <= 20".to_owned());
            statements.push("select sum(balance) from account where id > 20".to_owned());
        }
        let Some(rows) = self.transaction(level, &statements) else { return };
        assert_eq!(rows[0], SUM, "{level}: {rows:?}");
        let parts: i64 = rows[1..].iter().map(|part| part.parse::<i64>().unwrap()).sum();
        assert!(rows.len() == 1 || parts.to_string() == SUM, "{level}: {rows:?}");
    }

    /// Goes to the bank again and again; the transfers that were acknowledged.
    fn work(mut self) -> Vec<String> {
        for _ in 0..TRANSACTIONS {
            let level = LEVELS[usize::try_from(self.number(3)).unwrap()];
            if self.number(4) == 0 {
                self.audit(level);
            } else {
                self.transfer(level);
            }
        }
        self.acknowledged
    }
}

/// Lets so many customers work while `disturb` is called again and again, and checks the books then. How many
/// transfers were acknowledged.
fn run_bank(customers: u64, disturb: impl Fn(&Config) + Sync) -> usize {
    let server = Server::shared();
    let config = server.config();
    let admin = connect(&config);
    admin.run(SCHEMA);
    let done = AtomicBool::new(false);
    let acknowledged: Vec<String> = thread::scope(|scope| {
        let customers: Vec<_> = (1..=customers)
            .map(|number| {
                let peer = connect(&config);
                let customer = Customer { config: &config, peer, random: number, number, acknowledged: Vec::new() };
                scope.spawn(move || customer.work())
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                disturb(&config);
            }
        });
        let acknowledged: Vec<_> = customers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        acknowledged.into_iter().flat_map(|acknowledged| acknowledged.expect("a customer went through")).collect()
    });
    check(&connect(&config), &acknowledged);
    acknowledged.len()
}

#[test]
fn no_money_is_lost_or_made_and_every_index_agrees_with_its_table() {
    let kills = AtomicUsize::new(0);
    let victim = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() \
                  and state <> 'idle' order by random() limit 1";
    let transfers = run_bank(SESSIONS, |config| {
        let killer = connect(config);
        for function in ["pg_cancel_backend", "pg_cancel_backend", "pg_terminate_backend"] {
            kills.fetch_add(killer.run(&format!("select {function}(pid) {victim}")).len(), Ordering::SeqCst);
            killer.run("select pg_sleep(0.02)");
        }
    });
    assert!(transfers > 500 && kills.load(Ordering::SeqCst) > 10, "{transfers} transfers, {kills:?} kills");
}

#[test]
fn no_acknowledged_transfer_is_lost_while_everything_is_terminated_ten_times_a_second() {
    let kills = AtomicUsize::new(0);
    let transfers = run_bank(4, |config| {
        let killer = connect(config);
        let everything =
            "select pg_terminate_backend(pid), backend_type from pg_stat_activity where pid <> pg_backend_pid()";
        let killed = killer.run(everything).iter().filter(|killed| *killed == "t|client backend").count();
        kills.fetch_add(killed, Ordering::SeqCst);
        killer.run("select pg_sleep(0.1)");
    });
    assert!(transfers > 20 && kills.load(Ordering::SeqCst) > 10, "{transfers} transfers, {kills:?} kills");
}

/// Whether what is in the tables, and what is in the indexes, is right.
fn check(admin: &Peer, acknowledged: &[String]) {
    assert_eq!(admin.value("select sum from total"), SUM);
    // A session that is killed may have committed before it said so, so that there may be more.
    let recorded = admin.run("select name from transfer");
    let lost: Vec<_> = acknowledged.iter().filter(|name| !recorded.contains(name)).collect();
    assert!(lost.is_empty(), "{lost:?} of {} are lost", acknowledged.len());
    let balances = "select count(*) from account a where balance <> 100 \
                    + coalesce((select sum(amount) from transfer where target = a.id), 0) \
                    - coalesce((select sum(amount) from transfer where source = a.id), 0)";
    assert_eq!(admin.value(balances), "0", "every balance is what its transfers make it");
    let orphans = "select count(*) from transfer t where not exists (select from account where id = t.source) \
                   or not exists (select from account where id = t.target)";
    assert_eq!(admin.value(orphans), "0");
    assert_eq!(admin.value("select count(*) from account where balance < 0"), "0");
    assert_eq!(admin.value(LOCKS_OF_OTHERS), "0");

    for query in [
        "select id from account where id between 1 and 1000 order by id",
        "select id from account where balance >= 0 order by balance, id",
        "select id from account where owner = 'owner 7'",
        "select id from account where tags @> array['u1'] order by id",
        "select id from account where changed > '2000-01-01' order by id",
        "select id from account where balance / 10 >= 0 and balance > 100 order by id",
        "select id from transfer where source between 1 and 100 order by id",
        "select id from transfer where id > 0 order by id",
    ] {
        let rows = |scans: &str, others: &str| {
            let set =
                |scans: &str, on| scans.split(' ').map(|scan| format!("set enable_{scan} = {on};")).collect::<String>();
            admin.run(&(set(scans, "on") + &set(others, "off")));
            admin.run(query)
        };
        let by_table = rows("seqscan", "indexscan bitmapscan indexonlyscan");
        assert_eq!(rows("indexscan indexonlyscan bitmapscan", "seqscan"), by_table, "{query}");
        assert!(admin.run(&format!("explain {query}")).iter().any(|line| line.contains("Index")), "{query}");
    }
}
