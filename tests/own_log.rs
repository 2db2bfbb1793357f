//! The program's own log on stderr, which nobody has to read.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use pglite_port::port::frame::{Kind, Options};
use postgres::NoTls;
use rustix::process::{Pid, Signal, kill_process};
use support::{
    PATIENCE,
    port::Port,
    program::Program,
    server::{Server, rows},
    wire,
};
use tempfile::NamedTempFile;

/// A program whose stderr is a pipe that nobody reads until somebody does.
struct Unread(Child);

impl Unread {
    fn spawn(arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_pglite-port"))
            .args(arguments)
            .args(["--cache-dir", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        Self(child)
    }

    fn serve(mode: &str) -> (Self, postgres::Config) {
        let mut program = Self::spawn(&["serve", "--listen", "127.0.0.1:0", "--mode", mode]);
        let mut url = String::new();
        BufReader::new(program.0.stdout.take().expect("piped")).read_line(&mut url).expect("a line");
        (program, url.trim_end().parse().expect("a URL"))
    }

    fn stop(&mut self) -> Duration {
        let started = Instant::now();
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it runs");
        while self.0.try_wait().expect("it is our child").is_none() {
            assert!(started.elapsed() < PATIENCE, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        started.elapsed()
    }

    fn stderr(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stderr.take().expect("taken once")).lines().map_while(Result::ok)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// So many warnings that neither a pipe nor the program can hold them.
fn warn(config: &postgres::Config) -> postgres::Client {
    let mut client = config.connect(NoTls).expect("a session");
    let warnings = "do $$ begin for i in 1..4000 loop raise warning '% %', i, repeat('x', 1500); end loop; end $$";
    client.batch_execute(warnings).expect("it warns");
    client
}

#[test]
fn a_log_that_nobody_reads_stops_no_session_and_not_the_end() {
    for mode in ["shared", "isolated"] {
        let (mut program, config) = Unread::serve(mode);
        let mut client = warn(&config);
        assert_eq!(rows(&mut client, "select 'alive'"), ["alive"], "{mode}");
        let mut other = config.connect(NoTls).expect("a session");
        assert_eq!(rows(&mut other, "select 'alive'"), ["alive"], "{mode}");
        let took = program.stop();
        assert!(took < Duration::from_secs(5), "{mode}: {took:?}");
    }
}

#[test]
fn lines_that_found_no_room_are_counted_and_the_count_is_told_when_there_is_room_again() {
    for mode in ["shared", "isolated"] {
        let (mut program, config) = Unread::serve(mode);
        let _client = warn(&config);
        let (sender, stderr) = channel();
        let mut unread = program.stderr();
        thread::spawn(move || unread.try_for_each(|line| sender.send(line)));
        let (mut lines, mut dropped) = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        while lines + dropped < 4000 {
            let line = stderr.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("{mode}: {lines} lines, {dropped} dropped: {error}"));
            if line.contains("xxxxxxxxxx") {
                lines += 1;
            } else if let Some(count) = line.strip_suffix(" log lines were dropped because stderr was not read") {
                let count = count.strip_prefix("pglite-port: ").expect("a line of the program itself");
                dropped += count.parse::<u32>().expect("a count");
            }
        }
        assert!(lines > 100 && dropped > 0, "{mode}: {lines} lines, {dropped} dropped");
        assert_eq!(lines + dropped, 4000, "{mode}: {lines} lines, {dropped} dropped");
    }
}

#[test]
fn the_last_words_before_an_exit_are_written() {
    let (status, _, stderr) = Program::spawn(&["serve", "--listen", "nonsense"]).output();
    assert_eq!(status, Some(1));
    assert!(stderr.starts_with("pglite-port: cannot listen on"), "{stderr}");

    let mut program = Unread::spawn(&["port"]);
    let mut stdin = program.0.stdin.take().expect("piped");
    stdin.write_all(&wire::packet(0xffff_ffff, b"")).expect("it reads");
    assert_eq!(program.0.wait().expect("it ends").code(), Some(2));
    let mut stderr = String::new();
    program.0.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert!(stderr.contains("pglite-port: malformed frame at byte 0"), "{stderr}");
}

/// What a client or a server may say to forge lines of the log, or to command a terminal.
const HOSTILE: &str = "evil\x1b[31m\rFORGED\u{9b}2J\nFORGED \u{202e}\x07";
/// Its beginning, as it is shown.
const ESCAPED: &str = r"evil\x1b[31m\x0dFORGED\x9b2J";

/// Asserts that lines of the log on stderr are clean, and that the hostile text has come to it by each of these paths:
/// a line has what is said of the path, and then that text.
fn assert_clean(lines: &[String], paths: &[&str], of: &str) {
    let is_clean = |line: &String| !line.contains(|it: char| it.is_control() && it != '\t' || it == '\u{202e}');
    assert!(lines.iter().all(is_clean), "{of}: {lines:#?}");
    // An entry begins with the time or the program's name, what belongs to it with a tab or a space.
    let is_entry = |line: &String| line.starts_with(|it: char| it.is_ascii_digit() || it == '\t' || it == ' ');
    assert!(lines.iter().all(|line| is_entry(line) || line.starts_with("pglite-port: ")), "{of}: {lines:#?}");
    for path in paths {
        let text = format!("{path}{ESCAPED}");
        assert!(lines.iter().any(|line| line.contains(&text)), "{of}: {text}: {lines:#?}");
    }
}

#[test]
fn nothing_that_a_client_chooses_makes_a_line_of_the_log_or_moves_a_cursor() {
    for mode in ["shared", "isolated"] {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--mode", mode];
        let server = Server::of(Program::spawn_logging("pglite_port=debug", &arguments));
        for (user, database, cluster) in [
            ("postgres", HOSTILE, None),
            (HOSTILE, "postgres", None),
            ("postgres", "postgres", Some(HOSTILE)),
            ("postgres", "postgres", None),
        ] {
            let mut parameters = vec![("user", user), ("database", database), ("application_name", HOSTILE)];
            parameters.extend(cluster.map(|name| ("pglite.cluster", name)));
            let mut session = server.unready_session(&parameters);
            session.send(&wire::query(&format!("load '{HOSTILE}'")));
            session
                .send(&wire::query(&format!("do $$ begin raise warning '{HOSTILE}' using hint = '{HOSTILE}'; end $$")));
            session.send(&wire::query(&format!("copy (select 1) to program '{HOSTILE}'")));
            session.send(&wire::message(b'X', b""));
            session.until_closed();
        }
        let lines = server.stop();
        let by_mode = match mode {
            // PostgreSQL looks the database up.
            "shared" => "FATAL:  database \"",
            _ => "report=FATAL 3D000: database \"",
        };
        let paths = [
            by_mode,
            // Fields of the program's own lines.
            "report=FATAL 3D000: cluster \"",
            // Reports of PostgreSQL, and what belongs to them.
            "FATAL:  role \"",
            "ERROR:  could not access file \"",
            "\tSTATEMENT:  load '",
            "WARNING:  ",
            "\tHINT:  ",
        ];
        assert_clean(&lines, &paths, mode);
        // The text of the program's own lines, in quotation marks.
        let own = r#"PostgreSQL tried to write to "evil\u{1b}[31m\rFORGED\u{9b}2J\nFORGED \u{202e}"#;
        assert!(lines.iter().any(|line| line.contains(own)), "{mode}: {lines:#?}");
    }
}

#[test]
fn nothing_that_a_server_answers_to_a_command_makes_a_line_of_the_log_or_moves_a_cursor() {
    let server = Server::start();
    let file = NamedTempFile::new().expect("a file");
    let warning = format!("do $$ begin raise warning '{HOSTILE}'; end $$;");
    fs::write(file.path(), format!("{warning}\nselect * from \"{HOSTILE}\";\n")).expect("a disk");
    let (status, _, stderr) = Program::spawn(&["run", file.path().to_str().expect("text"), &server.url]).output();
    assert_eq!(status, Some(3), "{stderr}");
    let lines: Vec<_> = stderr.lines().map(str::to_owned).collect();
    assert_clean(&lines, &["WARNING: ", "ERROR: relation \""], "run");
}

#[test]
fn log_frames_have_no_characters_for_a_terminal_in_them_either() {
    for mode in ["shared", "isolated"] {
        let mut port = Port::spawn(&["--mode", mode]);
        port.start(1, "postgres");
        port.data(1, &wire::query(&format!("do $$ begin raise warning '{HOSTILE}' using hint = '{HOSTILE}'; end $$")));
        port.data(1, &wire::query(&format!("load '{HOSTILE}'")));
        // Each is one frame, with all that belongs to it.
        let mut expected = vec!["WARNING:  ", "HINT:  ", "ERROR:  could not access file \"", "STATEMENT:  load '"];
        while !expected.is_empty() {
            let frame = port.next();
            if frame.kind != Kind::Log {
                continue;
            }
            let options = frame.options();
            let text = options.get("text").expect("a text");
            assert!(!text.contains(|it: char| it.is_control() && !"\t\n".contains(it) || it == '\u{202e}'), "{text:?}");
            expected.retain(|path| !text.contains(&format!("{path}{ESCAPED}\n\tFORGED")));
        }
        // The parent's lines on stderr are those of the program itself.
        port.send_frame(Kind::Open, 2, &Options::new().with("cluster", HOSTILE).to_bytes());
        port.data(2, &wire::startup(&[("user", "postgres")]));
        while let frame = port.next()
            && (frame.kind, frame.id) != (Kind::Close, 2)
        {}
        port.end_input();
        assert_clean(&port.stderr(), &["report=FATAL 3D000: cluster \""], mode);
    }
}
