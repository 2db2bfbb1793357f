//! `pglite-port serve`, with sessions that are not PostgreSQL: addresses, sockets, ends.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, mpsc::channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use pglite_port::{
    client::{Client, Interest, write_all},
    connection::STARTUP_TIMEOUT,
    protocol::error_response::ErrorResponse,
    serve::{self, Listener},
    session::{Mode, SessionEnd, SessionStart, cancel::Interrupt},
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit};
use support::{
    PATIENCE,
    fake::{Fake, echo, read_some},
    process,
    program::Program,
    wire,
};

/// A listener in this process, stopped when dropped.
struct Server {
    url: String,
    signals: crossbeam_channel::Sender<()>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    fn listen(address: &str) -> Self {
        let (signals, receiver) = crossbeam_channel::unbounded();
        let (ready, urls) = channel();
        let listener = Listener::bind(address, None).expect("a free address");
        let run = move || {
            serve::start(listener, Mode::Shared, None, STARTUP_TIMEOUT)?.run(
                Arc::new(Fake(behave)),
                serve::GRACE,
                &receiver,
                |url| {
                    ready.send(url.to_owned()).expect("the test waits");
                },
            )
        };
        let thread = Some(thread::spawn(run));
        Self { url: urls.recv_timeout(PATIENCE).expect("ready"), signals, thread }
    }

    fn on_a_free_port() -> Self {
        Self::listen("127.0.0.1:0")
    }

