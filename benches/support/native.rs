//! Native `PostgreSQL`, and pgbench, for comparison.

// Every benchmark that has this file compiles it, and none uses all of it.
#![allow(dead_code, unreachable_pub)]

use std::{
    env, fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use crate::support::{PATIENCE, process};

/// The environment variable with the directory of a server's programs, if it is not one of Debian's packages.
const PROGRAMS: &str = "PGLITE_PORT_BENCH_POSTGRES";

/// A server with a new cluster; dropping it ends it and removes the cluster.
pub struct Native {
    server: Child,
    /// The directory of its programs, if it is not the one that is installed.
    programs: Option<PathBuf>,
    settings: Vec<String>,
    pub url: String,
    pub name: String,
    directory: tempfile::TempDir,
}

impl Native {
    /// Starts one with these settings.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_from(env::var_os(PROGRAMS).map(PathBuf::from), settings)
    }

    /// Starts one of version 18 with these settings.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_18(settings: &[&str]) -> Self {
        Self::start_from(Some(programs_18()), settings)
    }

    fn start_from(programs: Option<PathBuf>, settings: &[&str]) -> Self {
        let directory = new_directory();
        give_away(directory.path());
        let version =
            server_program(programs.as_deref(), "postgres").arg("--version").output().expect("PostgreSQL is installed");
        let version = String::from_utf8_lossy(&version.stdout).split_ascii_whitespace().nth(2).map(str::to_owned);
        let status = unprivileged(programs.as_deref(), "initdb")
            .args(["--auth=trust", "--username=postgres", "--data-checksums", "--no-locale", "--encoding=UTF8"])
            .arg("--pgdata")
            .arg(directory.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(status.expect("initdb is installed").success());
        // Clients of both servers come over TCP, which takes longer than a unix socket.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let mut settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        settings.push(format!("port={port}"));
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
        let server = spawn(programs.as_deref(), directory.path(), &settings);
        let name = format!("PostgreSQL {}", version.unwrap_or_default());
        let native = Self { server, programs, settings, url, name, directory };
        native.wait();
        native
    }

    /// Ends it with that signal, and starts it again. The time until it answers.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self, signal: Signal) -> Duration {
        self.end(signal);
        let start = Instant::now();
        self.server = spawn(self.programs.as_deref(), self.directory.path(), &self.settings);
        self.wait();
        start.elapsed()
    }

    /// Waits until it answers.
    fn wait(&self) {
        let start = Instant::now();
        while self.config().connect(postgres::NoTls).is_err() {
            assert!(start.elapsed() < PATIENCE, "PostgreSQL does not start");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The driver's configuration for it.
    pub fn config(&self) -> postgres::Config {
        self.url.parse().expect("a URL")
    }

    fn end(&mut self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.server), signal);
        let _ = self.server.wait();
        // After SIGKILL its children end when they notice, and keep the directory locked until then.
        thread::sleep(if signal == Signal::KILL { Duration::from_secs(1) } else { Duration::ZERO });
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
        let _ = fs::remove_dir_all(self.directory.path());
    }
}

fn spawn(programs: Option<&Path>, directory: &Path, settings: &[String]) -> Child {
    let socket = format!("unix_socket_directories={}", directory.display());
    let mut command = unprivileged(programs, "postgres");
    command.arg("-D").arg(directory.join("data")).args(["-c", "listen_addresses=127.0.0.1", "-c", &socket]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.stderr(Stdio::null()).spawn().expect("PostgreSQL starts")
}

/// A directory on the disk of this package, because the temporary directory may be in memory.
///
/// # Panics
/// When it cannot be made.
pub fn new_directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Runs `start` with the calling thread, and so all processes that it starts, on that processor.
///
/// # Panics
/// When there is no such processor.
pub fn on_processor<T>(processor: usize, start: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None).expect("this thread");
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one).expect("a processor");
    let started = start();
    sched_setaffinity(None, &all).expect("the processors before");
    started
}

/// Makes pgbench's tables.
///
/// # Panics
/// When pgbench fails.
pub fn initialize(url: &str) {
    pgbench(&["--initialize", "--quiet", "--scale=10"], url);
}

/// Transactions per second of pgbench's standard script in five seconds.
///
/// # Panics
/// When pgbench fails.
pub fn transactions_per_second(url: &str, clients: u32) -> f64 {
    let text = pgbench(&["--time=5", &format!("--client={clients}"), "--protocol=prepared"], url);
    let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).expect("pgbench tells");
    line.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

fn pgbench(arguments: &[&str], url: &str) -> String {
    let output = process::installed("pgbench").args(arguments).arg(url).output().expect("pgbench is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The directory of the programs of version 18, which `make` installs.
///
/// # Panics
/// When they are not installed.
pub fn programs_18() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("postgres-18").join("bin");
    assert!(directory.join("postgres").exists(), "run `make target/postgres-18/bin` first");
    directory
}

fn server_program(programs: Option<&Path>, program: &str) -> Command {
    match programs {
        Some(directory) => Command::new(directory.join(program)),
        None => process::installed(program),
    }
}

/// A command that runs as the user `postgres` if this is root, which must not run a server.
fn unprivileged(programs: Option<&Path>, program: &str) -> Command {
    let mut command = server_program(programs, program);
    if let Some((user, group)) = substitute() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

/// Gives a file or a directory to the user that servers run as.
///
/// # Panics
/// When it is not there.
pub fn give_away(path: &Path) {
    if let Some((user, group)) = substitute() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).expect("root may");
    }
}

/// User and group of `postgres`, if this is root.
fn substitute() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("users");
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("Debian's packages make this user");
    let number = |field| line.split(':').nth(field).and_then(|number| number.parse().ok()).expect("a number");
    Some((number(2), number(3)))
}
