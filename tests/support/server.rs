//! The built program as a server, and its clients: a driver, psql, raw messages.

use std::{
    env,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use rustix::process::Signal;

use super::{PATIENCE, process, program::Program, session::Session, wire};

/// `pglite-port serve` on a free port; dropping it kills it.
///
/// With filled caches it starts in milliseconds, so every test has its own.
pub struct Server {
    /// The program.
    pub program: Program,
    /// Its URL.
    pub url: String,
    address: String,
    /// The number of its sockets without connections.
    sockets: usize,
    /// Its data directory, which is removed with it.
    _data: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts one in `isolated` mode.
    pub fn start() -> Self {
        Self::with(&["--mode", "isolated"])
    }

    /// Starts one in `shared` mode whose cluster is of the kind in `PGLITE_PORT_TEST_CLUSTER`, so that one list of
    /// behaviours is for all kinds: in `memory`, in a `directory` of its own, of a `template`, without a boot, or in
    /// memory with `short-turns`, which end 25 times as often in the middle of something.
    pub fn shared() -> Self {
        let kind = env::var("PGLITE_PORT_TEST_CLUSTER").unwrap_or_else(|_| "memory".to_owned());
        match &kind[..] {
            "memory" => Self::with(&["--mode", "shared"]),
            "short-turns" => Self::with(&["--mode", "shared", "--slice", "200"]),
            "template" => Self::with(&["--mode", "shared", "--template", "postgres"]),
            "directory" => {
                let data = tempfile::tempdir().expect("a directory");
                let server = Self::in_directory(data.path());
                Self { _data: Some(data), ..server }
            }
            _ => panic!("unknown kind of cluster: {kind}"),
        }
    }

    /// Starts one in `shared` mode whose cluster is in that directory.
    pub fn in_directory(data: &Path) -> Self {
        Self::with(&["--data", data.to_str().expect("text")])
    }

    /// Stops it in order; what it wrote to stderr, by line.
    pub fn stop(mut self) -> Vec<String> {
        self.program.signal(Signal::TERM);
        self.program.wait_for_stderr()
    }

    /// Kills it; what it wrote to stderr, by line.
    pub fn kill(mut self) -> Vec<String> {
        self.program.signal(Signal::KILL);
        self.program.wait_for_stderr()
    }

    /// Starts one with these arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let anywhere: &[&str] = if arguments.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        Self::of(Program::spawn(&[&["serve"], anywhere, arguments].concat()))
    }

    /// Starts one with these arguments in the control group whose processes are in that file.
    pub fn within(processes: &Path, arguments: &[&str]) -> Self {
        Self::of(Program::spawn_within(processes, &[&["serve", "--listen", "127.0.0.1:0"], arguments].concat()))
    }

    /// One of that program, which was told to serve on a free port.
    pub fn of(mut program: Program) -> Self {
        let url = program.first_line();
        let address = url.strip_prefix("postgresql://postgres@").and_then(|rest| rest.strip_suffix("/postgres"));
        let address = address.unwrap_or_else(|| panic!("no URL: {url:?} {:?}", program.wait_for_stderr())).to_owned();
        let sockets = process::open_sockets(program.id());
        Self { program, url, address, sockets, _data: None }
    }

    /// A client of the driver; in `isolated` mode it has its own database.
    pub fn connect(&self) -> Client {
        self.config().connect(NoTls).expect("a session")
    }

    /// The driver's configuration for it.
    pub fn config(&self) -> Config {
        self.url.parse().expect("a URL")
    }

    /// A connection without a startup message.
    pub fn stream(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        stream
    }

    /// A session of the superuser for raw messages, with further startup parameters.
    pub fn session(&self, parameters: &[(&str, &str)]) -> Session {
        let mut session = self.unready_session(&[&[("user", "postgres")], parameters].concat());
        session.until_ready();
        session
    }

    /// A session of which only the startup message was sent.
    pub fn unready_session(&self, parameters: &[(&str, &str)]) -> Session {
        let mut session = Session::new(self.stream());
        session.send(&wire::startup(parameters));
        session
    }

    /// Sends a cancel request and waits until it was handled.
    pub fn cancel(&self, process_id: i32, secret_key: &[u8]) {
        let mut stream = self.stream();
        stream.write_all(&wire::cancel_request(process_id, secret_key)).expect("it listens");
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0, "a cancel request has no answer");
    }

    /// Waits until that number of connections are served.
    pub fn wait_for_connections(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let connections = || process::open_sockets(self.program.id()) - self.sockets;
        while connections() != count {
            assert!(Instant::now() < deadline, "{} connections instead of {count}", connections());
            // The operating system sends no event when another program has closed a socket.
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Runs psql with these arguments.
    pub fn psql(&self, arguments: &[&str]) -> Output {
        self.psql_with_input(arguments, b"")
    }

    /// Runs psql with these arguments and this on its stdin.
    pub fn psql_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut psql = Command::new("psql")
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"])
            .arg(format!("--dbname={}", self.url))
            .args(arguments)
            .env_remove("PGOPTIONS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql is installed");
        let mut stdin = psql.stdin.take().expect("piped");
        thread::scope(|scope| {
            scope.spawn(move || {
                // psql may end before it has read all of it.
                let _ = stdin.write_all(input);
            });
            psql.wait_with_output().expect("psql runs")
        })
    }
}

/// The output of a successful psql, without the last line feed.
pub fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).expect("text").trim_end_matches('\n')
}

/// The SQLSTATE of a result that must be an error of the server.
pub fn sqlstate<T: std::fmt::Debug>(result: Result<T, postgres::Error>) -> String {
    let error = result.expect_err("an error");
    let code = error.code().unwrap_or_else(|| panic!("no error of the server: {error:?}"));
    code.code().to_owned()
}

/// The rows of a simple query, its values joined with `|`.
pub fn rows(client: &mut Client, sql: &str) -> Vec<String> {
    answer(client, sql).expect(sql)
}

/// Waits until a query has these rows, for what the server sends no event about.
///
/// # Panics
/// When it has others for too long.
pub fn wait_for_rows<T: AsRef<str>>(client: &mut Client, sql: &str, expected: &[T]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = rows(client, sql);
        if found.iter().map(String::as_str).eq(expected.iter().map(AsRef::as_ref)) {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}: {found:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The rows of a simple query, its values joined with `|`, or the error.
pub fn answer(client: &mut Client, sql: &str) -> Result<Vec<String>, postgres::Error> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    Ok(client.simple_query(sql)?.into_iter().filter_map(row).collect())
}
