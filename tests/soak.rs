//! Everything that clients and a parent do: what they took is given back, and for a long time, that memory does not
//! grow.

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    thread,
    time::{Duration, Instant},
};

use pglite_port::port::frame::{Kind, Options};
use support::{
    PATIENCE,
    port::Port,
    power::{self, Dice},
    process,
    trend::Trend,
    wire::{self, Message},
};

const MIB: f64 = 1_048_576.0;
/// How much private memory may grow in a run, in MiB, however long that is.
const MORE_IN_ALL: f64 = 10.0;
/// The shortest run: before, caches, the WAL that is kept, and allocators are still filled.
const SHORTEST: Duration = Duration::from_mins(10);
/// The time between two samples.
const BETWEEN: Duration = Duration::from_millis(250);

/// How often clients do each thing in a round of the short run.
const TIMES: usize = 20;
/// The kinds of things that they do.
const KINDS: u64 = 7;
/// How many mappings more there may be after a round, for the allocator's and those of the stacks that it keeps: fewer
/// than one for each of the clients. A clone has seventeen.
const MORE_MAPPINGS: usize = 40;
/// How many segments of shared memory of ended clusters are kept at most, each of which is a file descriptor.
const SEGMENTS: usize = 8;
/// How much private memory may grow in the second round, in MiB: by WAL and by what a process of the cluster has at the
/// moment. It is a part of what the sessions of a round take.
const MORE_MEMORY: f64 = 40.0;

/// A parent of the program with one connection after the other.
struct Parent {
    port: Port,
    /// The last id of a connection or a request.
    last: u32,
    counts: HashMap<&'static str, u32>,
}

impl Parent {
    /// Opens a connection; its id and its messages until it is ready.
    fn connect(&mut self, options: &[(&str, &str)]) -> (u32, Vec<Message>) {
        self.last += 1;
        let options = options.iter().fold(Options::new(), |options, (key, value)| options.with(key, value));
        self.port.send_frame(Kind::Open, self.last, &options.to_bytes());
        self.port.data(self.last, &wire::startup(&[("user", "postgres")]));
        (self.last, self.answer(self.last))
    }

    /// What a connection gets until it is ready, or until there is a notice.
    fn answer(&mut self, id: u32) -> Vec<Message> {
        let (mut bytes, mut messages) = (Vec::new(), Vec::new());
        loop {
            let frame = self.port.next();
            match frame.kind {
                Kind::Data if frame.id == id => {
                    self.port.window(id, u32::try_from(frame.payload.len()).expect("short"));
                    bytes.extend(frame.payload);
                    while let Some(message) = Message::take(&mut bytes) {
                        let is_last = message.kind == b'Z' || message.kind == b'N';
                        messages.push(message);
                        if is_last {
                            return messages;
                        }
                    }
                }
                Kind::Close if frame.id == id => panic!("{:?}", frame.reason()),
                // Of connections that were left.
                _ => {}
            }
        }
    }

    fn query(&mut self, id: u32, sql: &str) -> Vec<Message> {
        self.port.data(id, &wire::query(sql));
        self.answer(id)
    }

    fn values(&mut self, id: u32, sql: &str) -> Vec<String> {
        wire::values(sql, &self.query(id, sql))
    }

    /// The SQLSTATE of the error that a query ends with.
    fn error(&mut self, id: u32, sql: &str) -> String {
        code(&self.query(id, sql))
    }

    fn request(&mut self, verb: &str, options: &[(&str, &str)]) -> Options {
        self.last += 1;
        let options = options.iter().fold(Options::new(), |options, (key, value)| options.with(key, value));
        self.port.send_frame(Kind::Request, self.last, &[verb.as_bytes(), b"\0", &options.to_bytes()].concat());
        loop {
            let frame = self.port.next();
            if frame.kind == Kind::Reply && frame.id == self.last {
                let (word, options) = frame.reply();
                assert_eq!(word, "ok", "{verb}: {options:?}");
                return options;
            }
        }
    }

    /// Ends a connection as a client does, and waits for its end.
    fn leave(&mut self, id: u32) {
        self.port.data(id, &wire::terminate());
        self.wait_for_end(id);
    }

    fn wait_for_end(&self, id: u32) {
        while let frame = self.port.next()
            && (frame.kind, frame.id) != (Kind::Close, id)
        {}
    }

    /// One thing of many that clients do.
    fn step(&mut self, kind: u64, dice: &mut Dice) {
        let what = match kind {
            0 => self.statements(),
            1 => self.big_values(dice),
            2 => self.cancel(),
            3 => self.reset(),
            4 => self.branch(),
            5 => self.hang_up(),
            _ => self.nonsense(dice),
        };
        *self.counts.entry(what).or_default() += 1;
    }

