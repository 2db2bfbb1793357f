//! The built program, run as a child that is killed at the end of its test.

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use super::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pglite-port");

/// A running `pglite-port`; dropping it kills it.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Receiver<String>,
}

impl Program {
    /// Runs it with these arguments.
    pub fn spawn(arguments: &[&str]) -> Self {
        Self::run(Command::new(PROGRAM), arguments)
    }

    /// Runs the copy of it at `path` with these arguments; it finds PGlite's files by itself.
    pub fn spawn_copy(path: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(path);
        command.env_remove("PGLITE_DIR").current_dir("/");
        Self::run(command, arguments)
    }

    /// Runs it with these arguments in the control group whose processes are in the file `processes`.
    pub fn spawn_within(processes: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).args([processes, Path::new(PROGRAM)]);
        Self::run(command, arguments)
    }

    /// Runs it with these arguments and that soft limit of open files.
    pub fn spawn_with_few_files(files: u64, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n \"$0\" && exec \"$@\"", &files.to_string(), PROGRAM]);
        Self::run(command, arguments)
    }

    /// Runs it with these arguments as systemd does that has opened `socket` for it.
    pub fn spawn_activated(socket: OwnedFd, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "exec env LISTEN_FDS=1 LISTEN_PID=$$ \"$@\" 3<&0 < /dev/null", "sh", PROGRAM]);
        Self::run_with(command, Stdio::from(socket), arguments)
    }

    /// Runs it with these arguments and with this filter for its log in the place of `info`.
    pub fn spawn_logging(filter: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("env");
        command.args([&format!("PGLITE_PORT_LOG={filter}"), PROGRAM]);
        Self::run(command, arguments)
    }

    fn run(command: Command, arguments: &[&str]) -> Self {
        Self::run_with(command, Stdio::piped(), arguments)
    }

    fn run_with(mut command: Command, stdin: Stdio, arguments: &[&str]) -> Self {
        // One cache for all tests, so that only the first test compiles.
        let cache = ["--cache-dir", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache")];
        let cache: &[&str] = if arguments.contains(&cache[0]) { &[] } else { &cache };
        let mut child = command
            // First, because `dump` takes what is behind it for options of pg_dump.
            .args(cache)
            .args(arguments)
            .env("PGLITE_PORT_LOG", "info")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (lines, stderr) = channel();
        let reader = BufReader::new(child.stderr.take().expect("piped"));
        thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Self { child, stdin, stdout, stderr }
    }

    /// Runs it with these arguments until it ends with success; what it wrote to stderr.
    pub fn succeed(arguments: &[&str]) -> String {
        let (status, _, stderr) = Self::spawn(arguments).output();
        assert_eq!(status, Some(0), "{arguments:?}: {stderr}");
        stderr
    }

    /// Runs it with these arguments until it ends with an error; what it wrote to stderr.
    pub fn fail(arguments: &[&str]) -> String {
        Self::fail_with(1, arguments)
    }

    /// Runs it, and returns its stderr when it has ended with that exit status and nothing on stdout.
    pub fn fail_with(expected: i32, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = Self::spawn(arguments).output();
        assert_eq!((status, stdout.as_str()), (Some(expected), ""), "{arguments:?}: {stderr}");
        stderr
    }

    /// Its stdin; can be taken once.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("taken once")
    }

    /// Its stdout; can be taken once.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("taken once")
    }

    /// The first line on its stdout, without its line feed.
    pub fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.take_stdout()).read_line(&mut line).expect("a line");
        line.trim_end_matches('\n').to_owned()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Sets a resource limit.
    pub fn limit(&self, resource: Resource, limit: Rlimit) {
        prlimit(Some(Pid::from_child(&self.child)), resource, limit).expect("it runs");
    }

    /// The next line that it writes to stderr.
    pub fn stderr_line(&self) -> String {
        self.stderr.recv_timeout(PATIENCE).expect("a line")
    }

    /// Waits for its end; returns its status and how long it took.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        // The standard library has no wait for a child with a deadline.
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return (status, started.elapsed());
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the program did not end");
    }

    /// Waits for its end and returns the lines that it wrote to stderr.
    pub fn wait_for_stderr(&mut self) -> Vec<String> {
        self.wait();
        self.stderr.iter().collect()
    }

    /// Waits for its end and returns exit status, stdout and stderr.
    pub fn output(&mut self) -> (Option<i32>, String, String) {
        drop(self.stdin.take());
        let mut stdout = String::new();
        self.take_stdout().read_to_string(&mut stdout).expect("text");
        let (status, _) = self.wait();
        (status.code(), stdout, self.stderr.iter().collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if it has ended already, which does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
