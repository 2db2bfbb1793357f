//! The figures of the process, under the names that Prometheus' own client libraries give them, read from `/proc`.

use std::{fs, path::Path, time::Duration};

use rustix::param::{clock_ticks_per_second, page_size};

use super::exposition::{Exposition, Family, Kind};

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

static CPU: Family = Family {
    name: "process_cpu_seconds_total",
    kind: Kind::Counter,
    help: "Processor time of the process, in user mode and in the kernel.",
};
static RESIDENT: Family = gauge("process_resident_memory_bytes", "Resident memory of the process.");
static VIRTUAL: Family = gauge("process_virtual_memory_bytes", "Address space of the process.");
static OPEN: Family = gauge("process_open_fds", "File descriptors that are open.");
static MOST: Family = gauge("process_max_fds", "The limit of open file descriptors.");
static THREADS: Family = gauge("process_threads", "Threads of the process.");
static START: Family = gauge("process_start_time_seconds", "When the process started, in seconds since 1970.");

/// Adds the figures that the operating system provides.
pub(super) fn add(exposition: &mut Exposition) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        let ticks = clock_ticks_per_second();
        exposition.family(&CPU).add_decimal(&[], seconds(stat.processor, ticks));
        exposition.family(&VIRTUAL).add(&[], stat.size);
        exposition.family(&RESIDENT).add(&[], stat.pages * page_size() as u64);
        exposition.family(&THREADS).add(&[], stat.threads);
        if let Some(boot) = boot_time() {
            exposition.family(&START).add_decimal(&[], seconds(boot * ticks + stat.start, ticks));
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory's.
        exposition.family(&OPEN).add(&[], open.count().saturating_sub(1) as u64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        exposition.family(&MOST).add(&[], most);
    }
}

/// Ticks of a clock as seconds, to hundredths.
fn seconds(ticks: u64, a_second: u64) -> f64 {
    let hundredths = ticks.saturating_mul(100) / a_second.max(1);
    Duration::from_millis(hundredths.saturating_mul(10)).as_secs_f64()
}

/// Fields of `/proc/self/stat` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// In ticks.
    processor: u64,
    threads: u64,
    /// In ticks since the system started.
    start: u64,
    /// In bytes.
    size: u64,
    pages: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The name of the program, in parentheses, may contain spaces and parentheses. The field after it is the third.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            processor: field(14)? + field(15)?,
            threads: field(20)?,
            start: field(22)?,
            size: field(23)?,
            pages: field(24)?,
        })
    }
}

/// When the system started, in seconds since 1970.
fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc/stat")).ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 17 0 900 4096 3 18446744073709551615";
        let expected = Stat { processor: 175, threads: 17, start: 900, size: 4096, pages: 3 };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse("42 (a) S"), None);
        assert!((seconds(175, 100) - 1.75).abs() < 1e-9);
    }
}