    fn statements(&mut self) -> &'static str {
        let (id, _) = self.connect(&[]);
        self.values(id, "BEGIN; INSERT INTO t SELECT n, repeat('y', 100) FROM generate_series(1, 500) n; COMMIT");
        assert_eq!(self.error(id, "SELECT 1/0"), "22012");
        assert_eq!(self.error(id, "SELECT * FROM there_is_none"), "42P01");
        self.values(id, "CREATE TEMP TABLE mine AS SELECT * FROM t; TRUNCATE t");
        self.leave(id);
        "statements"
    }

    fn big_values(&mut self, dice: &mut Dice) -> &'static str {
        let (id, _) = self.connect(&[]);
        let length = dice.below(4 << 20);
        assert_eq!(self.values(id, &format!("SELECT repeat('x', {length})"))[0].len() as u64, length);
        // As much as may be sent at once.
        assert_eq!(self.values(id, &format!("SELECT length('{}')", "z".repeat(200_000))), ["200000"]);
        self.leave(id);
        "big values"
    }

    fn cancel(&mut self) -> &'static str {
        let (id, messages) = self.connect(&[]);
        let key = &messages.iter().find(|message| message.kind == b'K').expect("BackendKeyData").body;
        let (process, secret) = key.split_first_chunk::<4>().expect("a process id");
        let sql = "DO $$ BEGIN RAISE NOTICE 'it runs'; PERFORM pg_sleep(600); END $$";
        self.query(id, sql);
        self.last += 1;
        let other = self.last;
        self.port.open(other);
        self.port.data(other, &wire::cancel_request(i32::from_be_bytes(*process), secret));
        assert_eq!(code(&self.answer(id)), "57014");
        self.leave(id);
        "cancels"
    }

    fn reset(&mut self) -> &'static str {
        let (id, _) = self.connect(&[("mode", "isolated")]);
        for _ in 0..2 {
            self.values(id, "CREATE TABLE mine AS SELECT n, repeat('x', 500) FROM generate_series(1, 2000) n");
            self.request("reset", &[("connection", &id.to_string())]);
        }
        assert_eq!(self.error(id, "SELECT * FROM mine"), "42P01");
        self.leave(id);
        "resets"
    }

    fn branch(&mut self) -> &'static str {
        let made = self.request("create_cluster", &[("branch", "default"), ("lifetime", "connections")]);
        let name = made.get("name").expect("a name").to_owned();
        let (id, _) = self.connect(&[("cluster", &name)]);
        self.values(id, "CREATE TABLE mine AS SELECT n, repeat('x', 500) FROM generate_series(1, 2000) n");
        self.leave(id);
        "branches"
    }

    fn hang_up(&mut self) -> &'static str {
        let (id, _) = self.connect(&[]);
        // As in PostgreSQL, a session learns of its client's end behind the statement.
        self.query(id, "DO $$ BEGIN RAISE NOTICE 'it runs'; PERFORM pg_sleep(0.02); END $$");
        self.port.close(id);
        self.wait_for_end(id);
        "hang-ups"
    }

    fn nonsense(&mut self, dice: &mut Dice) -> &'static str {
        self.last += 1;
        let id = self.last;
        self.port.open(id);
        let bytes: Vec<u8> = (0..20 + dice.below(200)).map(|_| dice.below(256).to_le_bytes()[0]).collect();
        self.port.data(id, &bytes);
        self.port.close(id);
        self.wait_for_end(id);
        "nonsense"
    }
}

/// What a program without clients has, which they would have left to it.
#[derive(Debug)]
struct Possessions {
    /// The numbers of its threads by name.
    threads: BTreeMap<String, usize>,
    open_files: usize,
    mappings: usize,
    /// In MiB.
    memory: f64,
}

impl Possessions {
    /// Those of a program in which no session, cluster or request is left; `None` as long as there is one.
    fn of(parent: &mut Parent) -> Option<Self> {
        let stats = parent.request("stats", &[]);
        if ["connections", "clusters"].map(|name| stats.get(name)) != [Some("0"), Some("1")] {
            return None;
        }
        let id = parent.port.program_id();
        let mut threads = BTreeMap::new();
        for (_, name) in process::all_pauses(id).into_keys() {
            // PostgreSQL starts workers when it likes, and they end.
            if name.starts_with("connection-") || name.starts_with("autovacuum work") || name == "request" {
                return None;
            }
            *threads.entry(name).or_default() += 1;
        }
        let (open_files, mappings) = (process::open_files(id), process::mappings(id));
        Some(Self { threads, open_files, mappings, memory: private_memory(id) })
    }

    /// Waits until the program has no more than `others`, if it is given, or else until nobody is left.
    fn wait(parent: &mut Parent, others: Option<&Self>) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let own = Self::of(parent);
            if let Some(own) = own.filter(|own| others.is_none_or(|others| !own.is_more_than(others))) {
                return own;
            }
            assert!(Instant::now() < deadline, "{:?} after {others:?}", Self::of(parent));
            // The operating system sends no event when a thread has ended.
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_more_than(&self, others: &Self) -> bool {
        self.threads.iter().any(|(name, count)| others.threads.get(name).is_none_or(|others| count > others))
            || self.open_files > others.open_files + SEGMENTS
            || self.mappings > others.mappings + MORE_MAPPINGS
            || self.memory > others.memory + MORE_MEMORY
    }
}

