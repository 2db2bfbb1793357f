//! Sessions on separate threads, so that a test continues while one of them waits.
//!
//! They exchange raw messages, because the driver loses the server's last error when the connection ends directly
//! after it.

use std::{
    collections::HashMap,
    net::TcpStream,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
};

use postgres::{Config, config::Host};

use super::{
    PATIENCE,
    server::Server,
    session::Session,
    wire::{self, Message},
};

/// Counts the locks of other processes, also of those that have ended. The cluster's own processes, such as
/// autovacuum, may have locks at any time.
pub const LOCKS_OF_OTHERS: &str = "select count(*) from pg_locks where pid <> pg_backend_pid() \
    and pid not in (select pid from pg_stat_activity where backend_type <> 'client backend')";

/// The rows of a statement, the values of each joined with `|`, or the failure.
pub type Answer = Result<Vec<String>, Failure>;

/// The server's error, or the end of the connection.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The fields of the last error, by their letter; none if the connection has ended without an error.
    fields: HashMap<char, String>,
    /// Whether the connection has ended.
    pub has_ended: bool,
}

impl Failure {
    /// Its SQLSTATE.
    pub fn sqlstate(&self) -> &str {
        self.field('C')
    }

    /// The field with that letter.
    pub fn field(&self, letter: char) -> &str {
        self.fields.get(&letter).unwrap_or_else(|| panic!("no field {letter}: {self:?}"))
    }
}

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

    /// A session, or the failure to connect.
    pub fn with(config: &Config) -> Result<Self, Failure> {
        let mut session = connect(config);
        finish(&mut session)?;
        let (process_id, _) = session.key();
        let (statements, to_run) = channel::<String>();
        let (answer, answers) = channel();
        // The connection closes when the channel is dropped, or when its statement has ended.
        thread::spawn(move || {
            to_run.iter().try_for_each(|sql| {
                session.query(&sql);
                answer.send(finish(&mut session))
            })
        });
        Ok(Self { process_id, statements, answers })
    }

    /// The SQLSTATE with which a session is refused.
    pub fn refused(config: &Config) -> String {
        Self::with(config).err().expect("no session").sqlstate().to_owned()
    }

    /// Starts a statement (or several, as one simple query) without waiting for it.
    pub fn send(&self, sql: &str) {
        self.statements.send(sql.to_owned()).expect("the thread runs");
    }

    /// Waits for the answer to the oldest unanswered statement.
    pub fn answer(&self) -> Answer {
        self.answers.recv_timeout(PATIENCE).expect("an answer in time")
    }

    /// The rows of the statement that was sent.
    pub fn rows(&self) -> Vec<String> {
        self.answer().expect("no error")
    }

    /// The SQLSTATE of the statement that was sent.
    pub fn error(&self) -> String {
        self.answer().expect_err("an error").sqlstate().to_owned()
    }

    /// Runs a statement; returns its rows.
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

    /// Runs a statement that must fail; returns its SQLSTATE.
    pub fn fail(&self, sql: &str) -> String {
        self.send(sql);
        match self.answer() {
            Ok(rows) => panic!("{sql}: {rows:?}"),
            Err(failure) => failure.sqlstate().to_owned(),
        }
    }

    /// Asserts that the session has ended with that SQLSTATE instead of an answer to the statement that was sent.
    pub fn assert_ended(&self, sqlstate: &str) {
        let failure = self.answer().expect_err("the session has ended");
        assert!(failure.has_ended && failure.sqlstate() == sqlstate, "not {sqlstate}: {failure:?}");
    }

    /// Whether the statement that was sent still runs.
    pub fn is_busy(&self) -> bool {
        self.answers.recv_timeout(std::time::Duration::ZERO).is_err_and(|error| error == RecvTimeoutError::Timeout)
    }

    /// Waits until `other`'s statement waits for a lock, or another event of that type.
    pub fn until_waiting(&self, other: &Self, wait_event_type: &str) {
        let condition = format!("wait_event_type = '{wait_event_type}' from pg_stat_activity");
        self.until(&format!("select {condition} where pid = {} and state = 'active'", other.process_id));
    }

    /// Waits until the server has that number of client backends.
    pub fn until_sessions(&self, count: usize) {
        let client_backends = "from pg_stat_activity where backend_type = 'client backend'";
        self.until(&format!("select count(*) = {count} {client_backends}"));
    }

    /// Waits until the backend of that process id is running a statement.
    pub fn until_active(&self, process_id: i32) {
        self.until_active_and(process_id, "true");
    }

    /// Waits until the backend of that process id is running a statement and its row in `pg_stat_activity` meets the
    /// condition.
    pub fn until_active_and(&self, process_id: i32, condition: &str) {
        self.until(&format!("select state = 'active' and {condition} from pg_stat_activity where pid = {process_id}"));
    }

    /// Repeats the query until it returns true.
    pub fn until(&self, sql: &str) {
        let started = std::time::Instant::now();
        while self.run(sql) != ["t"] {
            assert!(started.elapsed() < PATIENCE, "never true: {sql}");
            thread::yield_now();
        }
    }
}

/// A connection on which the startup message was sent.
fn connect(config: &Config) -> Session {
    let ([Host::Tcp(host)], [port]) = (config.get_hosts(), config.get_ports()) else { panic!("no TCP: {config:?}") };
    let stream = TcpStream::connect((host.as_str(), *port)).expect("it listens");
    stream.set_nodelay(true).expect("an option");
    let mut session = Session::new(stream);
    let parameters = [
        ("user", config.get_user()),
        ("database", config.get_dbname()),
        ("options", config.get_options()),
        ("application_name", config.get_application_name()),
        ("client_encoding", Some("UTF8")),
    ];
    let given: Vec<_> = parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    session.send(&wire::startup(&given));
    session
}

/// Reads the server's messages up to `ReadyForQuery`, or up to the end of the connection.
fn finish(session: &mut Session) -> Answer {
    let (mut rows, mut error) = (Vec::new(), None);
    loop {
        let message = session.next();
        match message.as_ref().map(|message| message.kind) {
            Some(b'D') => rows.extend(message.map(|row| row.values().join("|"))),
            Some(b'E') => error = message,
            Some(b'Z') if error.is_none() => return Ok(rows),
            Some(b'Z') | None => {
                let fields = error.as_ref().map(Message::fields).unwrap_or_default();
                return Err(Failure { fields, has_ended: message.is_none() });
            }
            Some(_) => {}
        }
    }
}