    /// Connects and sends the startup message for a user.
    fn start(&self, user: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&wire::startup(&[("user", user)])).expect("connected");
        stream
    }

    fn connect(&self) -> TcpStream {
        connect_to(address(&self.url))
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.signals.send(()).expect("it runs");
            thread.join().expect("no panic").expect("an orderly end");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn behave(request: &SessionStart<'_>, client: &mut dyn Client) -> SessionEnd {
    let waker = client.waker();
    let (sender, terminated) = channel();
    let _registration = request.control.register(1, b"key", move |interrupt| {
        if matches!(interrupt, Interrupt::Terminate | Interrupt::ShutDown) {
            // The session may have ended meanwhile.
            let _ = sender.send(());
        }
        waker.wake();
    });
    match request.startup.user.as_slice() {
        b"echo" => echo(client),
        b"flood" => {
            let written = write_all(client, &vec![b'x'; 64 << 20]);
            written.map_or(SessionEnd::ClientGone, |()| SessionEnd::Orderly)
        }
        b"until told" => {
            write_all(client, b"1\0\0\0\x04").expect("connected");
            while terminated.try_recv().is_err() {
                client.wait(Interest::Nothing, None);
            }
            SessionEnd::Refused(ErrorResponse::fatal("57P01", "told to go"))
        }
        b"once" => {
            let bytes = read_some(client);
            write_all(client, &bytes).expect("connected");
            SessionEnd::Orderly
        }
        other => panic!("no behaviour for {other:?}"),
    }
}

/// Host and port in the URL of a TCP listener.
fn address(url: &str) -> &str {
    let rest = url.strip_prefix("postgresql://postgres@").expect(url);
    rest.strip_suffix("/postgres").expect(url)
}

fn connect_to(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn read_exactly(stream: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("so many bytes");
    bytes
}

fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    bytes
}

/// The program itself, on that address. In this mode it has nothing to say about a cluster.
fn serve(address: &str) -> Program {
    Program::spawn(&["serve", "--mode", "isolated", "--listen", address])
}

#[test]
fn bytes_go_in_and_come_out_of_a_tcp_socket_after_encryption_was_refused() {
    let server = Server::on_a_free_port();
    let mut stream = server.connect();
    stream.write_all(&wire::ssl_request()).expect("connected");
    assert_eq!(read_exactly(&mut stream, 1), b"N");
    stream.write_all(&wire::startup(&[("user", "echo")])).expect("connected");
    for round in 0..1000_u32 {
        stream.write_all(&round.to_be_bytes()).expect("connected");
        assert_eq!(read_exactly(&mut stream, 4), round.to_be_bytes());
    }
}

#[test]
fn the_end_of_a_session_is_the_end_of_the_stream() {
    let server = Server::on_a_free_port();
    let mut stream = server.start("once");
    stream.write_all(b"bye").expect("connected");
    assert_eq!(read_to_end(&mut stream), b"bye");
}

#[test]
fn first_bytes_that_are_no_packet_get_no_answer_and_a_line_in_the_log() {
    let mut program = serve("127.0.0.1:0");
    let url = program.first_line();
    for (bytes, why) in wire::STRANGERS {
        let mut stream = connect_to(address(&url));
        stream.write_all(bytes).expect("connected");
        assert_eq!(read_to_end(&mut stream), b"", "{bytes:?}");
        let line = program.stderr_line();
        assert!(line.contains(why), "{line}");
    }
    // Nothing is said about a client that leaves before it has sent anything.
    drop(connect_to(address(&url)));
    let mut stream = connect_to(address(&url));
    stream.write_all(b"\0\0").expect("connected");
    drop(stream);
    let line = program.stderr_line();
    assert!(line.contains("incomplete startup packet"), "{line}");
}

#[test]
fn an_error_arrives_though_what_the_client_has_sent_with_it_was_never_read() {
    let server = Server::on_a_free_port();
    let mut stream = server.connect();
    stream.write_all(&[wire::packet(2 << 16, b"\0"), vec![b'x'; 50_000]].concat()).expect("connected");
    assert_eq!(wire::error(read_to_end(&mut stream))[1], "0A000");
    let mut stream = server.connect();
    stream.write_all(&[b"GET / HTTP/1.1\r\n".as_slice(), &vec![b'x'; 50_000]].concat()).expect("connected");
    // An orderly end, though nobody has read all of it.
    assert_eq!(read_to_end(&mut stream), b"");
}

#[test]
fn a_client_that_does_not_read_holds_up_only_its_own_session() {
    let server = Server::on_a_free_port();
    let mut slow = server.start("flood");
    // Its session is under way, and will be blocked after what the kernel buffers.
    read_exactly(&mut slow, 1);
    let mut quick = server.start("echo");
    quick.write_all(b"ping").expect("connected");
    assert_eq!(read_exactly(&mut quick, 4), b"ping");
    assert_eq!(read_to_end(&mut slow).len(), (64 << 20) - 1);
}

#[test]
fn stopping_terminates_sessions_and_those_that_have_not_started() {
    let mut server = Server::on_a_free_port();
    let mut session = server.start("until told");
    assert_eq!(read_exactly(&mut session, 5), b"1\0\0\0\x04");
    let mut hesitant = server.connect();
    hesitant.write_all(&wire::ssl_request()).expect("connected");
    assert_eq!(read_exactly(&mut hesitant, 1), b"N");
    let told =
        thread::spawn(move || [session, hesitant].map(|mut stream| wire::error(read_to_end(&mut stream))[1].clone()));
    server.stop();
    assert_eq!(told.join().expect("read"), ["57P01", "57P01"]);
}

#[test]
fn a_second_signal_does_not_wait_for_sessions() {
    let mut server = Server::on_a_free_port();
    let mut stream = server.start("flood");
    read_exactly(&mut stream, 1);
    server.signals.send(()).expect("it runs");
    // The session is blocked for as long as its client does not read, and this one never will.
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_name_means_the_same_port_on_all_of_its_addresses() {
    let server = Server::listen("localhost:0");
    let (_, port) = server.url.trim_end_matches("/postgres").rsplit_once(':').expect("a port");
    let port: u16 = port.parse().expect("a port");
    let addresses: Vec<_> = ("localhost", port).to_socket_addrs().expect("a name").collect();
    assert_eq!(address(&server.url), addresses[0].to_string());
    for address in addresses {
        let mut stream = connect_to(&address.to_string());
        stream.write_all(&[wire::startup(&[("user", "echo")]), b"hello".to_vec()].concat()).expect("connected");
        assert_eq!(read_exactly(&mut stream, 5), b"hello");
    }
}

#[test]
fn a_unix_socket_is_made_where_it_is_asked_for_and_removed_at_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("my socket");
    let mut server = Server::listen(&format!("unix:{}", path.display()));
    let shown = path.to_str().expect("text").replace(' ', "%20");
    assert_eq!(server.url, format!("postgresql://postgres@/postgres?host={shown}"));
    assert_echo(&path);
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_directory_means_the_name_in_it_that_libpq_expects() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::listen(&format!("unix:{}", directory.path().display()));
    assert_eq!(server.url, format!("postgresql://postgres@/postgres?host={}&port=5432", directory.path().display()));
    assert_echo(&directory.path().join(".s.PGSQL.5432"));
}

fn assert_echo(path: &Path) {
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&wire::startup(&[("user", "echo")])).expect("connected");
    stream.write_all(b"hello").expect("connected");
    assert_eq!(read_exactly(&mut stream, 5), b"hello");
}

#[test]
fn a_socket_file_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(".s.PGSQL.5433");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let server = Server::listen(&format!("unix:{}", path.display()));
    assert_eq!(server.url, format!("postgresql://postgres@/postgres?host={}&port=5433", directory.path().display()));
    assert_echo(&path);
}