/// A parent of a new program, with a table for its clients.
fn parent() -> Parent {
    let port = Port::spawn(&["--mode", "shared"]);
    let mut parent = Parent { port, last: 0, counts: HashMap::new() };
    let (id, _) = parent.connect(&[]);
    parent.values(id, "CREATE TABLE t (a int, b text)");
    parent.leave(id);
    parent
}

/// `PGLITE_PORT_SEED` repeats the steps.
#[test]
fn what_clients_have_taken_is_given_back_when_they_are_gone() {
    let mut dice = Dice(power::seed() | 1);
    let mut parent = parent();
    let mut round = |parent: &mut Parent| {
        for _ in 0..TIMES {
            (0..KINDS).for_each(|kind| parent.step(kind, &mut dice));
        }
    };
    // In the first round threads, caches and the allocator get what they keep.
    round(&mut parent);
    let before = Possessions::wait(&mut parent, None);
    round(&mut parent);
    let after = Possessions::wait(&mut parent, Some(&before));
    println!("{before:?}\n{after:?}\n{:?}", parent.counts);
    let expected = u32::try_from(2 * TIMES).expect("a few");
    assert!(
        parent.counts.len() as u64 == KINDS && parent.counts.values().all(|count| *count == expected),
        "{:?}",
        parent.counts
    );
}

/// The SQLSTATE of the error among these messages.
fn code(messages: &[Message]) -> String {
    let error = messages.iter().find(|message| message.kind == b'E').unwrap_or_else(|| panic!("{messages:?}"));
    error.fields()[&'C'].clone()
}

/// What the process has for itself alone, in MiB (`smaps_rollup` in proc(5)).
fn private_memory(id: u32) -> f64 {
    let file = format!("/proc/{id}/smaps_rollup");
    let bytes: u64 = ["Private_Clean", "Private_Dirty"].iter().map(|field| process::bytes(&file, field)).sum();
    f64::from(u32::try_from(bytes >> 10).expect("less than 4 TiB")) * 1024.0 / MIB
}

/// `PGLITE_PORT_SEED` repeats the steps, `PGLITE_PORT_SOAK_SECONDS` says for how long there are any, `make soak` an hour.
/// The first third of the time is not looked at.
#[test]
#[ignore = "it takes ten minutes or more; `make soak` runs it"]
fn private_memory_does_not_grow_whatever_clients_do() {
    let duration = Duration::from_secs(power::number("PGLITE_PORT_SOAK_SECONDS", SHORTEST.as_secs()));
    assert!(duration >= SHORTEST, "PGLITE_PORT_SOAK_SECONDS is at least {}", SHORTEST.as_secs());
    let mut dice = Dice(power::seed() | 1);
    let mut parent = parent();
    let program = parent.port.program_id();
    let (started, mut sampled, mut told) = (Instant::now(), Instant::now(), Instant::now());
    let mut samples = Vec::new();
    while started.elapsed() < duration {
        let kind = dice.below(KINDS);
        parent.step(kind, &mut dice);
        if sampled.elapsed() < BETWEEN {
            continue;
        }
        sampled = Instant::now();
        let memory = private_memory(program);
        if started.elapsed() > duration / 3 {
            samples.push((started.elapsed().as_secs_f64() / 60.0, memory));
        }
        if told.elapsed() > Duration::from_mins(1) {
            told = Instant::now();
            let so_far = started.elapsed().as_secs();
            println!("{so_far} of {} s: {memory:.1} MiB private, {:?}", duration.as_secs(), parent.counts);
        }
    }
    let trend = Trend::of(&samples);
    let (slope, error) = (trend.slope, trend.error);
    let bound = MORE_IN_ALL * 60.0 / duration.as_secs_f64();
    println!("{slope:.2} ± {error:.2} MiB a minute in {} samples, {:?}", samples.len(), parent.counts);
    assert!(!trend.grows_by_more_than(bound), "{slope:.2} ± {error:.2} MiB a minute, and {bound:.2} are allowed");
    assert!(samples.iter().all(|(_, memory)| *memory > 1.0), "{samples:?}");
    let stats = parent.request("stats", &[]);
    assert_eq!(stats.get("connections"), Some("0"), "{stats:?}");
}

/// Four samples a minute for an hour, around 100, which grow by so much a minute.
fn noisy(growth: f64) -> Vec<(f64, f64)> {
    let mut dice = Dice(0x5eed);
    let mut noise = || f64::from(u32::try_from(dice.below(20_000)).expect("it fits")) / 1000.0 - 10.0;
    (0..240).map(|sample| f64::from(sample) / 4.0).map(|minute| (minute, 100.0 + growth * minute + noise())).collect()
}

#[test]
fn a_trend_is_what_remains_without_the_noise() {
    let exact = Trend::of(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]);
    assert!((exact.slope - 2.0).abs() < 1e-9 && exact.error < 1e-9, "{exact:?}");
    assert!(exact.grows_by_more_than(1.9) && !exact.grows_by_more_than(2.1));
    for (growth, is_too_much) in [(-3.0, false), (0.0, false), (0.9, false), (1.2, true), (2.0, true)] {
        let trend = Trend::of(&noisy(growth));
        assert_eq!(trend.grows_by_more_than(1.0), is_too_much, "{growth}: {trend:?}");
    }
}
