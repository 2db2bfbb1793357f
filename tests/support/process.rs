//! Facts about a running program from the operating system (proc(5)).

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use rustix::{
    net::{Shutdown, shutdown, sockopt::socket_acceptconn},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

/// Bytes of private memory, without mapped files.
pub fn anonymous_memory(id: u32) -> u64 {
    bytes(&format!("/proc/{id}/status"), "RssAnon")
}

/// The maximum of its resident memory in bytes since [`forget_most_memory`].
pub fn most_memory(id: u32) -> u64 {
    bytes(&format!("/proc/{id}/status"), "VmHWM")
}

/// Resets [`most_memory`] to the current value.
pub fn forget_most_memory(id: u32) {
    fs::write(format!("/proc/{id}/clear_refs"), "5").expect("it runs, on Linux 4.0 or later");
}

/// The value of a field in kB (1,024 bytes) of one of proc(5)'s files, in bytes.
pub fn bytes(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).expect("it runs, on Linux 4.5 or later");
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect(field);
    value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// A program of `PostgreSQL`, which may not be in Debian's PATH.
pub fn installed(program: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(program)).collect();
    found.retain(|path| path.exists());
    Command::new(found.pop().unwrap_or_else(|| program.into()))
}

/// The number of its threads.
pub fn threads(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/task")).expect("it runs").count()
}

/// The number of its open files.
pub fn open_files(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/fd")).expect("it runs").count()
}

/// The number of its memory mappings, which the system limits (`vm.max_map_count`).
pub fn mappings(id: u32) -> usize {
    fs::read_to_string(format!("/proc/{id}/maps")).expect("it runs").lines().count()
}

/// The number of its open sockets.
pub fn open_sockets(id: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{id}/fd")).expect("it runs");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count()
}

/// The number of times its thread with that name has gone to sleep.
pub fn pauses(id: u32, thread: &str) -> u64 {
    all_pauses(id).into_iter().find_map(|((_, name), count)| (name == thread).then_some(count)).expect(thread)
}

/// The numbers of times its threads have gone to sleep, by their ids and names.
pub fn all_pauses(id: u32) -> BTreeMap<(String, String), u64> {
    let field = |status: &str, name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).expect(name);
        value.to_owned()
    };
    let threads = fs::read_dir(format!("/proc/{id}/task")).expect("it runs").flatten();
    // A thread may have ended since.
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let pauses = |status: String| {
        let count = field(&status, "voluntary_ctxt_switches").parse().expect("a number");
        ((field(&status, "Pid"), field(&status, "Name")), count)
    };
    statuses.map(pauses).collect()
}

/// Makes all of its listening sockets fail.
pub fn shut_listeners_down(id: u32) {
    let pid = Pid::from_raw(id.try_into().expect("a process id")).expect("a process id");
    let program = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    for entry in fs::read_dir(format!("/proc/{id}/fd")).expect("it runs").flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
        let file = pidfd_getfd(&program, number, PidfdGetfdFlags::empty()).expect("its parent may have it");
        if socket_acceptconn(&file) == Ok(true) {
            shutdown(&file, Shutdown::Both).expect("it listens");
        }
    }
}