/// Runs `serve` on an address that will not do; the one line that it says.
fn refused(address: &str) -> String {
    let (status, stdout, stderr) = serve(address).output();
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{address}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn an_address_that_will_not_do_ends_the_program_with_status_1_and_a_line_that_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    let line = refused(&taken);
    assert!(line.contains(&taken) && line.contains("in use") && line.contains("--listen"), "{line}");
    for address in ["nonsense", "127.0.0.1:70000", "127.0.0.1", "unix:/no/such/directory/socket", "unix:"] {
        let line = refused(address);
        assert!(line.contains("cannot listen on") && line.contains("--listen"), "{line}");
    }
}

#[test]
fn a_path_that_is_taken_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("precious");
    fs::write(&path, "content").expect("a file");
    assert!(refused(&format!("unix:{}", path.display())).contains("is not a socket"));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "content");

    let path = directory.path().join("other");
    let other = UnixListener::bind(&path).expect("a socket");
    assert!(refused(&format!("unix:{}", path.display())).contains("another program"));
    drop(other);
}

#[test]
fn the_program_prints_only_the_url_and_a_signal_ends_it_in_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut program = serve("127.0.0.1:0");
        let url = program.first_line();
        let mut stream = connect_to(address(&url));
        stream.write_all(&wire::ssl_request()).expect("connected");
        assert_eq!(read_exactly(&mut stream, 1), b"N");
        program.signal(signal);
        assert_eq!(wire::error(read_to_end(&mut stream))[1], "57P01");
        let (status, took) = program.wait();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

#[test]
fn clients_that_come_while_there_are_no_files_to_spare_are_served_later() {
    let mut program = serve("127.0.0.1:0");
    let url = program.first_line();
    let address = address(&url);
    // The program has inherited our limits; the hard one cannot be raised again.
    let inherited = getrlimit(Resource::Nofile);
    program.limit(Resource::Nofile, Rlimit { current: Some(0), ..inherited });
    let mut streams = [connect_to(address), connect_to(address)];
    streams.iter_mut().for_each(|stream| stream.write_all(&wire::ssl_request()).expect("connected"));
    assert!(program.stderr_line().contains("clients cannot be accepted"));
    // It tries again and again, and says so once.
    let pauses = || process::pauses(program.id(), "accept");
    let before = pauses();
    while pauses() < before + 3 {
        thread::yield_now();
    }
    program.limit(Resource::Nofile, inherited);
    for stream in &mut streams {
        assert_eq!(read_exactly(stream, 1), b"N");
    }
    let line = program.stderr_line();
    assert!(line.contains("clients are accepted again"), "{line}");
}

/// Asserts that the program ends its sessions and then itself when its listener fails.
fn assert_ends_with_its_listener<S: Read + Write>(listen: &str, connect: impl FnOnce(&str) -> S) {
    let mut program = serve(listen);
    let mut session = connect(&program.first_line());
    session.write_all(&wire::ssl_request()).expect("connected");
    assert_eq!(read_exactly(&mut session, 1), b"N");
    process::shut_listeners_down(program.id());
    assert_eq!(wire::error(read_to_end(&mut session))[1], "57P01", "{listen}");
    assert_eq!(program.wait().0.code(), Some(1), "{listen}");
    let stderr = program.wait_for_stderr();
    let last = stderr.last().expect("why it has ended");
    assert!(last.contains("clients can no longer be accepted: Invalid argument"), "{listen}: {stderr:?}");
}

#[test]
fn a_listener_that_fails_ends_the_program_in_order_with_status_1_and_what_is_wrong() {
    assert_ends_with_its_listener("127.0.0.1:0", |url| connect_to(address(url)));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    assert_ends_with_its_listener(&format!("unix:{}", path.display()), |_| {
        UnixStream::connect(&path).expect("a socket")
    });
    assert!(!path.exists());
}

#[test]
fn wrong_usage_is_status_1_and_help_and_version_are_status_0() {
    assert_eq!(Program::spawn(&["dance"]).output().0, Some(1));
    assert_eq!(Program::spawn(&["port", "--mode", "both"]).output().0, Some(1));
    let (status, stdout, _) = Program::spawn(&["--version"]).output();
    assert_eq!((status, stdout), (Some(0), format!("pglite-port {}\n", env!("CARGO_PKG_VERSION"))));
    let (status, help, _) = Program::spawn(&["serve", "--help"]).output();
    assert_eq!(status, Some(0));
    for option in ["--listen", "--mode", "--pglite-dir", "--cache-dir"] {
        assert!(help.contains(option), "{option}");
    }
}
