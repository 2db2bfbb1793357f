//! The screen as text: a line about the program, one about the process, and a table of clusters.

use std::time::Duration;

use pglite_port::metrics::Scrape;

/// A cluster's name and its labels.
struct Row {
    name: String,
    labels: [(&'static str, String); 2],
}

/// The name of all clusters of single connections. Names of clusters are not in parentheses by themselves.
const ISOLATED: &str = "(isolated)";

/// The width of names.
const NAME: usize = 13;

/// The widths of the other columns; with the spaces between them, a row has 80 characters.
const WIDTHS: [usize; 11] = [4, 3, 6, 5, 5, 6, 6, 6, 6, 5, 4];

/// The lines of the screen: what `now` says, and how fast it has changed since `before`.
pub(crate) fn lines(address: &str, before: &Scrape, now: &Scrape) -> Vec<String> {
    let elapsed = now.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
    let rate = |name: &str, labels: &[(&str, &str)]| {
        let grown = now.sum(name, labels).unwrap_or(0.0) - before.sum(name, labels).unwrap_or(0.0);
        grown.max(0.0) / elapsed
    };
    let value = |name: &str| now.sum(name, &[]).unwrap_or(0.0);
    let mut lines = vec![head(address, now), String::new(), String::new()];
    lines[1] = format!(
        "cpu {:.0}%   memory {}   threads {}   files {}   cache {}   warm {}",
        100.0 * rate("process_cpu_seconds_total", &[]),
        match now.sum("pglite_port_memory_limit_bytes", &[]) {
            Some(limit) => format!("{} of {}", bytes(value("process_resident_memory_bytes")), bytes(limit)),
            None => bytes(value("process_resident_memory_bytes")),
        },
        value("process_threads"),
        value("process_open_fds"),
        bytes(value("pglite_port_cache_bytes")),
        value("pglite_port_warm_clones"),
    );
    let heads = ["SESS", "ACT", "COM/s", "RB/s", "ERR/s", "IN/s", "OUT/s", "MEMORY", "TURN/s", "WAIT", "HIT%"];
    lines.push(line("CLUSTER", &heads.map(str::to_owned)));
    let mut rows: Vec<(f64, String)> = rows(now)
        .into_iter()
        .map(|row| {
            let labels = row.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
            let active = [labels[0], labels[1], ("state", "active")];
            let wait = rate("pglite_port_turn_wait_seconds_sum", &labels)
                / rate("pglite_port_turn_wait_seconds_count", &labels);
            let (hit, read) = (rate("pg_stat_database_blks_hit", &labels), rate("pg_stat_database_blks_read", &labels));
            let commits = rate("pg_stat_database_xact_commit", &labels);
            let cells = [
                now.sum("pg_stat_activity_count", &labels).unwrap_or(0.0).to_string(),
                now.sum("pg_stat_activity_count", &active).unwrap_or(0.0).to_string(),
                number(commits),
                number(rate("pg_stat_database_xact_rollback", &labels)),
                number(rate("pglite_port_errors_total", &labels)),
                bytes(rate("pglite_port_received_bytes_total", &labels)),
                bytes(rate("pglite_port_sent_bytes_total", &labels)),
                bytes(memory(now, &row).unwrap_or(0.0)),
                number(rate("pglite_port_turns_total", &labels)),
                if wait.is_finite() { short(wait) } else { "-".to_owned() },
                if hit + read > 0.0 { format!("{:.0}", 100.0 * hit / (hit + read)) } else { "-".to_owned() },
            ];
            (commits, line(&clipped(&row.name), &cells))
        })
        .collect();
    // The busiest first; the others by their names, as they come.
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    lines.extend(rows.into_iter().map(|(_, line)| line));
    lines
}

/// A row of the table, in which `name` is no longer than [`NAME`].
fn line(name: &str, cells: &[String; WIDTHS.len()]) -> String {
    let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!(" {cell:>width$}"));
    format!("{name:NAME$}{}", cells.collect::<String>())
}

/// What the memory of a cluster, or of all of single connections together, counts against limits.
fn memory(now: &Scrape, row: &Row) -> Option<f64> {
    match row.labels[1].1.as_str() {
        "" => now.sum("pglite_port_isolated_memory_bytes", &[("of", "all")]),
        cluster => now.sum("pglite_port_cluster_memory_bytes", &[("cluster", cluster)]),
    }
}

fn head(address: &str, now: &Scrape) -> String {
    let version = now.labels("pglite_port_info").find_map(|labels| labels.get("version"));
    let start = now.sum("process_start_time_seconds", &[]).unwrap_or(0.0);
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
    let up = Duration::try_from_secs_f64(since_1970 - start).unwrap_or_default().as_secs();
    let is_ready = now.sum("pglite_port_ready", &[]) == Some(1.0);
    format!(
        "pglite-port {} at {address}, up {}:{:02}:{:02}, {}",
        version.map_or("?", String::as_str),
        up / 3600,
        up / 60 % 60,
        up % 60,
        if is_ready { "ready" } else { "NOT READY" }
    )
}

/// The clusters: those that take several sessions, and those of single connections if there were any.
fn rows(now: &Scrape) -> Vec<Row> {
    let sessions = "pglite_port_sessions_total";
    now.labels(sessions)
        .map(|labels| {
            let label = |name: &'static str| (name, labels.get(name).cloned().unwrap_or_default());
            let labels = [label("mode"), label("cluster")];
            let is_isolated = labels[1].1.is_empty();
            Row { name: if is_isolated { ISOLATED.to_owned() } else { labels[1].1.clone() }, labels }
        })
        .filter(|row| {
            row.name != ISOLATED || now.sum(sessions, &row.labels.each_ref().map(|(a, b)| (*a, b.as_str()))) > Some(0.0)
        })
        .collect()
}

/// A name that fits, without characters that a terminal would follow.
fn clipped(name: &str) -> String {
    let shown: String = name.chars().map(|it| if it.is_control() { '?' } else { it }).collect();
    if shown.chars().count() <= NAME { shown } else { shown.chars().take(NAME - 1).chain(['…']).collect() }
}

/// A number in at most six characters.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        ..10.0 => format!("{value:.1}"),
        ..100_000.0 => format!("{value:.0}"),
        ..10_000_000.0 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.0}M", value / 1e6),
    }
}

