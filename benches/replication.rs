//! Logical replication: changes per second and the time until a subscriber has a change, beside native PostgreSQL; and
//! what `wal_level=logical` costs a cluster that nobody subscribes to.

#[path = "support/native.rs"]
mod native;
#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use native::{Native, transactions_per_second};
use postgres::{Client, NoTls};
use rows::{Aim, Figure, Row, Unit, leave};
use support::{program::Program, wire};

/// The rows that are sent in one round.
const CHANGES: u32 = 200_000;
/// How many of them one transaction inserts.
const IN_A_TRANSACTION: u32 = 20_000;
/// Rounds of each server; they take turns.
const ROUNDS: usize = 5;
/// Commits whose way to the subscriber is measured.
const COMMITS: i32 = 200;

const LOGICAL: [&str; 2] = ["--set", "wal_level=logical"];
const START: &str = "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')";

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut program = serve(&LOGICAL);
    let url = program.first_line();
    let native = Native::start(&["wal_level=logical", "fsync=off"]);
    let rows = [changes(&url, &native), latency(&url, &native), cost(&url)];
    leave("replication", &rows);
}

fn serve(arguments: &[&str]) -> Program {
    Program::spawn(&[&["serve", "--listen", "127.0.0.1:0", "--mode", "shared"], arguments].concat())
}

fn connect(url: &str) -> Client {
    url.parse::<postgres::Config>().and_then(|config| config.connect(NoTls)).expect("a session")
}

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).expect(sql);
}

fn measured(what: &str, unit: Unit, [ours, theirs]: [Vec<f64>; 2], other: &str, aim: Aim) -> Row {
    let what = format!("replication: {what}");
    let other = Some((other.to_owned(), Figure::of(theirs)));
    Row { what, unit, ours: Figure::of(ours), other, aim: Some(aim) }
}

/// A subscriber, which counts the inserted rows.
struct Subscriber {
    stream: TcpStream,
    received: Vec<u8>,
    /// Where the first message begins that was not looked at.
    next: usize,
}

impl Subscriber {
    /// Starts to receive from the slot `s`.
    fn start(url: &str) -> Self {
        let address = url.split(['@', '/']).nth(3).expect("an address");
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("an option");
        let mut subscriber = Self { stream, received: Vec::new(), next: 0 };
        let parameters = [("user", "postgres"), ("database", "postgres"), ("replication", "database")];
        subscriber.send(&wire::startup(&parameters));
        while subscriber.message().0 != b'Z' {}
        subscriber.send(&wire::query(START));
        assert_eq!(subscriber.message().0, b'W');
        subscriber
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it reads");
    }

    /// The kind of the next message, and where its body is.
    fn message(&mut self) -> (u8, std::ops::Range<usize>) {
        loop {
            if let [kind, length @ .., _] = self.received[self.next..].first_chunk::<6>().unwrap_or(&[0; 6])
                && *kind != 0
            {
                let end = self.next + 1 + u32::from_be_bytes(*length) as usize;
                if end <= self.received.len() {
                    let body = self.next + 5..end;
                    self.next = end;
                    return (*kind, body);
                }
            }
            self.received.drain(..std::mem::take(&mut self.next));
            let before = self.received.len();
            self.received.resize(before + (1 << 16), 0);
            let count = self.stream.read(&mut self.received[before..]).expect("an answer");
            assert!(count > 0, "the server has ended the replication");
            self.received.truncate(before + count);
        }
    }

    /// Waits until it has received that many inserted rows.
    fn receive(&mut self, mut count: u32) {
        while count > 0 {
            let (kind, body) = self.message();
            // The kind of the change is behind the header of the message.
            count -= u32::from(kind == b'd' && self.received[body].get(25) == Some(&b'I'));
        }
    }
}

fn prepare(client: &mut Client) {
    run(client, "create table r (id int primary key, t text, n bigint); create publication p for table r");
}

/// The changes per second that a subscriber gets which comes when all is committed.
fn changes(url: &str, native: &Native) -> Row {
    let urls = [url, &native.url];
    let mut clients = urls.map(connect);
    clients.iter_mut().for_each(prepare);
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for ((client, url), figures) in clients.iter_mut().zip(urls).zip(&mut figures) {
            run(client, "select pg_create_logical_replication_slot('s', 'pgoutput')");
            run(client, "truncate r");
            for first in (0..CHANGES).step_by(IN_A_TRANSACTION as usize) {
                let last = first + IN_A_TRANSACTION - 1;
                let rows =
                    format!("select i, 'a text of some length ' || i, i * 7 from generate_series({first}, {last}) i");
                run(client, &format!("insert into r {rows}"));
            }
            let mut subscriber = Subscriber::start(url);
            let begun = Instant::now();
            subscriber.receive(CHANGES);
            figures.push(f64::from(CHANGES) / begun.elapsed().as_secs_f64());
            drop(subscriber);
            drop_slot(client);
        }
    }
    measured("changes a second", Unit::PerSecond, figures, &native.name, Aim::Ratio(0.7))
}

/// Drops the slot as soon as its subscriber is gone.
fn drop_slot(client: &mut Client) {
    let active = "select active from pg_replication_slots where slot_name = 's'";
    while client.query_one(active, &[]).expect("the slot").get(0) {}
    run(client, "select pg_drop_replication_slot('s')");
}

/// The time from the beginning of an insert to its arrival at a subscriber.
fn latency(url: &str, native: &Native) -> Row {
    let figures = [url, &native.url].map(|url| {
        let mut client = connect(url);
        run(&mut client, "truncate r");
        run(&mut client, "select pg_create_logical_replication_slot('s', 'pgoutput')");
        let mut subscriber = Subscriber::start(url);
        let insert = client.prepare("insert into r values ($1, 'a text', 1)").expect("a statement");
        let mut figures = Vec::new();
        for id in 0..COMMITS {
            let begun = Instant::now();
            client.execute(&insert, &[&id]).expect("a row");
            subscriber.receive(1);
            figures.push(begun.elapsed().as_secs_f64());
        }
        drop(subscriber);
        drop_slot(&mut client);
        figures
    });
    measured("insert to its arrival at a subscriber", Unit::Seconds, figures, &native.name, Aim::Figure(5e-3))
}

/// Transactions per second with `wal_level=logical`, and without.
fn cost(url: &str) -> Row {
    let mut program = serve(&[]);
    let urls = [url.to_owned(), program.first_line()];
    urls.iter().for_each(|url| native::initialize(url));
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (url, figures) in urls.iter().zip(&mut figures) {
            figures.push(transactions_per_second(url, 4));
        }
    }
    measured(
        "pgbench with wal_level=logical and no slot",
        Unit::PerSecond,
        figures,
        "wal_level=replica",
        Aim::Ratio(0.95),
    )
}
