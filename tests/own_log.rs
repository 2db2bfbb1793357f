//! The program's own log on stderr, which nobody has to read.

mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use postgres::NoTls;
use rustix::process::{Pid, Signal, kill_process};
use support::{PATIENCE, program::Program, server::rows, wire};

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
