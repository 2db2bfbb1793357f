//! What the operating system knows of a running program (proc(5)).

use std::fs;

/// Bytes of memory that only this process has, without what it has mapped from files.
pub fn anonymous_memory(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5 or later");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// How many threads it has.
pub fn threads(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/task")).expect("it runs").count()
}

/// How many files it has open.
pub fn open_files(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/fd")).expect("it runs").count()
}

/// How many sockets it has open.
pub fn open_sockets(id: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{id}/fd")).expect("it runs");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count()
}
