//! What the system limits, reached while clusters are made: the request is refused, and everything else goes on.

mod support;

use pglite_port::port::frame::{Kind, Options};
use rustix::process::{Resource, Rlimit, getrlimit};
use support::{
    port::Port,
    process,
    wire::{self, Message},
};

/// A session and requests of one program.
struct Framed {
    port: Port,
    next: u32,
}

impl Framed {
    /// A program with a template in use and a session of the default cluster.
    fn new() -> Self {
        let mut framed = Self::with(&[]);
        framed.create("template", "postgres").expect("a cluster");
        assert_eq!(framed.values("CREATE TABLE t AS SELECT 1 AS a; SELECT a FROM t"), ["1"]);
        framed.create("branch", "default").expect("a cluster");
        framed
    }

    /// A program with a session of the default cluster.
    fn with(arguments: &[&str]) -> Self {
        let mut framed = Self { port: Port::spawn(arguments), next: 100 };
        framed.port.open(1);
        framed.port.data(1, &wire::startup(&[("user", "postgres")]));
        framed.until_ready();
        framed
    }

    /// Makes a cluster; its name, or the code, the message and the hint of the error.
    fn create(&mut self, origin: &str, name: &str) -> Result<String, [String; 3]> {
        self.next += 1;
        let options = Options::new().with(origin, name).to_bytes();
        self.port.send_frame(Kind::Request, self.next, &[b"create_cluster\0", &options[..]].concat());
        loop {
            let frame = self.port.next();
            if frame.kind == Kind::Reply {
                let (word, options) = frame.reply();
                let get = |key| options.get(key).unwrap_or_default().to_owned();
                return if word == "ok" { Ok(get("name")) } else { Err(["code", "message", "hint"].map(get)) };
            }
        }
    }

    fn until_ready(&mut self) -> Vec<Message> {
        let mut bytes = Vec::new();
        while !matches!(bytes[..], [.., b'Z', 0, 0, 0, 5, b'I']) {
            let frame = self.port.next();
            assert!(frame.kind != Kind::Close, "{frame:?}");
            if frame.kind == Kind::Data {
                bytes.extend(frame.payload);
            }
        }
        Message::all(bytes)
    }

    /// Runs a query in the session.
    fn values(&mut self, sql: &str) -> Vec<String> {
        self.port.data(1, &wire::query(sql));
        wire::values(sql, &self.until_ready())
    }

    /// Opens and closes a session in a cluster; the code, the message and the hint of the error if that fails.
    fn visit(&mut self, cluster: &str) -> Result<(), [String; 3]> {
        self.next += 1;
        self.port.send_frame(Kind::Open, self.next, &Options::new().with("cluster", cluster).to_bytes());
        self.port.data(self.next, &wire::startup(&[("user", "postgres")]));
        self.port.data(self.next, &wire::terminate());
        let mut bytes = Vec::new();
        loop {
            let frame = self.port.next();
            match frame.kind {
                Kind::Data => bytes.extend(frame.payload),
                Kind::Close => break,
                _ => {}
            }
        }
        match Message::all(bytes).iter().find(|message| message.kind == b'E').map(Message::fields) {
            Some(fields) => Err(['C', 'M', 'H'].map(|field| fields.get(&field).cloned().unwrap_or_default())),
            None => Ok(()),
        }
    }

    /// Makes clusters in all ways and visits them while a limit is reached, and again after that.
    fn try_with(&mut self, resource: Resource, current: u64) {
        let inherited = getrlimit(resource);
        for (origin, name) in [("template", "postgres"), ("branch", "default"), ("branch", "cluster-1")] {
            self.values("INSERT INTO t VALUES (2)");
            self.port.limit(resource, Rlimit { current: Some(current), ..inherited });
            let made = self.create(origin, name).and_then(|name| self.visit(&name));
            let [code, message, hint] = made.expect_err("the limit is reached");
            // Of the cluster, or of its session.
            assert!(["53000", "53300"].contains(&&code[..]), "{code} {message}");
            assert!(hint.contains("ulimit"), "{message} {hint}");
            assert_eq!(self.values("SELECT min(a) FROM t"), ["1"], "{message}");
            self.port.limit(resource, inherited);
            let name = self.create(origin, name).expect("a cluster");
            self.visit(&name).expect("a session");
        }
    }
}

#[test]
fn without_files_to_spare_no_cluster_is_made_and_the_others_go_on() {
    let mut framed = Framed::new();
    framed.try_with(Resource::Nofile, 3);
}

#[test]
fn without_address_space_to_spare_no_cluster_is_made_and_the_others_go_on() {
    let mut framed = Framed::new();
    let used = process::bytes(&format!("/proc/{}/status", framed.port.program_id()), "VmSize");
    // Less than a linear memory reserves.
    framed.try_with(Resource::As, used + (1 << 30));
}

#[test]
fn a_cluster_in_a_directory_that_does_not_fit_into_memory_has_no_branch_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut framed = Framed::with(&["--data", data.to_str().expect("text"), "--memory-limit", "256MB"]);
    framed.values("CREATE UNLOGGED TABLE large (filler text STORAGE EXTERNAL)");
    framed.values("INSERT INTO large SELECT repeat('x', 8000) FROM generate_series(1, 32000)");
    let [code, message, hint] = framed.create("branch", "default").expect_err("it is too large");
    assert_eq!(code, "53000", "{message}");
    assert!(message.starts_with("out of memory") && hint.contains("--memory-limit"), "{message} {hint}");
    assert_eq!(framed.values("SELECT count(*) FROM large"), ["32000"]);
    framed.values("DROP TABLE large");
    let name = framed.create("branch", "default").expect("it fits");
    framed.visit(&name).expect("a session");
}
