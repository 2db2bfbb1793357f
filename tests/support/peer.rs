//! Clients of the driver on threads of their own, so that a test goes on while one of them waits.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
};

use postgres::{Config, Error, NoTls};

use super::{
    PATIENCE,
    server::{self, Server},
};

/// The rows of a statement, the values of each joined with `|`, or the error.
pub type Answer = Result<Vec<String>, Error>;

/// One of several sessions of a test.
pub struct Peer {
    /// The process id of its backend.
    pub process_id: i32,
    statements: Sender<String>,
    answers: Receiver<Answer>,
}

impl Peer {
    /// A session of the superuser in the database `postgres`.
    pub fn connect(server: &Server) -> Self {
        Self::with(&server.config()).expect("a session")
    }

    /// A server in `shared` mode, and two sessions of it.
    pub fn two() -> (Server, Self, Self) {
        let server = Server::shared();
        let (one, two) = (Self::connect(&server), Self::connect(&server));
        (server, one, two)
    }

    /// A session of that user in that database.
    pub fn of(server: &Server, user: &str, database: &str) -> Self {
        Self::with(server.config().user(user).dbname(database)).expect("a session")
    }

    /// A session, or why there is none.
    pub fn with(config: &Config) -> Result<Self, Error> {
        let mut client = config.connect(NoTls)?;
        let process_id = client.query_one("select pg_backend_pid()", &[])?.get(0);
        let (statements, to_run) = channel::<String>();
        let (answer, answers) = channel();
        // The connection closes when this is dropped, or when its statement has ended.
        thread::spawn(move || to_run.iter().try_for_each(|sql| answer.send(server::answer(&mut client, &sql))));
        Ok(Self { process_id, statements, answers })
    }

    /// Starts a statement (or several, as one simple query) and does not wait for it.
    pub fn send(&self, sql: &str) {
        self.statements.send(sql.to_owned()).expect("the thread runs");
    }

    /// Waits for the answer to the oldest statement that was not answered yet.
    pub fn answer(&self) -> Answer {
        self.answers.recv_timeout(PATIENCE).expect("an answer in time")
    }

    /// The rows of the statement that was sent.
    pub fn rows(&self) -> Vec<String> {
        self.answer().expect("no error")
    }

    /// The SQLSTATE of the statement that was sent.
    pub fn error(&self) -> String {
        code(&self.answer().expect_err("an error"))
    }

    /// Runs a statement; its rows.
    pub fn run(&self, sql: &str) -> Vec<String> {
        self.send(sql);
        self.answer().unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// Runs a statement of one row of one value.
    pub fn value(&self, sql: &str) -> String {
        let rows = self.run(sql);
        let [value] = &rows[..] else { panic!("{sql}: {rows:?}") };
        value.clone()
    }

    /// Runs a statement that has to fail; its SQLSTATE.
    pub fn fail(&self, sql: &str) -> String {
        self.send(sql);
        match self.answer() {
            Ok(rows) => panic!("{sql}: {rows:?}"),
            Err(error) => code(&error),
        }
    }

    /// Asserts that the statement that was sent has ended its session with that SQLSTATE.
    ///
    /// The driver loses the last message if the end of the connection comes along with it, so that the raw sessions are where
    /// the code is really looked at.
    pub fn assert_ended(&self, sqlstate: &str) {
        let error = self.answer().expect_err("the session has ended");
        let code = error.code().map_or(sqlstate, |code| code.code());
        assert!(code == sqlstate && (error.is_closed() || error.as_db_error().is_some()), "{error:?}");
    }

    /// Whether the statement that was sent is still under way.
    pub fn is_busy(&self) -> bool {
        self.answers.recv_timeout(std::time::Duration::ZERO).is_err_and(|error| error == RecvTimeoutError::Timeout)
    }

    /// Waits until `other`'s statement waits for a lock, or another event of that type.
    pub fn until_waiting(&self, other: &Self, wait_event_type: &str) {
        let condition = format!("wait_event_type = '{wait_event_type}' from pg_stat_activity");
        self.until(&format!("select {condition} where pid = {} and state = 'active'", other.process_id));
    }

    /// Waits until the server has so many client backends.
    pub fn until_sessions(&self, count: usize) {
        let client_backends = "from pg_stat_activity where backend_type = 'client backend'";
        self.until(&format!("select count(*) = {count} {client_backends}"));
    }

    /// Waits until the backend of that process id is running a statement.
    pub fn until_active(&self, process_id: i32) {
        self.until_active_and(process_id, "true");
    }

    /// Waits until the backend of that process id is running a statement and its row in `pg_stat_activity` meets the condition.
    pub fn until_active_and(&self, process_id: i32, condition: &str) {
        self.until(&format!("select state = 'active' and {condition} from pg_stat_activity where pid = {process_id}"));
    }

    /// Runs the query again and again until it answers true.
    pub fn until(&self, sql: &str) {
        let started = std::time::Instant::now();
        while self.run(sql) != ["t"] {
            assert!(started.elapsed() < PATIENCE, "never true: {sql}");
            thread::yield_now();
        }
    }
}

/// The SQLSTATE of an error of the server.
pub fn code(error: &Error) -> String {
    match error.code() {
        Some(code) => code.code().to_owned(),
        // The driver may lose what the server said last when the connection ends with it.
        None => String::new(),
    }
}