/// A number of bytes in at most six characters, in decimal units.
fn bytes(value: f64) -> String {
    let units = [("", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)];
    let (unit, size) = units.into_iter().rev().find(|(_, size)| value >= *size).unwrap_or(("", 1.0));
    match value / size {
        scaled if unit.is_empty() || scaled >= 99.95 => format!("{scaled:.0}{unit}"),
        scaled => format!("{scaled:.1}{unit}"),
    }
}

/// A number of seconds in at most six characters.
fn short(seconds: f64) -> String {
    match seconds {
        ..0.000_999_5 => format!("{:.0}us", seconds * 1e6),
        ..0.999_5 => format!("{:.0}ms", seconds * 1e3),
        _ => format!("{seconds:.1}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        let numbers = [0.0, 9.94, 10.0, 99_999.0, 100_000.0, 12_345_678.0].map(number);
        assert_eq!(numbers, ["0", "9.9", "10", "99999", "100k", "12M"]);
        let sizes = [0.0, 999.0, 1000.0, 99_900.0, 123_456_789.0, 4.5e12].map(bytes);
        assert_eq!(sizes, ["0", "999", "1.0kB", "99.9kB", "123MB", "4.5TB"]);
        assert_eq!([0.000_25, 0.25, 2.5].map(short), ["250us", "250ms", "2.5s"]);
        assert_eq!([0.000_999_6, 0.999_6].map(short), ["1ms", "1.0s"]);
        assert_eq!(bytes(99_960.0), "100kB");
        assert_eq!(clipped("a\x1b[2J"), "a?[2J");
        assert_eq!(clipped(&"n".repeat(63)).chars().count(), NAME);
    }
}
